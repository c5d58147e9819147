"""Lines of a registry's history: whether a registry continues what was pushed, and from where.

A registry that was restored from a backup, copied or put back continues an earlier point of its
history. What was pushed after that point happened all the same: it stays, as an earlier line. The
registry begins a new line, which has a number of its own in the fleet, its incarnation:

    first push       the number of the registry itself, which `restore` increments
    each new line    the next number, or that of the registry if it is greater

Both numbers agree unless a file was put back without `restore`, which only fingerprints reveal. A
restore makes seq jump to the next multiple of 10**9, plus 1. The jump loses nothing that was pushed
to this line, so it is no gap: it is part of the break `restored`, which says after which seq the
lines part. A gap is compaction: the registry no longer keeps what was not pushed in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg

from registry.fleet import statements
from registry.fleet.source import Row, Snapshot, Source, fingerprint
from registry.tables.version import BLOCK


class Registered(NamedTuple):
    """Row of a registry in the fleet, as far as pushes depend on it."""

    registry_id: str
    incarnation: int
    source_incarnation: int
    cursor: int
    batch: int
    fingerprint: str


class Segment(NamedTuple):
    """Part of the present line: the seqs *after* < seq <= *last* of one incarnation."""

    incarnation: int
    after: int
    last: int


def continues(known: Registered, found: Snapshot) -> bool:
    """Return whether *found* continues the line that was pushed up to the cursor of *known*."""
    if found.incarnation != known.source_incarnation:
        return False
    if known.cursor == 0:
        return True
    if found.at_cursor is None:
        # Compacted, if older than what is kept; else it was lost.
        return known.cursor < found.oldest
    return fingerprint(found.at_cursor) == known.fingerprint


def gap(known: Registered, found: Snapshot) -> tuple[int, int] | None:
    """Return the seqs between which transitions were compacted before they were pushed."""
    if found.at_cursor is not None or found.oldest <= known.cursor + 1:
        return None
    if known.cursor == 0 and found.oldest % BLOCK == 1:
        return None  # the first transition of all, in a registry restored from an empty backup
    return known.cursor, found.oldest


def segments(last: int, incarnation: int, breaks: Sequence[tuple[int, int]]) -> list[Segment]:
    """Return the parts of the present line, the newest first.

    Args:
        last: its last seq.
        incarnation: its number.
        breaks: of each line that parted from another one its incarnation, and the seq after which
            it parted; the latest line first.
    """
    found = []
    for number, after in breaks:
        found.append(Segment(number, after, last))
        last = min(last, after)
        incarnation = number - 1
    # The lines before the first break: one, whose number need not be 1.
    return [*found, Segment(incarnation, 0, last)]


def common(connection: psycopg.Connection, known: Registered, source: Source, oldest: int) -> Row:
    """Return the last transition that PostgreSQL and the registry share, `()` if none is known.

    Both histories begin alike and part once, so a binary search over seq finds the place from what
    both still keep. Each step reads one transition of each side, and holds no snapshot meanwhile.

    Args:
        connection: to the fleet's database.
        known: the registry as it was pushed.
        source: the registry.
        oldest: seq of the oldest transition that the registry keeps.
    """
    breaks = connection.execute(statements.LINES, {"registry_id": known.registry_id}).fetchall()
    parts = segments(known.cursor, known.incarnation, breaks)
    best: Row = ()
    low, high = oldest - 1, known.cursor
    while low < high:
        middle = (low + high + 1) // 2
        row = _last_up_to(connection, known.registry_id, parts, middle)
        if row is None or row[0] <= low:
            low = middle  # PostgreSQL keeps no transition in between
        elif source.transition(row[0]) == row:
            best, low = row, middle
        else:
            high = row[0] - 1
    return best


def _last_up_to(
    connection: psycopg.Connection, registry_id: str, parts: Sequence[Segment], seq: int
) -> tuple[Any, ...] | None:
    """Return the transition of the present line with the greatest seq up to *seq*."""
    for part in parts:
        high = min(part.last, seq)
        if high > part.after:
            bounds = {"incarnation": part.incarnation, "low": part.after, "high": high}
            params = {"registry_id": registry_id, **bounds}
            row = connection.execute(statements.LAST_UP_TO, params).fetchone()
            if row is not None:
                return row
    return None
