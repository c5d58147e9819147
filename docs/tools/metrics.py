"""Generator of the table in docs/metrics.md: `make metrics` writes it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

from registry.metrics.table import METRICS, PREFIX, Metric

PAGE: Final = Path(__file__).resolve().parents[1] / "metrics.md"
HEAD: Final = "| metric | type | unit | labels | meaning |\n| --- | --- | --- | --- | --- |\n"


def page() -> str:
    """Return the text of the page with the table of `METRICS`."""
    before, _, after = PAGE.read_text(encoding="utf-8").partition(HEAD)
    after = re.sub(r"\A(\|.*\n)*", "", after)
    return f"{before}{HEAD}{''.join(map(_row, METRICS))}{after}"


def _row(metric: Metric) -> str:
    suffix = "_total" if metric.kind == "counter" else ""
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    cells = (f"`{PREFIX}{metric.name}{suffix}`", metric.kind, metric.unit, labels, metric.meaning)
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    sys.stdout.write(page())
