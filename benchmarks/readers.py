"""Writers beside a reader that never ends its transaction, like a `sqlite3` shell after BEGIN.

SQLite cannot reset the WAL meanwhile. The reader stays over all rounds, so the WAL grows on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

from benchmarks import samples, writers
from benchmarks.measure import Figure, of_rounds
from benchmarks.writers import Job

PROCESSES, THREADS = 8, 4


def measure(folder: str, rounds: int, seconds: float) -> Iterator[Figure]:
    """Yield the row; the rounds with and without the reader alternate, on two registries.

    Args:
        folder: for the databases.
        rounds: how many there are of each kind.
        seconds: length of a round.
    """
    paths = {kind: f"{folder}/readers-{kind}.db" for kind in ("beside", "without")}
    for path in paths.values():
        samples.fill(path, PROCESSES * THREADS)
    served: dict[str, list[float]] = {kind: [] for kind in paths}
    with closing(sqlite3.connect(paths["beside"], isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sandboxes").fetchall()
        for _ in range(rounds):
            for kind, path in paths.items():
                job = Job("ours", path, THREADS, seconds)
                served[kind].append(writers.run(job, PROCESSES).throughput)
    name = f"update beside an open reader / without, {PROCESSES} x {THREADS} threads"
    yield of_rounds(name, served["beside"], served["without"], "/s", goal="at least 0.8")
