"""A figure, and how single calls are timed: ours and the reference's one by one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

Call = Callable[[int], object]


@dataclass(frozen=True)
class Figure:
    """Ours beside the reference, as medians of the rounds, and what the ratio is to be."""

    work: str
    ours: float
    reference: float
    unit: str
    ratios: tuple[float, ...]
    """Of each round, ours to the reference."""
    goal: str
    orm: float | None = None
    """The obvious way with SQLAlchemy's ORM, where there is one."""

    @property
    def ratio(self) -> str:
        """Return the median and the spread."""
        return f"{median(self.ratios):.2f} ({min(self.ratios):.2f} to {max(self.ratios):.2f})"

    def __str__(self) -> str:
        """Return a line of the table."""
        return (
            f"{self.work:46} {self.ours:10.3f} {self.reference:10.3f} "
            f"{'' if self.orm is None else f'{self.orm:.3f}':>10} {self.unit:5} "
            f"{self.ratio:24} {self.goal}"
        )


HEAD = f"{'work':46} {'ours':>10} {'reference':>10} {'ORM':>10} {'':5} {'ratio':24} is to be"


def of_rounds(
    work: str,
    ours: list[float],
    reference: list[float],
    unit: str,
    *,
    goal: str = "",
    orm: list[float] | None = None,
) -> Figure:
    """Return the figure of rounds that alternated."""
    ratios = tuple(a / max(b, 1e-9) for a, b in zip(ours, reference, strict=True))
    return Figure(
        work, median(ours), median(reference), unit, ratios, goal, median(orm) if orm else None
    )


def took(work: Callable[[], object]) -> float:
    """Return how many milliseconds *work* takes."""
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
) -> Figure:
    """Return the figure of single calls, one by one in turn; each gets a number.

    Args:
        work: what is done.
        ours, reference, orm: do it.
        goal: what the ratio is to be.
        rounds: of which each gives a ratio of medians.
        calls: of each, a round.
        warm: calls before, which are not counted: a log that grows costs twice one that is written
            over.
    """
    mine, theirs, mapped, number = [], [], list[float](), 0
    for turn in range(-1, rounds):
        ones, others = [], []
        for _ in range(warm if turn < 0 else calls):
            number += 1
            ones.append(took(lambda n=number: ours(n)))  # type: ignore[misc]
            others.append(took(lambda n=number: reference(n)))  # type: ignore[misc]
        if turn >= 0:
            mine.append(median(ones))
            theirs.append(median(others))
            if orm is not None:
                few = range(max(3, calls // 10))
                mapped.append(median(took(lambda n=n: orm(n)) for n in few))  # type: ignore[misc]
    return of_rounds(work, mine, theirs, "ms", goal=goal, orm=mapped)
