"""What the command line writes: tables for people, JSON for programs.

What comes from the database is data: it is not read as markup, and no control character of it
reaches a terminal. JSON is ASCII.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

TIMES: Final = frozenset({"created_at", "exited_at", "at"})
TITLE: Final = ""
"""Stands for every title among the styles; no cell is empty but below one that was folded."""
STYLES: Final = {
    TITLE: "\x1b[1m",
    "SANDBOX_READY": "\x1b[32m",
    "SANDBOX_NOTREADY": "\x1b[33m",
}
RESET: Final = "\x1b[0m"
DUMB: Final = "dumb"
"""Value of TERM, and what a terminal is taken for that has none: it knows no escapes."""
GAP: Final = "  "
"""Between two columns."""
LAST_MIN: Final = 20
"""Characters that the last column of a table gets on a narrow terminal."""


def write(text: str) -> None:
    """Write *text*, with escapes for what the terminal's encoding does not have."""
    write_bytes(text.encode(sys.stdout.encoding, "backslashreplace"))


def write_bytes(data: bytes) -> None:
    """Write all of *data*: unbuffered, sys.stdout.write drops what a pipe or disk did not take."""
    while data:
        data = data[sys.stdout.buffer.write(data) :]
    sys.stdout.buffer.flush()


def write_json(value: object) -> None:
    """Write *value* as JSON."""
    write(json.dumps(value, indent=2) + "\n")


def write_all(found: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Write *found*: every field as JSON, or a table of *columns*."""
    if as_json:
        write_json(found)
    else:
        write(table(found, columns))


def table(found: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return a table for people; one line is one of *found*, whole, to be searched by grep.

    On a terminal the last cell is folded, and no other. A dumb terminal gets what a pipe gets.
    """
    # Late: 20 ms that neither `--json` nor `serve` has to wait for.
    from rich.cells import cell_len  # noqa: PLC0415

    titles = [name.upper() for name in columns]
    lines = [titles, *([shown(name, each[name]) for name in columns] for each in found)]
    widths = [max(map(cell_len, cells)) for cells in zip(*lines, strict=True)]
    smart = sys.stdout.isatty() and os.environ.get("TERM", DUMB) != DUMB
    if smart:
        left = shutil.get_terminal_size().columns - sum(widths[:-1]) - len(GAP) * len(widths[:-1])
        widths[-1] = min(widths[-1], max(left, LAST_MIN))
    styles = STYLES if smart and not os.environ.get("NO_COLOR") else {}
    rows = []
    for line in lines:
        *cells, last = line
        style = styles.get(TITLE, "") if line is titles else ""
        for part in _folded(last, widths[-1]) if smart else [last]:
            padded = [
                _painted(cell, style or styles.get(cell, "")) + " " * (width - cell_len(cell))
                for cell, width in zip([*cells, part], widths, strict=True)
            ]
            rows.append(GAP.join(padded).rstrip() + "\n")
            cells = [""] * len(cells)
    return "".join(rows)


def _folded(text: str, width: int) -> list[str]:
    """Return *text* in parts of at most *width* cells, between words where that is possible."""
    from rich.cells import chop_cells  # noqa: PLC0415

    lines = textwrap.wrap(text, width, break_on_hyphens=False) or [text]
    # A wide character is one to textwrap, and takes two cells.
    return [part for line in lines for part in chop_cells(line, width) or [""]]


def _painted(cell: str, style: str) -> str:
    return f"{style}{cell}{RESET}" if style and cell else cell


def shown(name: str, value: object) -> str:
    """Return the value of the field *name* as people read it; "-" where there is none."""
    if value is None or value == "" or (name == "pid" and value == 0):
        return "-"
    if name in TIMES and isinstance(value, int):
        seconds, ns = divmod(value, 10**9)
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ns:09}Z"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return plain(json.dumps(value) if isinstance(value, (dict, tuple)) else str(value))


def plain(text: str) -> str:
    """Return *text* in one line, with everything that a terminal may obey written as an escape."""
    if text.isprintable():
        return text
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(escaped)
