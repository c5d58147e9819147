"""One database file as this process uses it: one writer, and readers.

Rules, each measured or stated by SQLite (How To Corrupt An SQLite Database):

1. The database file is never opened, copied or hashed except through SQLite: any `close()` of it
   in the process drops all locks that SQLite holds on it. `stat` is fine.
2. A connection is neither used nor closed in a forked child, but leaked on purpose. A file that was
   open at the fork cannot be opened in the child: SQLite would take the parent's locks for its own.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from typing import TYPE_CHECKING, Any, Final

from registry.engine import driver
from registry.engine.commits import Commits
from registry.engine.disk_reserve import SIZES
from registry.engine.file_identity import FileIdentity
from registry.engine.group_commit import GroupCommit
from registry.engine.own_commits import OwnCommits
from registry.engine.owner import current_owner
from registry.engine.readers import DataVersion, Readers
from registry.engine.sqlite_errors import driver_errors
from registry.engine.transaction import OpenState, Transaction
from registry.engine.writer import Writer
from registry.errors import (
    DataLossError,
    FailedPreconditionError,
    ReadOnlyError,
    ResourceExhaustedError,
)
from registry.host.paths import NO_SPACE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from registry.engine.hooks import SchemaHooks

log = logging.getLogger("registry")

open_engines: Final[set[Engine]] = set()
"""Engines that may have files open, including those that are being opened or closed."""
_CLOSED: Final = "the store is closed; open it again"
_ABANDONED: Final = (
    "the store belongs to the process that this one was forked from; open it in a spawned process"
)


class Engine:
    """One database file; made by `attach`, ended by `detach`."""

    def __init__(self, path: str, hooks: SchemaHooks, *, read_only: bool) -> None:
        """Open nothing yet.

        Args:
            path: real path of the database.
            hooks: of its schema.
            read_only: whether nothing is written, not even a lock file.
        """
        self.path: Final = path
        self.read_only: Final = read_only
        self.users: Final[set[object]] = set()
        """Stores that have it open; the last one to leave closes it."""
        self.state: Final = OpenState(path)
        self._file_identity = FileIdentity(path)
        self.writer: Final = Writer(self.state, hooks, self._file_identity)
        """The writer; not open if the engine is read-only."""
        self._readers = Readers(path, hooks, self._file_identity, read_only=read_only)
        self.data_version: Final = DataVersion(path, self._readers)
        self.own_commits: Final = OwnCommits(self.data_version)
        self.commits: Final = Commits(self.state, self.data_version)
        self.writes: Final = GroupCommit(
            self.writer, hooks, self.state, self.own_commits, self.commits
        )

    # Opening and closing.

    def open(self, timeout: float, deadline: float) -> None:
        """Open the file, under the process lock unless it is only read.

        Args:
            timeout: seconds that the caller waits in all, for messages.
            deadline: monotonic time in seconds after which waiting stops.
        """
        if sqlite3.sqlite_version_info < driver.OLDEST_SQLITE:
            raise FailedPreconditionError(
                f"open registry {self.path!r}: SQLite {sqlite3.sqlite_version} is too old, "
                "3.37 is the oldest with STRICT tables; install a newer one"
            )
        open_engines.add(self)
        try:
            try:
                self._open(timeout, deadline)
            except ResourceExhaustedError as error:
                # SQLite has no room for -wal and -shm, without which it reads nothing.
                if error.errno not in NO_SPACE or not self.writer.disk_space.reserve.release(
                    *SIZES
                ):
                    raise
                self._open(timeout, deadline)
        except BaseException:
            open_engines.discard(self)
            raise

    def _open(self, timeout: float, deadline: float) -> None:
        if self.read_only:
            self._readers.open(timeout, deadline)
            self._file_identity.record(log=False)
        else:
            self.writer.open(timeout, deadline)

    def close(self, timeout: float) -> None:
        """Refuse new work, and close when the writes under way have ended.

        A write of another thread that goes on past *timeout* seconds is rolled back at its next
        step, and closes the files when it ends.
        """
        transaction = self.own_transaction()
        if transaction is not None:
            self.end(transaction)
        deadline, mutex = time.monotonic() + timeout, self.writes.mutex
        closing = object()
        try:
            free = mutex.acquire(closing, deadline)
            if free:
                self.writes.finish_pending()
            self.state.closed = _CLOSED
            if free:
                self._close_all(deadline)
        finally:
            # An interrupt ends the wait, but not the close.
            self.state.closed = _CLOSED
            mutex.release(closing)
            self.commits.close()
            self._close_if_free()

    def _close_if_free(self) -> None:
        """Close unless a thread is writing, which then calls this at its end."""
        mutex, closing = self.writes.mutex, object()
        try:
            if mutex.acquire(closing, time.monotonic()):
                self.writes.finish_pending()
                self._close_all(time.monotonic())
        finally:
            mutex.release(closing)

    def _close_all(self, deadline: float) -> None:
        try:
            if self.read_only:
                self._close_readers(self._file_identity.close)
            else:
                self.writer.close(deadline, self._close_readers)
        finally:
            open_engines.discard(self)

    def _close_readers(self, close: Callable[[driver.Connection], None]) -> None:
        self._readers.close(close)
        self.data_version.close(close)

    def abandon_in_child(self) -> None:
        """Make every use raise in a forked child."""
        self.state.closed = _ABANDONED
        self._readers.abandoned = True
        self.commits.abandon_in_child()

    @property
    def closed(self) -> bool:
        """True once the engine was closed, and in a forked child."""
        return bool(self.state.closed)

    @property
    def abandoned(self) -> bool:
        """True in a forked child, which must not touch the files."""
        return self.state.closed is _ABANDONED

    def require_open(self, doing: str) -> None:
        """Raise unless the engine can be used.

        Raises:
            StoreClosedError: it was closed, or this is a forked child.
        """
        if self.state.closed:
            self.state.require(doing)

    def require_same_file(self, doing: str) -> None:
        """Raise unless the file at the path is the one that is open.

        Raises:
            DataLossError: the file was removed or replaced.
        """
        self._file_identity.require_database(doing)

    def own_transaction(self) -> Transaction | None:
        """Return the open transaction if it is the caller's."""
        transaction = self.writes.transaction
        if transaction is not None and transaction.owner is current_owner():
            return transaction
        return None

    # Reading.

    def fetch(self, sql: str, params: Mapping[str, object], doing: str) -> list[tuple[Any, ...]]:
        """Return all rows of one query, in the caller's open transaction or of the last commit."""
        with self.snapshot(doing, single=True) as connection:
            return connection.fetch(sql, params)

    @contextlib.contextmanager
    def snapshot(self, doing: str, *, single: bool = False) -> Iterator[driver.Connection]:
        """Lend a connection whose queries all see one commit, or the caller's open transaction.

        Args:
            doing: operation and object, for messages.
            single: whether it is for one query only, which is its own snapshot.
        """
        self.require_open(doing)
        transaction = self.own_transaction()
        try:
            if transaction is None:
                with self._readers.snapshot(doing, single=single) as connection:
                    yield connection
            else:
                with driver_errors(doing, self.path):
                    yield transaction.connection
        except DataLossError as error:
            self.state.note(error)
            raise

    @contextlib.contextmanager
    def committed(self, doing: str) -> Iterator[driver.Connection]:
        """Lend a snapshot of the latest commit, also inside the caller's open transaction."""
        self.require_open(doing)
        try:
            with self._readers.snapshot(doing, single=False) as connection:
                yield connection
        except DataLossError as error:
            self.state.note(error)
            raise

    # Writing.

    def require_writer(self, doing: str) -> Writer:
        """Return the writer.

        Raises:
            StoreClosedError, ReadOnlyError: no write is possible.
        """
        if self.state.closed:
            self.state.require(doing)
        if self.read_only:
            raise ReadOnlyError(f"{doing}: {self.path!r} is open read-only", path=self.path)
        return self.writer

    def end(self, transaction: Transaction) -> None:
        """Roll back what is not committed, and release the mutex; idempotent."""
        if self.state.closed is not _ABANDONED:
            self.writes.end(transaction)
            if self.state.closed:
                self._close_if_free()

    def abandon(self, transaction: Transaction) -> None:
        """End *transaction* as `end` does, but without waiting for other threads."""
        if self.state.closed is not _ABANDONED:
            self.writes.abandon(transaction)
            if self.state.closed:
                self._close_if_free()
