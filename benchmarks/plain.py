"""Reference of the benchmark: plain `sqlite3`, with the same tables and the same durability.

It has no triggers, no history, no identities and no checks: its times are the cost of SQLite.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import Any

from registry import Metadata, Status, Store
from registry.tables import encoding
from registry.tables.rows import Row

COLUMNS = ", ".join(Row._fields)
ROW = (
    f"SELECT {COLUMNS} FROM sandboxes JOIN sandbox_statuses"
    " ON sandbox_statuses.sandbox_id = sandboxes.id"
)


def create(path: str) -> None:
    """Create a database with the tables and indexes of a registry, without triggers and views."""
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        found = connection.execute(
            "SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'view')"
        ).fetchall()
        for kind, name in found:
            connection.execute(f"DROP {kind} {name}")


class Plain:
    """One connection, with the pragmas that its durability needs."""

    def __init__(self, path: str) -> None:
        """Open the database at *path*."""
        self.connection = sqlite3.connect(
            path, isolation_level=None, timeout=60, check_same_thread=False
        )
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def add(self, *made: tuple[Metadata, Status]) -> None:
        """Insert both rows of each sandbox, and its labels, in one commit."""
        self.connection.execute("BEGIN IMMEDIATE")
        for metadata, status in made:
            self._insert("sandboxes", encoding.metadata_columns(metadata))
            for label in encoding.label_rows(metadata):
                self._insert("sandbox_labels", label)
            columns = {"sandbox_id": metadata.id, **encoding.status_columns(status)}
            self._insert("sandbox_statuses", columns)
        self.connection.execute("COMMIT")

    def _insert(self, table: str, columns: dict[str, Any]) -> None:
        names, values = ", ".join(columns), ", ".join(f":{name}" for name in columns)
        self.connection.execute(f"INSERT INTO {table} ({names}) VALUES ({values})", columns)

    def update(self, id: str, message: str) -> None:
        """Read the status row of a sandbox, and change its message."""
        self.connection.execute("BEGIN IMMEDIATE")
        self.status(id)
        self.connection.execute(
            "UPDATE sandbox_statuses SET message = ? WHERE sandbox_id = ?", (message, id)
        )
        self.connection.execute("COMMIT")

    def status(self, id: str) -> tuple[Any, ...]:
        """Return the status row."""
        query = "SELECT * FROM sandbox_statuses WHERE sandbox_id = ?"
        found: tuple[Any, ...] = self.connection.execute(query, (id,)).fetchone()
        return found

    def get(self, id: str) -> tuple[Any, ...]:
        """Return the joined row."""
        found: tuple[Any, ...] = self.connection.execute(f"{ROW} WHERE id = ?", (id,)).fetchone()
        return found

    def all(self) -> list[tuple[Any, ...]]:
        """Return the joined row of every sandbox."""
        return self.connection.execute(f"{ROW} ORDER BY created_at, id").fetchall()

    def recover(self) -> int:
        """Mark each sandbox whose namespace or process is gone; return their number."""
        query = "SELECT id, netns_path, pid FROM sandboxes JOIN sandbox_statuses ON sandbox_id = id"
        gone = [
            row[0] for row in self.connection.execute(query).fetchall() if _is_gone(row[1], row[2])
        ]
        self.connection.execute("BEGIN IMMEDIATE")
        for id in gone:
            self.connection.execute(
                "UPDATE sandbox_statuses SET state = 'SANDBOX_NOTREADY' WHERE sandbox_id = ?", (id,)
            )
        self.connection.execute("COMMIT")
        return len(gone)


def _is_gone(netns_path: str, pid: int) -> bool:
    try:
        os.stat(netns_path)
        with open(f"/proc/{pid}/stat", "rb") as file:
            file.read()
    except OSError:
        return True
    return False
