"""Figures, and how single calls are timed: ours and the reference's alternate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

Call = Callable[[int], object]


@dataclass(frozen=True)
class Figure:
    """One row of the table: medians of the rounds, ours beside the reference's, and the goal."""

    work: str
    ours: float
    reference: float | None
    """None: the figure is counted, and has no reference."""
    unit: str
    ratios: tuple[float, ...]
    """Ours divided by the reference, of each round; empty without a reference."""
    goal: str
    """Goal of the ratio; without a reference, of the count."""
    orm: float | None = None
    """Figure of the same work by SQLAlchemy's ORM, if it was measured."""

    @property
    def ratio(self) -> str:
        """Median and spread of the ratios."""
        if not self.ratios:
            return ""
        return f"{median(self.ratios):.2f} ({min(self.ratios):.2f} to {max(self.ratios):.2f})"

    def __str__(self) -> str:
        """Return the row as printed."""
        other, mapped = (
            "" if each is None else f"{each:.3f}" for each in (self.reference, self.orm)
        )
        return (
            f"{self.work:62} {self.ours:10.3f} {other:>10} {mapped:>10} {self.unit:5} "
            f"{self.ratio:24} {self.goal}"
        )


HEAD = f"{'work':62} {'ours':>10} {'reference':>10} {'ORM':>10} {'':5} {'ratio':24} goal"


def count(work: str, value: float, goal: str = "") -> Figure:
    """Return the figure of something that is counted."""
    return Figure(work, float(value), None, "", (), goal)


def of_rounds(
    work: str,
    ours: list[float],
    reference: list[float],
    unit: str,
    *,
    goal: str = "",
    orm: list[float] | None = None,
) -> Figure:
    """Return the figure of rounds that alternated between ours and the reference."""
    ratios = tuple(a / max(b, 1e-9) for a, b in zip(ours, reference, strict=True))
    return Figure(
        work, median(ours), median(reference), unit, ratios, goal, median(orm) if orm else None
    )


def took(work: Callable[[], object]) -> float:
    """Return how long *work* takes, in milliseconds."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def single(
    work: str,
    ours: Call,
    reference: Call,
    goal: str,
    *,
    rounds: int,
    calls: int,
    warm: int = 0,
    orm: Call | None = None,
    after: Call | None = None,
) -> Figure:
    """Return the figure of single calls, which alternate; each call gets a number of its own.

    Args:
        work: name of the row.
        ours, reference, orm: the calls.
        goal: goal of the ratio.
        rounds: number of rounds; each gives a ratio of two medians.
        calls: number of calls of each kind in one round.
        warm: number of calls before the first round that are not timed. A WAL that grows costs
            twice as much as one that is overwritten.
        after: undoes both calls; not timed.
    """
    mine, theirs, mapped, number = [], [], list[float](), 0
    for turn in range(-1, rounds):  # the first one warms up
        ones, others = [], []
        for _ in range(warm if turn < 0 else calls):
            number += 1
            ones.append(took(lambda n=number: ours(n)))  # type: ignore[misc]
            others.append(took(lambda n=number: reference(n)))  # type: ignore[misc]
            if after is not None:
                after(number)
        if turn >= 0:
            mine.append(median(ones))
            theirs.append(median(others))
            if orm is not None:
                few = range(max(3, calls // 10))
                mapped.append(median(took(lambda n=n: orm(n)) for n in few))  # type: ignore[misc]
    return of_rounds(work, mine, theirs, "ms", goal=goal, orm=mapped)
