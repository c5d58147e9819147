"""Objects as tables for people, and as JSON and other formats for programs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

from registry.cli.output import cells
from registry.cli.output.ids import shortened
from registry.cli.output.rows import arranged, values_of
from registry.cli.output.streams import is_terminal, note, write
from registry.cli.output.values import (
    IDS,
    TIMES,
    UNSET,
    WHOLE,
    age,
    clock_time,
    for_programs,
    shown,
    to_json,
)
from registry.cli.output.views import CUSTOM, PEOPLE, SERIAL, Format, Records, Row, View
from registry.visible import visible

PART: Final = 500
"""Objects that become YAML at once."""


def show(
    rows: Sequence[Row] | Records,
    view: View,
    form: Format,
    *,
    whole: Row | None = None,
    ids: Iterable[str] = (),
    text: str | None = None,
    after: str = "",
) -> None:
    """Write the objects *rows* in the format that *form* asks for.

    Args:
        rows: the objects; records only for a table that is not sorted, or for ids or names.
        view: what to print of them.
        form: the format.
        whole: object that the serial formats print instead of an array of *rows*.
        ids: further ids that a short id must not begin.
        text: printed for people instead of the table.
        after: printed for people after the table.
    """
    if not isinstance(rows, Records):
        rows = arranged(rows, form)
    if form.quiet or form.kind == "name":
        name = view.id if form.quiet else view.name
        output = "".join([f"{visible(str(value))}\n" for value in values_of(rows, name)])
    elif form.kind in SERIAL:
        output = _serial(cast("Sequence[Row]", rows), whole, form.kind, raw=view.raw)
    elif form.kind == CUSTOM:
        output = _table(rows, form.columns, form, view, {})
    else:
        output = (drawn(rows, view, form, ids) if text is None else text) + after
    if view.paged and form.pages and is_terminal():
        from registry.cli.output.pager import write_paged  # noqa: PLC0415 - only on terminals

        write_paged(output)
    else:
        write(output)
    is_any = bool(rows.rows if isinstance(rows, Records) else rows)
    if view.nothing and form.kind in PEOPLE and not is_any:
        note(view.nothing, folds=True)


def sentences(lines: Iterable[str]) -> str:
    """Return *lines* as text for people; a terminal breaks them between words."""
    text = list(map(visible, lines))
    if is_terminal():
        from registry.cli.output.terminal import folded  # noqa: PLC0415 - not in a pipe

        text = list(map(folded, text))
    return "".join([f"{each}\n" for each in text])


def drawn(rows: Sequence[Row] | Records, view: View, form: Format, ids: Iterable[str] = ()) -> str:
    """Return the table of *rows* for people; *ids* are further ids, as of `show`."""
    columns = view.columns(form.kind)
    return _table(rows, columns, form, view, _short_ids(rows, columns, form, ids))


def table(rows: Sequence[Row], view: View) -> str:
    """Return the table of *rows* with whole ids."""
    return _table(rows, view.table, Format(), view, {})


def _serial(rows: Sequence[Row], whole: Row | None, kind: str, *, raw: bool) -> str:
    """Return the objects as JSON or YAML; *kind* is one of `SERIAL`."""
    given: Any = rows if whole is None else [whole]
    found = list(given) if raw else [for_programs(each) for each in given]
    if kind == "jsonl":
        return "".join([f"{to_json(each)}\n" for each in found])
    value = found if whole is None else found[0]
    if kind == "json":
        return to_json(value, indent=2) + "\n"
    import json  # noqa: PLC0415 - most tables do without

    import yaml  # noqa: PLC0415 - no other format needs it

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    # Of 20,000 objects at once, the nodes of yaml take 400 MB.
    parts = [found[n : n + PART] for n in range(0, len(found), PART)] if whole is None else [value]
    # Tuples and damaged values first become those that JSON, and so YAML, has.
    plain = (json.loads(to_json(part)) for part in parts or [[]])
    return "".join([yaml.dump(each, Dumper=dumper, sort_keys=False, width=1000) for each in plain])


def _short_ids(
    rows: Sequence[Row] | Records, columns: Mapping[str, str], form: Format, ids: Iterable[str]
) -> Mapping[str, str]:
    """Return the short ids of *rows*, by the ids."""
    if not form.shortens:
        return {}
    named = IDS.intersection(columns.values())
    here = {str(value) for name in named for value in values_of(rows, name) if value}
    return shortened(here.union(ids)) if here else {}


def _table(
    rows: Sequence[Row] | Records,
    columns: Mapping[str, str],
    form: Format,
    view: View,
    short: Mapping[str, str],
) -> str:
    """Return the table of *columns* for people, to be searched by grep.

    In a pipe and on a dumb terminal nothing is cut or folded.
    """
    if view.raw and len(columns) == 1 and (text := _texts(rows, columns, form)):
        return text
    now = time.time_ns() if form.kind == "table" else None
    found: list[list[str]] = []
    for title, path in columns.items():
        titles = [visible(title)] if form.headers else []
        of = "" if view.raw else path
        found.append(titles + _cells(of, values_of(rows, path), short, now, clock=view.clock))
    if not found[0]:
        return ""
    if is_terminal():
        from registry.cli.output import terminal  # noqa: PLC0415 - not in a pipe

        cuts = view.cuts and form.trunc and form.kind == "table"
        whole = {n for n, path in enumerate(columns.values()) if path in WHOLE}
        return terminal.render(found, titled=form.headers, cuts=cuts, folds=view.folds, whole=whole)
    return cells.lines(found)


def _texts(rows: Sequence[Row] | Records, columns: Mapping[str, str], form: Format) -> str:
    """Return the values of the only column with their line breaks; "" if no value has one.

    The definition of a view has more lines than one, and so may what SQLite's own check reports.
    """
    ((title, path),) = columns.items()
    values = values_of(rows, path)
    if not any(isinstance(each, str) and "\n" in each for each in values):
        return ""
    lines = [title] if form.headers else []
    for each in values:
        lines += each.split("\n") if isinstance(each, str) else [shown("", each)]
    return "".join([f"{visible(line)}\n" for line in lines])


def _cells(
    path: str, values: Sequence[Any], short: Mapping[str, str], now: int | None, *, clock: bool
) -> list[str]:
    """Return the cells of a column.

    Args:
        path: of the field.
        values: of the field.
        short: short ids, by the ids.
        now: in ns since the Unix epoch: times are shown as seen from now; None: exactly.
        clock: whether times are shown by the clock, not as ages.
    """
    if path in TIMES and now is not None:
        seen = clock_time if clock else age
        return [seen(each, now) if type(each) is int else shown("", each) for each in values]
    if path in IDS and short:
        return [visible(short[each]) if each else UNSET for each in values]
    try:  # most values of a column recur
        cells_of = {value: shown(path, value) for value in set(values)}
    except TypeError:  # objects or arrays
        return [shown(path, value) for value in values]
    return [cells_of[value] for value in values]
