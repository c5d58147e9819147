"""Objects on stdout: tables for people, JSON for programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from registry.cli.output.cells import row, widths
from registry.cli.output.streams import write
from registry.cli.output.values import shown, to_json

DUMB: Final = "dumb"
"""Value of TERM for a terminal without escape sequences, which one without TERM is taken for."""


def write_json(value: object) -> None:
    """Write *value* as JSON."""
    write(to_json(value, indent=2) + "\n")


def write_all(found: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Write *found*: every field as JSON, or a table of *columns*."""
    if as_json:
        write_json(found)
    else:
        write(table(found, columns))


def table(found: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return a table of *columns*, with a line for each of *found*, to be searched by grep.

    On a terminal the last cell is folded, and no other. A dumb terminal gets what a pipe gets.
    """
    titles = [name.upper() for name in columns]
    lines = [titles, *([shown(name, each[name]) for name in columns] for each in found)]
    if sys.stdout.isatty() and os.environ.get("TERM", DUMB) != DUMB:
        from registry.cli.output.terminal import render  # noqa: PLC0415 - only terminals wait for textwrap

        return render(lines)
    sizes = widths(lines)
    return "".join(row(line, sizes) for line in lines)
