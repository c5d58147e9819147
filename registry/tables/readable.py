"""Reads of a damaged registry: the rows that SQLite can read around damaged pages."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

from registry.engine.driver import Connection
from registry.tables import queries, sql
from registry.tables.rows import Row, as_text

log = logging.getLogger("registry")

BY_ID: Final = (
    "SELECT creation, id FROM sandboxes INDEXED BY sqlite_autoindex_sandboxes_1 ORDER BY id"
)
"""Reads an index alone: a damaged page of the table does not hide its sandboxes."""
NAMED: Final = 20
"""Sandboxes that a warning names."""
_INDEXED: Final = (
    (
        "SELECT 1 FROM sandboxes INDEXED BY sqlite_autoindex_sandboxes_1 WHERE id >= :prefix"
        " AND id < CAST(:end AS TEXT) LIMIT 1"
    ),
    "SELECT 1 FROM sandboxes INDEXED BY sqlite_autoindex_sandboxes_2 WHERE name = :name LIMIT 1",
)
"""Look-ups in an index alone, by id and by name."""


def sandboxes(
    connection: Connection, query: str, params: Mapping[str, object], doing: str
) -> list[Row]:
    """Return the rows of the list *query* that can be read.

    Those that the query itself does not return are read each by a query of its own: a page that
    cannot be read ends the first query, and a damaged key drops its row from the join, silently.

    Args:
        connection: of the damaged registry.
        query: of `queries.list_sandboxes`; *params* are its parameters.
        params: as the query names them.
        doing: operation and object, for the warning about the others.
    """
    one, every = queries.of_one(query), queries.of_one(sql.LIST)
    read = map(Row._make, connection.fetch_readable(query, params)[0])
    rows, lost = {row.creation: row for row in read}, list[int]()
    ids = dict(connection.fetch_readable(BY_ID)[0])
    for creation in _creations(connection, ids).difference(rows):
        key = {"creation": creation}
        found, readable = connection.fetch_readable(one, {**params, **key})
        rows.update((creation, Row._make(each)) for each in found)
        # A row that the filters leave out is read without them: damage may hide it, too.
        if not readable or not (found or connection.fetch_readable(every, key)[0]):
            lost.append(creation)
    if lost:
        log.warning(
            "%s: %s cannot be read, the registry is damaged: %s",
            doing,
            "1 sandbox" if len(lost) == 1 else f"{len(lost)} sandboxes",
            _named(sorted(as_text(ids[each]) for each in lost if each in ids), len(lost)),
            extra={
                "event": "sandboxes_unreadable",
                "path": _path(connection),
                "operation": doing,
                "sandboxes": len(lost),
            },
        )
    limit: Any = params.get("limit")
    return sorted(rows.values(), key=_order, reverse=sql.LIST_NEWEST_FIRST in query)[:limit]


def is_indexed(connection: Connection, text: str) -> bool:
    """Return whether an index has a sandbox whose id begins with *text*, or whose name it is."""
    params = {**queries.prefix_params(text), "name": text}
    return any(connection.fetch_readable(query, params)[0] for query in _INDEXED)


def _named(ids: list[str], lost: int) -> str:
    """Return the first of *ids*, and how many of *lost* sandboxes are not named."""
    named = ", ".join(ids[:NAMED])
    others = lost - len(ids[:NAMED])
    if not others:
        return named
    return f"{named} and {others} more; salvage names them" if named else "salvage names them"


def _creations(connection: Connection, indexed: Iterable[object]) -> set[int]:
    """Return the creations of all sandboxes that the table, from either end, or its index has.

    Args:
        connection: of the damaged registry.
        indexed: creations that the index of the ids has.
    """
    by_table = f"{sql.CREATIONS} ORDER BY creation"
    found = {each for each in indexed if isinstance(each, int)}
    for query in (by_table, f"{by_table} DESC"):
        found |= {each for (each,) in connection.fetch_readable(query)[0] if isinstance(each, int)}
    return found


def _order(row: Row) -> tuple[int, str]:
    """Return what a list is ordered by, for rows with values of any type."""
    return row.created_at if isinstance(row.created_at, int) else 0, as_text(row.id)


def transitions(
    connection: Connection, query: str, params: Mapping[str, object], doing: str
) -> list[tuple[Any, ...]]:
    """Return the rows of the history *query* before and after the damage, oldest first.

    Args:
        connection: of the damaged registry.
        query: of `queries.history`; *params* are its parameters.
        params: as the query names them.
        doing: operation and object, for the warning about the others.
    """
    newest_first = query.replace(sql.HISTORY_ORDER, f"{sql.HISTORY_ORDER} DESC")
    before, whole = connection.fetch_readable(query, params)
    if whole:
        return before
    after, _ = connection.fetch_readable(newest_first, {**params, "limit": -1})
    log.warning(
        "%s: transitions are missing, the registry is damaged",
        doing,
        extra={
            "event": "transitions_unreadable",
            "path": _path(connection),
            "operation": doing,
        },
    )
    found = {row[0]: row for row in (*before, *after)}
    limit: Any = params.get("limit")
    return [found[seq] for seq in sorted(found)][:limit]


def _path(connection: Connection) -> str:
    """Return the path of the database that *connection* has open."""
    return str(connection.fetch("PRAGMA database_list")[0][2])
