"""Inspection of the path of a registry, before SQLite may change anything there.

SQLite applies the log beside a database as soon as the database is read, and moves it into the
database when the last connection is closed, also after an open that was refused. Therefore whether
there is a registry, and whether the log belongs to it, is decided first, through connections that
write to neither file:

    immutable   reads the database file without its log: its header, or all of it if there is none
    mode=ro     reads it with its log; SQLite may create the index of the log (-shm)

What is refused stays as it is, byte for byte.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from registry.engine import continuity, driver, paths
from registry.engine.continuity import Continuity
from registry.engine.lost import require_beginnable
from registry.errors import DataLossError, RegistryError
from registry.tables import migrations, sql
from registry.tables.version import APPLICATION_ID

if TYPE_CHECKING:
    from registry.engine.continuity import FileAndLog

_BUSY_TIMEOUT: Final = 5.0
"""Seconds that SQLite waits where another process recovers the log."""


def inspect(path: str, *, create: bool, upgrade: bool) -> None:
    """Raise unless what is at *path* may be opened; nothing is changed.

    What another process changes meanwhile is observed again, so that no verdict rests on a file of
    before the change and a log of after it.

    Args:
        path: of the database.
        create: a registry may be begun where there is none.
        upgrade: an older one may be brought up to date.
    Raises:
        DataLossError: it is not a registry, its log is not its own, or its database was lost.
        NotFoundError: there is none, and none may be begun.
        SchemaVersionError: its schema is too new, or too old and may not be upgraded.
        sqlite3.Error: it cannot be read.
    """
    found = continuity.read(path)
    while True:
        try:
            _require_openable(path, found, create=create, upgrade=upgrade)
        except (RegistryError, sqlite3.Error):
            again = continuity.read(path)
            if again == found:
                raise
            found = again
        else:
            return


def _require_openable(path: str, found: FileAndLog, *, create: bool, upgrade: bool) -> None:
    if paths.size(path) == 1:  # SQLite treats it as empty, and would write over the byte
        raise DataLossError(
            f"open registry {path!r}: it has one byte and is no SQLite database; is the path "
            f"right? If it was a registry, {driver.RESTORE}",
            path=path,
        )
    if found.file is None:
        if not found.has_log or not paths.size(path):
            require_beginnable(path, create=create)
            migrations.require_revisions(f"open registry {path!r}", path)
            return
        # A registry whose only commits are in its log: nothing was moved into the file yet.
        first = None if found.log is None else found.log.first
        ours = first is not None and first.application_id == APPLICATION_ID
    else:
        ours = found.file.application_id == APPLICATION_ID
    if not ours:
        with _probe(path, without_log=True) as connection:
            raise migrations.not_a_registry(connection, f"open registry {path!r}", path)
    if found.file is not None:
        _require_own_log(path, found)
    # What SQLite has to roll back first, it rolls back when it is opened for writing.
    if not paths.size(f"{path}-journal"):
        with _probe(path, without_log=not found.has_log) as connection:
            migrations.verify(connection, path, create=create, upgrade=upgrade)


def _require_own_log(path: str, found: FileAndLog) -> None:
    """Raise unless the log at *path* is that of the database."""
    verdict = found.continuity()
    if verdict in {Continuity.UNDETERMINED, Continuity.REPLACES}:
        whole = _is_whole_with_log(path, older=verdict is Continuity.REPLACES)
        verdict = Continuity.CONTINUES if whole else Continuity.STRANGE
    if verdict is Continuity.STRANGE:
        raise DataLossError(
            f"open registry {path!r}: the log '{path}-wal' does not continue the database file: "
            "one of them was copied or moved here, and SQLite would mix them up; nothing was "
            f"changed. To keep the database, move '{path}-wal' and '{path}-shm' away together and "
            f"open it again; if it is not the right one either, move {path!r} away too and restore "
            "a backup (docs/operators.md)",
            path=path,
        )


def _is_whole_with_log(path: str, *, older: bool) -> bool:
    """Return whether the database with its log is the same registry as without, and whole.

    Args:
        path: of the database.
        older: with the log it may be an older state.
    """
    with _probe(path, without_log=True) as file:
        try:
            before = _identity(file)
        except sqlite3.Error:  # half of a checkpoint: all of it is in the log
            before = None
    with _probe(path, without_log=False) as connection:
        try:
            after = _identity(connection)
            damage = connection.fetch("PRAGMA integrity_check(1)")
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF not in _DAMAGED:
                raise
            return False
    if before is not None and (before[0] != after[0] or (before[1] > after[1] and not older)):
        return False
    return damage == [("ok",)]


_DAMAGED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}


def _identity(connection: driver.Connection) -> tuple[object, int]:
    """Return the registry's id and the seq of its newest transition."""
    ((_, newest),) = connection.fetch(sql.KEPT)
    return connection.fetch(sql.REGISTRY_ID), int(newest or 0)


@contextmanager
def _probe(path: str, *, without_log: bool) -> Iterator[driver.Connection]:
    """Lend a connection that writes neither to the database nor to its log.

    Args:
        path: of the database.
        without_log: read the database file as if there was no log beside it.
    """
    connection = driver.connect(
        path, "ro", driver.READER_SETUP, busy_timeout=_BUSY_TIMEOUT, immutable=without_log
    )
    try:
        yield connection
    finally:
        driver.close(connection)
