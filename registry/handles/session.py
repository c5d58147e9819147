"""State that a Store and its handles share: the engine, the author and the runtime state."""

from __future__ import annotations

import builtins
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, TypeVar

from registry.engine import CallerWrite, Deadline, Engine, Transaction, Write, detach
from registry.engine.deadline import remaining
from registry.engine.driver import Fetch
from registry.errors import (
    FailedPreconditionError,
    RegistryError,
    StoreClosedError,
)
from registry.handles import runtime_state
from registry.handles.cache import Added, Cache, Changed, Deleted, Entry
from registry.handles.runtime_state import Container, RuntimeState
from registry.model.metadata import Metadata
from registry.model.status import State, Status
from registry.model.validation import invalid
from registry.sync.imports import late_import
from registry.sync.interrupts import reraise_interrupt
from registry.tables import sql, writes
from registry.tables.rows import AnyRow, Row, as_text
from registry.tables.writes import Author

T = TypeVar("T")
U = TypeVar("U")

log = logging.getLogger("registry")

SLOW: Final = 1.0
"""Seconds after which a warning is logged about a caller's function: no other writer runs."""


class Session:
    """One use of an engine, from the opening of a Store to its closing."""

    def __init__(self, engine: Engine, user: object, timeout: float, author: Author) -> None:
        """Begin open.

        Args:
            engine: of the database.
            user: has the engine open.
            timeout: seconds that a write waits in all.
            author: source of the audit columns.
        """
        self.engine: Final = engine
        self.author: Final = author
        self.closed = self._closing = False
        self._user: Final = user
        self.timeout: Final = timeout
        """Seconds that a write waits in all."""
        self._runtime_states = states = runtime_state.table.join(engine.path, user)
        states.engines[engine] = None
        self._compared: tuple[int | None, int] | None = None
        """Data version, and the newest of the sandboxes that were known to be committed, when all
        of these were last looked for."""
        self._cache = Cache(engine.data_version.read, lambda: engine.own_commits.is_committing)
        engine.own_commits.followers.add(self._cache)

    def close(self) -> None:
        """End it; idempotent.

        After an interrupt another call resumes it. In a signal handler that interrupts a close,
        another call returns at once.
        """
        if self._closing:
            return
        self.closed = self._closing = True
        try:
            self.engine.own_commits.followers.discard(self._cache)
            self._cache.invalidate()  # handles may live on
            runtime_state.table.leave(self.engine.path, self._runtime_states, self._user)
            self.engine.commits.wake_all()  # the watches of this store end
            detach(self._user, self.wait())
            if self.engine.closed and not self.engine.abandoned:
                self._runtime_states.engines.pop(self.engine, None)
                self._runtime_states.followers.pop(self.engine, None)
        finally:
            self._closing = False

    def require_open(self, doing: str) -> None:
        """Raise StoreClosedError if it was closed, or belongs to the process that forked us."""
        if self.closed or self.engine.state.closed:
            self.engine.require_open(doing)
            raise StoreClosedError(f"{doing}: the store is closed", path=self.engine.path)

    def require_own(self, doing: str) -> None:
        """Raise StoreClosedError in a forked child; a closed store's handles may still look."""
        if self.engine.abandoned:
            self.engine.require_open(doing)

    # Ways into the engine.

    def wait(self) -> float:
        """Return the seconds that a call may wait: the timeout, or less by `Store.deadline`."""
        return remaining(self.engine.path, self.timeout)

    def deadline(self, seconds: float) -> AbstractContextManager[None]:
        """Return a context manager whose body waits at most *seconds* in all."""
        self.require_open("set a deadline")
        return Deadline(self.engine.path, seconds)

    def write(
        self,
        doing: str,
        *,
        sandbox_id: str = "",
        exclusive: bool = False,
        timeout: float | None = None,
    ) -> AbstractContextManager[Transaction]:
        """Return a context manager whose body is a write transaction, or a part of one.

        Args:
            doing: operation and object, for messages.
            sandbox_id: full id or prefix with which *doing* ends; "" if it ends otherwise.
            exclusive: whether it shares no commit: it has many parts, or takes long.
            timeout: seconds that it may wait in all; None: as `wait`.
        """
        self.require_open(doing)
        timeout = self.wait() if timeout is None else timeout
        return Write(self.engine, doing, timeout, exclusive=exclusive, sandbox_id=sandbox_id)

    def caller_write(
        self, doing: str, *, timeout: float | None = None
    ) -> AbstractContextManager[None]:
        """Return a context manager whose body, code of the embedder, is a write transaction.

        Args:
            doing: operation and object, for messages.
            timeout: seconds that it may wait in all; None: as `wait`.
        """
        self.require_open(doing)
        timeout = self.wait() if timeout is None else timeout
        return CallerWrite(self.engine, doing, timeout, exclusive=True)

    def require_space(self, doing: str, *, grows: bool = False) -> None:
        """Raise if the disk was full when the open transaction began.

        Args:
            doing: operation and object, for messages.
            grows: whether the database gets longer by the operation.
        Raises:
            ResourceExhaustedError: the disk is full.
        """
        self.engine.writer.disk_space.require(doing, grows=grows)

    def require_space_to_mark(self, doing: str) -> None:
        """Raise if the rest of a full disk is reserved for deletions; as `require_space`."""
        self.engine.writer.disk_space.require_to_mark(doing)

    def is_space_low(self) -> bool:
        """Return whether the disk may have no space for more than some tens of changes."""
        return self.engine.writer.disk_space.is_low()

    def fetch(self, sql: str, params: Mapping[str, object], doing: str) -> list[tuple[Any, ...]]:
        """Return all rows of a query: of the caller's open transaction, else as committed."""
        self.require_open(doing)
        return self.engine.fetch(sql, params, doing)

    def find(self, prefix: str, doing: str) -> Entry | None:
        """Return the sandbox that *prefix* names, see `writes.find`; of the latest commit."""

        def read() -> Entry | None:
            with self.snapshot(doing) as fetch:
                row = writes.find(prefix, doing, fetch)
            return None if row is None else self.entry(row)

        self.require_open(doing)
        if self.engine.own_transaction() is not None:
            return read()
        found = self._cache.find(prefix, doing, read)
        if found is None:
            self.mark_named_deleted(prefix, doing)
        self._mark_replaced(doing)
        return found

    def is_cached(self, prefix: str, doing: str) -> bool:
        """Return whether `find` and `find_creation` would answer from memory now."""
        states = self._runtime_states
        must_read = states.replaced or states.are_many()
        return not must_read and self._cache.has(prefix, doing)

    def find_creation(self, creation: int, doing: str) -> Entry | None:
        """Return the sandbox of *creation*, of the latest commit; None when it was deleted."""
        self.require_open(doing)

        def read() -> Entry | None:
            found = self.engine.fetch(sql.ROW_BY_CREATION, {"creation": creation}, doing)
            return self.entry(Row(*found[0])) if found else None

        if self.engine.own_transaction() is not None:
            return read()
        return self._cache.one(creation, doing, read)

    def latest_commit(self, doing: str) -> int | None:
        """Return the data version; None if it cannot be read."""
        self.require_open(doing)
        return self.engine.data_version.read(doing)

    def list(
        self, sql: str, params: Mapping[str, object], doing: str, *, by_state: bool
    ) -> tuple[Entry, ...]:
        """Return the sandboxes of a query for whole rows, of the latest commit.

        A query without parameters is taken for one of all sandboxes.

        Args:
            sql: the query; *params* are its parameters.
            params: as the query names them.
            doing: operation and object, for messages.
            by_state: whether a change of a state alone can change which sandboxes the query finds;
                to leave out UNKNOWN is not meant.
        """

        def read() -> tuple[Entry, ...]:
            found = self.engine.fetch(sql, params, doing)
            return tuple(self.entries([Row._make(row) for row in found]))

        self.require_open(doing)
        if self.engine.own_transaction() is not None:
            return read()
        question = (sql, *params.items())
        entries = self._cache.several(question, doing, read, by_state=by_state)
        states = self._runtime_states
        if not params and len(states.committed) > len(entries):
            self.mark_deleted_elsewhere(doing)
        self._mark_replaced(doing)
        return entries

    def history(
        self, query: str, params: Mapping[str, Any], doing: str
    ) -> builtins.list[tuple[Any, ...]]:
        """Return the transitions of a query of the history after `:after`.

        Raises:
            CompactedError: transitions after it are no longer kept, or were lost by a restore.
        """
        with late_import("registry.tables.position"):
            from registry.tables.position import Position  # noqa: PLC0415 - an update does without
        with self.snapshot(doing) as fetch:
            position = Position.read(params["after"], fetch)
            found = fetch(query, params)
        if 0 < position.after <= position.last:
            position.require_whole(doing)
        return found

    @contextmanager
    def snapshot(self, doing: str) -> Iterator[Fetch]:
        """Lend a function that queries one commit, or the caller's open transaction."""
        self.require_open(doing)
        with self.engine.snapshot(doing) as connection:
            yield connection.fetch

    # Runtime state.

    def entry(self, row: Row) -> Entry:
        """Return *row*, as it was just read, with its runtime state."""
        return Entry(row, self.runtime_state_of(row))

    def entries(self, rows: Sequence[Row]) -> builtins.list[Entry]:
        """Return all *rows*, as they were just read, with their runtime states."""
        if self.engine.own_transaction() is not None:
            return [self.entry(row) for row in rows]
        see, stopped = self._runtime_states.see, str(State.NOTREADY)
        found = [Entry(row, see(row)) for row in rows]
        for entry in found:
            if entry.row.state == stopped:
                entry.runtime_state.stopped.stop()
        return found

    def runtime_state_of(self, row: AnyRow) -> RuntimeState:
        """Return the runtime state of the sandbox of *row*, which was just read."""
        states, transaction = self._runtime_states, self.engine.own_transaction()
        if transaction is not None and states.is_pending(row.creation):
            # It was added by this one, or by another that waits for the same commit.
            transaction.after_commit(lambda: states.see(row))
        else:
            states.see(row)
        if row.state == str(State.NOTREADY):
            self.stop(row)
        return states.of(row.creation)

    def container_of(self, row: AnyRow) -> Container | None:
        """Return what was attached to the sandbox of *row*, which was just read."""
        known = self._runtime_states.known(row.creation)
        return self.runtime_state_of(row).container if known else None

    def stop(self, row: AnyRow) -> None:
        """Set the StopCh of a sandbox that is NOTREADY: now, or when that is committed."""
        states, transaction = self._runtime_states, self.engine.own_transaction()
        if transaction is None:
            states.of(row.creation).stopped.stop()
        else:
            transaction.after_commit(lambda: states.stop(row))

    def created(self, transaction: Transaction, row: Row, since: int) -> Entry:
        """Return *row*, which *transaction* has inserted, with its runtime state.

        Args:
            transaction: the open one.
            row: that was inserted.
            since: `total_changes` of the connection before.
        """
        creation, states = row.creation, self._runtime_states
        states.begin(creation)
        transaction.after_end(lambda: states.end(creation))
        transaction.after_commit(self._tidy)
        entry = self.entry(row)
        transaction.report(since, Added(entry, is_new=True))
        return entry

    def replace_metadata(self, transaction: Transaction, row: Row, metadata: Metadata) -> Entry:
        """Store *metadata* for the sandbox of *row*."""
        since = transaction.connection.total_changes
        entry = self.entry(writes.replace_metadata(transaction, row, metadata))
        transaction.report(since, Added(entry, is_new=False))
        return entry

    def replace_status(self, transaction: Transaction, row: AnyRow, status: Status) -> None:
        """Store *status* for the sandbox of *row*, and stop it if that is NOTREADY.

        Raises:
            FailedPreconditionError: it leads back to UNKNOWN.
        """
        since = transaction.connection.total_changes
        columns = writes.replace_status(transaction, row, status, self.author)
        transaction.report(since, Changed(row, columns))
        if status.state is State.NOTREADY:
            self.stop(row)

    def _tidy(self) -> None:
        """Drop the runtime state of deleted sandboxes, in a process that adds and never reads."""
        if self._runtime_states.are_many():
            self.look_for_deletions()

    def look_for_deletions(self) -> None:
        """Call `mark_deleted_elsewhere` after a write, which is stored whether this succeeds."""
        doing = "look for deleted sandboxes"
        try:
            self.mark_deleted_elsewhere(doing)
        except RegistryError as error:
            reraise_interrupt(error)
            log.warning(
                "%s: %s",
                doing,
                error,
                extra={
                    "event": "deletions_not_looked_for",
                    "path": self.engine.path,
                    "error": type(error).__name__,
                },
            )

    def delete(self, transaction: Transaction, row: Row) -> None:
        """Delete the sandbox of *row*, and set its StopCh after the commit."""
        self.engine.writer.disk_space.use_last()
        since = transaction.connection.total_changes
        writes.delete(transaction, row, self.author)
        transaction.report(since, Deleted(row))
        transaction.after_commit(lambda: self._runtime_states.mark_deleted(row.creation))

    def mark_missing_deleted(self, creation: int, doing: str) -> None:
        """Set the StopCh of a sandbox that was not found, if it was in a commit and is deleted.

        The caller may have read before the commit that added it, so it is read again: a sandbox
        that is known to have been committed, and is missing after that, was deleted. A damaged
        record still exists, though it may have lost its id, and with it its status.

        Args:
            creation: of the sandbox.
            doing: operation and object, for messages.
        """
        states = self._runtime_states
        committed = self.engine.own_transaction() is None and creation in states.committed
        if committed and not self.engine.fetch(sql.EXISTING, {"creation": creation}, doing):
            states.mark_deleted(creation)

    def mark_named_deleted(self, prefix: str, doing: str) -> None:
        """Set the StopCh of each deleted sandbox whose id begins with *prefix*: none was found."""
        for creation in self._runtime_states.named(prefix):
            self.mark_missing_deleted(creation, doing)

    def _mark_replaced(self, doing: str) -> None:
        """Set the StopCh of each sandbox whose id was added again, and of all if there are many.

        Otherwise a process that never lists all sandboxes would keep those deleted elsewhere.
        """
        states = self._runtime_states
        for creation in tuple(states.replaced):
            self.mark_missing_deleted(creation, doing)
            states.replaced.discard(creation)
        if states.are_many():
            self.mark_deleted_elsewhere(doing)

    def mark_deleted_elsewhere(self, doing: str) -> None:
        """Set the StopCh of each sandbox that was in a commit and is no longer in the latest one.

        Nothing is done inside a transaction of the caller, which may be rolled back.
        """
        if self.engine.own_transaction() is not None:
            return
        states = self._runtime_states
        newest, known = states.newest, tuple(states.committed)  # before the query: `runtime_state`
        version = self.latest_commit(doing)
        if version is not None and self._compared == (version, newest):
            return
        existing = {creation for (creation,) in self.engine.fetch(sql.CREATIONS, {}, doing)}
        for creation in known:
            if creation not in existing:
                states.mark_deleted(creation)
        self._compared = (version, newest)
        states.set_bound()

    # The functions of callers.

    def ask(
        self,
        transaction: Transaction,
        row: AnyRow,
        fn: Callable[[T], U],
        value: T,
        is_unchanged: Callable[[], bool] | None = None,
    ) -> U:
        """Return what *fn* makes of *value*, a part of *row*, inside the transaction.

        Args:
            transaction: the open one.
            row: of the sandbox, as read in the transaction.
            fn: function of the embedder.
            value: argument of *fn*.
            is_unchanged: returns whether *fn* itself has left *value* as it was; default: *row* is
                read again and compared.
        Raises:
            FailedPreconditionError: *fn* itself has changed or deleted that sandbox, which what it
                returned would overwrite.
        """
        doing, before = transaction.doing, transaction.connection.total_changes
        began = time.monotonic()
        try:
            result = fn(value)
        finally:
            took = time.monotonic() - began
            if took > SLOW:
                log.warning(
                    "%s: its function took %.1f s, and no other writer could run; "
                    "do slow work before or after it",
                    doing,
                    took,
                    extra={
                        "event": "slow_function",
                        "path": self.engine.path,
                        "operation": doing,
                        "sandbox_id": as_text(row.id),
                        "seconds": took,
                    },
                )
        if self.engine.state.closed:  # by *fn* itself
            self.engine.require_open(doing)
        wrote = transaction.connection.total_changes != before
        if wrote and not (is_unchanged() if is_unchanged else _is_stored(row, transaction.fetch)):
            raise FailedPreconditionError(
                f"{doing}: its own function changed or deleted it; return the new value instead",
                id=row.id,
            )
        return result

    def has_set_pid(self, row: Row) -> bool:
        """Return whether the caller's open transaction has set the pid that *row* has."""
        transaction = self.engine.own_transaction()
        changes = () if transaction is None else transaction.changes_so_far()
        return any(isinstance(each, Changed) and each.sets_pid_of(row) for each in changes)


def _is_stored(row: AnyRow, fetch: Fetch) -> bool:
    find = writes.find_creation if isinstance(row, Row) else writes.find_status
    return find(row.creation, fetch) == row


def check_function(doing: str, fn: object) -> None:
    """Raise InvalidArgumentError unless *fn* can be called."""
    if not callable(fn):
        raise invalid(doing, "fn", fn, "is not a function of the old value")
