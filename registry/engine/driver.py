"""SQLite connections as a registry wants them, and driver errors as the package raises them."""

from __future__ import annotations

import ctypes
import errno
import os
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote
from weakref import WeakSet

from registry.engine import paths, probe
from registry.errors import (
    DataLossError,
    FailedPreconditionError,
    ReadOnlyError,
    RegistryError,
    ResourceExhaustedError,
    UnavailableError,
)
from registry.sync import threads

if TYPE_CHECKING:
    from collections.abc import Iterator

Fetch = Callable[[str, Mapping[str, object]], list[tuple[Any, ...]]]
"""Runs a query and returns all its rows: in a transaction, or of what is committed."""
WAL_PAGES: Final = 1000
"""Pages after which a commit moves the log into the database, as far as readers let it."""
WAL_MAX: Final = 16 * 1024 * 1024
"""Bytes of log past which a commit waits for readers a moment, to begin the log anew."""
RESTORE: Final = (
    "move the file away together with all files beside it whose names begin with its own (-wal, "
    "-shm and others), then restore a backup or begin a new registry (docs/operators.md)"
)
"""What to do about a database that is damaged: SQLite applies an old log to any file beside it."""
OLDEST_SQLITE: Final = (3, 37, 0)
"""The first with STRICT tables."""


def wal(connection: sqlite3.Connection) -> None:
    """Readers and the writer never wait for each other; the answer may be another mode."""
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise FailedPreconditionError(
            f"open registry: SQLite keeps journal mode {mode!r} instead of 'wal'; "
            "is the file on a network file system?"
        )


def synchronous_full(connection: sqlite3.Connection) -> None:
    """Each commit is synced: with NORMAL a power cut takes the last ones back."""
    connection.execute("PRAGMA synchronous = FULL")


def foreign_keys_on(connection: sqlite3.Connection) -> None:
    """They are off by default, for each connection anew, and cannot be set in a transaction."""
    connection.execute("PRAGMA foreign_keys = ON")


def bounded_log(connection: sqlite3.Connection) -> None:
    """A log that once grew is cut when it is begun anew, or it would keep its size for ever."""
    connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_MAX}")


def roomy_cache(connection: sqlite3.Connection) -> None:
    """Who marks a thousand sandboxes keeps the pages of it, which the default of 2 MB does not."""
    connection.execute("PRAGMA cache_size = -16384")


SETUP: Final = (wal, synchronous_full, foreign_keys_on, bounded_log, roomy_cache)
"""What the one writer of a process needs."""


def query_only(connection: sqlite3.Connection) -> None:
    """A reader writes nothing even by mistake."""
    connection.execute("PRAGMA query_only = ON")


READER_SETUP: Final = (query_only,)


class Connection(sqlite3.Connection):
    """One that is known while it is open: who loses it closes it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Open it as sqlite3 does."""
        super().__init__(*args, **options)
        _open.add(self)
        if threads.is_exiting():
            leak(self)  # or Python closes it, at a time when no lock is taken any more

    def is_in_transaction(self) -> bool:
        """Whether it is, which one that is closed is not."""
        try:
            return self.in_transaction
        except sqlite3.ProgrammingError:
            return False

    def fetch(self, sql: str, params: Mapping[str, object] = {}) -> list[tuple[Any, ...]]:
        """Return all rows of a query; bytes that are no UTF-8 as lone surrogates.

        One value that a stranger has written so must not hide all the others.
        """
        try:
            return self.execute(sql, params).fetchall()
        except sqlite3.OperationalError as error:
            if hasattr(error, "sqlite_errorcode"):
                raise
        # Only now, since Python code for each text takes ten times as long.
        self.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        try:
            return self.execute(sql, params).fetchall()
        finally:
            self.text_factory = str


_open: Final[WeakSet[Connection]] = WeakSet()


def leak_all() -> None:
    """Let only an explicit close end a connection, in a forked child and when Python exits.

    Garbage collection would close it, and so would the end of the child; the parent's transaction
    is then "committed" with rows missing. A reference that is never given back prevents both.
    """
    for connection in tuple(_open):
        leak(connection)


def close(connection: Connection) -> None:
    """Close it, whatever SQLite says."""
    with suppress(sqlite3.Error):
        connection.close()


def leak(connection: Connection) -> None:
    """Let nothing close *connection*, until the process ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def connect(
    path: str,
    mode: str,
    setup: tuple[Callable[[sqlite3.Connection], None], ...],
    *,
    busy_timeout: float,
    immutable: bool = False,
) -> Connection:
    """Return a connection that begins no transaction by itself.

    Args:
        path: absolute path of an existing file.
        mode: `rw` or `ro`.
        setup: applied in order.
        busy_timeout: seconds that SQLite itself waits for a lock.
        immutable: the file cannot change, so no lock and no log are looked for.
    Raises:
        sqlite3.Error: as it comes; the caller knows what it was doing.
    """
    uri = f"file:{quote(os.fsencode(path))}?mode={mode}"
    connection = sqlite3.connect(
        uri + ("&immutable=1" if immutable else ""),
        uri=True,
        timeout=busy_timeout,
        isolation_level=None,
        check_same_thread=False,
        factory=Connection,
    )
    try:
        for step in setup:
            step(connection)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def driver_errors(doing: str, path: str) -> Iterator[None]:
    """Raise what the driver raises inside as an error of this package."""
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, doing, path) from error


def translate(error: sqlite3.Error, doing: str, path: str) -> RegistryError:
    """Return the error of this package for a driver error, told by its code, never by its text.

    Args:
        error: what sqlite3 raised.
        doing: what was being done and to which object; it begins the message.
        path: the database.
    """
    code = getattr(error, "sqlite_errorcode", None)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    cause = probe.cause(code or 0, path)
    if cause is not None:
        told = paths.refused(doing, path, f"{error} ({name}), {cause.filename!r}", cause)
        told.sqlite_code = code
        return told
    kind, advice = _KINDS.get(code or 0) or _KINDS.get((code or 0) & 0xFF, (RegistryError, ""))
    message = f"{doing}: {error} ({name}) in {path!r}" + (f"; {advice}" if advice else "")
    translated = kind(message, sqlite_code=code)
    if hasattr(kind, "path"):
        translated.__dict__["path"] = path
    if isinstance(translated, ResourceExhaustedError):
        translated.errno = _ERRNOS.get(code or 0, 0)
    return translated


_BUSY = (UnavailableError, "try again")
_CORRUPT = (DataLossError, RESTORE)
_FULL = (ResourceExhaustedError, "free some space")
_ERRNOS: Final = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR_SHMSIZE: errno.ENOSPC,
    sqlite3.SQLITE_NOMEM: errno.ENOMEM,
}
_KINDS: Final[dict[int, tuple[type[RegistryError], str]]] = {
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_LOCKED: _BUSY,
    sqlite3.SQLITE_PROTOCOL: _BUSY,
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR_SHMSIZE: _FULL,
    sqlite3.SQLITE_NOMEM: (ResourceExhaustedError, "the process is out of memory"),
    sqlite3.SQLITE_TOOBIG: (ResourceExhaustedError, "the value is too large for SQLite"),
    sqlite3.SQLITE_READONLY: (ReadOnlyError, "is the file, or its file system, read-only?"),
    sqlite3.SQLITE_READONLY_DIRECTORY: (
        ReadOnlyError,
        "while nobody has it open, only who can write its directory can read it",
    ),
    sqlite3.SQLITE_READONLY_DBMOVED: (DataLossError, "the file was moved or removed"),
    sqlite3.SQLITE_CORRUPT: _CORRUPT,
    sqlite3.SQLITE_NOTADB: (
        DataLossError,
        f"it is no SQLite database; is the path right? If it was a registry, {RESTORE}",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        FailedPreconditionError,
        "try again; may this user open the file and create files beside it?",
    ),
    sqlite3.SQLITE_PERM: (FailedPreconditionError, "may this user open the file?"),
    sqlite3.SQLITE_CONSTRAINT: (FailedPreconditionError, "the schema refuses it"),
}
