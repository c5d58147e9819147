"""One database file as this process uses it: one writer, readers of their own, no surprises.

Rules, each measured or written down by SQLite (How To Corrupt An SQLite Database):

1. The database file is never opened, copied or hashed except through SQLite: any `close()` of it
   in the process drops all locks that SQLite holds on it. `stat` is fine.
2. A connection is not used in a forked child, nor closed there; it is leaked on purpose. A file
   that was open at the fork cannot be opened anew in the child: SQLite would take the parent's
   locks for its own.
3. Writers begin IMMEDIATE: a transaction that reads first and then writes fails at once when
   somebody else wrote between.
4. Before a commit, and again before it is acknowledged, the database and the log that we have open
   must still be those at their paths; else it goes into nowhere, or, when the log is moved into the
   database at the close, over what others have written since.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from typing import TYPE_CHECKING, Any, Final

from registry.engine import driver, reserve
from registry.engine.blame import unavailable
from registry.engine.driver import translate
from registry.engine.paths import create_file, free, identity, refused, size
from registry.engine.readers import Readers
from registry.engine.reserve import Reserve
from registry.engine.transaction import Transaction, current_owner
from registry.engine.turnstile import Turnstile
from registry.errors import (
    CommitUnknownError,
    DataLossError,
    FailedPreconditionError,
    ReadOnlyError,
    RegistryError,
    ResourceExhaustedError,
    StoreClosedError,
    UnavailableError,
)
from registry.waiting import Mutex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from registry.sql import Fetch

log = logging.getLogger("registry")

RESET_WAIT: Final = 1.0
"""Seconds that a commit waits for readers when the log has grown past its bound: where two overlap
all the time, longer than each of them keeps its snapshot, or it grows without end."""
RETRY: Final = 0.005
"""Seconds between two looks at a lock that a stranger to the turnstile holds."""

spoiled: Final[dict[str, object]] = {}
"""Which databases, by their paths, have connections that must not be closed.

Their log is not the one at its path: SQLite would write the one down and remove the other.
"""
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
        self._writer: driver.Connection | None = None
        self._turnstile: Turnstile | None = None
        self._readers = Readers(
            path, read_only=read_only, admit=admit, require_same_file=self.require_same_file
        )
        self._files: tuple[object, object] = (None, None)
        self._reserve = Reserve(path)
        self._gave_up = False
        self._log_bound = driver.WAL_MAX
        self._unwritable: RegistryError | None = None

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
        open_it = self._open_for_reading if self.read_only else self._open_for_writing
        living.add(self)
        try:
            try:
                open_it(prepare, timeout, deadline)
            except ResourceExhaustedError:
                # SQLite has no room for its index of the log, without which it reads nothing.
                if not self._reserve.give_up():
                    raise
                open_it(prepare, timeout, deadline)
        except BaseException:
            living.discard(self)
            raise

    def _open_for_reading(
        self, prepare: Callable[[driver.Connection], None], timeout: float, _deadline: float
    ) -> None:
        self._readers.open(prepare, timeout)
        self._files = (identity(self.path), None)

    def _open_for_writing(
        self, prepare: Callable[[driver.Connection], None], timeout: float, deadline: float
    ) -> None:
        try:
            self._turnstile = Turnstile(self.path)
        except OSError as error:
            raise self._unlockable(f"open registry {self.path!r}", error) from error
        try:
            self._take_turn("open registry", deadline, timeout)
            self._open_writer(prepare, deadline, timeout)
            self._reserve.take()
        except BaseException:
            if self._writer is None:
                self._turnstile.remove_if_created()
            self._turnstile.release()
            self._turnstile.close()
            raise
        self._turnstile.release()

    def _open_writer(
        self, prepare: Callable[[driver.Connection], None], deadline: float, timeout: float
    ) -> None:
        doing = f"open registry {self.path!r}"
        create_file(self.path)
        before = identity(self.path)
        with driver.driver_errors(doing, self.path):
            remaining = max(0.0, deadline - time.monotonic())
            writer = driver.connect(self.path, "rw", driver.SETUP, busy_timeout=remaining)
            try:
                prepare(writer)
                # From now on `_begin_immediate` waits, for a stranger to the turnstile.
                writer.execute("PRAGMA busy_timeout = 0")
                self._begin_immediate(writer, doing, deadline, timeout)
                self._files = (identity(self.path), identity(f"{self.path}-wal"))
                # Where the system refused to open it for writing, SQLite has opened it for reading,
                # and begins IMMEDIATE all the same.
                writer.execute("PRAGMA user_version = 0")
                writer.execute("ROLLBACK")
            except BaseException:
                writer.close()
                raise
        if self._files[0] != before:
            writer.close()
            raise self._replaced("open registry")
        self._writer = writer

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
        """Close all connections under the lock: the last one to close moves the log."""
        lock, self._turnstile = self._turnstile, None
        try:
            if lock is not None:
                with contextlib.suppress(OSError, FailedPreconditionError):
                    lock.acquire(deadline)
        finally:
            if lock is not None and self._others_at_its_path():
                self._spoil()
            self._readers.close(self._close_connection)
            if self._writer is not None:
                self._close_connection(self._writer)
            if lock is not None:
                lock.release()
                lock.close()
            living.discard(self)

    def _close_connection(self, connection: driver.Connection) -> None:
        if self.path in spoiled and spoiled[self.path] == self._files[0]:
            driver.leak(connection)
        else:
            driver.close(connection)

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
        if identity(self.path) != self._files[0]:
            raise self._replaced(doing)

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

    def begin(self, transaction: Transaction, timeout: float) -> None:
        """Take the mutex, the turnstile and SQLite's write lock, in this order."""
        self.take_turn(transaction, timeout)
        doing, deadline = transaction.doing, transaction.deadline
        self._begin_immediate(transaction.connection, doing, deadline, timeout)
        self._guard(transaction)
        self.transaction = transaction

    def take_turn(self, transaction: Transaction, timeout: float) -> None:
        """Take the mutex and the turnstile, for one that has not begun."""
        deadline = transaction.deadline = time.monotonic() + timeout
        if not self._mutex.acquire(transaction, deadline):
            raise self._busy(transaction.doing, timeout)
        self.require_open(transaction.doing)
        if self._unwritable is not None:
            raise self._unwritable
        self._take_turn(transaction.doing, deadline, timeout)
        if not self._at_its_path():
            raise self._replaced(transaction.doing)

    def _take_turn(self, doing: str, deadline: float, timeout: float) -> None:
        """Take the turnstile."""
        assert self._turnstile is not None, "`new_transaction` refuses a read-only engine"
        try:
            if self._turnstile.acquire(deadline):
                return
        except OSError as error:
            raise self._unlockable(doing, error) from error
        raise self._busy(doing, timeout)

    def _unlockable(self, doing: str, error: OSError) -> RegistryError:
        return refused(
            doing, self.path, f"open and lock the lock files beside {self.path!r}", error
        )

    def _begin_immediate(
        self, connection: sqlite3.Connection, doing: str, deadline: float, timeout: float
    ) -> None:
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise translate(error, doing, self.path) from error
                if time.monotonic() >= deadline:
                    raise unavailable(doing, self.path, timeout, self.transaction, None) from error
                time.sleep(RETRY)
            else:
                return

    def commit(self, transaction: Transaction) -> None:
        """Commit, and make sure that what was committed is in the file at the path.

        Raises:
            RegistryError: nothing of the transaction is in the database.
            CommitUnknownError: nobody can tell; the engine writes no more.
            DataLossError: the file was replaced.
        """
        self.require_open(transaction.doing)
        transaction.check_whole()
        if not self._at_its_path():
            raise self._replaced(transaction.doing)
        transaction.committing = True
        try:
            transaction.connection.execute("COMMIT")
        except sqlite3.Error as error:
            transaction.committing = False
            self._refused(transaction, error)
        if not self._at_its_path():
            transaction.committing = False
            self._spoil()
            self._unwritable = self._replaced(transaction.doing)
            raise self._unwritable
        transaction.committed = True
        if self._gave_up:
            self._gave_up = not self._reserve.take()
        self._bound_log(transaction.connection)

    def _spoil(self) -> None:
        spoiled[self.path] = self._files[0]

    def _at_its_path(self) -> bool:
        """Whether the database and the log that are open are those that others find."""
        return (identity(self.path), identity(f"{self.path}-wal")) == self._files

    def _others_at_its_path(self) -> bool:
        """Whether others find another database or log, which a close of ours would ruin.

        Where there is none at all, the close writes our log down, and nothing of it is lost.
        """
        now = (identity(self.path), identity(f"{self.path}-wal"))
        return any(there not in {None, ours} for there, ours in zip(now, self._files, strict=True))

    def _refused(self, transaction: Transaction, error: sqlite3.Error) -> None:
        """Make sure that a commit which failed is not there after a crash, and raise.

        When the sync of the log fails, the frames are in it all the same, and whoever opens the
        file after a crash takes them for committed. Another commit overwrites them.
        """
        connection, doing = transaction.connection, transaction.doing
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_IOERR:
            try:
                connection.execute("BEGIN IMMEDIATE")
                # The one write that SQLite makes even when it changes nothing.
                connection.execute("PRAGMA user_version = 0")
                connection.execute("COMMIT")
            except sqlite3.Error as second:
                self._unwritable = CommitUnknownError(
                    f"{doing}: the commit failed ({error}) and so did making sure of it ({second}) "
                    f"in {self.path!r}; close the store, open it anew and read what is so",
                    path=self.path,
                    sqlite_code=error.sqlite_errorcode,
                )
                raise self._unwritable from error
        raise translate(error, doing, self.path) from error

    def _bound_log(self, connection: sqlite3.Connection) -> None:
        """Begin the log anew when it has grown past its bound: passive checkpoints may starve."""
        logged = size(f"{self.path}-wal")
        if logged <= self._log_bound:
            return
        with contextlib.suppress(sqlite3.Error):
            connection.execute(f"PRAGMA busy_timeout = {int(RESET_WAIT * 1000)}")
            busy = connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0]
            connection.execute("PRAGMA busy_timeout = 0")
            # A reader that stays would cost every commit the wait: try again when it has grown.
            self._log_bound = logged + driver.WAL_MAX if busy else driver.WAL_MAX

    def require_room(self, doing: str) -> None:
        """Raise unless there is more room than what marking and deleting may need.

        Raises:
            ResourceExhaustedError: the disk is full.
        """
        if not self._reserve.has_more():
            raise ResourceExhaustedError(
                f"{doing}: the disk is full, and what little is left of it at {self.path!r} is for "
                "marking sandboxes NOTREADY and deleting them; free some space",
                path=self.path,
            )

    def is_short_of_room(self) -> bool:
        """Whether there is less than what is kept for a full disk beside it."""
        return free(self.path) < reserve.SIZE

    def has_margin(self) -> bool:
        """Whether something small, a deletion, still finds room."""
        return free(self.path) >= reserve.MARGIN

    def make_room(self, transaction: Transaction) -> None:
        """Have the next write find room on a full disk, as far as what is kept for that goes.

        *transaction* has the turn, and has not begun.
        """
        self._gave_up |= self._reserve.give_up()
        # What is in the database need not stay in the log, which is then written over in place.
        with contextlib.suppress(sqlite3.Error):
            transaction.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

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
        open_still = transaction.connection.is_in_transaction()
        # Where a signal handler's exception struck between COMMIT and the note of it.
        transaction.committed |= transaction.committing and not open_still
        if open_still:
            try:
                transaction.connection.execute("ROLLBACK")
            except sqlite3.Error:
                log.exception("%s: rolling back failed", transaction.doing)
        if self.transaction is transaction:
            self.transaction = None
        if self._turnstile is not None:
            self._turnstile.release()

    def new_transaction(self, doing: str) -> Transaction:
        """Return a transaction of the caller's that has not begun.

        Raises:
            StoreClosedError, ReadOnlyError: no write is possible.
        """
        self.require_open(doing)
        if self._writer is None:
            raise ReadOnlyError(f"{doing}: {self.path!r} is open read-only", path=self.path)
        return Transaction(self._writer, self.path, doing, self.require_open)

    def _busy(self, doing: str, timeout: float) -> UnavailableError:
        holder = None if self._turnstile is None else self._turnstile.holder()
        return unavailable(doing, self.path, timeout, self.transaction, holder)

    def _replaced(self, doing: str) -> DataLossError:
        return DataLossError(
            f"{doing}: {self.path!r} or its -wal was removed or replaced while it was open, so "
            "what is written goes nowhere; find out who did it, close all stores of it in this "
            "process and open it anew, in another process if need be",
            path=self.path,
        )
