"""SQLite's errors as errors of this package, with the error of the system behind them.

The class of an error follows from SQLite's result code, never from its text.

SQLite keeps the errno to itself, and Python's sqlite3 does not offer sqlite3_system_errno. After a
failed open or I/O, `system_error` therefore tries the operations that SQLite needs: it inspects the
database and the files beside it, and writes a few bytes to a new file in the same directory. That
file has no name (O_TMPFILE), so nothing is left behind.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from registry.engine.long_wal import long_wal
from registry.errors import (
    DataLossError,
    FailedPreconditionError,
    ReadOnlyError,
    RegistryError,
    ResourceExhaustedError,
    UnavailableError,
)
from registry.host import file_locks, paths
from registry.sync.interrupts import reraise_interrupt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RESTORE: Final = (
    "restore a backup with `sandbox-registry restore`, or copy what can be read to a new registry "
    "with `sandbox-registry salvage` (docs/operators.md, 'The database is damaged')"
)
"""What to do about a damaged database."""


@contextmanager
def driver_errors(doing: str, path: str) -> Iterator[None]:
    """Raise what the driver raises in the body as an error of this package."""
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, doing, path) from error
    except UnicodeDecodeError as error:
        raise translate(_schema_error(), doing, path) from error


def _schema_error() -> sqlite3.DatabaseError:
    """Return SQLite's error for a schema that it cannot read, and whose text is not UTF-8.

    SQLite's message quotes the schema. Python cannot decode it, and raises UnicodeDecodeError.
    """
    error = sqlite3.DatabaseError("malformed database schema, with bytes that are not UTF-8")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    error.sqlite_errorname = "SQLITE_CORRUPT"
    return error


def damaged_error(doing: str, path: str, damage: Sequence[str]) -> DataLossError:
    """Return the error for a database in which SQLite's integrity check finds *damage*."""
    more = f" (and {len(damage) - 1} more)" if len(damage) > 1 else ""
    return DataLossError(
        f"{doing}: the database is damaged: {damage[0]}{more} in {path!r}; {RESTORE}",
        path=path,
        damage=tuple(damage),
    )


def tells_damage(error: BaseException) -> bool:
    """Return whether *error* is what SQLite says about a damaged database."""
    code = getattr(error, "sqlite_code", None) or 0
    return isinstance(error, DataLossError) and code & 0xFF in _DAMAGED


def translate(error: sqlite3.Error, doing: str, path: str) -> RegistryError:
    """Return the error of this package for a driver error.

    Args:
        error: what sqlite3 raised.
        doing: the operation and its object; they begin the message.
        path: the database.
    """
    code = getattr(error, "sqlite_errorcode", None)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    cause = system_error(code or 0, path)
    if cause is not None:
        refused = paths.refused(doing, path, f"{error} ({name}), {cause.filename!r}", cause)
        refused.sqlite_code = code
        return refused
    kind, advice = _KINDS.get(code or 0) or _KINDS.get((code or 0) & 0xFF, (RegistryError, ""))
    blocker = file_locks.reader_blocker(path) if kind is UnavailableError else None
    holder = "" if blocker is None else file_locks.named(blocker)
    where = f"{path!r}, held by {holder}" if holder else f"{path!r}"
    message = f"{doing}: {error} ({name}) in {where}" + (f"; {advice}" if advice else "")
    if code == sqlite3.SQLITE_FULL:
        message += long_wal(path)
    translated = kind(message, sqlite_code=code)
    if hasattr(kind, "path"):
        translated.__dict__["path"] = path
    if isinstance(translated, UnavailableError):
        translated.holder = holder
    if isinstance(translated, ResourceExhaustedError):
        translated.errno = _ERRNOS.get(code or 0, 0)
    return translated


_DAMAGED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
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
        "open it as a user who can write its directory, or while another process has it open",
    ),
    sqlite3.SQLITE_READONLY_DBMOVED: (DataLossError, "the file was moved or removed"),
    sqlite3.SQLITE_CORRUPT: _CORRUPT,
    sqlite3.SQLITE_NOTADB: (
        DataLossError,
        f"it is not an SQLite database; is the path right? If it was a registry, {RESTORE}",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        FailedPreconditionError,
        "try again; may this user open the file and create files beside it?",
    ),
    sqlite3.SQLITE_PERM: (FailedPreconditionError, "may this user open the file?"),
    sqlite3.SQLITE_CONSTRAINT: (FailedPreconditionError, "the schema refuses it"),
}

# The error of the system behind an error of SQLite.

PATH_MAX: Final = 512
"""Bytes of the longest path that SQLite opens, including the suffix and the NUL at its end."""
PAGE: Final = 4096
"""Bytes that are written to a new file."""
DESCRIPTORS: Final = 4
"""Descriptors of one connection: database, WAL, WAL index, and the directory at a sync."""
_NO_TMPFILE: Final = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}
"""Errors of a file system or a kernel without O_TMPFILE."""


def system_error(code: int, database: str) -> OSError | None:
    """Return the error of the system behind an error of SQLite; None if there is none now.

    Args:
        code: SQLite's extended result code.
        database: absolute path. It is not opened: closing it would drop SQLite's locks on it.
    """
    if code & 0xFF not in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR}:
        return None
    try:
        if code & 0xFF == sqlite3.SQLITE_CANTOPEN:
            for suffix in ("", "-journal", "-wal", "-shm"):
                _require_openable(f"{database}{suffix}", there=suffix == "")
        _require_new_file(os.path.dirname(database))
        _require_descriptors(os.path.dirname(database))
    except OSError as error:
        reraise_interrupt(error)
        used_up = error.errno in paths.NO_SPACE | paths.NO_RESOURCES
        return error if used_up or code & 0xFF == sqlite3.SQLITE_CANTOPEN else None
    return None


def _require_new_file(directory: str) -> None:
    """Raise OSError unless a file can be made and written in *directory*."""
    try:
        fd = os.open(directory, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as error:
        reraise_interrupt(error)
        if error.errno not in _NO_TMPFILE:
            raise
        _require_space(directory)
        return
    try:
        os.pwrite(fd, bytes(PAGE), 0)
    except OSError as error:
        error.filename = directory
        raise
    finally:
        os.close(fd)


def _require_descriptors(directory: str) -> None:
    """Raise OSError unless the process can open as many files as SQLite needs for a connection.

    SQLite has closed by now those that it could open.
    """
    opened: list[int] = []
    try:
        while len(opened) < DESCRIPTORS:
            opened.append(os.open(directory, os.O_PATH | os.O_CLOEXEC))
    finally:
        for fd in opened:
            os.close(fd)


def _require_space(directory: str) -> None:
    """Raise OSError if *directory* has no space, or no permission, for another file."""
    free = paths.free(directory)
    if free.bytes < PAGE or free.inodes < 1:
        raise _error(errno.ENOSPC, directory)
    if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        raise _error(errno.EACCES, directory)


def _require_openable(path: str, *, there: bool) -> None:
    """Raise OSError unless the file at *path* can be opened, or made unless it must be *there*."""
    if len(os.fsencode(path)) >= PATH_MAX:
        raise _error(errno.ENAMETOOLONG, path)
    try:
        found = os.lstat(path)  # SQLite follows no symlink
    except FileNotFoundError as error:
        reraise_interrupt(error)
        if there:
            raise
        return
    if not stat.S_ISREG(found.st_mode):
        kind = stat.S_IFMT(found.st_mode)
        known = {stat.S_IFLNK: errno.ELOOP, stat.S_IFDIR: errno.EISDIR}
        raise _error(known.get(kind, errno.EINVAL), path)
    if not os.access(path, os.R_OK, effective_ids=True):
        raise _error(errno.EACCES, path)


def _error(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)
