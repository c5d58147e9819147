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


def sandboxes(
    connection: Connection, query: str, params: Mapping[str, object], doing: str
) -> list[Row]:
    """Return the rows of the list *query* that can be read, each by a query of its own.

    Args:
        connection: of the damaged registry.
        query: of `queries.list_sandboxes`; *params* are its parameters.
        params: as the query names them.
        doing: operation and object, for the warning about the others.
    """
    one, rows, lost = queries.of_one(query), list[Row](), list[int]()
    ids = dict(connection.fetch_readable(BY_ID)[0])
    for creation in _creations(connection, ids):
        found, readable = connection.fetch_readable(one, {**params, "creation": creation})
        rows += [Row._make(each) for each in found]
        if not readable:
            lost.append(creation)
    if lost:
        log.warning(
            "%s: %d sandboxes cannot be read, the registry is damaged: %s",
            doing,
            len(lost),
            _named(sorted(as_text(ids[each]) for each in lost if each in ids), len(lost)),
            extra={
                "event": "sandboxes_unreadable",
                "path": _path(connection),
                "operation": doing,
                "sandboxes": len(lost),
            },
        )
    rows.sort(key=_order, reverse=sql.LIST_NEWEST_FIRST in query)
    limit: Any = params.get("limit")
    return rows[:limit]


def _named(ids: list[str], lost: int) -> str:
    """Return the first of *ids*, and how many of *lost* sandboxes are not named."""
    named = ", ".join(ids[:NAMED])
    others = lost - len(ids[:NAMED])
    if not others:
        return named
    return f"{named} and {others} more; salvage names them" if named else "salvage names them"


def _creations(connection: Connection, indexed: Iterable[object]) -> list[int]:
    """Return the creations of all sandboxes that the table, from either end, or its index has.

    Args:
        connection: of the damaged registry.
        indexed: creations that the index of the ids has.
    """
    by_table = f"{sql.CREATIONS} ORDER BY creation"
    found = {each for each in indexed if isinstance(each, int)}
    for query in (by_table, f"{by_table} DESC"):
        found |= {each for (each,) in connection.fetch_readable(query)[0] if isinstance(each, int)}
    return sorted(found)


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
