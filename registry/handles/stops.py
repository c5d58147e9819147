"""StopChs that are waited for, set by the commits of other processes.

1. A wait begins with a reading of the sandbox. From there on the history tells what has become of
   it: the first transition of its id to NOTREADY, or its deletion, is of that creation.
2. The history is read once for all that are waited for, and only after a commit.
3. If the history no longer reaches back, or a backup was restored, each sandbox is read again: a
   change to NOTREADY and back to READY that is no longer kept is not noticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from registry.handles.runtime_state import WAITING
from registry.model.status import State
from registry.sync.interrupts import call_then
from registry.tables import sql
from registry.tables.rows import StatusRow, as_text

if TYPE_CHECKING:
    from registry.engine import Engine
    from registry.engine.commits import ThreadWaiter
    from registry.engine.driver import Fetch
    from registry.engine.loop_waits import TaskWaiter
    from registry.handles.runtime_state import RuntimeStates, StopCh

NOTREADY: Final = str(State.NOTREADY)


class _Awaited:
    """A StopCh that a thread or a task waits for."""

    __slots__ = ("creation", "id", "incarnation", "seq", "stopped")

    def __init__(self, creation: int, stopped: StopCh) -> None:
        """Belong to the sandbox of *creation*, which was not read yet."""
        self.creation: Final = creation
        self.stopped: Final = stopped
        self.id: str | None = None
        """Id of the sandbox; None until it was read."""
        self.incarnation: tuple[str, int] | None = None
        """Id and incarnation of the registry in which it was read."""
        self.seq = 0
        """Number of the transition up to which its history was read."""


class StopFollower:
    """Follower of the commits to one database, for the StopChs that are waited for."""

    def __init__(self, engine: Engine, states: RuntimeStates) -> None:
        """Begin with none; *states* are those of the path of *engine*."""
        self.engine: Final = engine
        self._states: Final = states
        self._awaited: Final[list[_Awaited]] = []

    def wait(self, creation: int, stopped: StopCh, waiter: ThreadWaiter, end: float | None) -> bool:
        """Wait in a thread until *stopped* is set or the database is closed.

        Args:
            creation: of the sandbox.
            stopped: its StopCh.
            waiter: of the calling thread, which *stopped* wakes.
            end: monotonic time in seconds after which waiting stops; None: never.
        Returns:
            False: *end* has come before.
        Raises:
            RegistryError: the database cannot be read.
        """
        awaited = _Awaited(creation, stopped)

        def begin_and_wait() -> bool:
            self._begin(awaited)
            return self.engine.commits.wait(waiter, partial(self._is_over, stopped), end)

        return call_then(begin_and_wait, partial(self._end, awaited))

    async def wait_async(self, creation: int, stopped: StopCh, waiter: TaskWaiter) -> None:
        """Wait in a task of asyncio, without an end; arguments and errors as `wait`."""
        from registry.engine import loop_waits  # noqa: PLC0415 - it imports asyncio

        awaited = _Awaited(creation, stopped)
        try:
            self._begin(awaited)
            over = partial(self._is_over, stopped)
            await loop_waits.wait(self.engine.commits, waiter, over, None)
        finally:
            self._end(awaited)

    def _is_over(self, stopped: StopCh) -> bool:
        return stopped.is_set() or self.engine.closed

    def _begin(self, awaited: _Awaited) -> None:
        """Read the sandbox of *awaited*, and follow it from there.

        Raises:
            RegistryError: it cannot be read.
        """
        self._awaited.append(awaited)
        self.engine.commits.followers[self] = None
        self._follow((awaited,))

    def _end(self, awaited: _Awaited) -> None:
        """Follow *awaited* no longer. Idempotent."""
        if awaited in self._awaited:
            self._awaited.remove(awaited)
        if not self._awaited:
            self.engine.commits.followers.pop(self, None)
            if self._awaited:  # another thread has begun meanwhile
                self.engine.commits.followers[self] = None

    def follow(self) -> None:
        """Set the StopChs of the sandboxes that have stopped since the last call; idempotent."""
        if not self.engine.closed:
            self._follow(tuple(self._awaited))

    def _follow(self, awaited: Sequence[_Awaited]) -> None:
        # Asked before the snapshot is taken, which may be older than the commit that adds it.
        committed = {each for each in awaited if each.creation in self._states.committed}
        with self.engine.committed(WAITING) as connection:
            oldest, newest = (seq or 0 for seq in connection.fetch(sql.KEPT)[0])
            incarnation = connection.fetch(sql.INCARNATION)[0][:2]
            behind = []
            for each in awaited:
                reaches_back = oldest - 1 <= each.seq <= newest
                if each.id is None or each.incarnation != incarnation or not reaches_back:
                    each.incarnation = incarnation
                    _read(each, newest, connection.fetch, committed=each in committed)
                elif each.seq < newest:
                    behind.append(each)
            if behind:
                _read_history(behind, newest, connection.fetch)


def _read(awaited: _Awaited, newest: int, fetch: Fetch, *, committed: bool) -> None:
    """Read the sandbox itself, and stop it if it is NOTREADY or deleted.

    A damaged record that has lost its id, and with it its status, still exists.

    Args:
        awaited: its StopCh.
        newest: number of the latest transition of the snapshot.
        fetch: reads the snapshot.
        committed: whether the sandbox was in a commit before the snapshot; else it may be in the
            open transaction of another thread.
    """
    params = {"creation": awaited.creation}
    found = fetch(sql.STATUS_BY_CREATION, params)
    if found:
        row = StatusRow(*found[0])
        awaited.id, awaited.seq = as_text(row.id), newest
        stopped = row.state == NOTREADY
    else:
        stopped = committed and not fetch(sql.EXISTING, params)
    if stopped:
        awaited.stopped.stop()


def _read_history(behind: Sequence[_Awaited], newest: int, fetch: Fetch) -> None:
    """Stop those of *behind* that have stopped since they were read; arguments as `_read`."""
    by_id: dict[str | None, list[_Awaited]] = {}
    for each in behind:
        by_id.setdefault(each.id, []).append(each)
    for seq, id in fetch(sql.STOPS, {"after": min(each.seq for each in behind)}):
        for each in by_id.get(id, ()):
            if each.seq < seq:
                each.stopped.stop()
    for each in behind:
        each.seq = newest  # last: an interrupted call is made again
