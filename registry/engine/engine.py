"""One database file as this process uses it: one writer, readers of their own, no surprises.

Rules, each measured or written down by SQLite (How To Corrupt An SQLite Database):

1. The database file is never opened, copied or hashed except through SQLite: any `close()` of it
   in the process drops all locks that SQLite holds on it. `stat` is fine.
2. A connection is not used in a forked child, nor closed there; it is leaked on purpose. A file
   that was open at the fork cannot be opened anew in the child: SQLite would take the parent's
   locks for its own.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from typing import TYPE_CHECKING, Any, Final

from registry.engine import driver
from registry.engine.disk_reserve import SIZES
from registry.engine.file_identity import FileIdentity
from registry.engine.group_commit import GroupCommit
from registry.engine.owner import current_owner
from registry.engine.readers import DataVersion, Readers
from registry.engine.sqlite_errors import driver_errors
from registry.engine.transaction import Transaction
from registry.engine.writer import Writer
from registry.errors import (
    FailedPreconditionError,
    ReadOnlyError,
    ResourceExhaustedError,
    StoreClosedError,
)
from registry.host.paths import NO_SPACE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from registry.engine.driver import Fetch

log = logging.getLogger("registry")

open_engines: Final[set[Engine]] = set()
"""All that may have something open: those that are being opened or closed too."""
_ABANDONED: Final = "it belongs to the process that this one was forked from"


class Engine:
    """One database file; made by `attach`, left by `detach`."""

    def __init__(
        self,
        path: str,
        *,
        read_only: bool,
        guard: Callable[[Transaction], None],
        admit: Callable[[Fetch, str, str], object],
    ) -> None:
        """Remember what to open."""
        self.path: Final = path
        self.read_only: Final = read_only
        self.users: Final[set[object]] = set()
        """Those that have it open; the last one to leave closes it."""
        self.closed = ""
        """Why nothing can be done any more."""
        self._file_identity = FileIdentity(path)
        self.writer: Final = Writer(path, self._file_identity)
        """What writes; closed where the engine is read-only."""
        self.writes: Final = GroupCommit(path, self.writer, guard, self.require_open)
        self._readers = Readers(
            path,
            read_only=read_only,
            admit=admit,
            require_same_file=self._file_identity.require_database,
        )
        self.data_version: Final = DataVersion(path, self._readers)

    # Opening and closing.

    def open(
        self,
        inspect: Callable[[str], None],
        prepare: Callable[[driver.Connection, str], None],
        timeout: float,
        deadline: float,
    ) -> None:
        """Open the file, under the process lock unless it is only read.

        Args:
            inspect: called with the path before SQLite may change anything; raises where nothing
                may be changed.
            prepare: called with the connection and the path before it is used.
            timeout: seconds that were to be waited, for messages.
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
                self._open(inspect, prepare, timeout, deadline)
            except ResourceExhaustedError as error:
                # SQLite has no room for -wal and -shm, without which it reads nothing.
                if error.errno not in NO_SPACE or not self.writer.disk_space.reserve.release(
                    *SIZES
                ):
                    raise
                self._open(inspect, prepare, timeout, deadline)
        except BaseException:
            open_engines.discard(self)
            raise

    def _open(
        self,
        inspect: Callable[[str], None],
        prepare: Callable[[driver.Connection, str], None],
        timeout: float,
        deadline: float,
    ) -> None:
        if self.read_only:
            self._readers.open(inspect, prepare, timeout)
            self._file_identity.record(log=False)
        else:
            self.writer.open(inspect, prepare, timeout, deadline)

    def close(self, timeout: float) -> None:
        """Let nothing begin any more, and close when what is under way has ended.

        What goes on past *timeout* seconds in another thread is rolled back at its next step, and
        closes when it ends.
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
            self.closed = "it was closed"
            if free:
                self._close_all(deadline)
        finally:
            # An interrupt ends the wait, and not the close.
            self.closed = "it was closed"
            mutex.release(closing)
            self._close_if_free()

    def _close_if_free(self) -> None:
        """Close unless somebody is writing, who calls this after."""
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
        self.closed = _ABANDONED
        self._readers.abandoned = True

    @property
    def abandoned(self) -> bool:
        """Whether this is a forked child, in which nothing may be touched."""
        return self.closed == _ABANDONED

    def require_open(self, doing: str) -> None:
        """Raise unless the engine can be used.

        Raises:
            StoreClosedError: it was closed, or this is a forked child.
        """
        if self.closed:
            raise StoreClosedError(f"{doing}: the store is closed, {self.closed}", path=self.path)

    def require_same_file(self, doing: str) -> None:
        """Raise unless the file at the path is the one that is open.

        Raises:
            DataLossError: it was removed or replaced.
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
        """Return all rows of one query: of the caller's open transaction, else as committed."""
        with self.snapshot(doing, single=True) as connection:
            return connection.fetch(sql, params)

    @contextlib.contextmanager
    def snapshot(self, doing: str, *, single: bool = False) -> Iterator[driver.Connection]:
        """Lend a connection on which all queries see the same commit, or the own transaction.

        Args:
            doing: for messages.
            single: one query only, which is its own snapshot.
        """
        self.require_open(doing)
        transaction = self.own_transaction()
        if transaction is None:
            with self._readers.snapshot(doing, single=single) as connection:
                yield connection
        else:
            with driver_errors(doing, self.path):
                yield transaction.connection

    # Writing.

    def require_writer(self, doing: str) -> Writer:
        """Return what writes.

        Raises:
            StoreClosedError, ReadOnlyError: no write is possible.
        """
        self.require_open(doing)
        if self.read_only:
            raise ReadOnlyError(f"{doing}: {self.path!r} is open read-only", path=self.path)
        return self.writer

    def new_transaction(self, doing: str, *, exclusive: bool) -> Transaction:
        """Return a transaction of the caller's that has not begun; errors as `require_writer`.

        Args:
            doing: what, for messages.
            exclusive: it shares no commit with others.
        """
        connection = self.require_writer(doing).connection
        return Transaction(connection, self.path, doing, self.require_open, exclusive=exclusive)

    def end(self, transaction: Transaction) -> None:
        """Take back what is not committed and let the next one in; harmless when repeated."""
        if self.abandoned:
            return
        self.writes.end(transaction)
        if self.closed:
            self._close_if_free()

    def abandon(self, transaction: Transaction) -> None:
        """Do so without waiting for anybody: whose it was is gone."""
        if self.abandoned:
            return
        self.writes.abandon(transaction)
        if self.closed:
            self._close_if_free()
