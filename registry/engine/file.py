"""One database file as this process uses it: one writer, readers of their own, no surprises.

Rules, each measured or written down by SQLite (How To Corrupt An SQLite Database):

1. The database file is never opened, copied or hashed except through SQLite: any `close()` of it
   in the process drops all locks that SQLite holds on it. `stat` is fine.
2. A connection is not used in a forked child, nor closed there; it is leaked on purpose. A file
   that was open at the fork cannot be opened anew in the child: SQLite would take the parent's
   locks for its own.
3. Writers begin IMMEDIATE: a transaction that reads first and then writes fails at once when
   somebody else wrote between.
4. No cursor stays open: behind one the log grows, and what it reads gets old.
5. Before a commit, and again before it is acknowledged, the database and the log that we have open
   must still be those at their paths; else it goes into nowhere, or, when the log is moved into the
   database at the close, over what others have written since.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from typing import TYPE_CHECKING, Any, Final

from registry.engine import driver, turnstile
from registry.engine.blame import unavailable
from registry.engine.driver import translate
from registry.engine.paths import (
    create_file,
    identity,
    on_read_only_file_system,
    refused,
    resolve,
    size,
    stamp,
)
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

IDLE_READERS: Final = 4
"""Readers that are kept open for the next read."""
RESET_WAIT: Final = 0.1
"""Seconds that a commit waits for readers when the log has grown past its bound."""
RETRY: Final = 0.005
"""Seconds between two looks at a lock that a stranger to the turnstile holds."""

_engines: dict[tuple[str, bool], Engine] = {}
_living: set[Engine] = set()
"""All that may have something open: those that are being opened or closed too."""
_gates: dict[tuple[str, bool], Mutex] = {}
_open_at_fork: set[str] = set()
_spoiled: set[str] = set()
"""Where a commit went into a log that is not at its path: closing the file would write it down."""


def attach(
    path: str | os.PathLike[str],
    *,
    create: bool,
    read_only: bool,
    timeout: float,
    prepare: Callable[[driver.Connection], None],
    guard: Callable[[Transaction], None],
    admit: Callable[[Fetch, str, str], object],
) -> Engine:
    """Return the engine of the file at *path*, which all Stores of this process share.

    Args:
        path: the database; its directories are made, with mode 0700, if *create*.
        create: whether a missing file is made, with mode 0600.
        read_only: read and never write, not even a lock file.
        timeout: seconds to wait for another process that writes or opens.
        prepare: called once with the new connection, under the write lock, before it is used.
        guard: called in each write transaction before its first statement.
        admit: called with a reader, what it does and the path when the schema was changed; raises
            where it may no longer be read.
    Raises:
        RegistryError: with what is wrong with the file, and what to do.
    """
    real = resolve(path, create=create and not read_only)
    deadline = time.monotonic() + timeout
    with _gate(real, read_only=read_only, deadline=deadline) as entered:
        if not entered:
            who = "another thread of this process"
            raise UnavailableError(
                f"open registry {real!r}: waited {timeout:g} s for {who}, which is opening or "
                "closing it; try again",
                path=real,
                holder=who,
                timeout=timeout,
            )
        if real in _open_at_fork:
            raise StoreClosedError(
                f"open registry {real!r}: it was open when this process was forked, and SQLite "
                "would take the parent's locks for its own; open it in a spawned process",
                path=real,
            )
        if real in _spoiled:
            raise DataLossError(
                f"open registry {real!r}: its files were replaced while this process wrote to "
                "them, and SQLite would mix up the old and the new; open it in another process",
                path=real,
            )
        engine = _engines.get((real, read_only))
        if engine is None:
            engine = Engine(real, read_only=read_only, guard=guard, admit=admit)
            _living.add(engine)
            try:
                engine.open(prepare, timeout, deadline)
            except BaseException:
                _living.discard(engine)
                raise
            _engines[real, read_only] = engine
        engine.require_same_file("open registry")
        engine.users += 1
        return engine


@contextlib.contextmanager
def _gate(path: str, *, read_only: bool, deadline: float | None) -> Iterator[bool]:
    """Let one thread at a time open or close a file; False when *deadline* passed before."""
    mutex, visitor = _gates.setdefault((path, read_only), Mutex()), object()
    try:
        yield mutex.acquire(visitor, deadline)
    finally:
        mutex.release(visitor)


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
        self._guard, self._admit = guard, admit
        self._schema: int | None = None
        """SQLite's number of the schema that may be read."""
        self._mutex = Mutex()
        self._writer: driver.Connection | None = None
        self._turnstile: Turnstile | None = None
        self._idle: list[driver.Connection] = []
        self._immutable = False
        self._stamp: object = None
        self._files: tuple[object, object] = (None, None)
        self._reserve = Reserve(path)
        self._gave_up = False
        self._log_bound = driver.WAL_MAX
        self._closed = ""
        """Why nothing can be done any more."""
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
        open_it = self._open_read_only if self.read_only else self._open_for_writing
        try:
            open_it(prepare, timeout, deadline)
        except ResourceExhaustedError:
            # SQLite has no room for its index of the log, without which it does not even read.
            if not self._reserve.give_up():
                raise
            open_it(prepare, timeout, deadline)

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

    def _open_read_only(
        self, prepare: Callable[[driver.Connection], None], timeout: float, _: float
    ) -> None:
        with driver.driver_errors(f"open registry {self.path!r}", self.path):
            try:
                reader = self._open_reader(prepare, timeout)
            except sqlite3.OperationalError as error:
                # Only there: a file that others may write is not immutable.
                if not on_read_only_file_system(self.path):
                    raise
                reader = self._open_immutable(prepare, error)
        self._files = (identity(self.path), None)
        self._idle.append(reader)

    def _open_reader(
        self, prepare: Callable[[driver.Connection], None], timeout: float
    ) -> driver.Connection:
        reader = driver.connect(
            self.path,
            "ro",
            driver.READER_SETUP,
            busy_timeout=timeout,
            immutable=self._immutable,
        )
        try:
            prepare(reader)
        except BaseException:
            reader.close()
            raise
        return reader

    def _open_immutable(
        self, prepare: Callable[[driver.Connection], None], cause: sqlite3.Error
    ) -> driver.Connection:
        """Open a file on a read-only file system, where SQLite cannot make its index of the log.

        A log that is there holds what is newer than the file: it must not be passed over.
        """
        if size(f"{self.path}-wal"):
            raise ReadOnlyError(
                f"open registry {self.path!r}: its log holds changes that cannot be read without "
                "writing beside it; make the file system writable, or copy the three files",
                path=self.path,
            ) from cause
        self._immutable = True
        self._stamp = stamp(self.path)
        reader = self._open_reader(prepare, timeout=0)
        try:
            self._require_unchanged("open registry")
        except BaseException:
            reader.close()
            raise
        return reader

    def _require_unchanged(self, doing: str) -> None:
        """Raise if an immutable file was changed: it may be mounted for writing elsewhere.

        Raises:
            FailedPreconditionError: what was read may be neither the old nor the new.
        """
        if stamp(self.path) != self._stamp:
            raise FailedPreconditionError(
                f"{doing}: {self.path!r} was changed meanwhile, though it can only be read "
                "from here; close the store and open it anew",
                path=self.path,
            )

    def detach(self, timeout: float) -> None:
        """Leave the engine; the last user closes it, within about *timeout* seconds."""
        if self._closed:
            return
        with _gate(self.path, read_only=self.read_only, deadline=None):
            self.users -= 1
            if self.users or self._closed:
                return
            _engines.pop((self.path, self.read_only), None)
            self._close(timeout)

    def _close(self, timeout: float) -> None:
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
            self._closed = "it was closed"
            if free:
                self._close_all(deadline)
        finally:
            # An interrupt ends the wait, and not the close.
            self._closed = "it was closed"
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
            while self._idle:
                self._close_connection(self._idle.pop())
            if self._writer is not None:
                self._close_connection(self._writer)
            if lock is not None:
                lock.release()
                lock.close()
            _living.discard(self)

    def _close_connection(self, connection: driver.Connection) -> None:
        if self.path in _spoiled:
            driver.leak(connection)
            return
        with contextlib.suppress(sqlite3.Error):
            connection.close()

    def abandon_in_child(self) -> None:
        """Make every use raise in a forked child."""
        self._closed = _ABANDONED

    @property
    def abandoned(self) -> bool:
        """Whether this is a forked child, in which nothing may be touched."""
        return self._closed == _ABANDONED

    def require_open(self, doing: str) -> None:
        """Raise unless the engine can be used.

        Raises:
            StoreClosedError: it was closed, or this is a forked child.
        """
        if self._closed:
            raise StoreClosedError(f"{doing}: the store is closed, {self._closed}", path=self.path)

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
        """Lend a connection on which all queries see the same commit.

        Args:
            doing: for messages.
            single: one query only, which is its own snapshot.
        """
        self.require_open(doing)
        transaction = self.own_transaction()
        if transaction is not None:
            with driver.driver_errors(doing, self.path):
                yield transaction.connection
            return
        connection = self._reader(doing)
        try:
            with driver.driver_errors(doing, self.path):
                try:
                    if not single:
                        connection.execute("BEGIN")
                    yield connection
                finally:
                    # Afterwards: what was read before the schema changed is what it was.
                    self._require_known_schema(connection, doing)
        finally:
            self._give_back(connection)
            if self._immutable:
                self._require_unchanged(doing)

    def _require_known_schema(self, connection: driver.Connection, doing: str) -> None:
        """Raise if another process has upgraded the registry past what may be read."""
        (schema,) = connection.execute("PRAGMA schema_version").fetchone()
        if schema != self._schema:
            with contextlib.suppress(DataLossError):  # of which schema it is, nobody can tell
                self._admit(connection.fetch, doing, self.path)
                self._schema = schema

    def _reader(self, doing: str) -> driver.Connection:
        try:
            return self._idle.pop()
        except IndexError:
            pass
        # Not `ro` where it can be helped: SQLite leaves the CHECKs out of a schema that it reads
        # so, and integrity_check then passes over them.
        mode = "ro" if self.read_only else "rw"
        with driver.driver_errors(doing, self.path):
            connection = driver.connect(
                self.path, mode, driver.READER_SETUP, busy_timeout=5, immutable=self._immutable
            )
        try:
            self.require_same_file(doing)
        except DataLossError:
            self._close_connection(connection)
            raise
        return connection

    def _give_back(self, connection: driver.Connection) -> None:
        if self.abandoned:
            return
        if connection.in_transaction:
            connection.rollback()
        self._idle.append(connection)
        # Looked at afterwards: a close may come between.
        while self._idle and (self._closed or len(self._idle) > IDLE_READERS):
            with contextlib.suppress(IndexError):  # another thread has taken the last one
                self._close_connection(self._idle.pop())

    # Writing.

    def begin(self, transaction: Transaction, timeout: float) -> None:
        """Take the mutex, the turnstile and SQLite's write lock, in this order."""
        deadline = transaction.deadline = time.monotonic() + timeout
        if not self._mutex.acquire(transaction, deadline):
            raise self._busy(transaction.doing, timeout)
        self.require_open(transaction.doing)
        if self._unwritable is not None:
            raise self._unwritable
        self._take_turn(transaction.doing, deadline, timeout)
        self._begin_immediate(transaction.connection, transaction.doing, deadline, timeout)
        self._guard(transaction)
        self.transaction = transaction

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
            _spoiled.add(self.path)
            self._unwritable = self._replaced(transaction.doing)
            raise self._unwritable
        transaction.committed = True
        if self._gave_up:
            self._gave_up = not self._reserve.take()
        self._bound_log(transaction.connection)

    def _at_its_path(self) -> bool:
        """Whether the database and the log that are open are those that others find."""
        return (identity(self.path), identity(f"{self.path}-wal")) == self._files

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

    def make_room(self, doing: str, timeout: float) -> None:
        """Have the next write find room on a full disk, as far as what is kept for that goes.

        Raises:
            UnavailableError: *timeout* passed before it could be done.
        """
        visit = self.new_transaction(doing)
        deadline = time.monotonic() + timeout
        try:
            if not self._mutex.acquire(visit, deadline):
                raise self._busy(doing, timeout)
            self.require_open(doing)
            self._take_turn(doing, deadline, timeout)
            self._gave_up |= self._reserve.give_up()
            # What is in the database need not stay in the log, which is then written over in place.
            with contextlib.suppress(sqlite3.Error):
                visit.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        finally:
            self.end(visit)

    def end(self, transaction: Transaction) -> None:
        """Take back what is not committed and let the next one in; harmless when repeated."""
        if self.abandoned:
            return
        # The mutex goes last, and in no `finally`: by it the next try, after an interrupt, knows
        # that there is still something to do.
        if self._mutex.holder is transaction:
            self._end_held(transaction)
        self._mutex.release(transaction)
        if self._closed:
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
            "process and open it anew",
            path=self.path,
        )


_ABANDONED: Final = "it belongs to the process that this one was forked from"


def _in_child() -> None:
    _gates.clear()  # another thread may have held one at the fork
    for engine in _living:
        engine.abandon_in_child()
        _open_at_fork.add(engine.path)
    _engines.clear()
    driver.leak_all()
    turnstile.close_all()


os.register_at_fork(after_in_child=_in_child)
