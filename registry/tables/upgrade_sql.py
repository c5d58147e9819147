"""SQL that an upgrade of a registry would run, found out on a copy in memory."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from typing import Final

from registry.engine import driver
from registry.engine.sqlite_errors import driver_errors
from registry.tables import migrations

BUSY_TIMEOUT: Final = 5.0
"""Seconds that SQLite waits while another process recovers the WAL."""
READS: Final = re.compile(r"\s*(SELECT\b|PRAGMA [^=]*$|--)", re.IGNORECASE)
"""Beginning of a statement that changes nothing, or of one that a trigger runs."""


def statements(path: str) -> list[str]:
    """Return the statements that bring the registry at *path* up to date, in order.

    The registry was inspected before, and its revision is older than this code. It is only read.

    Raises:
        DataLossError: the revisions do not fit its schema.
        RegistryError: it cannot be read.
    """
    doing = f"read the upgrade of registry {path!r}"
    found: list[str] = []
    with driver_errors(doing, path), closing(_copy(path)) as copy:
        copy.set_trace_callback(found.append)
        migrations.upgrade_copy(copy, path)
        copy.set_trace_callback(None)
    return [statement.strip() for statement in found if not READS.match(statement)]


def _copy(path: str) -> driver.Connection:
    """Return a connection to a copy in memory of the database at *path*."""
    source = driver.connect(path, "ro", driver.READER_SETUP, busy_timeout=BUSY_TIMEOUT)
    with closing(source):
        copy = sqlite3.connect(":memory:", isolation_level=None, factory=driver.Connection)
        try:
            source.backup(copy)
        except BaseException:
            copy.close()
            raise
        return copy
