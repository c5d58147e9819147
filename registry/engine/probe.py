"""Search for the error of the system behind an error of SQLite in opening a file or in I/O.

SQLite keeps the errno to itself: Python's sqlite3 has no sqlite3_system_errno. So what SQLite needs
is tried again: the database and the files beside it, and a new file with some bytes in its
directory. That file has no name (O_TMPFILE), so nothing is left behind.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from typing import Final

from registry.engine import paths
from registry.sync.interrupts import reraise_interrupt

PATH_MAX: Final = 512
"""Bytes of the longest path that SQLite opens, the suffix and the NUL at its end counted."""
PAGE: Final = 4096
"""Bytes that are tried to be written."""
DESCRIPTORS: Final = 4
"""Of one connection: the database, its log, the index of the log, and the directory at a sync."""
_NO_TMPFILE: Final = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}
"""Of a file system or a kernel without O_TMPFILE."""


def cause(code: int, database: str) -> OSError | None:
    """Return the error of the system behind an error of SQLite; None where there is none now.

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
    """Raise OSError unless as many files can be open as SQLite needs for a connection.

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
    """Raise OSError unless a file may be made in *directory*, as far as that can be told."""
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
