"""Queries of the pages, those of a page in one snapshot."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from registry.browse.timeline import Change, iso, recorded

CHANGES_MAX: Final = 5_000
"""Changes that one timeline shows."""
_CHANGE: Final = "id, namespace, pod, at, from_state, to_state, reason, actor"

Row = dict[str, Any]


class Start(NamedTuple):
    """Content of the start page: the number of sandboxes by state, and the last that ended."""

    states: Sequence[Row]
    not_ready: Sequence[Row]


class Record(NamedTuple):
    """Records of one id; *sandbox* is None if it is deleted, *history* is newest first."""

    sandbox: Row | None
    config: str | None
    history: Sequence[Row]

    def changes(self) -> list[Change]:
        """Return the history as changes, oldest first."""
        return [_change(row) for row in reversed(self.history)]


class Node(NamedTuple):
    """Changes since the Unix time *begin*, oldest first, and the states of all other sandboxes."""

    changes: Sequence[Change]
    standing: Sequence[Change]
    begin: float


def start(connection: sqlite3.Connection) -> Start:
    """Read the content of the start page."""
    states = "SELECT state, count(*) AS sandboxes FROM sandbox_overview GROUP BY state"
    not_ready = "SELECT * FROM why_not_ready ORDER BY since DESC LIMIT 10"
    return Start(_rows(connection, states), _rows(connection, not_ready))


def record(connection: sqlite3.Connection, id: str) -> Record:
    """Read all records of the sandbox *id*, a full id."""
    of = {"id": id}
    found = _rows(connection, "SELECT * FROM sandbox_overview WHERE id = :id", of)
    config = _rows(connection, "SELECT config_json FROM sandboxes WHERE id = :id", of)
    history = f"SELECT * FROM sandbox_history WHERE id = :id LIMIT {CHANGES_MAX}"  # noqa: S608
    return Record(
        found[0] if found else None,
        config[0]["config_json"] if config else None,
        _rows(connection, history, of),
    )


def node(
    connection: sqlite3.Connection, begin: float, end: float, namespace: str, *, past: bool
) -> Node:
    """Read the states of all sandboxes between two Unix times.

    Args:
        connection: inside a transaction.
        begin: of the time; the node begins later if there are more than `CHANGES_MAX` changes.
        end: of the time.
        namespace: Kubernetes namespace; "": all.
        past: the end is not the present time: changes may follow it.
    """
    of = {"begin": iso(begin), "end": iso(end), "namespace": namespace}
    only = "(:namespace = '' OR namespace = :namespace)"
    rows = _rows(
        connection,
        f"SELECT {_CHANGE} FROM sandbox_history"  # noqa: S608
        f" WHERE at > :begin AND at <= :end AND {only} LIMIT {CHANGES_MAX}",
        of,
    )
    changes = [_change(row) for row in reversed(rows)]
    if len(rows) == CHANGES_MAX:
        begin, of["begin"] = recorded(changes[0].at), changes[0].at
    overview = f"SELECT * FROM sandbox_overview WHERE since <= :begin AND {only}"  # noqa: S608
    standing = [stands(row) for row in _rows(connection, overview, of)]
    if past:  # what has changed since, or is deleted, was in the state before its next change
        later = (
            f"SELECT {_CHANGE}, min(seq) FROM sandbox_history"  # noqa: S608
            f" WHERE at > :end AND {only} GROUP BY id"
        )
        standing += [
            _change(row)._replace(to_state=row["from_state"], reason="", actor="")
            for row in _rows(connection, later, of)
            if row["from_state"] is not None
        ]
    return Node(changes, standing, begin)


def stands(row: Mapping[str, Any]) -> Change:
    """Return the present state of a row of the overview, as a change without one before."""
    return Change(
        row["id"], row["namespace"], row["pod"], row["since"], None, row["state"], row["reason"], ""
    )


def _change(row: Mapping[str, Any]) -> Change:
    return Change(*(row[name] for name in Change._fields))


def _rows(
    connection: sqlite3.Connection, query: str, params: Mapping[str, object] | None = None
) -> list[Row]:
    return [dict(row) for row in connection.execute(query, params or {})]
