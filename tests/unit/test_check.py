"""`check` finds every broken invariant, none hidden by the first."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from registry import Store, Violation
from registry.tables import integrity, triggers, views
from tests.tools import READY, UNKNOWN, execute, pod, query, sandbox, tamper

TOO_MANY = """
    INSERT INTO sandbox_extensions WITH n(n) AS (SELECT 1 UNION SELECT n + 1 FROM n LIMIT 65)
    SELECT 'a', n, '', x'' FROM n"""


def broken(path: str, *statements: str) -> list[Violation]:
    """Break a registry of two sandboxes by plain SQL, triggers out of the way, and check it."""
    with Store.open(path) as store:
        store.add(sandbox("a", config=pod(app="x")), READY)
        store.add(sandbox("b", config=pod(app="y")), UNKNOWN)
    tamper(path, *statements)
    with Store.open(path, reconcile=False) as store:
        return store.check()


@pytest.mark.parametrize(
    ("rule", "id", "statement"),
    [
        ("sandbox_has_status", "a", "DELETE FROM sandbox_statuses WHERE sandbox_id = 'a'"),
        ("sandbox_has_status", "a", "DELETE FROM sandboxes WHERE id = 'a'"),
        (
            "no_deletion_is_pending",
            "a",
            "UPDATE sandbox_statuses SET leaving = 1 WHERE sandbox_id = 'a'",
        ),
        ("values_are_valid", "a", "UPDATE sandboxes SET config = x'ff' WHERE id = 'a'"),
        ("values_are_valid", "a", "UPDATE sandboxes SET ip = char(10) WHERE id = 'a'"),
        ("values_are_valid", "a", "UPDATE sandboxes SET cni_result = '[]' WHERE id = 'a'"),
        (
            "values_are_valid",
            "a",
            "UPDATE sandbox_statuses SET state = 'GONE' WHERE sandbox_id = 'a'",
        ),
        ("columns_are_true", "a", "UPDATE sandboxes SET pod = 'other' WHERE id = 'a'"),
        ("columns_are_true", "a", "UPDATE sandboxes SET host_network = 1 WHERE id = 'a'"),
        ("labels_are_true", "a", "DELETE FROM sandbox_labels WHERE sandbox_id = 'a'"),
        (
            "extensions_are_valid",
            "a",
            "INSERT INTO sandbox_extensions VALUES ('a', char(10), '', x'')",
        ),
        (
            "extensions_are_valid",
            "a",
            TOO_MANY,
        ),
        (
            "constraints_hold",
            "a",
            "INSERT INTO sandbox_extensions VALUES ('a', 'n', '', zeroblob(262145))",
        ),
        ("sandbox_has_status", "c", "INSERT INTO sandbox_extensions VALUES ('c', 'n', '', x'')"),
        ("config_json_is_true", "a", "UPDATE sandboxes SET config_json = '{}' WHERE id = 'a'"),
        ("config_json_is_true", "a", "UPDATE sandboxes SET config_json = 'no' WHERE id = 'a'"),
        (
            "history_is_true",
            "a",
            "UPDATE sandbox_statuses SET state = 'SANDBOX_NOTREADY' WHERE sandbox_id = 'a'",
        ),
        ("history_is_true", "b", "DELETE FROM sandbox_transitions WHERE sandbox_id = 'b'"),
        ("history_is_whole", "", "DELETE FROM sandbox_transitions WHERE sandbox_id = 'a'"),
        ("history_is_whole", "", "UPDATE sandbox_transitions SET seq = 9 WHERE seq = 2"),
        (
            "history_is_true",
            "a",
            "UPDATE sandbox_transitions SET to_state = 'SANDBOX_UNKNOWN' WHERE sandbox_id = 'a'",
        ),
        ("registry_says_who_it_is", "", "DELETE FROM registry"),
        ("registry_says_who_it_is", "", "UPDATE registry SET registry_id = '../../x'"),
        ("registry_says_who_it_is", "", "UPDATE registry SET min_writer = 0"),
        ("registry_says_who_it_is", "", "INSERT INTO alembic_version VALUES ('0009')"),
        ("file_is_whole", "", "UPDATE sandboxes SET name = '' WHERE id = 'a'"),
        ("constraints_hold", "a", "UPDATE sandboxes SET name = '' WHERE id = 'a'"),
        ("constraints_hold", "a", "UPDATE sandboxes SET additional_ips = '{}' WHERE id = 'a'"),
        ("constraints_hold", "a", "UPDATE sandbox_transitions SET event = 'no' WHERE seq = 1"),
        ("schema_is_whole", "", "DROP INDEX sandboxes_by_pod"),
        (
            "schema_is_whole",
            "",
            "CREATE TRIGGER odd AFTER INSERT ON sandboxes BEGIN DELETE FROM sandboxes; END",
        ),
        ("schema_is_whole", "", "CREATE INDEX theirs ON sandboxes (ip)"),
        ("schema_is_whole", "", "DROP VIEW why_not_ready"),
        (
            "schema_is_whole",
            "",
            "CREATE TRIGGER odd INSTEAD OF DELETE ON sandbox_overview BEGIN SELECT 1; END",
        ),
        (
            "identities_are_of_something",
            "a",
            "UPDATE sandbox_statuses SET process_inode = 1 WHERE sandbox_id = 'a'",
        ),
        (
            "config_json_is_true",
            "a",
            "UPDATE sandboxes SET config_json = replace(config_json, '\"uid\"', '\"UID\"')",
        ),
        (
            "config_json_is_true",
            "b",
            "UPDATE sandboxes SET config_json = '{\"logDirectory\":\"\"}' WHERE id = 'b'",
        ),
        (
            "history_is_true",
            "a",
            "UPDATE sandbox_transitions SET event = 'changed', from_state = to_state WHERE seq = 1",
        ),
    ],
    ids=str,
)
def test_each_rule_finds_what_breaks_it(path: str, rule: str, id: str, statement: str) -> None:
    """And names the sandbox."""
    if statement == "DELETE FROM registry":
        with Store.open(path) as store, closing(sqlite3.connect(path)) as shell:
            shell.execute("DROP TRIGGER registry_stays")
            shell.execute(statement)
            shell.commit()
            found = store.check()
    else:
        found = broken(path, statement)
    assert (rule, id) in {(violation.rule, violation.sandbox_id) for violation in found}
    assert all(str(violation) for violation in found)


def test_none_is_hidden_by_the_first(path: str) -> None:
    """Four things broken, four rules named."""
    found = broken(
        path,
        "UPDATE sandboxes SET config = x'ff' WHERE id = 'a'",
        "UPDATE sandboxes SET pod = 'other' WHERE id = 'b'",
        "DELETE FROM sandbox_labels WHERE sandbox_id = 'b'",
        "DELETE FROM sandbox_transitions WHERE sandbox_id = 'b'",
    )
    assert {
        ("values_are_valid", "a"),
        ("config_json_is_true", "a"),
        ("columns_are_true", "b"),
        ("labels_are_true", "b"),
        ("history_is_true", "b"),
    } == {(violation.rule, violation.sandbox_id) for violation in found}


def test_a_missing_or_changed_trigger_is_found(store: Store, path: str) -> None:
    """Without them nothing above holds."""
    execute(path, "DROP TRIGGER sandboxes_not_replaced", "DROP VIEW why_not_ready")
    try:
        assert ["schema_is_whole"] * 2 == [violation.rule for violation in store.check()]
    finally:
        execute(
            path,
            *(
                statement
                for statement in (*triggers.TRIGGERS, *(view.sql for view in views.VIEWS))
                if statement.split()[2] in {"sandboxes_not_replaced", "why_not_ready"}
            ),
        )


def test_a_corrupt_page_is_found(path: str) -> None:
    """Through SQLite's own check, and reported as a violation, not raised."""
    with Store.open(path) as store:
        with store.transaction():
            for n in range(100):
                store.add(sandbox(f"s{n}"), READY)
        sql = "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_sandboxes_2'"
    with closing(sqlite3.connect(path)) as shell:
        (page,) = shell.execute(sql).fetchone()
        (size,) = shell.execute("PRAGMA page_size").fetchone()
    data = bytearray(Path(path).read_bytes())
    data[(page - 1) * size + 200 : page * size] = b"\xaa" * (size - 200)
    Path(path).write_bytes(data)
    with Store.open(path, damaged="read") as store:
        assert "file_is_whole" in {violation.rule for violation in store.check()}


def test_the_rules_are_as_many_as_their_tests() -> None:
    """A rule without a test above is not known to find anything."""
    tested = {
        "file_is_whole",
        "files_are_private",  # in tests/integration/test_privileges.py
        "wal_can_be_reset",  # in tests/integration/test_snapshots.py
        "schema_is_whole",
        "constraints_hold",
        "identities_are_of_something",
        "registry_says_who_it_is",
        "sandbox_has_status",
        "no_deletion_is_pending",
        "values_are_valid",
        "columns_are_true",
        "labels_are_true",
        "extensions_are_valid",
        "config_json_is_true",
        "history_is_true",
        "history_is_whole",
    }
    assert tested == {rule.__name__ for rule in integrity.RULES}


def test_objects_of_other_tools_in_the_file_are_no_violation(store: Store, path: str) -> None:
    """Tables of Litestream, and tables, indexes, views and triggers of other programs."""
    store.add(sandbox("a"), READY)
    execute(
        path,
        "CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER)",
        "CREATE TABLE _litestream_lock (id INTEGER)",
        "INSERT INTO _litestream_seq VALUES (1, 1)",
        "CREATE TABLE theirs (id TEXT REFERENCES sandboxes (id), state TEXT)",
        "INSERT INTO theirs VALUES ('gone', 'x')",
        "CREATE INDEX theirs_by_state ON theirs (state)",
        "CREATE VIEW their_view AS SELECT id FROM sandboxes",
        "CREATE TRIGGER their_trigger AFTER INSERT ON theirs BEGIN DELETE FROM theirs; END",
    )
    assert [] == store.check()
    with Store.open(path, read_only=True) as reader:
        assert [] == reader.check()
    assert [(1, 1)] == query(path, "SELECT * FROM _litestream_seq")
