"""Tables on a terminal, with a folded last column, and coloured titles and states."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

from registry.cli.output.cells import GAP, padding, width, widths

BOLD: Final = "\x1b[1m"
COLOURS: Final = {"SANDBOX_READY": "\x1b[32m", "SANDBOX_NOTREADY": "\x1b[33m"}
"""Styles of cells, by their text."""
RESET: Final = "\x1b[0m"
LAST_MIN: Final = 20
"""Columns that the last column of a table gets on a narrow terminal."""


def render(lines: Sequence[Sequence[str]]) -> str:
    """Return the table of *lines*, of which the first has the titles, for the terminal."""
    sizes = widths(lines)
    left = shutil.get_terminal_size().columns - sum(sizes[:-1]) - len(GAP) * len(sizes[:-1])
    sizes[-1] = min(sizes[-1], max(left, LAST_MIN))
    coloured = not os.environ.get("NO_COLOR")
    rows = []
    for number, line in enumerate(lines):
        style = BOLD if number == 0 else ""
        for cells in _folded(line, sizes[-1]):
            padded = (
                (_painted(cell, style) if coloured else cell) + padding(cell, size)
                for cell, size in zip(cells, sizes, strict=True)
            )
            rows.append(GAP.join(padded).rstrip() + "\n")
    return "".join(rows)


def _folded(line: Sequence[str], size: int) -> Iterator[list[str]]:
    """Yield the rows that show *line*, whose last cell gets *size* columns, broken between words.

    A word that is longer is broken anywhere. The other cells stand in the first row.
    """
    *cells, last = line
    for part in textwrap.wrap(last, size, break_on_hyphens=False) or [last]:
        # A wide character is one to textwrap, and takes two columns.
        for piece in _chopped(part, size):
            yield [*cells, piece]
            cells = [""] * len(cells)


def _chopped(text: str, size: int) -> list[str]:
    """Return *text* in pieces of at most *size* columns."""
    pieces, used = [""], 0
    for char in text:
        if used + width(char) > size:
            pieces.append("")
            used = 0
        pieces[-1] += char
        used += width(char)
    return pieces


def _painted(cell: str, style: str) -> str:
    style = style or COLOURS.get(cell, "")
    return f"{style}{cell}{RESET}" if style and cell else cell
