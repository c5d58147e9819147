"""The reference: plain `sqlite3` that does the same jobs, with the same tables and durability.

No triggers, no history, no identities, no checks: what is left is what SQLite costs.
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
        self.connection = sqlite3.connect(
            path, isolation_level=None, timeout=60, check_same_thread=False
        )
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")

    def close(self) -> None:
        """Close it."""
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
        """Read the status of a sandbox, and write another."""
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
        """Return all of them."""
        return self.connection.execute(f"{ROW} ORDER BY created_at, id").fetchall()

    def handles(self) -> list[Handle]:
        """Return them as objects, made by hand."""
        return [Handle(self, Row._make(row)) for row in self.all()]

    def recover(self) -> int:
        """Mark those whose namespace or process is gone; return how many."""
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


class Handle:
    """A sandbox as it was read, its container and whether it has stopped."""

    __slots__ = ("container", "plain", "row", "stopped")

    def __init__(self, plain: Plain, row: Row) -> None:
        """Keep where it is from."""
        self.plain, self.row = plain, row
        self.container: object = None
        self.stopped = row.state == "SANDBOX_NOTREADY"


def _is_gone(netns_path: str, pid: int) -> bool:
    try:
        os.stat(netns_path)
        with open(f"/proc/{pid}/stat", "rb") as file:
            file.read()
    except OSError:
        return True
    return False
