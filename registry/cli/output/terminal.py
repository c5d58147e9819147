"""Tables on a terminal: fitted to its width, and coloured.

Not by rich, whose tables take 0.6 ms a row, 13 s for 20,000 sandboxes, and whose import doubles the
time of a short list. Progress bars, which are for long work, are rich's.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from itertools import zip_longest
from typing import Final, TextIO

from registry.cli.output.cells import GAP, cut, padded, width, widths

BOLD: Final = "\x1b[1m"
COLOURS: Final = {"READY": "\x1b[32m", "NOTREADY": "\x1b[33m", "UNKNOWN": "\x1b[35m"}
"""Styles of cells, by their text."""
RESET: Final = "\x1b[0m"
LEAST: Final = 6
"""Columns to which a cell is cut at most."""
PIPED: Final = 80
"""Columns of sentences in a pipe."""
_JOINED: Final = "\0"
"""Stands for a blank between two words that are not parted; visible text has none."""
LAST_MIN: Final = 20
"""Columns that a folded column gets on a narrow terminal."""


def render(
    columns: Sequence[Sequence[str]],
    *,
    titled: bool,
    cuts: bool,
    folds: bool,
    whole: Collection[int] = (),
) -> str:
    """Return the table of *columns* for the terminal.

    Args:
        columns: cells of each column.
        titled: the first cell of each column is its title.
        cuts: cut the widest columns until the table fits.
        folds: fold the widest columns between words until the table fits. The last one gets at
            least `LAST_MIN` columns; if a word of it needs more, its cells stand below the others.
        whole: numbers of the columns whose cells are not cut.
    """
    sizes = widths(columns)
    below: Sequence[str] = ()
    if folds:
        least = [*map(_longest_word, columns[:-1]), LAST_MIN]
        fit(sizes, space_for(len(sizes)), least)
        if sum(sizes) > space_for(len(sizes)) or sizes[-1] < _longest_word(columns[-1]):
            *columns, below = columns
            sizes = widths(columns)
            fit(sizes, space_for(len(sizes)), least)
    elif cuts:
        fit(
            sizes,
            space_for(len(sizes)),
            [size if n in whole else LEAST for n, size in enumerate(sizes)],
        )
    coloured = not os.environ.get("NO_COLOR")
    found = []
    for number, row in enumerate(zip(*columns, strict=True)):
        style = BOLD if titled and number == 0 else ""
        for cells in _folded(row, sizes) if folds else [row]:
            fitted = _cut(cells, sizes) if cuts else cells
            filled = [padded(cell, size) for cell, size in zip(fitted, sizes, strict=True)]
            if coloured:
                filled = [_painted(*each, style) for each in zip(fitted, filled, strict=True)]
            found.append(GAP.join(filled).rstrip() + "\n")
        if below:
            indent = " " * min(sizes[0] + len(GAP), LAST_MIN)
            line = folded(f"{indent}{below[number]}", indent)
            found.append(f"{style}{line}{RESET}\n" if coloured and style else f"{line}\n")
    return "".join(found)


def folded(text: str, indent: str = "", stream: TextIO | None = None) -> str:
    """Return *text* in lines that fit the terminal, or 80 columns in a pipe.

    Args:
        text: in one line, to be broken between words; a command in backquotes is one word, which
            can be copied.
        indent: beginning of the lines after the first.
        stream: the terminal; stdout by default.
    """
    import textwrap  # noqa: PLC0415 - only reports on a terminal are folded

    joined = re.sub("`[^`]*`", lambda command: command[0].replace(" ", _JOINED), text)
    lines = textwrap.fill(
        joined,
        _columns(stream or sys.stdout),
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return lines.replace(_JOINED, " ")


def _columns(stream: TextIO) -> int:
    """Return the width of the terminal *stream*, or of sentences in a pipe."""
    if not stream.isatty():
        return PIPED
    if stream is sys.stdout:
        return shutil.get_terminal_size().columns
    return os.get_terminal_size(stream.fileno()).columns or PIPED


def _cut(cells: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """Return *cells* in the widths *sizes*; the last one is a sentence or a reason."""
    last = len(cells) - 1
    return [
        cut(cell, size, middle=number < last)
        for number, (cell, size) in enumerate(zip(cells, sizes, strict=True))
    ]


def space_for(columns: int) -> int:
    """Return the width that the cells of so many *columns* have on the terminal."""
    return shutil.get_terminal_size().columns - len(GAP) * (columns - 1)


def fit(sizes: list[int], room: int, least: Sequence[int]) -> None:
    """Make the widest of *sizes* smaller, of several the last, until their sum is *room*.

    Args:
        sizes: of the columns.
        room: their sum at most, if *least* permits.
        least: below which no size is made smaller.
    """
    for _ in range(max(0, sum(sizes) - room)):
        larger = [n for n, size in enumerate(sizes) if size > least[n]]
        if not larger:
            break
        sizes[max(larger, key=lambda n: (sizes[n], n))] -= 1


def _longest_word(cells: Sequence[str]) -> int:
    """Return the width of the longest word of *cells*, such as an id or a path."""
    return max((width(word) for cell in cells for word in cell.split()), default=0)


def _folded(row: Sequence[str], sizes: Sequence[int]) -> Iterator[Sequence[str]]:
    """Yield the rows that show *row*, each of whose cells is broken between words to its size.

    A word that is longer, such as a path, stays whole.
    """
    import textwrap  # noqa: PLC0415 - only reports on a terminal are folded

    wrapped = [
        textwrap.wrap(cell, size, break_on_hyphens=False, break_long_words=False)
        if len(cell) > size
        else [cell]
        for cell, size in zip(row, sizes, strict=True)
    ]
    yield from zip_longest(*wrapped, fillvalue="")


def _painted(cell: str, filled: str, style: str) -> str:
    """Return *filled*, the padded *cell*, in its colour, which the spaces at its end do not have.

    Spaces before the end of a style are no end of the line, and would go on to the next one.
    """
    style = style or COLOURS.get(cell, "")
    return f"{style}{cell}{RESET}{filled[len(cell) :]}" if style and cell else filled
