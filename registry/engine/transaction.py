"""Write transaction that is open in this process, and the group that it is committed with.

A write of the owner of the open transaction joins it as a savepoint. Another task of the owner's
thread is refused: it cannot wait, since the owner does not run meanwhile. Another thread waits,
unless it was called from the body of the transaction, which waits for that thread.

An interrupt may arrive between any two bytecodes. So cleaning up never depends on a local variable:
the mutex knows its holder, the connection knows whether it is in a transaction, and every step of
the end is idempotent.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Any

from registry.engine.driver import Connection
from registry.engine.owner import current_owner
from registry.engine.sqlite_errors import tells_damage, translate
from registry.errors import FailedPreconditionError, RegistryError, StoreClosedError, retold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


log = logging.getLogger("registry")


class OpenState:
    """State of one open database file in this process, shared by all objects that use it."""

    __slots__ = ("closed", "path", "unwritable")

    def __init__(self, path: str) -> None:
        """Begin open."""
        self.path = path
        self.closed = ""
        """Reason for which nothing can be done any more; "" while the file may be used."""
        self.unwritable: RegistryError | None = None
        """The error of every further write; None while the file may be written."""

    def note(self, error: RegistryError) -> None:
        """Refuse all further writes if *error* tells that the database is damaged."""
        if self.unwritable is None and tells_damage(error):
            self.unwritable = retold(error, f"write refused, since damage was found: {error}")
            log.error(
                "writes to %r are refused from now on: %s",
                self.path,
                error,
                extra={"event": "writes_refused", "path": self.path, "error": type(error).__name__},
            )

    def require(self, doing: str) -> None:
        """Raise unless the file may be used.

        Raises:
            StoreClosedError: it was closed, or this is a forked child.
        """
        if self.closed:
            raise StoreClosedError(f"{doing}: {self.closed}", path=self.path)


class Transaction:
    """Open write transaction, as the calls of its owner see it."""

    def __init__(
        self,
        connection: Connection,
        state: OpenState,
        doing: str,
        *,
        exclusive: bool,
        sandbox_id: str = "",
    ) -> None:
        """Note its owner; the engine begins and ends it.

        Args:
            connection: of the writer.
            state: of the database file.
            doing: operation and object, for messages.
            exclusive: whether it shares no commit with others.
            sandbox_id: as the caller gave it, possibly a prefix, with which *doing* ends; "": none.
        """
        self.exclusive = exclusive
        self.sandbox_id = sandbox_id
        self.joined = False
        """Whether it has a savepoint in a group that another transaction began."""
        self.group: Group | None = None
        """The group with which it is committed, once its body has run."""
        self.connection = connection
        self._state = state
        self.doing = doing
        """Operation and object of the innermost part, for messages."""
        self.calls = 1
        """Writes of the embedder that it consists of; more in a batch of an AsyncStore."""
        self._outer: list[str] = []
        self.owner = current_owner()
        self.scope = object()
        """Identifies the transaction in the contexts of its body."""
        self.thread = threading.current_thread()
        self.since = time.time_ns()
        """Time at which it was made, in nanoseconds since the Unix epoch."""
        self.timeout = self.deadline = 0.0
        """Seconds for which it may wait in all, and the monotonic time at which waiting stops."""
        self.began = self.waited_until = 0.0
        """Monotonic times in seconds at which it began to wait for the locks, and had them."""
        self.committed = False
        self.ended_by: BaseException | None = None
        """The error with which SQLite ended the whole transaction."""
        self._parts = [_Part()]
        self.changes = self._parts[0].changes
        """The reported changes, without those of savepoints that are open."""
        self._end_callbacks: deque[Callable[[], object]] = deque()
        self.collected: dict[object, list[Any]] = {}
        """Items that effects of the commit have collected for a callback of the end, by its key."""

    @property
    def path(self) -> str:
        """The database."""
        return self._state.path

    def execute(self, sql: str, params: Mapping[str, object] = {}) -> sqlite3.Cursor:
        """Run one statement.

        Raises:
            RegistryError: for a driver error, by its code.
            FailedPreconditionError: SQLite has ended the transaction; another statement would
                commit by itself.
        """
        if self._state.closed or not self.connection.in_transaction:
            self._refuse()
        try:
            return self.connection.execute(sql, params)
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def execute_many(self, sql: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Run one statement for each of *rows*; errors as `execute`."""
        for row in rows:
            self.execute(sql, row)

    def fetch(self, sql: str, params: Mapping[str, object] = {}) -> list[tuple[Any, ...]]:
        """Return all rows of a query, including uncommitted changes of this transaction."""
        if self._state.closed or not self.connection.in_transaction:
            self._refuse()
        try:
            return self.connection.fetch(sql, params)
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _refuse(self) -> None:
        self._state.require(self.doing)
        raise self._ended() from self.ended_by

    def _translated(self, error: sqlite3.Error) -> RegistryError:
        """Return the error of this package for *error*; note it if it ended the transaction."""
        self._state.require(self.doing)  # closed in the middle of a call
        translated = translate(error, self.doing, self._state.path)
        self._state.note(translated)
        if not self.connection.in_transaction:
            self.ended_by = translated
            translated.__cause__ = error
        return translated

    def after_commit(self, effect: Callable[[], object]) -> None:
        """Have *effect* called after the commit and before the write returns; else never."""
        self._parts[-1].effects.append(effect)

    def report(self, since: int, change: object) -> None:
        """Report a change of rows, for the caches that follow the commits of this process.

        Args:
            since: `total_changes` of the connection before the statements of this change.
            change: what the caches are told once it is committed.
        """
        part, rows = self._parts[-1], self.connection.total_changes - since
        part.changes.append(change)
        part.rows += rows
        self.connection.reported_changes += rows  # last: an interrupt leaves it unreported

    def changes_so_far(self) -> Iterator[object]:
        """Return the reported changes, without those of failed parts."""
        return chain.from_iterable(part.changes for part in self._parts)

    def after_end(self, callback: Callable[[], object]) -> None:
        """Have *callback* called when the whole transaction has ended, committed or not."""
        self._end_callbacks.append(callback)

    @property
    def depth(self) -> int:
        """Number of open savepoints, plus one."""
        return len(self._parts)

    def begin_nested(self, doing: str) -> None:
        """Begin a savepoint: a part that can fail without the rest."""
        self._outer.append(self.doing)
        self.doing = doing
        self._parts.append(_Part())
        self.execute(f"SAVEPOINT {self._savepoint()}")

    def end_nested(self, error: BaseException | None) -> None:
        """End the innermost savepoint: keep its changes, or roll them back if *error* is given."""
        savepoint, part = self._savepoint(), self._parts[-1]
        self.connection.reported_changes -= part.rows  # until the outer part has them, or none
        self._parts.pop()
        try:
            if error is not None and self.connection.in_transaction:
                self.connection.execute(f"ROLLBACK TO {savepoint}")
            self.execute(f"RELEASE {savepoint}")
        except BaseException as failure:
            # The changes of the part cannot be separated from the rest any more: all of it fails.
            of_sqlite = failure if isinstance(failure, sqlite3.Error) else None
            self.ended_by = self.ended_by or of_sqlite or error or failure
            if error is None:
                raise
        else:
            if error is None:
                self._parts[-1].add(part)
            self.connection.reported_changes += part.rows
        finally:
            self.doing = self._outer.pop()

    def _savepoint(self) -> str:
        return f"nested_{self.depth}"

    def run_callbacks(self) -> None:
        """Call what waits for the commit, if it was committed, and what waits for the end.

        Idempotent: each is removed before it is called.
        """
        if self.committed:
            effects = self._parts[0].effects
            while effects:
                effects.popleft()()
        while self._end_callbacks:
            self._end_callbacks.popleft()()

    def require_whole(self) -> None:
        """Raise if SQLite, an interrupt or a failed nested write has ended a part of it.

        Raises:
            FailedPreconditionError: from the error that ended it.
        """
        # More than one part: an interrupt has skipped the end of a nested write.
        parts_left_open = len(self._parts) > 1
        if self.ended_by is not None or parts_left_open or not self.connection.in_transaction:
            raise self._ended() from self.ended_by

    def _ended(self) -> FailedPreconditionError:
        return FailedPreconditionError(
            f"{self.doing}: an error inside the transaction has ended it ({self.ended_by!r}); "
            "nothing of it is stored, begin a new one"
        )


class _Part:
    """A transaction without its savepoints, or one savepoint."""

    __slots__ = ("changes", "effects", "rows")

    def __init__(self) -> None:
        self.effects: deque[Callable[[], object]] = deque()
        self.changes: list[object] = []
        self.rows = 0
        """Number of rows that *changes* have changed."""

    def add(self, inner: _Part) -> None:
        """Take over what *inner*, which was released, has collected."""
        self.effects.extend(inner.effects)
        self.changes.extend(inner.changes)
        self.rows += inner.rows


class Group:
    """Writes that are committed by one COMMIT and have one outcome."""

    def __init__(self) -> None:
        """Begin without members."""
        self.members: list[Transaction] = []
        self.calls = 0
        """Number of writes of the embedder that *members* consist of."""
        self.runs = 1
        """Number of transactions that have run in it, including those that failed."""
        self.deadline = math.inf
        """Earliest deadline of a member, in monotonic seconds."""
        self.join_deadline = math.inf
        """Monotonic time in seconds after which no transaction joins: a tenth of the timeout after
        the first member has run, so that the function of the last one has the rest."""
        self.commit_began = self.commit_ended = 0.0
        """Monotonic times in seconds of its COMMIT, and of the end of what follows it."""
        self.failure: RegistryError | None = None
        self.held_up_by: Transaction | None = None
        """The transaction whose function was running when the earliest deadline passed."""
        self.done = False
        """Whether the outcome is known: *failure*, or all of it is stored."""
        self._outcome: dict[str, RegistryError | None] = {}

    def close(self, failure: RegistryError | None) -> RegistryError | None:
        """Close the group to new members; return the failure that the first call has decided.

        Args:
            failure: with which the group fails; None: it is to be committed.

        One step of a dict decides for all threads, without a lock.
        """
        return self._outcome.setdefault("failure", failure)

    @property
    def closed(self) -> bool:
        """True once the group is closed to new members."""
        return bool(self._outcome)

    def failure_of(self, transaction: Transaction) -> RegistryError:
        """Return its failure as the error of one member."""
        failure = self.failure
        assert failure is not None, "the group has failed"
        why = str(failure)
        if transaction is self.held_up_by:
            why = (
                "its own function was still running when the deadline of another write passed that "
                "shares the commit; neither is stored, make the function shorter"
            )
        for member in self.members:
            why = why.removeprefix(f"{member.doing}: ")
        error = retold(failure, f"{transaction.doing}: {why}")
        error.__cause__ = failure.__cause__
        return error
