"""Incarnations of a registry: the lines that its history takes where a backup is put to use.

A copy is marked (`registry.copied_at`), so that it is not taken for the original. Opened for
writing at a path of its own, it becomes another registry: namespaces named after the original are
then no orphans of the copy. Restored in place of the original, it keeps the id.

Both begin a new incarnation, in which the seq of transitions jumps to the next block: what was
committed after the backup was made is lost, and no seq of a lost transition is used again.
"""

from __future__ import annotations

import os
import sqlite3
from typing import Final, NamedTuple

from registry.engine.driver import Fetch
from registry.tables import sql
from registry.tables.version import BLOCK

FIRST_LEVEL: Final = 3
"""The first revision, as a number, whose registries have incarnations."""
SALVAGE: Final = "salvage"
"""Writer, in the history of a salvaged copy, of the transitions that lead to its states."""


class Incarnation(NamedTuple):
    """Identity of a registry, and the line that its history takes."""

    registry_id: str
    number: int
    copied_at: int | None
    """When this copy was made, in ns since the Unix epoch; None: it is no copy."""
    last_seq: int
    """Seq that the next transition follows."""

    @classmethod
    def read(cls, fetch: Fetch) -> Incarnation:
        """Return the one that *fetch* sees; a registry of an older revision has its first."""
        ((_, newest),) = fetch(sql.KEPT, {})
        if fetch(sql.VERSION, {})[0][0] < FIRST_LEVEL:
            return cls(str(fetch(sql.REGISTRY_ID, {})[0][0]), 1, None, newest or 0)
        ((registry_id, number, copied_at, last_seq),) = fetch(sql.INCARNATION, {})
        return cls(str(registry_id), int(number), copied_at, max(last_seq or 0, newest or 0))


def new_id() -> str:
    """Return a random id for a registry."""
    return os.urandom(16).hex()


def begin(
    connection: sqlite3.Connection, now: Incarnation, *, registry_id: str, number: int
) -> None:
    """Begin incarnation *number* in the open transaction.

    Args:
        connection: has a write transaction open.
        now: the present incarnation; the jump leads past its last seq.
        registry_id: id from now on.
        number: greater than that of every incarnation before.
    """
    begun = {"registry_id": registry_id, "incarnation": number}
    connection.execute(sql.BEGIN_INCARNATION, begun)
    connection.execute(sql.DELETE_LAST_SEQ)
    connection.execute(sql.INSERT_LAST_SEQ, {"seq": (now.last_seq // BLOCK + 1) * BLOCK})


def mark_copy(connection: sqlite3.Connection, copied_at: int) -> None:
    """Mark the database of *connection* as a copy that was made at *copied_at*, in ns.

    A registry of an older revision has no mark.
    """
    (level,) = connection.execute("SELECT level FROM registry").fetchone()
    if level >= FIRST_LEVEL:
        connection.execute(sql.MARK_COPY, {"copied_at": copied_at})
