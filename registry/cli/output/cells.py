"""Cells of a table as lines of text, whose columns are aligned."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
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
    """Combining characters have no column, wide ones two."""
    if unicodedata.category(char).startswith("M") or ord(char) in JAMO:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def widths(columns: Iterable[Sequence[str]]) -> list[int]:
    """Return the width of each of *columns*, which are given by their cells.

    A cell that is wider than `COLUMN_MAX` is not cut: it moves the rest of its line to the right.
    """
    return [
        min(max(map(len if _is_ascii(column) else width, column), default=0), COLUMN_MAX)
        for column in columns
    ]


def padded(text: str, columns: int) -> str:
    """Return *text* with spaces up to a width of *columns*."""
    return text.ljust(columns) if text.isascii() else text + " " * (columns - width(text))


def lines(columns: Sequence[Sequence[str]]) -> str:
    """Return the lines of a table, which is given by the cells of its columns."""
    sizes = widths(columns)
    if all(map(_is_ascii, columns)):
        template = GAP.join([f"%-{size}s" for size in sizes])
        return "".join([(template % row).rstrip() + "\n" for row in zip(*columns, strict=True)])
    filled = [
        [padded(cell, size) for cell in column] for column, size in zip(columns, sizes, strict=True)
    ]
    return "".join([f"{GAP.join(row).rstrip()}\n" for row in zip(*filled, strict=True)])


def _is_ascii(column: Sequence[str]) -> bool:
    """Return whether all cells are ASCII, which a table of thousands of cells asks at once."""
    return "".join(column).isascii()


def cut(text: str, columns: int, *, middle: bool = False) -> str:
    """Return *text* in a width of *columns*, with an ellipsis for what it has no room for.

    Args:
        text: to be cut.
        columns: its width.
        middle: whether the end stays too: names of pods differ at their ends.
    """
    if width(text) <= columns:
        return text
    end = (columns - 1) // 2 if middle else 0
    tail = _beginning(text[::-1], end)[::-1] if end else ""
    return f"{_beginning(text, columns - 1 - end)}…{tail}"


def _beginning(text: str, columns: int) -> str:
    """Return the beginning of *text* that *columns* have room for."""
    for place, char in enumerate(text):
        columns -= _width_of(char)
        if columns < 0:
            return text[:place]
    return text
