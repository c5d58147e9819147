"""Records of a damaged registry, collected page by page in a scratch database.

A record belongs to a table by its shape: the number of its values, and the types that STRICT
demands, are different in each table. So a page is used even if no page leads to it any more. Where
the pages above it can be read, they tell whether it is in use:

    reached     a B-tree of the registry leads to it: its records are in the table
    unreached   nothing leads to it: the page above is damaged, or the freelist is
    left out    it is on the freelist, or in the B-tree of another table; the latter only if the
                schema leads to all tables of ours, else one of them may have another name there

The scratch database bounds the memory: SQLite sorts there what the file has in any order.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from registry.maintenance.pages import (
    TABLE_LEAF,
    Node,
    PageError,
    Pages,
    Value,
    free_count,
    free_pages,
)
from registry.maintenance.salvage_report import Loss, Report
from registry.tables.rows import as_text

TABLES: Final = (
    "registry",
    "sandboxes",
    "sandbox_statuses",
    "sandbox_extensions",
    "sandbox_transitions",
)
"""Tables that are copied. Labels are derived from the config, as an addition does."""
_INDEXES: Final = {
    "sqlite_autoindex_sandboxes_1": "id",
    "sqlite_autoindex_sandboxes_2": "name",
    "sqlite_autoindex_sandbox_extensions_1": "extension",
}
"""Indexes that prove records which are lost, by the field of `found.entries` for their entries."""
_UNREACHED, _LEFT_OUT, _FIRST = 0, 1, 2
"""Marks of pages; from the last one on, the number of a name in `_OURS`."""
_OURS: Final = (*TABLES, *_INDEXES)
_TYPES: Final = {"INTEGER": int, "TEXT": str, "BLOB": bytes}
_ADDED: Final[dict[str, tuple[Value, ...]]] = {"registry": (1, None)}
"""Values of the columns that a revision has added to a table, in records of older revisions."""
_SCHEMA_WIDTH: Final = 5
_ROOT: Final = 3
"""Columns of sqlite_schema, and the one with the root page."""


class Shape(NamedTuple):
    """Columns of a table, and how its records are stored."""

    table: str
    names: tuple[str, ...]
    types: tuple[type, ...]
    required: tuple[bool, ...]
    rowid: int
    """Place of the column that is the rowid, which the record does not repeat; -1 if none is."""
    in_table: bool
    """Whether its B-tree has rowids."""

    @classmethod
    def of(cls, connection: sqlite3.Connection, table: str) -> Shape:
        """Return the shape of *table* in the schema of *connection*."""
        columns = connection.execute(f"PRAGMA main.table_info({table})").fetchall()
        (kind,) = connection.execute(
            "SELECT wr FROM pragma_table_list WHERE schema = 'main' AND name = ?", (table,)
        ).fetchone()
        keys = [n for n, column in enumerate(columns) if column[5]]
        is_rowid = len(keys) == 1 and columns[keys[0]][2] == "INTEGER"
        return cls(
            table,
            tuple(column[1] for column in columns),
            tuple(_TYPES[column[2]] for column in columns),
            tuple(bool(column[3]) for column in columns),
            keys[0] if is_rowid else -1,
            not kind,
        )

    def mistake(self, values: tuple[Value, ...]) -> str:
        """Return why *values* are no record of the table; "" if they can be one."""
        for name, kind, required, value in zip(
            self.names, self.types, self.required, values, strict=True
        ):
            if value is None:
                if required:
                    return f"{name} is NULL"
            elif type(value) is not kind:
                return f"{name} has the wrong type"
            elif isinstance(value, str) and not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    return f"{name} is not UTF-8"
        return ""


class Collector:
    """The scan of one file: marks its pages, and collects their records in the schema `found`."""

    def __init__(self, connection: sqlite3.Connection, pages: Pages, report: Report) -> None:
        """Create the tables of `found`, which *connection* has attached."""
        self._connection, self._pages, self._report = connection, pages, report
        self._marks = bytearray(pages.count + 1)
        self._inner: set[int] = set()
        """Pages that cannot be read and had no records: they led to the pages that have them."""
        self._freed_all = False
        """Whether the whole freelist was read."""
        self._roots_of_rowids: dict[int, str] = {}
        """Tables with rowids whose root page cannot be read, by that page."""
        shapes = [Shape.of(connection, table) for table in TABLES]
        self._with_rowids: Final = {shape.table for shape in shapes if shape.in_table}
        self._shapes: Final = {(shape.in_table, len(shape.names)): shape for shape in shapes}
        for shape in shapes:
            added = len(_ADDED.get(shape.table, ()))
            self._shapes[shape.in_table, len(shape.names) - added] = shape
        for shape in shapes:
            columns = ", ".join(shape.names)
            connection.execute(f"CREATE TABLE found.{shape.table} (page, reached, {columns})")
        connection.execute("CREATE TABLE found.entries (page, field, value, name, row)")

    def collect(self) -> None:
        """Read every page, and report those that cannot be read although they are in use."""
        self._mark()
        unread: list[tuple[int, PageError]] = []
        for number in range(1, self._pages.count + 1):
            mark = self._marks[number]
            if mark == _LEFT_OUT:
                continue
            name = _OURS[mark - _FIRST] if mark >= _FIRST else ""
            try:
                node = self._pages.node(number)
            except PageError as error:
                unread.append((number, error))
                continue
            self._add_records(node, name)
        self._report_unread(unread)
        for number, visits in enumerate(self._pages.visits):
            if visits > 1 or (visits and self._marks[number]):
                why = (
                    "the overflow chain of a record leads to it, which is not a part of that record"
                )
                self._report(Loss("", "", f"page {number}", why))

    def _report_unread(self, unread: Iterable[tuple[int, PageError]]) -> None:
        """Report the pages *unread*, which cannot be read, if records are lost with them.

        An inner page of a table with rowids has none. If one is damaged, a page below it may be
        damaged too, and nothing leads to that one any more.
        """
        roots = {root for root, table in self._roots_of_rowids.items() if self._has_others(table)}
        inner = {number for number, _ in unread if number in self._inner | roots}
        for number, error in unread:
            mark = self._marks[number]
            name = _OURS[mark - _FIRST] if mark >= _FIRST else ""
            if number in inner:
                continue
            if name in TABLES:
                self._report(Loss(name, "", f"page {number}", f"{error}; its records are lost"))
            elif inner and not mark and not self._pages.visits[number]:
                why = f"{error}; nothing leads to it, and its records, if it had any, are lost"
                self._report(Loss("", "", f"page {number}", why))

    def _has_others(self, table: str) -> bool:
        """Return whether records of *table* are on pages that nothing leads to.

        They prove that its root led to other pages: a root that has the records itself has no such
        pages, except on the freelist.
        """
        query = f"SELECT 1 FROM found.{table} WHERE NOT reached LIMIT 1"  # noqa: S608 - a constant
        return self._freed_all and self._connection.execute(query).fetchone() is not None

    def _find_inner(self, roots: Mapping[str, int]) -> None:
        """Find the inner pages that cannot be read, by the pages at their depth.

        All pages of one depth of a B-tree lead to others, or all have records.
        """
        for table in self._with_rowids & roots.keys():
            self._find_inner_below(roots[table], table)

    def _find_inner_below(self, root: int, table: str) -> None:
        level, seen = [root], {root}
        while level:
            nodes: dict[int, Node | None] = dict.fromkeys(level)
            for number in level:
                with suppress(PageError):
                    nodes[number] = self._pages.node(number)
            read = [node for node in nodes.values() if node is not None and node.is_table]
            if not read:
                if level == [root]:
                    self._roots_of_rowids[root] = table
                return
            if any(node.kind == TABLE_LEAF for node in read):
                return
            self._inner.update(number for number, node in nodes.items() if node is None)
            below = (number for node in read for number in node.children())
            level = [each for each in dict.fromkeys(below) if 0 < each <= self._pages.count]
            level = [each for each in level if each not in seen]
            seen.update(level)

    def _mark(self) -> None:
        """Mark each page by what leads to it; the tables that are copied come first."""
        roots, misplaced = self._roots(), []
        if not all(table in roots and self._may_be(table, roots[table]) for table in TABLES):
            roots = {name: root for name, root in roots.items() if name in _OURS}
        self._find_inner(roots)
        self._pages.visits[:] = bytes(len(self._pages.visits))  # each record is read again
        for name in sorted(roots, key=lambda name: (name not in _OURS, name)):
            mark = _FIRST + _OURS.index(name) if name in _OURS else _LEFT_OUT
            for number, belongs in self._pages.walk(roots[name]):
                if mark == _LEFT_OUT and self._marks[number]:
                    break  # a damaged pointer into a table of ours
                if not belongs:
                    misplaced.append((number, mark))
                elif not self._marks[number]:
                    self._marks[number] = mark
        freed = list(free_pages(self._pages))
        self._freed_all = len(freed) == free_count(self._pages)
        for number in freed:
            if number <= self._pages.count and not self._marks[number]:
                self._marks[number] = _LEFT_OUT
        for number, mark in misplaced:
            self._marks[number] = self._marks[number] or mark

    def _may_be(self, table: str, root: int) -> bool:
        """Return whether the first readable record below page *root*, if any, is one of *table*."""
        for number, belongs in self._pages.walk(root):
            node = self._pages.node(number) if belongs else None
            for _, values in () if node is None else self._pages.records(node):
                if node is not None and isinstance(values, tuple):
                    shape = self._shapes.get((node.kind == TABLE_LEAF, len(values)))
                    return shape is not None and shape.table == table
        return True

    def _roots(self) -> dict[str, int]:
        """Return the root pages by name, by every readable record of the schema."""
        found: dict[str, int] = {}
        for number, belongs in self._pages.walk(1):
            if belongs:
                found |= self._schema_of(number)
        if not found.keys() >= set(_OURS):  # a page of the schema is damaged: use the others
            for number in range(2, self._pages.count + 1):
                found = {**self._schema_of(number), **found}
        return found

    def _schema_of(self, number: int) -> dict[str, int]:
        found: dict[str, int] = {}
        try:
            node = self._pages.node(number)
        except PageError:
            return found
        for _, values in self._pages.records(node) if node.kind == TABLE_LEAF else ():
            if isinstance(values, tuple) and len(values) == _SCHEMA_WIDTH:
                kind, name, root = values[0], values[1], values[_ROOT]
                if kind in {"table", "index"} and isinstance(name, str) and isinstance(root, int):
                    found[name] = root
        return found

    def _add_entry(self, node: Node, values: tuple[Value, ...], field: str) -> bool:
        """Add *values* if they are an entry of an index: one or two texts, and the rowid."""
        types = [str, str, int] if field == "extension" else [str, int]
        is_entry = list(map(type, values)) == types
        if is_entry:
            value, *names, row = map(_storable, values)
            entry = (node.number, field, value, *(names or [None]), row)
            self._connection.execute("INSERT INTO found.entries VALUES (?, ?, ?, ?, ?)", entry)
        return is_entry

    def _add_records(self, node: Node, name: str) -> None:
        """Add the records on a page, which is in table *name*, or not reached if that is "".

        Where the schema leads to a table by the name of an index, its records are not reached.
        """
        rows: dict[Shape, list[tuple[Value, ...]]] = {}
        field, name = _INDEXES.get(name), "" if name in _INDEXES else name
        for rowid, found in self._pages.records(node):
            shape = None
            if field and isinstance(found, tuple) and self._add_entry(node, found, field):
                continue
            if isinstance(found, tuple):
                shape = self._shapes.get((node.kind == TABLE_LEAF, len(found)))
            if shape is None or isinstance(found, PageError):
                if name:
                    why = found if isinstance(found, PageError) else "it has other columns"
                    self._report(Loss(name, "", _place(node, rowid), f"{why}"))
                continue
            values = _completed(shape, rowid, found)
            mistake = shape.mistake(values)
            if not mistake:
                row = (node.number, int(shape.table == name), *values)
                rows.setdefault(shape, []).append(row)
            elif name or shape.table in {"sandboxes", "sandbox_statuses"}:
                self._report(_refused(shape, node, rowid, values, mistake))
        self._insert(rows)
        strange = sorted({shape.table for shape in rows} - {name})
        if name and strange:
            why = f"it has records of {' and '.join(strange)}; its own are lost"
            self._report(Loss(name, "", f"page {node.number}", why))

    def _insert(self, rows: dict[Shape, list[tuple[Value, ...]]]) -> None:
        for shape, found in rows.items():
            marks = ", ".join("?" * len(found[0]))
            query = f"INSERT INTO found.{shape.table} VALUES ({marks})"  # noqa: S608
            self._connection.executemany(query, found)


def _completed(shape: Shape, rowid: int, values: tuple[Value, ...]) -> tuple[Value, ...]:
    """Return *values* with those that the record does not have: of new columns, and the rowid."""
    if len(values) < len(shape.names):
        values += _ADDED[shape.table]
    if shape.rowid < 0:
        return values
    return (*values[: shape.rowid], rowid, *values[shape.rowid + 1 :])


def _place(node: Node, rowid: int) -> str:
    return f"page {node.number}" + (f", row {rowid}" if node.kind == TABLE_LEAF else "")


def _refused(shape: Shape, node: Node, rowid: int, values: tuple[Value, ...], mistake: str) -> Loss:
    key = "id" if shape.table == "sandboxes" else "sandbox_id"
    id = as_text(values[shape.names.index(key)]) if key in shape.names else ""
    return Loss(shape.table, id, _place(node, rowid), mistake)


def _storable(value: Value) -> Value:
    """Return *value*, a text that is not UTF-8 as bytes, which SQLite can store."""
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "surrogateescape")
    return value


def counts(connection: sqlite3.Connection, schema: str) -> dict[str, int]:
    """Return the number of records in each table of *schema*."""
    query = "SELECT count(*) FROM {}.{}"
    return {
        table: connection.execute(query.format(schema, table)).fetchone()[0] for table in TABLES
    }
