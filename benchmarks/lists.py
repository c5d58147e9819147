"""Lists by a label selector over 10,000 sandboxes, beside plain SQL with the same condition."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from statistics import median
from typing import Any, Final

from benchmarks import plain, samples
from benchmarks.measure import Figure, of_rounds, took
from registry import Store

Read = Callable[[], list[Any]]
COUNT: Final = 10_000
CALLS: Final = 9
"""Calls of each kind in one round."""
HASHES: Final = [f"{n:08x}" for n in range(25)]
"""Values of a label that half of the sandboxes have."""
_HOLDERS: Final = "SELECT sandbox_id FROM sandbox_labels WHERE key"
_QUOTED: Final = ", ".join(f"'{each}'" for each in HASHES)
LISTS: Final = (
    (
        "pod-template-hash=00000007,tier in (front,back),!canary",
        (
            f"id IN ({_HOLDERS} = 'pod-template-hash' AND value = '00000007') "
            f"AND id IN ({_HOLDERS} = 'tier' AND value IN ('back', 'front')) "
            f"AND id NOT IN ({_HOLDERS} = 'canary')"
        ),
    ),
    (
        f"pod-template-hash notin ({','.join(HASHES)})",
        f"id NOT IN ({_HOLDERS} = 'pod-template-hash' AND value IN ({_QUOTED}))",
    ),
    ("app=web", f"id IN ({_HOLDERS} = 'app' AND value = 'web')"),
)
"""Selectors, each with the same condition in SQL: few, half and all of the sandboxes match."""


def measure(folder: str, rounds: int, count: int = COUNT) -> Iterator[Figure]:
    """Yield the rows.

    Args:
        folder: for the database.
        rounds: number of rounds of each row; each gives a ratio of two medians.
        count: number of sandboxes.
    """
    path = f"{folder}/lists.db"
    samples.fill(path, count)
    with (
        Store.open(path, reconcile=False) as store,
        closing(plain.Plain(path)) as reference,
        closing(plain.Plain(path)) as writer,
    ):
        for selector, condition in LISTS:
            query = f"{plain.ROW} WHERE {condition} ORDER BY created_at, id"
            ours: Read = partial(store.list, selector=selector)
            other: Read = partial(_fetch, reference.connection, query)
            found = [each.id for each in store.list(selector=selector)]
            assert found == [row[1] for row in other()]
            mine, theirs = _rounds(ours, other, writer.connection, rounds)
            work = f"list by selector over {count}, {len(found)} match / plain SQL"
            yield of_rounds(work, mine, theirs, "ms", goal="at most 1.5")


def _fetch(connection: sqlite3.Connection, query: str) -> list[tuple[Any, ...]]:
    return connection.execute(query).fetchall()


def _rounds(
    ours: Read, other: Read, writer: sqlite3.Connection, rounds: int
) -> tuple[list[float], list[float]]:
    """Return the median times of ours and of the reference, for each round."""
    mine, theirs = [], []
    for _ in range(rounds):
        ones, others = [], []
        for _ in range(CALLS):
            # A commit of a third connection: neither has anything in memory any more.
            writer.execute(
                "UPDATE sandbox_statuses SET pid = 0 WHERE sandbox_id = ?", (samples.name(1),)
            )
            ones.append(took(ours))
            others.append(took(other))
        mine.append(median(ones))
        theirs.append(median(others))
    return mine, theirs


def main() -> None:
    """Print the rows alone."""
    folder = f"{os.path.abspath('.')}/bench-lists"
    os.makedirs(folder, exist_ok=True)
    try:
        for figure in measure(folder, 7):
            print(figure, flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
