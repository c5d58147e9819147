"""Fields of the objects that a verb prints, and formats that the operator asks for.

A verb gives rows, which are its objects as fields, and a `View` that says which of them a table
has. The formats are a contract (docs/cli.md): fields are only ever added.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from registry.cli.output.values import EXACT, TIMES
from registry.errors import InvalidArgumentError

Row = Mapping[str, Any]
"""An object: its fields by name."""
KINDS: Final = ("table", "wide", "json", "yaml", "jsonl", "name")
PEOPLE: Final = frozenset({"table", "wide"})
"""Formats that are tables for people."""
CUSTOM: Final = "custom-columns"
"""Format whose columns the operator names."""
SERIAL: Final = frozenset({"json", "yaml", "jsonl"})
"""Formats that have every field of an object."""


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

    def resolved(self, view: View) -> Self:
        """Return this format with the fields of *view* that the operator has named.

        A title of a table, or the name of a field, is known in any case of its letters.

        Raises:
            InvalidArgumentError: a name is none of them.
        """
        reverse = "-" if self.sort.startswith("-") else ""
        sort, paths = self.sort.removeprefix("-"), self.columns.items()
        columns = {title: _path(path, view, "print") for title, path in paths}
        sort = sort and reverse + _path(sort, view, "sort by")
        return replace(self, columns=columns, sort=sort)


def _path(path: str, view: View, doing: str) -> str:
    """Return *path* with the name of its field; *doing* begins the message of an error."""
    known = fields_of(view)
    name, dot, rest = path.partition(".")
    if name in known:
        return path
    titles = {**view.wide, **view.table, **{each: each for each in known}}
    found = {title.casefold(): each for title, each in titles.items()}.get(name.casefold())
    if found is None:
        fields = ", ".join(view.fields)
        raise InvalidArgumentError(
            f"{doing} the field {path!r}: there is no such field; the fields are {fields}",
            field="output",
            value=path,
        )
    return f"{found}{dot}{rest}"


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
