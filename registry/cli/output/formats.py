"""Formats of the objects that a verb prints: tables for people, JSON and others for programs.

A verb gives rows, which are its objects as fields, and a `View` that says which of them a table
has. The formats are a contract (docs/cli.md): fields are only ever added.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final, cast

from registry.cli.output import cells
from registry.cli.output.ids import shortened
from registry.cli.output.streams import is_terminal, note, write
from registry.cli.output.values import (
    EXACT,
    STATE_FIELDS,
    TIMES,
    UNSET,
    age,
    clock_time,
    for_programs,
    shown,
    to_json,
)
from registry.errors import InvalidArgumentError
from registry.visible import visible

Row = Mapping[str, Any]
"""An object: its fields by name."""
KINDS: Final = ("table", "wide", "json", "yaml", "jsonl", "name")
PEOPLE: Final = frozenset({"table", "wide"})
"""Formats that are tables for people."""
CUSTOM: Final = "custom-columns"
"""Format whose columns the operator names."""
SERIAL: Final = frozenset({"json", "yaml", "jsonl"})
"""Formats that have every field of an object."""
IDS: Final = frozenset({"id", "sandbox_id", "holder"})
"""Fields that hold ids of sandboxes."""
WHOLE: Final = TIMES | STATE_FIELDS | {"seq"}
"""Fields whose cells a terminal never cuts: a part of a time or a number is another one."""


@dataclass(frozen=True, slots=True)
class View:
    """Fields and columns of the objects that a verb prints.

    Attributes:
        fields: all fields of an object, in order; those of times without their second name.
        table: titles of the columns of a table, each with its field.
        wide: the same of the format `wide`; by default as *table*.
        name: field that the format `name` prints.
        id: field that `--quiet` prints.
        cuts: whether a table on a terminal is cut to its width.
        clock: whether a table has times by the clock, not ages.
        folds: whether the last column of a table on a terminal is folded.
        raw: whether values are shown as they are: no field is an id or a time, and the line breaks
            of the only column are kept.
        paged: whether long output on a terminal goes through a pager.
        nothing: line on stderr beside a table without objects; "" for none.
    """

    fields: tuple[str, ...]
    table: Mapping[str, str]
    wide: Mapping[str, str] = field(default_factory=dict)
    name: str = "id"
    id: str = "id"
    cuts: bool = False
    clock: bool = False
    folds: bool = False
    raw: bool = False
    paged: bool = False
    nothing: str = ""

    def columns(self, kind: str) -> Mapping[str, str]:
        """Return the columns of a table of *kind*, which is `table` or `wide`."""
        return (kind == "wide" and self.wide) or self.table


@dataclass(frozen=True, slots=True)
class Records:
    """Objects as tuples: of thousands, a table needs no dictionaries.

    Attributes:
        fields: names of the values of each tuple.
        rows: the tuples.
    """

    fields: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Format:
    """Format that the operator asks for; see `options.output`.

    Attributes:
        kind: one of `KINDS`, or `CUSTOM`.
        columns: titles and paths of fields of `CUSTOM`.
        headers: whether a table begins with its titles.
        trunc: whether ids are shortened, and tables on a terminal cut.
        quiet: print only ids.
        sort: field by which the objects are sorted, after a "-" in the reverse order; or "".
        limit: number of objects that are printed of a sorted list.
        pages: whether long output on a terminal goes through a pager.
    """

    kind: str = "table"
    columns: Mapping[str, str] = field(default_factory=dict)
    headers: bool = True
    trunc: bool = True
    quiet: bool = False
    sort: str = ""
    limit: int | None = None
    pages: bool = True

    @property
    def shortens(self) -> bool:
        """Return whether the output has short ids."""
        return self.trunc and not self.quiet and self.kind in {"table", "wide"}

    def fields(self, view: View) -> tuple[str, ...]:
        """Return the fields of *view* that the output needs; all, unless it is a plain table."""
        if self.quiet or self.kind == "name":
            found = {view.id, view.name}
        elif self.shortens or self.kind in {"table", "wide"}:
            found = {view.id, *view.columns(self.kind).values()}
        else:
            return view.fields
        return view.fields if self.sort else tuple(each for each in view.fields if each in found)

    def require_fields(self, view: View) -> None:
        """Raise InvalidArgumentError if a field that the operator has named is none of *view*."""
        known = {*view.fields, *(f"{name}{EXACT}" for name in TIMES.intersection(view.fields))}
        for path in (*self.columns.values(), self.sort.removeprefix("-")):
            if path and path.partition(".")[0] not in known:
                fields = ", ".join(view.fields)
                raise InvalidArgumentError(
                    f"print the field {path!r}: there is no such field; the fields are {fields}",
                    field="output",
                    value=path,
                )


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
        output = "".join([f"{visible(str(value))}\n" for value in _values(rows, name)])
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
    if view.nothing and form.kind in PEOPLE and not (form.quiet or is_any):
        note(view.nothing)


def drawn(rows: Sequence[Row] | Records, view: View, form: Format, ids: Iterable[str] = ()) -> str:
    """Return the table of *rows* for people; *ids* are further ids, as of `show`."""
    columns = view.columns(form.kind)
    return _table(rows, columns, form, view, _short_ids(rows, columns, form, ids))


def table(rows: Sequence[Row], view: View) -> str:
    """Return the table of *rows* with whole ids."""
    return _table(rows, view.table, Format(), view, {})


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


def _values(rows: Sequence[Row] | Records, path: str) -> list[Any]:
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
    # Tuples and damaged values first become those that JSON, and so YAML, has.
    plain = json.loads(to_json(value))
    return str(yaml.dump(plain, Dumper=dumper, sort_keys=False, width=1000))


def _short_ids(
    rows: Sequence[Row] | Records, columns: Mapping[str, str], form: Format, ids: Iterable[str]
) -> Mapping[str, str]:
    """Return the short ids of *rows*, by the ids."""
    if not form.shortens:
        return {}
    named = IDS.intersection(columns.values())
    here = {str(value) for name in named for value in _values(rows, name) if value}
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
        found.append(titles + _cells(of, _values(rows, path), short, now, clock=view.clock))
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
    values = _values(rows, path)
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


def read_columns(text: str) -> dict[str, str]:
    """Return the columns in *text*, `TITLE:FIELD` separated by commas, as titles and fields.

    Raises:
        ValueError: it has another form.
    """
    found: dict[str, str] = {}
    for column in text.split(","):
        title, colon, path = column.partition(":")
        path = path.strip().strip("{}").removeprefix(".")
        if not colon or not title or not path:
            raise ValueError(f"{column!r} is not TITLE:FIELD")
        if title in found:
            raise ValueError(f"{title!r} is given twice")
        found[title] = path
    return found


def fields_of(view: View) -> Collection[str]:
    """Return the fields of the JSON objects of *view*, in order."""
    doubled = ([name, name + EXACT] if name in TIMES else [name] for name in view.fields)
    return [name for each in doubled for name in each]
