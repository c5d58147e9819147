"""Iterator of the transitions that any process commits, in order of seq.

1. The history table is the queue: a watch keeps its position and one batch. So a slow consumer
   holds up no writer, and loses nothing that the history still has.
2. A batch is read from a snapshot of the latest commit, if the data version has changed since the
   last batch that was not full. The snapshot ends before the call returns.
3. While it waits it is known to `engine.commits`; between two calls nothing is left behind.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from registry.engine.commits import ThreadWaiter
from registry.errors import FailedPreconditionError, MetadataError, StoreClosedError
from registry.handles.session import Session
from registry.sync.imports import late_import
from registry.sync.interrupts import call_then
from registry.tables import queries, sql
from registry.tables.position import Position
from registry.tables.rows import Transition

if TYPE_CHECKING:
    from registry.engine.commits import Waiter

DOING: Final = "watch the history"
BATCH: Final = 256
"""Transitions that are read at once."""


class Watch:
    """Iterator, and asynchronous iterator, of `Transition`s; made by `Store.watch`.

    Any thread may use it; of several that do, each transition is given to one.
    """

    def __init__(self, session: Session, after: int | None, timeout: float | None) -> None:
        """Begin after the transition *after*; None: after the latest one."""
        self._session: Final = session
        self._timeout: Final = timeout
        self._is_over = False
        self._batch: Final[deque[tuple[Any, ...]]] = deque()
        self._version: int | None = None
        """The data version up to which all was read; None: there may be more."""
        self._may_be_compacted = after == 0
        self._mutex: Final = threading.Lock()
        self._taking_thread = 0
        self._waiters: Final[list[Waiter]] = []
        self._task_transaction: Callable[[], object] = lambda: None
        """Returns the open transaction of the running task, in a watch of an AsyncStore."""
        self._registry_id: str | None = None
        """Id of the registry whose history is watched; None: it was not read yet."""
        if after is None:
            with session.engine.committed(DOING) as connection:
                after = Position.read(0, connection.fetch).last
        self.after: int = after
        """Seq of the transition that was returned last, or after which the watch began."""

    def __repr__(self) -> str:
        """Show the position."""
        return f"Watch(after={self.after})"

    def close(self) -> None:
        """End the iteration, also one that waits in another thread or task. Idempotent."""
        self._is_over = True
        for waiter in tuple(self._waiters):
            waiter.wake()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Transition:
        """Return the next transition, and wait for it if necessary.

        Raises:
            StopIteration: the timeout has passed, or the watch or its store is closed.
            CompactedError: the history no longer has the transitions after `after`.
            MetadataError: a transition has a state that is not known here; the next call goes on
                after it.
            FailedPreconditionError: it would wait inside the caller's own transaction.
            StoreClosedError: this is a forked child.
        """
        deadline = self._deadline()
        while True:
            transition = self._take()
            if transition is not None:
                return transition
            if self._is_ended() or not self._wait(deadline):
                self._is_over = True
                raise StopIteration

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Transition:
        """Return the next transition as `__next__` does, but wait in a task of asyncio.

        A call that is cancelled takes no transition.
        """
        deadline = self._deadline()
        while True:
            transition = self._take()
            if transition is not None:
                return transition
            if self._is_ended() or not await self._wait_async(deadline):
                self._is_over = True
                raise StopAsyncIteration

    def _deadline(self) -> float | None:
        return None if self._timeout is None else time.monotonic() + self._timeout

    def _is_ended(self) -> bool:
        """Return whether the watch or its store was closed.

        Raises:
            StoreClosedError: this is a forked child.
        """
        self._session.require_own(DOING)
        return self._is_over or self._session.closed or self._session.engine.closed

    # Reading.

    def _take(self) -> Transition | None:
        """Return the next transition that is committed; None: there is none, or the watch is over.

        Raises:
            RegistryError: as `__next__`.
        """
        if self._is_ended():
            return None
        thread = threading.get_ident()
        if self._taking_thread == thread:
            raise FailedPreconditionError(
                f"{DOING}: called in a signal handler that has interrupted this watch; "
                "note the work and do it later"
            )
        with self._mutex:
            self._taking_thread = thread
            try:
                row = self._next_row()
                if row is None:
                    return None
                return self._loaded(row)
            except StoreClosedError:
                if not self._is_ended():
                    raise
                return None  # it was closed during the read
            finally:
                self._taking_thread = 0

    def _loaded(self, row: tuple[Any, ...]) -> Transition:
        """Return the transition of *row*, and go on after it: last, since an interrupt may come."""
        try:
            transition = Transition.load(row)
        except MetadataError:
            self.after = row[0]
            raise
        self.after = row[0]
        return transition

    def _next_row(self) -> tuple[Any, ...] | None:
        self._drop_passed()
        if not self._batch:
            self._read()
            self._drop_passed()  # of a damaged registry, whose records are out of order
        return self._batch[0] if self._batch else None

    def _drop_passed(self) -> None:
        """Drop the rows up to the transition that was returned last."""
        while self._batch and self._batch[0][0] <= self.after:
            self._batch.popleft()

    def _read(self) -> None:
        """Read the next batch, if there was a commit since the last one."""
        version = self._session.latest_commit(DOING)
        if version is not None and version == self._version:
            return
        query = queries.history(frozenset({"limit"}))
        with self._session.engine.committed(DOING) as connection:
            position = Position.read(self.after, connection.fetch)
            rows = connection.fetch(query, {"after": self.after, "limit": BATCH})
        self._require_whole(position)
        self._may_be_compacted = False
        self._batch.extend(rows)
        if len(rows) < BATCH:
            self._version = version

    def _require_whole(self, position: Position) -> None:
        """Raise CompactedError unless the history has all transitions after `after`."""
        if self._registry_id not in {None, position.registry_id}:  # restored by force
            position = position._replace(last=-1, is_kept=False, is_followed=False)
        elif self._may_be_compacted:
            return
        position.require_whole(DOING)
        self._registry_id = position.registry_id

    # Waiting.

    def _has_news(self) -> bool:
        """Return whether there was a commit since the last batch, or the watch is over."""
        if self._is_ended():
            return True
        engine = self._session.engine
        version = engine.data_version.read(DOING)
        if version is not None or engine.closed:
            return engine.closed or version != self._version
        with engine.committed(DOING) as connection:  # see `DataVersion.read`
            return bool((connection.fetch(sql.KEPT)[0][1] or 0) > self.after)

    def _wait(self, deadline: float | None) -> bool:
        """Wait for news until *deadline* (monotonic, in seconds); return whether there are any."""
        if self._is_late(deadline):
            return False
        waiter = ThreadWaiter()
        return call_then(
            partial(self._add_and_wait, waiter, deadline), partial(self._remove, waiter)
        )

    def _add_and_wait(self, waiter: ThreadWaiter, deadline: float | None) -> bool:
        self._add(waiter)
        return self._session.engine.commits.wait(waiter, self._has_news, deadline)

    async def _wait_async(self, deadline: float | None) -> bool:
        """Wait as `_wait` does, in a task of asyncio."""
        with late_import("registry.engine.loop_waits"):
            from registry.engine import loop_waits  # noqa: PLC0415 - it imports asyncio

        if self._is_late(deadline):
            return False
        waiter = loop_waits.new_waiter(DOING)
        try:
            self._add(waiter)
            return await loop_waits.wait(
                self._session.engine.commits, waiter, self._has_news, deadline
            )
        finally:
            self._remove(waiter)

    def _is_late(self, deadline: float | None) -> bool:
        """Return whether *deadline* has passed.

        Raises:
            FailedPreconditionError: waiting would be in vain.
        """
        if deadline is not None and deadline <= time.monotonic():
            return True
        own = self._session.engine.own_transaction() or self._task_transaction()
        if own is not None:
            raise FailedPreconditionError(
                f"{DOING}: no transition is committed while the caller's own transaction is open; "
                "end it before waiting"
            )
        return False

    def _add(self, waiter: Waiter) -> None:
        self._waiters.append(waiter)
        self._session.engine.commits.watchers.append(waiter)

    def _remove(self, waiter: Waiter) -> None:
        for waiters in (self._waiters, self._session.engine.commits.watchers):
            while waiter in waiters:
                waiters.remove(waiter)
