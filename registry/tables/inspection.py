"""Inspection of the path of a registry, before SQLite may change anything there.

SQLite applies the WAL beside a database as soon as it reads the database. It moves the WAL into the
database when the last connection is closed, also after an open that was refused. Therefore this
module decides first whether there is a registry, and whether the WAL belongs to it, by connections
that write to neither file:

    immutable   reads the database file without its WAL: its header, or all of it if there is none
    mode=ro     reads the database with its WAL; SQLite may create the WAL index (-shm)

Then it lets SQLite check the whole database: whatever is read from a damaged one may be wrong, and
a reconcile would write what it concludes from it. A file that is refused stays as it is, byte for
byte.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from registry.engine import continuity, disk_reserve, driver, journal_file
from registry.engine.continuity import Continuity
from registry.engine.deadline import remaining
from registry.engine.sqlite_errors import RESTORE, damaged_error
from registry.errors import DataLossError, NotFoundError, RegistryError
from registry.host import paths
from registry.tables import migrations, sql
from registry.tables.version import APPLICATION_ID

if TYPE_CHECKING:
    from registry.engine.continuity import FileAndWal

BESIDE: Final = ("-wal", "-shm", "-lock", "-queue", *disk_reserve.SIZES)
"""Suffixes of the files beside a database."""
WHOLE_CHECK_MAX: Final = 64 * 1024 * 1024
"""Bytes of a database, with its WAL, up to which its indexes are compared with its tables too.

SQLite needs 80 ms for 28 MiB, which are 10,000 sandboxes, and half of that without the indexes.
"""
_DAMAGE_LINES: Final = 10
"""Findings of SQLite that an error reports; `check` reports all."""
_BUSY_TIMEOUT: Final = 5.0
"""Seconds that SQLite waits while another process recovers the WAL, within the caller's timeout."""


def inspect(path: str, *, create: bool, upgrade: bool, damaged: bool = False) -> bool:
    """Return whether the registry at *path* was inspected whole; raise unless it may be opened.

    Nothing is changed. While its own rollback journal must be rolled back first, which takes a
    connection that writes, the content of the database cannot be inspected.

    Files that another process changes during the inspection are inspected again: no refusal rests
    on a file from before the change and a WAL from after it.

    Args:
        path: the database.
        create: a registry may be created at a path without one.
        upgrade: an older schema may be upgraded.
        damaged: the registry may be damaged: it is only read.
    Raises:
        DataLossError: the file is damaged or not a registry, its WAL belongs to another file, or
            the database of a registry is missing.
        NotFoundError: there is no registry, and none may be created.
        SchemaVersionError: the schema is too new, or it is too old and may not be upgraded.
        sqlite3.Error: the file cannot be read.
    """
    found = continuity.read(path)
    while True:
        try:
            return _require_openable(path, found, create=create, upgrade=upgrade, damaged=damaged)
        except (RegistryError, sqlite3.Error):
            again = continuity.read(path)
            if again == found:
                raise
            found = again


def _require_openable(
    path: str, found: FileAndWal, *, create: bool, upgrade: bool, damaged: bool
) -> bool:
    """Return whether the content was inspected; arguments and errors as `inspect`."""
    is_hot = _require_own_journal(path, found)
    if paths.size(path) == 1:  # SQLite treats it as empty, and would write over the byte
        raise DataLossError(
            f"open registry {path!r}: the file has one byte and is not an SQLite database; is the "
            f"path right? If it was a registry, {RESTORE}",
            path=path,
        )
    if found.file is None:
        if not found.has_wal or not paths.size(path):
            _require_beginnable(path, create=create, has_wal=found.has_wal)
            return True
        # A new registry: all its commits are in the WAL, and none was moved into the file yet.
        first = None if found.wal is None else found.wal.first
        ours = first is not None and first.application_id == APPLICATION_ID
    else:
        ours = found.file.application_id == APPLICATION_ID
    if not ours:
        with _probe(path, without_wal=True) as connection:
            raise migrations.not_a_registry(connection, f"open registry {path!r}", path)
    if found.file is not None:
        _require_own_wal(path, found)
    # SQLite rolls back a rollback journal only when the file is opened for writing.
    if not is_hot:
        with _probe(path, without_wal=not found.has_wal) as connection:
            migrations.verify(connection, path, create=create, upgrade=upgrade)
            if not damaged:
                _require_undamaged(connection, path)
    return not is_hot


def _require_undamaged(connection: driver.Connection, path: str) -> None:
    """Raise DataLossError if SQLite finds damage in the database that *connection* has open."""
    small = paths.size(path) + paths.size(f"{path}-wal") <= WHOLE_CHECK_MAX
    check = "integrity_check" if small else "quick_check"
    lines, whole = connection.damage(check)
    if not whole:
        lines.append("database disk image is malformed")  # what SQLite says of pages it cannot read
    if lines:
        raise damaged_error(f"open registry {path!r}", path, lines[:_DAMAGE_LINES])


def _require_beginnable(path: str, *, create: bool, has_wal: bool) -> None:
    """Raise unless a registry may be created at *path*, where there is no file or an empty one.

    An interrupted creation leaves an empty file and empty lock files, which prove nothing: the disk
    reserve is allocated, and the lock file is marked, when the registry exists.

    Args:
        path: the database.
        create: a registry may be created.
        has_wal: SQLite would apply the WAL beside *path*.
    Raises:
        DataLossError: there was a registry, and its database is missing.
        NotFoundError: there is no registry, and none may be created.
    """
    doing, missing = f"open registry {path!r}", _what_is_missing(path)
    found = evidence(path, has_wal=has_wal)
    if found:
        there = ", ".join(repr(f"{path}{name}") for name in BESIDE if os.path.lexists(path + name))
        raise DataLossError(
            f"{doing}: {missing}, but there was a registry: beside it {' and '.join(found)}; "
            "bring the database back (mount its disk, restore a backup); or, to begin a new "
            f"registry, first move these files away together: {there} "
            "(docs/operators.md, 'There was a registry')",
            path=path,
        )
    if not create:
        advice = "" if paths.inspect(path) else "; is its disk mounted?"
        raise NotFoundError(f"{doing}: {missing}{advice}", path=path)


def evidence(path: str, *, has_wal: bool) -> list[str]:
    """Return what beside *path* proves that there was a registry; *has_wal*: its WAL, too."""
    found = ["'-wal' holds commits"] if has_wal else []
    for suffix, size in disk_reserve.SIZES.items():
        if paths.size(f"{path}{suffix}") == size:
            found.append(f"{suffix!r} is allocated")
    if paths.size(f"{path}-lock"):
        found.append("'-lock' is marked")
    return found


def _what_is_missing(path: str) -> str:
    if paths.inspect(path) is None:
        return "there is no such file"
    if not paths.size(path):
        return "the database file is empty"
    # The database file of a new registry has the first page only: the rest is in the WAL.
    return f"the database file holds no table, and its WAL '{path}-wal' is missing"


def _require_own_journal(path: str, found: FileAndWal) -> bool:
    """Return whether SQLite would roll back the journal beside *path*; require that it may."""
    journal = journal_file.read(path)
    if journal is None:
        return False
    pages = 0
    if found.file is not None and journal.first is None:
        with _probe(path, without_wal=True, any_length=True) as connection:
            ((pages,),) = connection.fetch("PRAGMA page_count")
    if found.has_wal or not journal.belongs_to(found.file, pages):
        raise DataLossError(
            f"open registry {path!r}: the rollback journal '{path}-journal' does not belong to the "
            "database file, and SQLite would write its pages over those of the registry (nothing "
            "was changed); move it away, and open the registry again",
            path=path,
        )
    return True


def _require_own_wal(path: str, found: FileAndWal) -> None:
    """Raise unless the WAL beside *path* belongs to the database."""
    verdict = found.continuity()
    if verdict in {Continuity.UNDETERMINED, Continuity.REPLACES}:
        whole = _is_whole_with_wal(path, older=verdict is Continuity.REPLACES)
        verdict = Continuity.CONTINUES if whole else Continuity.STRANGE
    if verdict is Continuity.STRANGE:
        raise DataLossError(
            f"open registry {path!r}: the WAL '{path}-wal' does not continue the database file: "
            "one of them was copied or moved here, and SQLite would mix them up (nothing was "
            f"changed); to keep the database, move '{path}-wal' and '{path}-shm' away together and "
            f"open it again; if the database is wrong too, move {path!r} away as well and restore "
            "a backup (docs/operators.md)",
            path=path,
        )


def _is_whole_with_wal(path: str, *, older: bool) -> bool:
    """Return whether the database with its WAL is undamaged, and the same registry as without it.

    Args:
        path: the database.
        older: the database with its WAL may be in an older state.
    """
    with _probe(path, without_wal=True) as file:
        try:
            before = _identity(file, path)
        except sqlite3.Error:  # an unfinished checkpoint: all its pages are in the WAL
            before = None
    with _probe(path, without_wal=False) as connection:
        try:
            after = _identity(connection, path)
            damage = connection.fetch("PRAGMA integrity_check(1)")
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF not in _DAMAGED:
                raise
            return False
    if before is not None and (before[0] != after[0] or (before[1] > after[1] and not older)):
        return False
    return damage == [("ok",)]


_DAMAGED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}


def _identity(connection: driver.Connection, path: str) -> tuple[object, int]:
    """Return the registry's id and the seq of its newest transition."""
    migrations.require_tables(connection, f"open registry {path!r}", path)
    ((_, newest),) = connection.fetch(sql.KEPT)
    return connection.fetch(sql.REGISTRY_ID), int(newest or 0)


@contextmanager
def _probe(
    path: str, *, without_wal: bool, any_length: bool = False
) -> Iterator[driver.Connection]:
    """Lend a connection that writes neither to the database nor to its WAL.

    Args:
        path: the database.
        without_wal: read the database file as if there were no WAL beside it.
        any_length: the file may be shorter than its first page says.
    """
    setup = (driver.accept_any_length,) if any_length else driver.READER_SETUP
    connection = driver.connect(
        path, "ro", setup, busy_timeout=remaining(path, _BUSY_TIMEOUT), immutable=without_wal
    )
    try:
        yield connection
    finally:
        driver.close(connection)
