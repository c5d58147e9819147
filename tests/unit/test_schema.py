"""Triggers and constraints, which hold for every writer, the sqlite3 shell included."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from registry import NameReservedError, NotFoundError, State, Store
from tests.tools import NOTREADY, READY, UNKNOWN, is_recent, pod, sandbox

FAR_AHEAD = """INSERT INTO sandbox_transitions VALUES (9223372036854775807, 'ready', '', '', '',
    '', 'deleted', 'SANDBOX_READY', NULL, 0, '', '', '', NULL, 0)"""
TOO_MANY = """
    INSERT INTO sandbox_extensions WITH n(n) AS (SELECT 1 UNION SELECT n + 1 FROM n LIMIT 65)
    SELECT 'ready', n, '', x'' FROM n"""


@pytest.fixture
def shell(store: Store, path: str) -> Iterator[sqlite3.Connection]:
    """Return a connection as the sqlite3 shell has it: foreign keys off."""
    ready = store.add(sandbox("ready", config=pod(app="x")), READY)
    ready.extensions.update(lambda _: {"known": b"1"})
    store.add(sandbox("unknown", config=pod(app="y")), UNKNOWN)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sandboxes SET id = 'other' WHERE id = 'ready'",
        "UPDATE sandboxes SET id = 'other' WHERE id = 'unknown'",
        "UPDATE sandboxes SET name = 'other' WHERE id = 'unknown'",
        "UPDATE sandboxes SET creation = 1 WHERE id = 'unknown'",
        "UPDATE sandboxes SET creator_pid = 1 WHERE id = 'unknown'",
        "UPDATE sandboxes SET ip = '10.0.0.1' WHERE id = 'ready'",
        "UPDATE sandboxes SET config = x'', config_json = '{}' WHERE id = 'ready'",
        "UPDATE sandboxes SET pod = 'other' WHERE id = 'ready'",
        "UPDATE sandbox_statuses SET state = 'SANDBOX_UNKNOWN' WHERE sandbox_id = 'ready'",
        "UPDATE sandbox_statuses SET state = 'SANDBOX_GONE' WHERE sandbox_id = 'ready'",
        "UPDATE sandbox_statuses SET state = 1 WHERE sandbox_id = 'ready'",
        "UPDATE sandbox_statuses SET pid = -1 WHERE sandbox_id = 'ready'",
        "UPDATE sandbox_statuses SET pid = 'x' WHERE sandbox_id = 'ready'",
        "UPDATE sandbox_statuses SET created_at = 0 WHERE sandbox_id = 'ready'",
        "UPDATE sandbox_statuses SET sandbox_id = 'x' WHERE sandbox_id = 'ready'",
        "DELETE FROM sandbox_statuses WHERE sandbox_id = 'ready'",
        "REPLACE INTO sandboxes (id, name) VALUES ('ready', 'again')",
        "REPLACE INTO sandboxes (id, name) VALUES ('new', 'name-ready')",
        "INSERT INTO sandboxes (id, name) VALUES ('ready', 'again')",
        "INSERT INTO sandboxes (id, name) VALUES ('new', 'name-ready')",
        "INSERT INTO sandboxes (id, name) VALUES ('a/b', 'n')",
        "INSERT INTO sandboxes (id, name) VALUES ('', 'n')",
        "INSERT INTO sandboxes (id, name) VALUES ('n', '')",
        "INSERT INTO sandboxes (id, name, netns_path) VALUES ('n', 'n', 'relative')",
        "INSERT INTO sandboxes (id, name, additional_ips) VALUES ('n', 'n', '{}')",
        "INSERT INTO sandboxes (id, name, config) VALUES ('n', 'n', x'')",
        "REPLACE INTO sandbox_statuses (sandbox_id, state) VALUES ('ready', 'SANDBOX_READY')",
        "INSERT INTO sandbox_statuses (sandbox_id, state) VALUES ('none', 'SANDBOX_READY')",
        "INSERT INTO sandbox_labels (sandbox_id, key, value) VALUES ('ready', 'k', 'v')",
        "UPDATE sandbox_labels SET value = 'z' WHERE sandbox_id = 'ready'",
        "DELETE FROM sandbox_labels WHERE sandbox_id = 'ready'",
        "DELETE FROM sandbox_transitions",
        "UPDATE sandbox_transitions SET actor = 'me'",
        "REPLACE INTO sandbox_transitions SELECT * FROM sandbox_transitions",
        "DELETE FROM registry",
        "INSERT INTO registry SELECT 2, registry_id, created_at, 1, 1, 1, 1, NULL FROM registry",
        "REPLACE INTO registry SELECT * FROM registry",
        "UPDATE registry SET registry_id = '../../x'",
        "UPDATE sandbox_statuses SET reason = 'killed by hand' WHERE sandbox_id = 'ready'",
        "UPDATE OR REPLACE sandbox_labels SET sandbox_id = 'ready' WHERE sandbox_id = 'unknown'",
        "UPDATE sandbox_labels SET sandbox_id = 'none' WHERE sandbox_id = 'unknown'",
        "INSERT INTO sandbox_labels (sandbox_id, key, value) VALUES ('none', 'k', 'v')",
        "INSERT INTO sandbox_extensions VALUES ('none', 'n', '', x'')",
        "INSERT INTO sandbox_extensions VALUES ('ready', '', '', x'')",
        "INSERT INTO sandbox_extensions VALUES ('ready', 'n', NULL, x'')",
        "INSERT INTO sandbox_extensions VALUES ('ready', 'n', '', 'text')",
        "INSERT INTO sandbox_extensions VALUES ('ready', 'n', '', zeroblob(262145))",
        "INSERT INTO sandbox_extensions VALUES ('ready', printf('%257d', 1), '', x'')",
        TOO_MANY,
        "UPDATE sandbox_extensions SET sandbox_id = 'unknown' WHERE sandbox_id = 'ready'",
        FAR_AHEAD,
        "UPDATE sandboxes SET netns_boot_id = 'x' WHERE id = 'ready'",
    ],
    ids=str,
)
def test_plain_sql_cannot_break_what_must_hold(
    shell: sqlite3.Connection, store: Store, statement: str
) -> None:
    """The statement is refused, and nothing has changed."""
    before = [*shell.iterdump()]
    with pytest.raises(sqlite3.IntegrityError):
        shell.execute(statement)
    assert before == [*shell.iterdump()]
    assert [] == store.check()


@pytest.mark.parametrize("column", ["process_inode", "process_boot_id"])
def test_plain_sql_cannot_exchange_a_process(
    shell: sqlite3.Connection, store: Store, column: str
) -> None:
    """With another identity a running process would seem gone; another pid is another process."""
    store.add(sandbox("runs"), replace(READY, pid=os.getpid()))
    with pytest.raises(sqlite3.IntegrityError, match="noted once"):
        shell.execute(f"UPDATE sandbox_statuses SET {column} = NULL WHERE pid <> 0")
    shell.execute("UPDATE sandbox_statuses SET pid = 1 WHERE pid <> 0")
    assert [(None,)] == shell.execute(
        f"SELECT {column} FROM sandbox_statuses WHERE pid = 1"
    ).fetchall()
    assert [] == store.check()


def test_plain_sql_may_complete_what_is_unknown(shell: sqlite3.Connection, store: Store) -> None:
    """As update_metadata may."""
    shell.execute("UPDATE sandboxes SET ip = '10.0.0.9' WHERE id = 'unknown'")
    assert "10.0.0.9" == store.get("unknown", include_unknown=True).ip


def test_a_change_by_plain_sql_is_in_the_history(shell: sqlite3.Connection, store: Store) -> None:
    """With the actor sql and SQLite's time, and the handles see it."""
    handle = store.get("ready")
    shell.execute(
        "UPDATE sandbox_statuses SET state = 'SANDBOX_NOTREADY', reason = 'Operator'"
        " WHERE sandbox_id = 'ready'"
    )
    last = store.history("ready")[-1]
    assert (State.READY, State.NOTREADY, "Operator", "sql", "") == (
        last.from_state,
        last.to_state,
        last.reason,
        last.actor,
        last.boot_id,
    )
    assert is_recent(last.at)
    assert State.NOTREADY == handle.status.get().state
    assert handle.stopped.is_set()


def test_a_change_that_signs_itself_is_believed(shell: sqlite3.Connection, store: Store) -> None:
    """A writer that sets changed_at and actor says who it is."""
    boot_id = "00000000-0000-4000-8000-000000000001"
    shell.execute(
        "UPDATE sandbox_statuses SET state = 'SANDBOX_NOTREADY', changed_at = 7, actor = 'me',"
        f" boot_id = '{boot_id}' WHERE sandbox_id = 'ready'"
    )
    last = store.history("ready")[-1]
    assert (7, "me", boot_id) == (last.at, last.actor, last.boot_id)


def test_a_deletion_by_plain_sql_is_whole_and_in_the_history(
    shell: sqlite3.Connection, store: Store
) -> None:
    """Status and labels go with it, though the shell leaves foreign keys off."""
    handle = store.get("ready")
    shell.execute("DELETE FROM sandboxes WHERE id = 'ready'")
    for table in ("sandbox_statuses", "sandbox_labels"):
        assert [] == shell.execute(f"SELECT * FROM {table} WHERE sandbox_id = 'ready'").fetchall()
    last = store.history("ready")[-1]
    assert ("deleted", State.READY, None, "sql") == (
        last.event,
        last.from_state,
        last.to_state,
        last.actor,
    )
    with pytest.raises(NotFoundError):
        handle.status.get()


def test_a_sandbox_added_by_plain_sql_is_one(shell: sqlite3.Connection, store: Store) -> None:
    """It is found, can be updated and deleted, and its history begins."""
    shell.execute("BEGIN")
    shell.execute("INSERT INTO sandboxes (id, name) VALUES ('imported', 'imported')")
    shell.execute(
        "INSERT INTO sandbox_statuses (sandbox_id, state) VALUES ('imported', 'SANDBOX_READY')"
    )
    shell.execute("COMMIT")
    handle = store.get("imported")
    assert ("created", "sql") == (store.history("imported")[0].event, store.history()[-1].actor)
    handle.status.update(lambda _: NOTREADY)
    assert store.delete("imported")
    assert ["created", "changed", "deleted"] == [each.event for each in store.history("imported")]


def test_half_a_sandbox_added_by_plain_sql_is_told_and_can_be_taken_away(
    shell: sqlite3.Connection, store: Store
) -> None:
    """It has no status, so no command shows it; its name is free again after a plain DELETE."""
    shell.execute("INSERT INTO sandboxes (id, name) VALUES ('half', 'half')")
    assert {"half"} == {violation.sandbox_id for violation in store.check()}
    with pytest.raises(NameReservedError):
        store.add(replace(sandbox("whole"), name="half"), READY)
    shell.execute("DELETE FROM sandboxes WHERE id = 'half'")
    store.add(replace(sandbox("whole"), name="half"), READY)
    assert [] == store.check()


def test_the_config_can_be_asked_with_json_extract(shell: sqlite3.Connection) -> None:
    """Keys are proto names."""
    assert [("default", "web")] == shell.execute(
        "SELECT json_extract(config_json, '$.metadata.namespace'), pod FROM sandboxes"
        " WHERE id = 'ready'"
    ).fetchall()


def test_look_ups_use_indexes(shell: sqlite3.Connection, store: Store) -> None:
    """By prefix, name, label, pod, namespace and state: no look-up reads the whole table."""
    statements: list[str] = []
    engine = store._session.engine
    store.list()  # has opened the connection that watches, which reads nothing
    reader = engine._readers.take("test")
    reader.set_trace_callback(statements.append)
    engine._readers.give_back([reader])
    store.get("rea")
    store.list(labels={"app": "x"})
    store.list(pod="web")
    store.list(name="name-ready")
    store.list(id="rea")
    store.list(namespace="default")
    store.list(pod="web", namespace="default", labels={"app": "x", "tier": "front"})
    store.list(include_unknown=True, state=State.NOTREADY)
    reader.set_trace_callback(None)
    selects = [statement for statement in statements if statement.startswith("SELECT")]
    assert len(selects) >= 9
    for statement in selects:
        if "WHERE" in statement:
            plan = shell.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
            assert not [step[3] for step in plan if step[3].startswith("SCAN")], statement
