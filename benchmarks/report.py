"""Table of `docs/performance.md`, generated from the last full run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.measure import Figure

BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->\n"


def replace_table(document: str, written: Mapping[str, Any]) -> str:
    """Return *document* with the table of the figures in *written*."""
    before, _, rest = document.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}{table(written)}{END}{after}"


def table(written: Mapping[str, Any]) -> str:
    """Return the machine and the figures as Markdown."""
    machine = "; ".join(f"{what} {value}" for what, value in written["machine"].items())
    lines = [
        f"{machine}.",
        "",
        "| work | ours | reference | ORM | ours / reference (spread) | goal |",
        "| --- | ---: | ---: | ---: | --- | --- |",
        *(_line(Figure(**figure)) for figure in written["figures"]),
    ]
    return "\n".join(lines) + "\n"


def _line(figure: Figure) -> str:
    values = (figure.ours, figure.reference, figure.orm)
    numbers = " | ".join("" if value is None else _number(value) for value in values)
    unit = f" ({figure.unit})" if figure.unit else ""
    return f"| {figure.work}{unit} | {numbers} | {figure.ratio} | {figure.goal} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
