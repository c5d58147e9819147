"""Width of text on a terminal: combining characters have no column, wide ones two."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Final

GAP: Final = "  "
"""Between two columns of a table."""
COLUMN_MAX: Final = 200
"""Width up to which cells are aligned: one cell of 4 MB would make 1.2 GB of 300 lines."""
JAMO: Final = range(0x1160, 0x1200)
"""Vowels and final consonants of Hangul: drawn into the syllable before them, though letters."""


def width(text: str) -> int:
    """Return the number of terminal columns that printable *text* takes."""
    return len(text) if text.isascii() else sum(map(_width_of, text))


def _width_of(char: str) -> int:
    if unicodedata.category(char).startswith("M") or ord(char) in JAMO:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def widths(lines: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of each column of a table; *lines* are its rows of cells.

    A cell that is wider than `COLUMN_MAX` is not cut: it moves the rest of its line to the right.
    """
    return [min(max(map(width, column)), COLUMN_MAX) for column in zip(*lines, strict=True)]


def padding(text: str, columns: int) -> str:
    """Return the spaces that fill *text* up to a width of *columns*."""
    return " " * (columns - width(text))


def row(cells: Sequence[str], columns: Sequence[int]) -> str:
    """Return a line of a table: *cells* filled up to the widths *columns*."""
    padded = (cell + padding(cell, size) for cell, size in zip(cells, columns, strict=True))
    return GAP.join(padded).rstrip() + "\n"
