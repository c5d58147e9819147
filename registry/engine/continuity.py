"""Check that the WAL beside a database file continues that file.

SQLite applies any valid WAL to any database. The WAL of another registry, an older WAL, or a
backup that was copied over a registry beside its old WAL, then gives a mixture of both, or the
wrong registry, without an error.

Therefore each write transaction of this package gives the database the next number, in
`PRAGMA user_version`. That field is in the first page of the database, so each commit also writes
that page, and a WAL shows its first and its last commit. The first number of a registry is random,
so that two registries have different numbers. Why each commit needs a number, and what it costs, is
in docs/internals.md.

    file   WAL           verdict
    41     42 43 44      the WAL continues the file
    43     42 43 44      the WAL continues the file, if the first page is that of commit 43: a
                         checkpoint has moved commits up to 43, or all, into the file
    17     42 43 44      strange: one of the two was copied here (a backup, or another registry)
    45     42 43 44      strange: an older WAL
    41     41, or none   undetermined: another client, such as the `sqlite3` shell, does not number
                         its commits
    45     17            replaced, if the first transaction writes all pages and changes the schema
                         version by one: `.restore` of the sqlite3 shell has written a backup

A backup has the number of the commit from which it was made. It differs in
`PRAGMA schema_version`, which SQLite counts in each file, and which no numbered commit changes.
"""

from __future__ import annotations

import os
import sqlite3
from enum import Enum
from typing import Final, NamedTuple

from registry.engine import driver, wal_file
from registry.engine.wal_file import Header, WalFacts
from registry.host import paths

_NUMBER_MAX: Final = 0x7FFFFFFF
"""Greatest signed 32-bit integer; 0 means that the database has no number."""


_SCHEMA_OF_BACKUP: Final = 32
"""Least `PRAGMA schema_version` of a registry that was created here. A backup in a new file has 1,
and one more for each later change of its schema."""


class Continuity(Enum):
    """Relation of a WAL to the database file beside it."""

    CONTINUES = "continues"
    REPLACES = "replaces"
    """The WAL holds another state of the whole database, as SQLite's backup API writes it."""
    STRANGE = "strange"
    """The WAL does not belong to the file."""
    UNDETERMINED = "undetermined"
    """The numbers do not tell."""


class FileAndWal(NamedTuple):
    """Database file and its WAL, as they were read without changing anything."""

    file: Header | None
    """None if there is no file, or an empty one."""
    wal: WalFacts | None
    """None if SQLite would apply nothing of the WAL."""

    @property
    def has_wal(self) -> bool:
        """True if SQLite would apply a commit of the WAL."""
        return self.wal is not None and self.wal.committed

    def continuity(self) -> Continuity:
        """Return whether the WAL continues the file."""
        if self.wal is None or not self.wal.committed:
            return Continuity.CONTINUES
        first = self.wal.first
        if self.file is None or (first and first.page_size != self.file.page_size):
            return Continuity.STRANGE
        if first is None or 0 in {first.number, self.file.number}:
            return Continuity.UNDETERMINED
        if self.wal.has_file:
            return Continuity.CONTINUES
        verdict = _by_number(self.file, first)
        # `.restore` copies the number of the backup, and increments the schema version of the file.
        restored = self.wal.replaces_file and first.schema == self.file.schema + 1
        return Continuity.REPLACES if verdict is Continuity.STRANGE and restored else verdict


def _by_number(file: Header, first: Header) -> Continuity:
    """Return whether a WAL whose oldest copy of the first page is *first* continues *file*."""
    if first.number == following(file.number) and first.schema == file.schema:
        return Continuity.CONTINUES
    # A client without numbers may change the schema, also many times in one transaction.
    of_backup = file.schema < _SCHEMA_OF_BACKUP <= first.schema
    if first.number == file.number and first.schema >= file.schema and not of_backup:
        return Continuity.UNDETERMINED
    return Continuity.STRANGE


def read(path: str) -> FileAndWal:
    """Read the headers of the database at *path* and of its WAL.

    Raises:
        sqlite3.Error: the file is not a database, or cannot be read.
        RegistryError: the WAL cannot be read.
    """
    file = _header(path)  # first: a later WAL holds all commits that may have been moved into it
    return FileAndWal(file, wal_file.read(path, file))


def _header(path: str) -> Header | None:
    """Read the header of the database file, without its WAL and without taking a lock."""
    if not paths.size(path):
        return None
    connection = driver.connect(
        path, "ro", (driver.accept_any_length,), busy_timeout=0, immutable=True
    )
    try:
        header = Header(*(_pragma(connection, name) for name in _FIELDS))
        if header.application_id == 0 and _holds_nothing(connection):
            return None
        return header
    finally:
        driver.close(connection)


def _holds_nothing(connection: sqlite3.Connection) -> bool:
    return not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()


_FIELDS: Final = (
    "application_id",
    "user_version",
    "schema_version",
    "freelist_count",
    "page_size",
)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


# Numbering.


def following(number: int) -> int:
    """Return the number of the commit after *number*; a random one after 0, which is no number."""
    if number == 0:
        return int.from_bytes(os.urandom(4), "big") % _NUMBER_MAX + 1
    return number % _NUMBER_MAX + 1


def next_number(connection: sqlite3.Connection) -> int:
    """Return the number for the write transaction that *connection* is in."""
    return following(_pragma(connection, "user_version"))


def give_number(connection: sqlite3.Connection, number: int) -> None:
    """Give the open write transaction of *connection* its number, as its last statement."""
    connection.execute(f"PRAGMA user_version = {number}")
