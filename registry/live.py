"""What a sandbox has in this process and not in the file: its StopCh and its container.

One `Live` for each creation, shared by all handles of all Stores of one engine. It outlives the
handles, since a StopCh that is set stays so; after a deletion it is kept for a while, for a reader
that found the sandbox just before.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Final, Protocol
from weakref import WeakKeyDictionary

from registry.engine import Engine
from registry.waiting import Sleepers

BURIED: Final = 1024
"""Deleted sandboxes whose `Live` is still known."""


class Container(Protocol):
    """What runs as the init process of a sandbox, as the embedder knows it."""

    id: str

    def pid(self) -> int | None:
        """Return the pid of the running init process; None when there is no task."""


class StopCh:
    """Says that a sandbox has stopped; once set it stays so.

    Source: containerd pkg/store, StopCh.
    """

    __slots__ = ("_is_set", "_sleepers")

    def __init__(self) -> None:
        """Begin unset."""
        self._is_set = False
        self._sleepers = Sleepers()

    def stop(self) -> None:
        """Set it; a second time does nothing."""
        self._is_set = True
        self._sleepers.wake()

    def is_set(self) -> bool:
        """Whether the sandbox has stopped."""
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has, at most *timeout* seconds, and tell whether it has."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._sleepers.wait(self.is_set, deadline)


class Live:
    """What one creation of a sandbox has in this process."""

    __slots__ = ("container", "stopped")

    def __init__(self) -> None:
        """Begin running, without a container."""
        self.stopped = StopCh()
        self.container: Container | None = None


class Lives:
    """Every `Live` of one engine, by creation."""

    def __init__(self) -> None:
        """Begin with none."""
        self._of: dict[int, Live] = {}
        self._buried: deque[int] = deque()

    def of(self, creation: int) -> Live:
        """Return the one of *creation*, made when it is first asked for."""
        live = self._of.get(creation)
        # setdefault is one step for all threads; the look before it spares making one in vain.
        return self._of.setdefault(creation, Live()) if live is None else live

    def any(self) -> bool:
        """Whether there is one of a sandbox that is not known to be deleted."""
        return len(self._of) > len(self._buried)

    def bury(self, creation: int) -> None:
        """Stop a deleted sandbox, and forget it when enough others have been deleted after it."""
        self.of(creation).stopped.stop()
        self._buried.append(creation)
        if len(self._buried) > BURIED:
            self._of.pop(self._buried.popleft(), None)

    def bury_all_but(self, creations: Iterable[int]) -> None:
        """Stop those that are no longer in the file: another process deleted them."""
        for creation in self._of.keys() - set(creations) - set(self._buried):
            self.bury(creation)


_lives: WeakKeyDictionary[Engine, Lives] = WeakKeyDictionary()


def lives_of(engine: Engine) -> Lives:
    """Return the lives that all Stores on *engine* share."""
    return _lives.setdefault(engine, Lives())
