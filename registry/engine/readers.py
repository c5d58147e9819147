"""The connections that only read: each look sees one commit, and none keeps a writer waiting.

Rules:

1. No cursor stays open: behind one the log grows, and what it reads gets old.
2. What another process has made of the schema is looked at after each look, so that nothing is
   read by rules that no longer hold.
3. On a read-only file system a registry that was closed is read as immutable, for SQLite cannot
   make its index of the log there. Somebody may write to it through another mount: who reads
   meanwhile is told.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Final

from registry.engine import driver
from registry.engine.paths import on_read_only_file_system, size, stamp
from registry.errors import DataLossError, FailedPreconditionError, ReadOnlyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from registry.engine.driver import Fetch

IDLE: Final = 4
"""Readers that are kept open for the next look."""
BUSY_TIMEOUT: Final = 5.0
"""Seconds that SQLite waits where somebody recovers the log."""


class Readers:
    """The readers of one database file in this process."""

    def __init__(
        self,
        path: str,
        *,
        read_only: bool,
        admit: Callable[[Fetch, str, str], object],
        require_same_file: Callable[[str], None],
    ) -> None:
        """Open none yet.

        Args:
            path: the database.
            read_only: whether nothing else has it open here.
            admit: called with a reader, what it does and the path when the schema was changed;
                raises where it may no longer be read.
            require_same_file: raises where the database is no longer at its path.
        """
        self.closed = self.abandoned = False
        self._path: Final = path
        self._read_only, self._admit = read_only, admit
        self._require_same_file = require_same_file
        self._idle: list[driver.Connection] = []
        self._closing: list[driver.Connection] = []
        self._immutable = False
        self._stamp: object = None
        self._schema: int | None = None
        """SQLite's number of the schema that may be read."""

    # Opening and closing.

    def open(
        self,
        inspect: Callable[[str], None],
        prepare: Callable[[driver.Connection, str], None],
        timeout: float,
    ) -> None:
        """Open the first one, of a registry that is only read; arguments as `Engine.open`."""
        with driver.driver_errors(f"open registry {self._path!r}", self._path):
            try:
                inspect(self._path)
                reader = self._open(prepare, timeout)
            except sqlite3.OperationalError as error:
                # Only there: a file that others may write is not immutable.
                if not on_read_only_file_system(self._path):
                    raise
                reader = self._open_immutable(prepare, error)
        self._idle.append(reader)

    def _open(
        self, prepare: Callable[[driver.Connection, str], None], timeout: float
    ) -> driver.Connection:
        reader = driver.connect(
            self._path,
            "ro",
            driver.READER_SETUP,
            busy_timeout=timeout,
            immutable=self._immutable,
        )
        try:
            prepare(reader, self._path)
        except BaseException:
            reader.close()
            raise
        return reader

    def _open_immutable(
        self, prepare: Callable[[driver.Connection, str], None], cause: sqlite3.Error
    ) -> driver.Connection:
        # A log that is there holds what is newer than the file: it must not be passed over.
        if size(f"{self._path}-wal"):
            raise ReadOnlyError(
                f"open registry {self._path!r}: its log holds changes that cannot be read without "
                "writing beside it; make the file system writable, or copy the three files",
                path=self._path,
            ) from cause
        self._immutable = True
        self._stamp = stamp(self._path)
        reader = self._open(prepare, timeout=0)
        try:
            self.require_unchanged("open registry")
        except BaseException:
            reader.close()
            raise
        return reader

    def close(self, close: Callable[[driver.Connection], None]) -> None:
        """Have *close* close those that are idle; the others are when they are given back.

        Safe to call again after an interrupt; it resumes.
        """
        self.closed = True
        # No call stands between the two, or another thread might take one of them.
        self._closing += self._idle
        del self._idle[:]
        while self._closing:
            close(self._closing[-1])
            del self._closing[-1]  # afterwards: one that is lost keeps the file open

    # Reading.

    @contextlib.contextmanager
    def snapshot(self, doing: str, *, single: bool) -> Iterator[driver.Connection]:
        """Lend a connection on which all queries see the same commit.

        Args:
            doing: for messages.
            single: one query only, which is its own snapshot.
        """
        connection = self.take(doing)
        lent = [connection]
        try:
            with driver.driver_errors(doing, self._path):
                try:
                    if not single:
                        connection.execute("BEGIN")
                    yield connection
                finally:
                    self.require_known_schema(connection, doing)
        finally:
            try:
                self.give_back(lent)
            except BaseException:
                self.give_back(lent)  # interrupted: it goes on where it was
                raise
            self.require_unchanged(doing)

    def take(self, doing: str) -> driver.Connection:
        """Return a reader, to be given back."""
        # No call stands between the two: CPython runs signal handlers and other threads after one.
        idle = self._idle[-1:]
        del self._idle[-1:]
        if idle:
            return idle[0]
        # Not `ro` where it can be helped: SQLite leaves the CHECKs out of a schema that it reads
        # so, and integrity_check then passes over them.
        mode = "ro" if self._read_only else "rw"
        with driver.driver_errors(doing, self._path):
            try:
                connection = driver.connect(
                    self._path,
                    mode,
                    driver.READER_SETUP,
                    busy_timeout=BUSY_TIMEOUT,
                    immutable=self._immutable,
                )
            except sqlite3.Error:
                self._require_same_file(doing)  # that it is gone says more than "cannot open"
                raise
        try:
            self._require_same_file(doing)
        except DataLossError:
            driver.close(connection)
            raise
        return connection

    def give_back(self, lent: list[driver.Connection]) -> None:
        """Keep the readers in *lent* for later, or close them, and empty the list.

        Safe to call again after an interrupt: a reader that is lost keeps its snapshot, and so the
        WAL, until the garbage collector finds it.
        """
        if self.abandoned:
            return
        for connection in lent:
            if connection.in_transaction:
                connection.rollback()
        # No call stands between the two, or another thread might have a reader that is still lent.
        self._idle += lent
        del lent[:]
        # Looked at afterwards: a close may come between.
        while self._idle and (self.closed or len(self._idle) > IDLE):
            with contextlib.suppress(IndexError):
                driver.close(self._idle.pop())

    def require_known_schema(self, connection: driver.Connection, doing: str) -> None:
        """Raise if another process has upgraded the registry past what may be read."""
        if self.abandoned:
            return
        (schema,) = connection.execute("PRAGMA schema_version").fetchone()
        if schema != self._schema:
            with contextlib.suppress(DataLossError):  # of which schema it is, nobody can tell
                self._admit(connection.fetch, doing, self._path)
                self._schema = schema

    def require_unchanged(self, doing: str) -> None:
        """Raise if an immutable file was changed: what was read may be neither old nor new."""
        if self._immutable and stamp(self._path) != self._stamp:
            raise FailedPreconditionError(
                f"{doing}: {self._path!r} was changed meanwhile, though it can only be read "
                "from here; close the store and open it anew",
                path=self._path,
            )
