"""The reference: plain `sqlite3` that does the same jobs, with the same tables and durability.

No triggers, no history, no identities, no checks: what is left is what SQLite costs.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

from registry import Metadata, Status, Store, rows

ROW = "SELECT * FROM sandboxes JOIN sandbox_statuses ON sandbox_statuses.sandbox_id = sandboxes.id"


def create(path: str) -> None:
    """Make a database with the tables and the indexes of a registry, and nothing else of it."""
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        found = connection.execute(
            "SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'view')"
        ).fetchall()
        for kind, name in found:
            connection.execute(f"DROP {kind} {name}")


class Plain:
    """One connection, as somebody writes it who knows SQLite."""

    def __init__(self, path: str) -> None:
        """Open it."""
        self._db = sqlite3.connect(path, isolation_level=None, timeout=60, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")

    def close(self) -> None:
        """Close it."""
        self._db.close()

    def add(self, metadata: Metadata, status: Status) -> None:
        """Insert both rows of a sandbox, and its labels."""
        columns = rows.metadata_columns(metadata)
        self._db.execute("BEGIN IMMEDIATE")
        self._insert("sandboxes", columns)
        for label in rows.label_rows(metadata):
            self._insert("sandbox_labels", label)
        self._insert("sandbox_statuses", {"sandbox_id": metadata.id, **rows.status_columns(status)})
        self._db.execute("COMMIT")

    def _insert(self, table: str, columns: dict[str, Any]) -> None:
        names, values = ", ".join(columns), ", ".join(f":{name}" for name in columns)
        self._db.execute(f"INSERT INTO {table} ({names}) VALUES ({values})", columns)

    def update(self, id: str, message: str) -> None:
        """Read the status of a sandbox, and write another."""
        self._db.execute("BEGIN IMMEDIATE")
        self.status(id)
        self._db.execute(
            "UPDATE sandbox_statuses SET message = ? WHERE sandbox_id = ?", (message, id)
        )
        self._db.execute("COMMIT")

    def status(self, id: str) -> tuple[Any, ...]:
        """Return the status row."""
        query = "SELECT * FROM sandbox_statuses WHERE sandbox_id = ?"
        found: tuple[Any, ...] = self._db.execute(query, (id,)).fetchone()
        return found

    def get(self, id: str) -> tuple[Any, ...]:
        """Return the joined row."""
        found: tuple[Any, ...] = self._db.execute(f"{ROW} WHERE id = ?", (id,)).fetchone()
        return found

    def list(self) -> list[tuple[Any, ...]]:
        """Return all of them."""
        return self._db.execute(f"{ROW} ORDER BY created_at, id").fetchall()
