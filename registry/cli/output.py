"""Output on stdout: tables for people, JSON for programs.

Text from the database is data: it is not read as markup, and none of its control characters reaches
a terminal. JSON is ASCII.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from registry.cli.cells import row, widths
from registry.tables.rows import as_text
from registry.visible import visible

TIMES: Final = frozenset({"created_at", "exited_at", "at"})
"""Fields that hold nanoseconds since the Unix epoch."""
DUMB: Final = "dumb"
"""Value of TERM for a terminal without escape sequences, which one without TERM is taken for."""


def write(text: str) -> None:
    """Write *text*, with escapes for characters that the encoding of stdout does not have."""
    write_bytes(text.encode(sys.stdout.encoding, "backslashreplace"))


def write_bytes(data: bytes) -> None:
    """Write all of *data*: unbuffered, sys.stdout.write drops what a pipe or disk did not take."""
    while data:
        data = data[sys.stdout.buffer.write(data) :]
    sys.stdout.buffer.flush()


def write_json(value: object) -> None:
    """Write *value* as JSON."""
    write(to_json(value, indent=2) + "\n")


def to_json(value: object, *, indent: int | None = None, ascii: bool = True) -> str:
    """Return *value* as JSON text: on one line, or with *indent* spaces for each level.

    Values that JSON does not have, which only a damaged record holds, become text.
    """
    import json  # noqa: PLC0415 - most tables do without

    options: dict[str, Any] = {"indent": indent, "ensure_ascii": ascii, "allow_nan": False}
    try:
        return json.dumps(value, default=as_text, **options)
    except ValueError:
        return json.dumps(_finite(value), default=as_text, **options)


def _finite(value: object) -> object:
    """Return *value* with text in the place of infinite numbers."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


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
        from registry.cli.terminal import render  # noqa: PLC0415 - only terminals wait for textwrap

        return render(lines)
    sizes = widths(lines)
    return "".join(row(line, sizes) for line in lines)


def shown(name: str, value: object) -> str:
    """Return the value of the field *name* as people read it; "-" where it is not set."""
    if value is None or value == "" or (name == "pid" and value == 0):
        return "-"
    if name in TIMES and isinstance(value, int):
        seconds, ns = divmod(value, 10**9)
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ns:09}Z"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return visible(to_json(value) if isinstance(value, (dict, tuple)) else str(value))
