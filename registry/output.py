"""What the command line writes: tables for people, JSON for programs.

What comes from the database is data: it is not read as markup, and no control character of it
reaches a terminal. JSON is ASCII.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

TIMES: Final = frozenset({"created_at", "exited_at", "at"})
STYLES: Final = {"SANDBOX_READY": "green", "SANDBOX_NOTREADY": "yellow"}
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

    On a terminal the last cell is folded, and no other.
    """
    # Late: 40 ms that neither `--json` nor `serve` has to wait for.
    from rich.cells import cell_len, set_cell_size  # noqa: PLC0415

    lines = [[shown(name, each[name]) for name in columns] for each in found]
    widths = [max(map(cell_len, cells)) for cells in zip(columns, *lines, strict=True)]
    if not sys.stdout.isatty():
        padded = (map(set_cell_size, cells, widths) for cells in (_titles(columns), *lines))
        return "".join("  ".join(cells).rstrip() + "\n" for cells in padded)
    left = shutil.get_terminal_size().columns - sum(widths[:-1]) - 2 * len(widths[:-1])
    widths[-1] = min(widths[-1], max(left, LAST_MIN))
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title, width in zip(_titles(columns), widths, strict=True):
        table.add_column(title, width=width, overflow="fold")
    for line in lines:
        table.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in line))
    console = Console(width=sum(widths) + 2 * len(widths), force_terminal=True)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _titles(columns: Sequence[str]) -> list[str]:
    return [name.upper() for name in columns]


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
