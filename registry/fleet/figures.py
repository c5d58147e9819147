"""Figures of a pusher, and their form for Prometheus."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Final

from registry.fleet.push import Pushed

RETRY_FIRST: Final = 0.5
RETRY_MAX: Final = 60.0
"""Bounds of the longest wait before a retry, in seconds."""


@dataclass(slots=True)
class Figures:
    """Counts since the start of a pusher, and its present state."""

    batches: int = 0
    transitions: int = 0
    retries: int = 0
    behind: int = 0
    """Transitions that are not pushed yet, as far as the registry could be read."""
    problem: str = ""
    """Why the latest round failed; "" if it did not."""
    head_at: float = field(default_factory=time.time)
    """Time in seconds since the epoch at which the head was reached last, or of the start."""
    failures: int = 0
    """Rounds that have failed since the latest one that did not."""

    def add(self, pushed: Pushed) -> None:
        """Count a round that succeeded."""
        self.batches += 1
        self.transitions += pushed.transitions
        self.behind, self.problem, self.failures = pushed.behind, "", 0
        if pushed.is_head:
            self.head_at = time.time()

    def retry(self, problem: str, behind: int | None = None) -> float:
        """Count a round that failed.

        Args:
            problem: why.
            behind: transitions that are not pushed yet; None: unknown, so that the number stays.
        Returns:
            The longest wait before the next round, in seconds.
        """
        self.retries += 1
        self.failures += 1
        self.problem = problem
        self.behind = self.behind if behind is None else behind
        return min(RETRY_MAX, RETRY_FIRST * 2.0 ** min(self.failures, 10))

    def lag_seconds(self) -> float:
        """Return the seconds since the head was reached; 0 while it is reached."""
        is_late = self.behind or self.problem or not self.batches
        return max(0.0, time.time() - self.head_at) if is_late else 0.0

    def write(self, path: str) -> None:
        """Write the figures to *path*, for the textfile collector of Prometheus' node_exporter.

        Raises:
            OSError: the file cannot be written.
        """
        values = {
            "batches_total": self.batches,
            "transitions_total": self.transitions,
            "retries_total": self.retries,
            "lag_transitions": self.behind,
            "lag_seconds": round(self.lag_seconds(), 3),
            "head_timestamp_seconds": round(self.head_at, 3),
            "problem": int(bool(self.problem)),
        }
        lines = []
        for name, value in values.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            full = f"sandbox_registry_fleet_{name}"
            lines += [f"# TYPE {full} {kind}\n", f"{full} {value}\n"]
        with open(f"{path}.part", "w", encoding="utf-8") as file:
            file.writelines(lines)
        os.replace(f"{path}.part", path)
