"""Comparison of a registry with its copy in PostgreSQL, column by column."""

from __future__ import annotations

import json
import uuid
from typing import Any

from registry.fleet.source import converted
from registry.fleet.statements import SANDBOX, TRANSITION
from tests.fleet.conftest import Database, registry_id
from tests.tools import query

TIME = "(extract(epoch FROM at) * 1000000000 + at_rest)::bigint"


def transitions_of(database: Database, path: str) -> list[tuple[Any, ...]]:
    """Return the present line of the registry at *path*, as the view of the history has it."""
    columns = ", ".join(TRANSITION[:-1])
    return database.query(
        f"SELECT {columns}, {TIME} FROM fleet_history"
        f" WHERE registry_id = '{registry_id(path)}' ORDER BY seq"
    )


def assert_equal(database: Database, path: str, *, since: int = 0) -> int:
    """Assert that each transition and each sandbox is there exactly once; return their number.

    Args:
        since: compare transitions with a greater seq.
    """
    columns = ", ".join(TRANSITION)
    of_registry = f"SELECT {columns} FROM sandbox_transitions WHERE seq > {since} ORDER BY seq"
    expected = [converted(row) for row in query(path, of_registry)]
    assert expected == [row for row in transitions_of(database, path) if row[0] > since]
    assert sandboxes_of_registry(path) == sandboxes_of(database, path)
    return len(expected)


def sandboxes_of(database: Database, path: str) -> list[tuple[Any, ...]]:
    """Return the present sandboxes of the registry at *path*, as PostgreSQL has them."""
    return database.query(
        f"SELECT {', '.join(SANDBOX)} FROM fleet_sandboxes"
        f" WHERE registry_id = '{uuid.UUID(registry_id(path))}'"
        ' ORDER BY sandbox_id COLLATE "C"'
    )


def sandboxes_of_registry(path: str) -> list[tuple[Any, ...]]:
    """Return the same of the registry itself, by plain SQL."""
    rows = query(
        path,
        "SELECT s.id, s.name, s.namespace, s.pod, s.uid, t.state, t.pid, s.ip, s.netns_path,"
        " t.reason, t.message, t.created_at, t.changed_at, coalesce((SELECT at FROM"
        " sandbox_transitions WHERE sandbox_id = s.id ORDER BY seq DESC LIMIT 1), t.changed_at),"
        " t.exited_at, t.exit_status, s.attempt, s.host_network, s.runtime_handler, coalesce(("
        "SELECT json_group_object(key, value) FROM sandbox_labels WHERE sandbox_id = s.id), '{}')"
        " FROM sandboxes AS s JOIN sandbox_statuses AS t ON t.sandbox_id = s.id ORDER BY s.id",
    )
    return [(*row[:-1], json.loads(row[-1])) for row in rows]
