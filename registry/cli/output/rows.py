"""Values of rows by their paths, and the order of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from registry.cli.output.values import EXACT, TIMES
from registry.cli.output.views import Format, Records, Row


def arranged(rows: Sequence[Row], form: Format) -> Sequence[Row]:
    """Return *rows*, sorted and limited as *form* asks for; unset values come last."""
    path = form.sort.removeprefix("-")
    if path:
        unset = (None, "")
        given = [row for row in rows if value_of(row, path) not in unset]
        given.sort(key=lambda row: _key(value_of(row, path)), reverse=form.sort.startswith("-"))
        rows = [*given, *(row for row in rows if value_of(row, path) in unset)]
        rows = rows[: form.limit]
    return rows


def _key(value: object) -> tuple[bool, Any]:
    """Return what a value is sorted by: numbers by their value, all else as text."""
    is_number = isinstance(value, (int, float))
    return not is_number, value if is_number else str(value)


def values_of(rows: Sequence[Row] | Records, path: str) -> list[Any]:
    """Return the values at *path* of all *rows*."""
    if isinstance(rows, Records):
        return list(map(itemgetter(rows.fields.index(path)), rows.rows))
    return [value_of(row, path) for row in rows]


def value_of(row: Row, path: str) -> Any:
    """Return the value at *path*, names of fields joined by dots; None if there is none.

    Keys may have dots, as those of labels do.
    """
    found: Any = row
    while path and isinstance(found, Mapping):
        if path in found:
            return found[path]
        name, _, path = path.partition(".")
        if name not in found and name.removesuffix(EXACT) in TIMES:
            return found.get(name.removesuffix(EXACT)) if not path else None
        found = found.get(name)
    return found if not path else None
