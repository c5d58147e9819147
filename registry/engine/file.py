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
from registry.engine.blame import unavailable
from registry.engine.readers import Readers
from registry.engine.reserve import Reserve
from registry.engine.transaction import Transaction, current_owner
from registry.engine.tripwire import Tripwire
from registry.engine.writer import Writer
from registry.errors import (
    FailedPreconditionError,
    ReadOnlyError,
    ResourceExhaustedError,
    StoreClosedError,
)
from registry.waiting import Mutex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from registry.sql import Fetch

log = logging.getLogger("registry")

living: Final[set[Engine]] = set()
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
        self.users = 0
        self.transaction: Transaction | None = None
        self.closed = ""
        """Why nothing can be done any more."""
        self._guard = guard
        self._mutex = Mutex()
        self._tripwire = Tripwire(path)
        self._writer = None if read_only else Writer(path, self._tripwire)
        self._readers = Readers(
            path,
            read_only=read_only,
            admit=admit,
            require_same_file=self._tripwire.require_database,
        )

    # Opening and closing.

    def open(
        self, prepare: Callable[[driver.Connection], None], timeout: float, deadline: float
    ) -> None:
        """Open the file, under the lock from before the first PRAGMA on."""
        if sqlite3.sqlite_version_info < driver.OLDEST_SQLITE:
            raise FailedPreconditionError(
                f"open registry {self.path!r}: SQLite {sqlite3.sqlite_version} is too old, "
                "3.37 is the oldest with STRICT tables; install a newer one"
            )
        living.add(self)
        try:
            try:
                self._open(prepare, timeout, deadline)
            except ResourceExhaustedError:
                # SQLite has no room for its index of the log, without which it reads nothing.
                if not Reserve(self.path).give_up():
                    raise
                self._open(prepare, timeout, deadline)
        except BaseException:
            living.discard(self)
            raise

    def _open(
        self, prepare: Callable[[driver.Connection], None], timeout: float, deadline: float
    ) -> None:
        if self._writer is None:
            self._readers.open(prepare, timeout)
            self._tripwire.set(log=False)
        else:
            self._writer.open(prepare, timeout, deadline)

    def close(self, timeout: float) -> None:
        """Let nothing begin any more, and close when what is under way has ended.

        What goes on past *timeout* seconds in another thread is rolled back at its next step, and
        closes when it ends.
        """
        if self.transaction is not None and self.transaction.owner is current_owner():
            self.end(self.transaction)
        deadline = time.monotonic() + timeout
        closing = object()
        try:
            free = self._mutex.acquire(closing, deadline)
            self.closed = "it was closed"
            if free:
                self._close_all(deadline)
        finally:
            # An interrupt ends the wait, and not the close.
            self.closed = "it was closed"
            self._mutex.release(closing)
            self._close_if_free()

    def _close_if_free(self) -> None:
        """Close unless somebody is writing, who calls this after."""
        closing = object()
        try:
            if self._mutex.acquire(closing, time.monotonic()):
                self._close_all(time.monotonic())
        finally:
            self._mutex.release(closing)

    def _close_all(self, deadline: float) -> None:
        try:
            if self._writer is None:
                self._readers.close(self._tripwire.close)
            else:
                self._writer.close(deadline, self._readers.close)
        finally:
            living.discard(self)

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
        self._tripwire.require_database(doing)

    def own_transaction(self) -> Transaction | None:
        """Return the open transaction if it is the caller's."""
        transaction = self.transaction
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
            with driver.driver_errors(doing, self.path):
                yield transaction.connection

    # Writing.

    @property
    def writer(self) -> Writer:
        """What writes; whoever has a transaction has one."""
        assert self._writer is not None, "`new_transaction` refuses a read-only engine"
        return self._writer

    def require_writer(self, doing: str) -> Writer:
        """Return what writes.

        Raises:
            StoreClosedError, ReadOnlyError: no write is possible.
        """
        self.require_open(doing)
        if self._writer is None:
            raise ReadOnlyError(f"{doing}: {self.path!r} is open read-only", path=self.path)
        return self._writer

    def new_transaction(self, doing: str) -> Transaction:
        """Return a transaction of the caller's that has not begun; errors as `require_writer`."""
        connection = self.require_writer(doing).connection
        return Transaction(connection, self.path, doing, self.require_open)

    def begin(self, transaction: Transaction, timeout: float) -> None:
        """Take the mutex, the turnstile and SQLite's write lock, in this order."""
        self.take_turn(transaction, timeout)
        self.writer.begin(transaction.doing, transaction.deadline, timeout)
        self._guard(transaction)
        self.transaction = transaction

    def take_turn(self, transaction: Transaction, timeout: float) -> None:
        """Take the mutex and the turnstile, for one that has not begun."""
        doing, writer = transaction.doing, self.writer
        deadline = transaction.deadline = time.monotonic() + timeout
        if not self._mutex.acquire(transaction, deadline):
            raise unavailable(doing, self.path, timeout, self.transaction, writer.holder())
        self.require_open(doing)
        writer.take_turn(doing, deadline, timeout)

    def make_room(self, transaction: Transaction, timeout: float) -> None:
        """Have the next write find room on a full disk, as far as what is kept for that goes."""
        self.take_turn(transaction, timeout)
        self.writer.make_room()

    def commit(self, transaction: Transaction) -> None:
        """Commit, and make sure that what was committed is in the file at the path.

        Raises:
            RegistryError: as `Writer.commit` and `Writer.confirm`.
        """
        self.require_open(transaction.doing)
        transaction.check_whole()
        self.writer.commit(transaction.doing)
        self.writer.confirm(transaction.doing)
        transaction.committed = True

    def end(self, transaction: Transaction) -> None:
        """Take back what is not committed and let the next one in; harmless when repeated."""
        if self.abandoned:
            return
        # The mutex goes last, and in no `finally`: by it the next try, after an interrupt, knows
        # that there is still something to do.
        if self._mutex.holder is transaction:
            self._end_held(transaction)
        self._mutex.release(transaction)
        if self.closed:
            self._close_if_free()

    def _end_held(self, transaction: Transaction) -> None:
        writer, open_still = self.writer, transaction.connection.is_in_transaction()
        # Where a signal handler's exception struck between COMMIT and the note of it.
        transaction.committed |= writer.committing and not open_still
        writer.committing = False
        if open_still:
            try:
                transaction.connection.execute("ROLLBACK")
            except sqlite3.Error:
                log.exception("%s: rolling back failed", transaction.doing)
        if self.transaction is transaction:
            self.transaction = None
        writer.release()
