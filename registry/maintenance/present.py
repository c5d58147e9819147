"""Registry, or remains of one, at the path to which a backup is restored."""

from __future__ import annotations

import os
import sqlite3
import time
from typing import Final, NamedTuple

from registry.engine import continuity, driver
from registry.engine.driver import Fetch
from registry.engine.sqlite_errors import driver_errors
from registry.errors import DataLossError, NotFoundError, RegistryError
from registry.host import paths
from registry.sync.interrupts import reraise_interrupt
from registry.tables.incarnation import Incarnation
from registry.tables.inspection import evidence, inspect
from registry.tables.version import APPLICATION_ID

MOVED: Final = ("", "-wal", "-shm", "-journal")
"""Suffixes of the files that a restore moves away: the database, and what SQLite would apply to it.

The lock files stay, since other processes wait for them, and the disk reserve.
"""
BUSY_TIMEOUT: Final = 5.0
"""Seconds that SQLite waits for a client that bypasses the process lock."""


class History(NamedTuple):
    """Identity of a registry, and the transitions that it keeps."""

    incarnation: Incarnation
    seqs: frozenset[int]

    @classmethod
    def read(cls, fetch: Fetch) -> History:
        """Return that of the registry which *fetch* sees."""
        seqs = fetch("SELECT seq FROM sandbox_transitions", {})
        return cls(Incarnation.read(fetch), frozenset(seq for (seq,) in seqs))


def examine(path: str, *, force: bool = False) -> History | None:
    """Return the history of the registry at *path*; None if it is gone or damaged.

    Args:
        path: the registry.
        force: a file that SQLite cannot read is taken for a damaged registry.
    Raises:
        DataLossError: what is there is no registry.
        SchemaVersionError: its schema is too new.
        RegistryError: it cannot be read.
    """
    doing = f"open registry {path!r}"
    try:
        with driver_errors(doing, path):
            if not inspect(path, create=False, upgrade=True):
                driver.roll_back_journal(path, BUSY_TIMEOUT)
                inspect(path, create=False, upgrade=True)
            return _read_history(path)
    except NotFoundError:
        return None
    except DataLossError as error:
        if _is_damaged_registry(path, force=force):
            return None
        why = str(error).partition("; ")[0]  # the advice would be: restore a backup
        raise DataLossError(
            f"{why}; nothing shows that it was a registry; is the path right? If so, give --force, "
            "which replaces a damaged file, or move it away",
            path=path,
        ) from error


def connect_to_backup(path: str) -> driver.Connection:
    """Return a connection that reads the backup at *path*, and leaves nothing beside it.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    is_one_file = not any(paths.size(f"{path}{suffix}") for suffix in ("-wal", "-journal"))
    setup, timeout = driver.READER_SETUP, BUSY_TIMEOUT
    return driver.connect(path, "ro", setup, busy_timeout=timeout, immutable=is_one_file)


def _read_history(path: str) -> History:
    """Return the history of the registry at *path*, which was inspected."""
    connection = driver.connect(path, "rw", driver.READER_SETUP, busy_timeout=BUSY_TIMEOUT)
    try:
        return History.read(connection.fetch)
    finally:
        driver.close(connection)


def _is_damaged_registry(path: str, *, force: bool) -> bool:
    """Return whether the file at *path* is that of a damaged registry, or is empty.

    A file that SQLite cannot read is one if what is beside it proves it, or if *force*. A database
    of another program is none.
    """
    try:
        found = continuity.read(path)
    except (sqlite3.Error, RegistryError) as error:
        reraise_interrupt(error)
        return force or bool(evidence(path, has_wal=False))
    if found.file is None:
        is_empty = paths.size(path) == 0
        return force or is_empty or bool(evidence(path, has_wal=found.has_wal))
    return found.file.application_id == APPLICATION_ID


def path_to_keep(path: str) -> str:
    """Return the path at which what is at *path* is kept: with the time, in UTC."""
    name = kept = time.strftime(f"{path}.replaced-%Y%m%dT%H%M%SZ", time.gmtime())
    number = 1
    while any(os.path.lexists(f"{kept}{suffix}") for suffix in MOVED):
        number += 1
        kept = f"{name}-{number}"
    return kept


def move_away(path: str, kept: str) -> bool:
    """Move the database at *path*, and what SQLite would apply to it, to *kept*.

    The database is moved first: without it, what is left beside it proves that there was a
    registry, and each open is refused until a restore is complete.

    Returns:
        whether there was a file.
    Raises:
        OSError: a file cannot be moved.
    """
    found = [suffix for suffix in MOVED if os.path.lexists(f"{path}{suffix}")]
    for suffix in found:
        os.rename(f"{path}{suffix}", f"{kept}{suffix}")
    paths.sync_directory(os.path.dirname(path))
    return bool(found)
