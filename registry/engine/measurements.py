"""Measurements of the writes of one database file in this process, for metrics.

Each is a few integers in memory, which the write changes while it holds the mutex: no callback, no
lock and no import. A reader in another thread may see the latest value in the buckets and not yet
in the sum. An interrupt may count a commit twice.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

SECONDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
"""Upper bounds of the buckets of durations: from a wait for no lock to the default timeout."""
WRITES: Final = (1, 2, 4, 8, 16, 32, 64)
"""Upper bounds of the buckets of group sizes; a group has at most 64 members."""


class Histogram:
    """Numbers of values by bucket, and the sum of all values."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Begin empty; *bounds* are the upper bounds of all buckets but the last."""
        self.bounds: Final = bounds
        self.counts: Final = [0] * (len(bounds) + 1)
        """Number of values in each bucket alone; the last one has those past all bounds."""
        self.sum: float = 0


class Measurements:
    """Measurements of the writes since the file was opened."""

    __slots__ = ("commit_seconds", "group_writes", "wait_seconds")

    def __init__(self) -> None:
        """Begin without writes."""
        self.wait_seconds: Final = Histogram(SECONDS)
        """For the mutex and the process lock, of each write; also if the wait has failed."""
        self.commit_seconds: Final = Histogram(SECONDS)
        """For COMMIT and what follows it before the members return, of each group."""
        self.group_writes: Final = Histogram(WRITES)
        """Writes that share a commit, of each group; those of an AsyncStore's batch count each."""

    def waited(self, seconds: float) -> None:
        """Count a wait of one write."""
        wait = self.wait_seconds
        wait.counts[bisect_left(SECONDS, seconds)] += 1
        wait.sum += seconds

    def committed(self, seconds: float, writes: int) -> None:
        """Count a commit that took *seconds*, of *writes* writes."""
        commit, group = self.commit_seconds, self.group_writes
        commit.counts[bisect_left(SECONDS, seconds)] += 1
        commit.sum += seconds
        group.counts[bisect_left(WRITES, writes)] += 1
        group.sum += writes
