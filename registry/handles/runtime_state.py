"""Runtime state of sandboxes: objects that live in this process and not in the file.

All handles of all Stores of one file share one `RuntimeState` for each creation. It outlives the
handles, since a StopCh that is set stays so; after a deletion it is kept for a while, for a reader
that found the sandbox just before.

A deletion elsewhere is noticed when a read of that sandbox does not find it. Only a sandbox that
was in a commit can be missing from a later one: one that is being added now is in no snapshot.
"""

from __future__ import annotations

import os
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from registry.engine.commits import ThreadWaiter
from registry.errors import StoreClosedError
from registry.model.validation import check_seconds
from registry.sync.imports import late_import
from registry.sync.interrupts import call_then
from registry.tables.rows import AnyRow, as_text

if TYPE_CHECKING:
    from registry.engine import Engine
    from registry.engine.commits import Waiter
    from registry.handles.stops import StopFollower

DELETED_MAX: Final = 1024
"""Deleted sandboxes whose `RuntimeState` is still known."""
WAITING: Final = "wait for the stop of a sandbox"
"""Operation, for messages."""


class Container(Protocol):
    """Init process of a sandbox, as the embedder knows it."""

    id: str

    def pid(self) -> int | None:
        """Return the pid of the running init process; None when there is no task."""


def _seconds(timeout: object) -> float | None:
    """Return *timeout* if it is a number of seconds or None; a negative number is zero."""
    if timeout is None:
        return None
    if isinstance(timeout, (int, float)) and timeout < 0:
        return 0.0
    return check_seconds(WAITING, "timeout", timeout)


class StopCh:
    """Says that a sandbox has stopped; once set it stays so.

    Source: containerd pkg/store, StopCh.
    """

    __slots__ = ("__dict__", "_creation", "_is_set", "_states")
    # The dict is for `waiters`, made by the first who waits: of many sandboxes few are waited for.

    def __init__(self, states: RuntimeStates | None = None, creation: int = 0) -> None:
        """Begin unset.

        Args:
            states: in which the sandbox is; None: only `stop` sets it.
            creation: of the sandbox.
        """
        self._states = states
        self._creation = creation
        self._is_set = False

    def stop(self) -> None:
        """Set it; a second time does nothing."""
        self._is_set = True
        # One that begins to wait after this read sees that it is set.
        for waiter in tuple(self.__dict__.get("waiters", ())):
            waiter.wake()

    def is_set(self) -> bool:
        """Return whether the sandbox has stopped, as far as this process has read."""
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has stopped, at most *timeout* seconds, and return whether it has.

        A stop or deletion that another process commits meanwhile ends the wait too.

        Args:
            timeout: None: no limit. Zero or less returns at once.
        Raises:
            InvalidArgumentError: *timeout* is no number of seconds.
            StoreClosedError: the store is closed, so that nothing could be heard any more.
            RegistryError: the registry cannot be read.
        """
        seconds = _seconds(timeout)
        if self._is_set or seconds == 0:
            return self._is_set
        deadline = None if seconds is None else time.monotonic() + seconds
        waiter = ThreadWaiter()
        return call_then(
            partial(self._wait, waiter, deadline), partial(self._remove_waiter, waiter)
        )

    def _wait(self, waiter: ThreadWaiter, deadline: float | None) -> bool:
        self._add_waiter(waiter)
        in_time = True
        while in_time and not self._is_set:
            if self._states is not None:
                follower = self._states.require_follower()
                in_time = follower.wait(self._creation, self, waiter, deadline)
            elif deadline is None:
                waiter.sleep(None)
            else:
                waiter.sleep(max(0.0, deadline - time.monotonic()))
                in_time = time.monotonic() < deadline
        return self._is_set

    async def wait_async(self) -> None:
        """Wait in a task of asyncio until it has stopped; as `wait`, and without a thread.

        Raises:
            FailedPreconditionError: no event loop of asyncio runs in this thread.
            StoreClosedError, RegistryError: as `wait`.
        """
        with late_import("registry.engine.loop_waits"):
            from registry.engine.loop_waits import new_waiter  # noqa: PLC0415 - it imports asyncio

        waiter = new_waiter(WAITING)
        self._add_waiter(waiter)
        try:
            while not self._is_set:
                if self._states is None:
                    await waiter.sleep(self.is_set, None)
                else:
                    follower = self._states.require_follower()
                    await follower.wait_async(self._creation, self, waiter)
        finally:
            self._remove_waiter(waiter)

    def _add_waiter(self, waiter: Waiter) -> None:
        self.__dict__.setdefault("waiters", []).append(waiter)  # one step for all threads

    def _remove_waiter(self, waiter: Waiter) -> None:
        waiters = self.__dict__.get("waiters", [])
        if waiter in waiters:
            waiters.remove(waiter)


class RuntimeState:
    """StopCh and container of one creation of a sandbox."""

    __slots__ = ("container", "stopped")

    def __init__(self, states: RuntimeStates, creation: int) -> None:
        """Begin running, without a container; *states* has it for *creation*."""
        self.stopped = StopCh(states, creation)
        self.container: Container | None = None


class RuntimeStates:
    """Every `RuntimeState` of one file, by creation. Each change is one step of a dict or a set."""

    def __init__(self) -> None:
        """Begin with none."""
        self.users: Final[set[object]] = set()
        """Stores that have the file open."""
        self.committed: Final[dict[int, str]] = {}
        """Ids, by creation, of the sandboxes that were in a commit and are not known as deleted."""
        self.replaced: Final[set[int]] = set()
        """Creations that were seen with the id of another one: one of the two was deleted."""
        self.newest = 0
        """The creation that became one of `committed` last."""
        self._creations: dict[str, int] = {}
        """The creation that was seen last, by id."""
        self._lengths: set[int] = set()
        """Lengths of the ids that were seen."""
        self.engines: Final[dict[Engine, None]] = {}
        """Engines of the path in order of opening: two if it is also open read-only."""
        self.followers: Final[dict[Engine, StopFollower]] = {}
        """Followers of their commits, for the StopChs that are waited for."""
        self._of: dict[int, RuntimeState] = {}
        self._pending: set[int] = set()
        """Creations in a transaction that has not ended."""
        self._deleted: dict[int, None] = {}
        """Creations that are known as deleted, the latest last."""
        self._bound = DELETED_MAX
        """How many runtime states there may be until deletions elsewhere are looked for."""

    def of(self, creation: int) -> RuntimeState:
        """Return the one of *creation*, made when it is first asked for."""
        state = self._of.get(creation)
        # setdefault is one step for all threads; the look before it spares making one in vain.
        if state is None:
            state = self._of.setdefault(creation, RuntimeState(self, creation))
        return state

    def require_follower(self) -> StopFollower:
        """Return the follower of the commits to a database at the path that is open.

        Raises:
            StoreClosedError: none is open.
        """
        with late_import("registry.handles.stops"):
            from registry.handles.stops import StopFollower  # noqa: PLC0415 - few wait

        for engine in tuple(self.engines):
            if not engine.closed:
                return self.followers.setdefault(engine, StopFollower(engine, self))
        for engine in tuple(self.engines):
            engine.require_open(WAITING)
        raise StoreClosedError(f"{WAITING}: the store is closed; open it again")

    def known(self, creation: int) -> bool:
        """Return whether the runtime state of *creation* was requested in this process."""
        return creation in self._of

    def begin(self, creation: int) -> None:
        """Note that a transaction makes *creation*, which is in no commit before that ends."""
        self._pending.add(creation)

    def end(self, creation: int) -> None:
        """Note that the transaction has ended; what it did not commit leaves nothing here."""
        self._pending.discard(creation)
        if creation not in self.committed and creation not in self._deleted:
            self._of.pop(creation, None)

    def is_pending(self, creation: int) -> bool:
        """Return whether *creation* may be in no commit."""
        return creation in self._pending

    def see(self, row: AnyRow) -> RuntimeState:
        """Return the one of the sandbox of *row*, which is in a commit."""
        creation = row.creation
        if self._creations.get(row.id) == creation and creation in self.committed:
            return self.of(creation)  # it was noted before: nothing below would change
        id = as_text(row.id)
        self._lengths.add(len(id))
        # No call stands between these lines: other threads and signal handlers see all of them.
        if creation not in self._deleted:
            if creation not in self.committed:
                self.committed[creation] = id
                self.newest = creation
            other = self._creations[id] if id in self._creations else creation  # noqa: SIM401
            self._creations[id] = creation
            if other != creation:
                self.replaced.update((other, creation))
        return self.of(creation)

    def stop(self, row: AnyRow) -> None:
        """Set the StopCh of the sandbox of *row*, which is in a commit."""
        self.see(row).stopped.stop()

    def named(self, prefix: str) -> list[int]:
        """Return the creations that were seen last of the ids that begin with *prefix*."""
        if len(prefix) >= max(self._lengths, default=0):  # a whole id, or none
            ids = [prefix]
        else:
            ids = [id for id in tuple(self._creations) if id.startswith(prefix)]
        return [self._creations[id] for id in ids if id in self._creations]

    def mark_deleted(self, creation: int) -> None:
        """Stop a deleted sandbox, and forget it when enough others have been deleted after it."""
        self.of(creation).stopped.stop()
        self._deleted[creation] = None
        id = self.committed.pop(creation, None)
        if id is not None:
            latest = self._creations.pop(id, creation)
            if latest != creation:
                self._creations.setdefault(id, latest)
        for oldest in tuple(self._deleted)[:-DELETED_MAX]:
            self._of.pop(oldest, None)
            self._deleted.pop(oldest, None)

    def are_many(self) -> bool:
        """Return whether there are so many that deletions elsewhere may be among them."""
        return len(self._of) > self._bound

    def set_bound(self) -> None:
        """Note that deletions elsewhere were looked for: next time when twice as many are known."""
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
