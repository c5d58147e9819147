"""The views, which are the contract with operators: columns, order, times."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from registry import Extension, Status, Store
from registry.tables import schema, views
from registry.tables.version import HISTORY_MAX
from tests.tools import NOTREADY, READY, UNKNOWN, ids, pod, sandbox

COLUMNS = {
    "sandbox_overview": "id name namespace pod state pid ip netns_path reason message created_at"
    " changed_at since labels uid attempt host_network runtime_handler exited_at exit_status"
    " extensions",
    "why_not_ready": "id name reason message since previous_state actor namespace pod pid"
    " netns_path exited_at exit_status",
    "sandbox_history": "seq at id name namespace pod uid event from_state to_state reason message"
    " actor pid boot_id",
}
"""Columns of each view; a revision may only append."""
AT = 1_700_000_000_123_456_789
ISO = "2023-11-14T22:13:20.123456789Z"


@pytest.fixture
def shell(store: Store, path: str) -> Iterator[sqlite3.Connection]:
    """Return a connection as the sqlite3 shell has it, to a READY and an UNKNOWN sandbox."""
    store.add(sandbox("ready", config=pod(app="x", tier="front")), READY)
    store.add(sandbox("unknown"), UNKNOWN)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        yield connection


def row_of(shell: sqlite3.Connection, view: str, id: str) -> dict[str, Any]:
    """Return the first row of *view* of sandbox *id*, by column."""
    return dict(shell.execute(f"SELECT * FROM {view} WHERE id = ?", (id,)).fetchone())


@pytest.mark.parametrize("view", views.VIEWS, ids=lambda view: view.name)
def test_a_view_has_the_columns_of_the_contract(
    shell: sqlite3.Connection, view: views.View
) -> None:
    """In the order of the contract, and each is described."""
    cursor = shell.execute(f"SELECT * FROM {view.name}")
    found = [column[0] for column in cursor.description]
    assert COLUMNS[view.name].split() == found == list(view.columns)


def test_every_column_says_what_it_means() -> None:
    """As a sentence; also what NULL means, exactly if it may be NULL."""
    tables = [*schema.metadata.tables.values()]
    columns = [column for table in tables for column in table.columns]
    columns += [column for view in views.VIEWS for column in view.columns.values()]
    for column in columns:
        assert column.comment
        assert "." == column.comment[-1], column
        assert bool(column.nullable) == bool(column.info["null"]), column
        assert "|" not in column.comment + column.info["null"], column


def test_the_overview_shows_sandboxes_in_each_state(shell: sqlite3.Connection) -> None:
    """Unset times are NULL, set ones ISO 8601 in UTC; JSON is what a query takes apart."""
    ready, unknown = (row_of(shell, "sandbox_overview", id) for id in ("ready", "unknown"))
    assert "1970-01-01T00:00:00.000001000Z" == ready["created_at"]
    assert ready["changed_at"] == ready["since"]
    assert {"app": "x", "tier": "front"} == json.loads(ready["labels"])
    assert (None, "{}", "[]") == (unknown["created_at"], unknown["labels"], unknown["extensions"])
    assert (None, None, 0) == (unknown["exited_at"], unknown["exit_status"], unknown["pid"])


def test_the_overview_shows_metadata_and_extensions(
    shell: sqlite3.Connection, store: Store
) -> None:
    """The fields of the config, and the names of the extensions without their values."""
    config = pod("web", "shop")
    config.metadata.uid, config.metadata.attempt = "u-1", 3
    added = store.add(replace(sandbox("full", config=config), runtime_handler="kata"), READY)
    added.extensions.update(lambda _: {"b": Extension("t", b"secret"), "a": Extension("", b"")})
    found = row_of(shell, "sandbox_overview", "full")
    assert ("u-1", 3, 0, "kata", '["a","b"]') == tuple(
        found[name] for name in ("uid", "attempt", "host_network", "runtime_handler", "extensions")
    )


def test_since_is_the_time_of_the_change_and_not_of_a_later_write(
    shell: sqlite3.Connection, store: Store
) -> None:
    """A new message is no new state."""
    shell.execute(
        f"UPDATE sandbox_statuses SET state = 'SANDBOX_NOTREADY', changed_at = {AT}"
        " WHERE sandbox_id = 'ready'"
    )
    shell.execute("UPDATE sandbox_statuses SET message = 'later' WHERE sandbox_id = 'ready'")
    for view in ("sandbox_overview", "why_not_ready"):
        found = row_of(shell, view, "ready")
        assert (ISO, "later") == (found["since"], found["message"])
    assert ISO < row_of(shell, "sandbox_overview", "ready")["changed_at"]


def test_since_is_the_last_write_once_the_history_has_no_change_left(
    shell: sqlite3.Connection, store: Store
) -> None:
    """It is the latest time at which the state can have begun."""
    shell.execute(f"UPDATE sandbox_statuses SET changed_at = {AT} WHERE sandbox_id = 'unknown'")
    shell.execute("BEGIN")
    seq = HISTORY_MAX + 1_000_000_000
    shell.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'sandbox_transitions'", (seq,))
    shell.execute("DROP TRIGGER sandbox_transitions_stay")
    shell.execute("DELETE FROM sandbox_transitions")
    assert ISO == row_of(shell, "sandbox_overview", "unknown")["since"]
    shell.execute("ROLLBACK")
    assert ISO != row_of(shell, "sandbox_overview", "unknown")["since"]


def test_why_not_ready_says_since_when_from_what_and_by_whom(
    shell: sqlite3.Connection, store: Store
) -> None:
    """For NOTREADY sandboxes only, with what is left to clean up."""
    ended = Status(NOTREADY.state, 7, 1, AT, 137, "ProcessExited", "m")
    store.get("ready").status.update(lambda _: ended)
    (found,) = map(dict, shell.execute("SELECT * FROM why_not_ready"))
    assert {
        "id": "ready",
        "name": "name-ready",
        "reason": "ProcessExited",
        "message": "m",
        "previous_state": "SANDBOX_READY",
        "pod": "web",
        "namespace": "default",
        "pid": 7,
        "exited_at": ISO,
        "exit_status": 137,
    }.items() <= found.items()
    assert ["ready", "unknown"] == sorted(ids(store.list(include_unknown=True)))


def test_the_history_shows_deleted_sandboxes_newest_first(
    shell: sqlite3.Connection, store: Store
) -> None:
    """With the time of each change in ISO 8601."""
    shell.execute(
        f"UPDATE sandbox_statuses SET state = 'SANDBOX_NOTREADY', changed_at = {AT}, actor = 'me'"
        " WHERE sandbox_id = 'ready'"
    )
    store.delete("ready")
    rows = shell.execute("SELECT * FROM sandbox_history WHERE id = 'ready'").fetchall()
    assert ["deleted", "changed", "created"] == [row["event"] for row in rows]
    assert (ISO, "SANDBOX_READY", "SANDBOX_NOTREADY", "me") == tuple(
        rows[1][name] for name in ("at", "from_state", "to_state", "actor")
    )
    everything = shell.execute("SELECT seq FROM sandbox_history").fetchall()
    assert [4, 3, 2, 1] == [row["seq"] for row in everything]


def test_a_view_of_one_sandbox_reads_no_table_from_end_to_end(shell: sqlite3.Connection) -> None:
    """Indexes that the writes need anyway suffice for the views, so they make no write slower."""
    for view in COLUMNS:
        plan = shell.execute(f"EXPLAIN QUERY PLAN SELECT * FROM {view} WHERE id = 'a'").fetchall()
        assert not [step["detail"] for step in plan if step["detail"].startswith("SCAN")], view
