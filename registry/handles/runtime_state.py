"""Runtime state of sandboxes: objects that live in this process and not in the file.

All handles of all Stores of one file share one `RuntimeState` for each creation. It outlives the
handles, since a StopCh that is set stays so; after a deletion it is kept for a while, for a reader
that found the sandbox just before.

What another process deletes is found out by comparing with the file. Only what has been seen in a
commit can be missing from a later one: a sandbox that is being added right now is in no snapshot of
any other reader, and exists.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from typing import Final, Protocol

from registry.sync.locks import WaitQueue

DELETED_MAX: Final = 1024
"""Deleted sandboxes whose `RuntimeState` is still known."""


class Container(Protocol):
    """Init process of a sandbox, as the embedder knows it."""

    id: str

    def pid(self) -> int | None:
        """Return the pid of the running init process; None when there is no task."""


class StopCh:
    """Says that a sandbox has stopped; once set it stays so.

    Source: containerd pkg/store, StopCh.
    """

    __slots__ = ("__dict__", "_is_set")
    # The dict is for `sleepers`, made by the first who waits: of many sandboxes few are waited for.

    def __init__(self) -> None:
        """Begin unset."""
        self._is_set = False

    def stop(self) -> None:
        """Set it; a second time does nothing."""
        self._is_set = True
        # A thread that begins to wait after this read sees that it is set.
        sleepers = self.__dict__.get("sleepers")
        if sleepers is not None:
            sleepers.wake()

    def is_set(self) -> bool:
        """Return whether the sandbox has stopped."""
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has stopped, at most *timeout* seconds, and return whether it has."""
        deadline = None if timeout is None else time.monotonic() + timeout
        sleepers: WaitQueue = self.__dict__.setdefault("sleepers", WaitQueue())  # one step for all
        return sleepers.wait(self.is_set, deadline)


class RuntimeState:
    """StopCh and container of one creation of a sandbox."""

    __slots__ = ("container", "seen", "stopped")

    def __init__(self) -> None:
        """Begin running, without a container."""
        self.stopped = StopCh()
        self.container: Container | None = None
        self.seen = 0
        """Its place among those that were seen in a commit, from 1 on; 0 before that."""


class RuntimeStates:
    """Every `RuntimeState` of one file, by creation."""

    def __init__(self) -> None:
        """Begin with none."""
        self.users: Final[set[object]] = set()
        """Those that have it open."""
        self._of: dict[int, RuntimeState] = {}
        self._pending: set[int] = set()
        """Creations in a transaction that has not ended."""
        self._bound = DELETED_MAX
        """How many there may be until deletions in other processes are looked for."""
        self._deleted: dict[int, None] = {}
        self._counting = threading.Lock()
        self.seen = 0
        """How many have been seen in a commit."""
        self.watermark = 0
        """Up to which transition it is known what became of them."""
        self.resets = 0
        """How often that was less than it had been: what was answered before has to be read again.
        """

    def of(self, creation: int) -> RuntimeState:
        """Return the one of *creation*, made when it is first asked for."""
        live = self._of.get(creation)
        # setdefault is one step for all threads; the look before it spares making one in vain.
        return self._of.setdefault(creation, RuntimeState()) if live is None else live

    def known(self, creation: int) -> bool:
        """Return whether the runtime state of *creation* was requested in this process."""
        return creation in self._of

    def begin(self, creation: int) -> None:
        """Note that a transaction makes *creation*, which is in no commit before that ends."""
        self._pending.add(creation)

    def end(self, creation: int) -> None:
        """Note that the transaction has ended; what it did not commit leaves nothing here."""
        self._pending.discard(creation)
        if not self.was_seen(creation):
            self._of.pop(creation, None)

    def is_pending(self, creation: int) -> bool:
        """Return whether *creation* may be in no commit."""
        return creation in self._pending

    def was_seen(self, creation: int) -> bool:
        """Return whether *creation* was seen in a commit, and is still known."""
        live = self._of.get(creation)
        return live is not None and live.seen > 0

    def are_many(self) -> bool:
        """Return whether there are so many that deletions in other processes may be among them."""
        return len(self._of) > self._bound

    def see(self, creation: int, watermark: int) -> RuntimeState:
        """Return the one of *creation*, which is in a commit.

        Args:
            creation: of the sandbox.
            watermark: what `watermark` was before that commit was read: it may be deleted since.
        """
        live = self.of(creation)
        if live.seen == 0:
            with self._counting:
                live.seen = self.seen + 1
                self.seen = live.seen
                # No call in here: a signal handler that reads would wait for this lock.
                if watermark < self.watermark:
                    self.watermark = watermark
                    self.resets += 1
        return live

    def stop(self, creation: int, watermark: int) -> None:
        """Set the StopCh of *creation*, which is in a commit; arguments as `see`."""
        self.see(creation, watermark).stopped.stop()

    def mark_deleted(self, creation: int) -> None:
        """Stop a deleted sandbox, and forget it when enough others have been deleted after it."""
        self.of(creation).stopped.stop()
        self._deleted[creation] = None
        for oldest in tuple(self._deleted)[:-DELETED_MAX]:
            self._of.pop(oldest, None)
            self._deleted.pop(oldest, None)

    def mark_deleted_except(self, creations: Iterable[int], seen: int) -> None:
        """Stop those that are not among *creations*, all there are in a snapshot.

        Args:
            creations: of the snapshot.
            seen: how many had been seen before it was taken; later ones may not be in it.
        """
        known = {n for n, live in tuple(self._of.items()) if 0 < live.seen <= seen}
        for creation in known - set(creations) - self._deleted.keys():
            self.mark_deleted(creation)

    def advance(self, newest: int, seen: int) -> None:
        """Note that nothing up to the transition *newest* has deleted one of the first *seen*."""
        with self._counting:
            if self.seen == seen:  # else one that was seen meanwhile may be gone already
                self.watermark = newest
        self._bound = DELETED_MAX + 2 * len(self._of)


class Table:
    """The states of the files that are open, by their real paths."""

    def __init__(self) -> None:
        """Begin with none; in a forked child again, where another thread may have held the lock."""
        self._lock = threading.Lock()
        self._runtime_states: dict[str, RuntimeStates] = {}

    def join(self, path: str, user: object) -> RuntimeStates:
        """Return the states that all open Stores of the file at *path* share."""
        with self._lock:
            states = self._runtime_states.setdefault(path, RuntimeStates())
            states.users.add(user)
            return states

    def leave(self, path: str, states: RuntimeStates, user: object) -> None:
        """End the use of *states* by *user*; the last user removes it. Idempotent."""
        with self._lock:
            states.users.discard(user)
            if not states.users and self._runtime_states.get(path) is states:
                del self._runtime_states[path]


table: Final = Table()
os.register_at_fork(after_in_child=table.__init__)  # type: ignore[misc]
