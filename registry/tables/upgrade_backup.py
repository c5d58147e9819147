"""Backup of a registry beside its file, made before an upgrade of its schema."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import Final

from registry.engine import Connection
from registry.engine.sqlite_errors import driver_errors
from registry.host import paths
from registry.sync.interrupts import reraise_interrupt, suppress_os_errors
from registry.tables.version import REVISION

SUFFIX: Final = f"-before-{REVISION}"
"""Added to the path of a registry: the path of its backup before the upgrade to this revision."""
PART: Final = f"{SUFFIX}.part"
"""Suffix of a backup that is being written; the next backup replaces one that a kill has left."""


def back_up(connection: Connection, path: str) -> None:
    """Copy the registry at *path* to a file beside it, which replaces an earlier one of that name.

    The caller holds the write lock, outside a transaction. The copy has its name only once it is
    whole and synced.

    Raises:
        ResourceExhaustedError: there is no space for the copy.
        RegistryError: it cannot be written.
    """
    doing = f"back up registry {path!r} before its upgrade to revision {REVISION}"
    part = f"{path}{PART}"
    try:
        _create(part, path)
        try:
            with driver_errors(doing, path):
                _copy(connection, part)
            os.rename(part, f"{path}{SUFFIX}")
        except BaseException:
            with suppress_os_errors():
                os.unlink(part)
            raise
    except OSError as error:
        reraise_interrupt(error)
        raise paths.refused(doing, path, "write the copy", error) from error
    paths.sync_directory(os.path.dirname(path))


def _create(part: str, path: str) -> None:
    """Make the empty file *part*, with the owner of the registry at *path*."""
    try:
        os.unlink(part)
    except FileNotFoundError as error:
        reraise_interrupt(error)
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        paths.give_to_owner(fd, path)
    finally:
        os.close(fd)


def _copy(connection: sqlite3.Connection, part: str) -> None:
    """Write all pages of the database into *part*, and sync them."""
    with closing(sqlite3.connect(part, isolation_level=None)) as target:
        # A killed process would leave the journal beside a copy that is not used.
        target.execute("PRAGMA journal_mode = OFF")
        target.execute("PRAGMA synchronous = FULL")
        connection.backup(target)
