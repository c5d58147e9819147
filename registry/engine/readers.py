"""Connections that only read: each read sees one commit, and no writer waits for a reader.

Rules:

1. No cursor stays open: the WAL grows behind an open cursor, and the cursor returns old rows.
2. The schema version is checked after each read: another process may have upgraded the registry
   past what this code may read.
3. On a read-only file system SQLite cannot make its index of the log. A registry that was closed is
   then read as immutable. Another mount may still write to it; a read during which the file changed
   raises.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from typing import TYPE_CHECKING, Final

from registry.engine import driver
from registry.engine.deadline import remaining
from registry.engine.lock_holder import wait_for_readers
from registry.engine.sqlite_errors import driver_errors, translate
from registry.errors import DataLossError, FailedPreconditionError, ReadOnlyError
from registry.host.paths import on_read_only_file_system, size, stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from registry.engine.file_identity import FileIdentity
    from registry.engine.hooks import SchemaHooks

IDLE: Final = 4
"""Idle readers that are kept open."""
BUSY_TIMEOUT: Final = 5.0
"""Seconds that SQLite waits while another process recovers the log."""


class Readers:
    """Readers of one database file in this process."""

    def __init__(
        self, path: str, hooks: SchemaHooks, file_identity: FileIdentity, *, read_only: bool
    ) -> None:
        """Prepare, without opening a connection.

        Args:
            path: the database.
            hooks: of its schema.
            file_identity: the files that are open.
            read_only: whether this process has the database open for reading alone.
        """
        self.closed = self.abandoned = False
        self._path: Final = path
        self._hooks: Final = hooks
        self._file_identity: Final = file_identity
        self._read_only: Final = read_only
        self._idle: list[driver.Connection] = []
        self._closing: list[driver.Connection] = []
        self._immutable = False
        self._stamp: object = None
        self._schema: int | None = None
        """SQLite's version of the schema that the hook `admit` has accepted."""

    # Opening and closing.

    def open(self, timeout: float, deadline: float) -> None:
        """Open the first reader of a registry that is only read.

        Args:
            timeout: seconds that the caller waits in all, for messages.
            deadline: monotonic time in seconds after which waiting stops.
        """
        doing = f"open registry {self._path!r}"
        with driver_errors(doing, self._path):
            try:
                wait_for_readers(self._path, doing, timeout, deadline)
                self._hooks.inspect(self._path)
                reader = self._open(timeout)
            except sqlite3.OperationalError as error:
                # A file that other processes may write is not immutable.
                if not on_read_only_file_system(self._path):
                    raise
                reader = self._open_immutable(error)
        self._idle.append(reader)

    def _open(self, timeout: float) -> driver.Connection:
        reader = driver.connect(
            self._path,
            "ro",
            driver.READER_SETUP,
            busy_timeout=remaining(self._path, timeout),
            immutable=self._immutable,
        )
        try:
            self._hooks.prepare(reader, self._path)
        except BaseException:
            reader.close()
            raise
        return reader

    def _open_immutable(self, cause: sqlite3.Error) -> driver.Connection:
        # The WAL holds commits that the file lacks.
        if size(f"{self._path}-wal"):
            raise ReadOnlyError(
                f"open registry {self._path!r}: its WAL holds commits, which SQLite cannot read on "
                "a read-only file system; make the file system writable, or copy the registry with "
                "its -wal to a writable one",
                path=self._path,
            ) from cause
        self._immutable = True
        self._stamp = stamp(self._path, "open registry")
        reader = self._open(timeout=0)
        try:
            self.require_unchanged("open registry")
        except BaseException:
            reader.close()
            raise
        return reader

    def close(self, close: Callable[[driver.Connection], None]) -> None:
        """Close the idle readers by *close*; readers in use are closed when they are given back.

        Safe to call again after an interrupt; it resumes.
        """
        self.closed = True
        # No call stands between the two lines, so no other thread takes one of the readers.
        self._closing += self._idle
        del self._idle[:]
        while self._closing:
            close(self._closing[-1])
            del self._closing[-1]  # afterwards, since a reader that is lost keeps the file open

    # Reading.

    @contextlib.contextmanager
    def snapshot(self, doing: str, *, single: bool) -> Iterator[driver.Connection]:
        """Lend a connection on which all queries see the same commit.

        Args:
            doing: the operation, for messages.
            single: the caller runs one query, which is a snapshot by itself.
        """
        connection = self.take(doing)
        lent = [connection]
        try:
            with driver_errors(doing, self._path):
                try:
                    connection.wait_at_most(remaining(self._path, connection.busy_timeout))
                    if not single:
                        connection.execute("BEGIN")
                    yield connection
                finally:
                    self.require_known_schema(connection, doing)
        finally:
            try:
                self.give_back(lent)
            except BaseException:
                self.give_back(lent)  # after an interrupt; it resumes
                raise
            self.require_unchanged(doing)

    def take(self, doing: str) -> driver.Connection:
        """Return a reader; the caller gives it back by `give_back`."""
        # CPython runs signal handlers and other threads after a call; none stands between the two.
        idle = self._idle[-1:]
        del self._idle[-1:]
        if idle:
            return idle[0]
        # With `ro`, SQLite leaves the CHECKs out of the schema, and integrity_check ignores them.
        mode = "ro" if self._read_only else "rw"
        with driver_errors(doing, self._path):
            try:
                connection = driver.connect(
                    self._path,
                    mode,
                    driver.READER_SETUP,
                    busy_timeout=BUSY_TIMEOUT,
                    immutable=self._immutable,
                )
            except sqlite3.Error:
                self._file_identity.require_database(doing)  # a removed file explains "cannot open"
                raise
        try:
            self._file_identity.require_database(doing)
        except BaseException:
            driver.close(connection)
            raise
        return connection

    def give_back(self, lent: list[driver.Connection]) -> None:
        """Keep the readers in *lent* as idle ones, or close them, and empty the list.

        Safe to call again after an interrupt. A reader that is lost would keep its snapshot, and
        the WAL from being reset, until the garbage collector finds it.
        """
        if self.abandoned:
            return
        for connection in lent:
            if connection.in_transaction:
                connection.rollback()
        # No call stands between the two lines, so no other thread gets a reader that is lent.
        self._idle += lent
        del lent[:]
        # Checked afterwards, since `close` may have run in between.
        while self._idle and (self.closed or len(self._idle) > IDLE):
            with contextlib.suppress(IndexError):
                driver.close(self._idle.pop())

    def require_known_schema(self, connection: driver.Connection, doing: str) -> None:
        """Raise if another process has upgraded the registry past what may be read."""
        if self.abandoned:
            return
        (schema,) = connection.execute("PRAGMA schema_version").fetchone()
        if schema != self._schema:
            with contextlib.suppress(DataLossError):  # a damaged schema has no known version
                self._hooks.admit(connection.fetch, doing, self._path)
                self._schema = schema

    def require_unchanged(self, doing: str) -> None:
        """Raise if an immutable file has changed: what was read may mix two commits."""
        if self._immutable and stamp(self._path, doing) != self._stamp:
            raise FailedPreconditionError(
                f"{doing}: {self._path!r} was changed during the read, on a file system that is "
                "read-only here; close the store and open it again",
                path=self._path,
            )


class DataVersion:
    """SQLite's `data_version` of one database file, which changes with each commit.

    The number changes after a commit of any connection: of this process, of another one, or of the
    `sqlite3` shell. A read of it takes a few microseconds. Rows that were cached stay valid while
    the number stays the same.

    Threads that wait for a read of another thread share the next one: it begins after their calls.
    """

    def __init__(self, path: str, readers: Readers) -> None:
        """Prepare, without a connection; *readers* lends it."""
        self._path: Final = path
        self._readers: Final = readers
        self._mutex = threading.Lock()
        self._reading_thread = 0
        self._begun = 0
        """How many reads have begun."""
        self._number: int | None = None
        """What the latest of them has read; None if it was interrupted or has failed."""
        self._connection: driver.Connection | None = None
        self._close: Callable[[driver.Connection], None] | None = None
        self.was_read = False
        """Whether it has been read since `OwnCommits` has reset this."""

    def read(self, doing: str) -> int | None:
        """Return the number of the latest commit.

        None if the caller has to read the rows instead: after the close, and in a signal handler or
        a finalizer that runs in the middle of another call of the same thread.

        Raises:
            RegistryError: the number cannot be read; see `Readers`.
        """
        thread = threading.get_ident()
        if self._reading_thread == thread:
            return None
        begun = self._begun
        with self._mutex:
            if self._readers.closed:  # since the caller checked
                return None
            self.was_read = True
            if self._begun > begun and self._number is not None:
                return self._number
            self._reading_thread, self._number = thread, None
            self._begun += 1
            try:
                if self._connection is None:
                    self._connection = self._readers.take(doing)
                connection = self._connection
                connection.wait_at_most(remaining(self._path, connection.busy_timeout))
                # All rows are fetched: the number stands still while a cursor is open.
                (number,) = connection.execute("PRAGMA data_version").fetchone()
                self._readers.require_unchanged(doing)
                self._number = int(number)
            except sqlite3.Error as error:
                raise translate(error, doing, self._path) from error
            finally:
                self._reading_thread = 0
                if self._close is not None:
                    self._close_now(self._close)
            return self._number

    def close(self, close: Callable[[driver.Connection], None]) -> None:
        """Close the connection by *close*, after a read in another thread has ended.

        In a signal handler that interrupts a read of its thread, that read closes it.
        """
        if self._reading_thread == threading.get_ident():
            self._close = close
            return
        with self._mutex:
            self._close_now(close)

    def _close_now(self, close: Callable[[driver.Connection], None]) -> None:
        if self._connection is not None:
            close(self._connection)
            self._connection = None  # afterwards: an interrupted close is called again
