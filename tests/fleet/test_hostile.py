"""Registries that are damaged, tampered with, deleted or unmounted while they are pushed."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from registry import Store
from registry.fleet.push import SourceError
from tests.fleet.compare import assert_equal
from tests.fleet.conftest import Database, NewPusher, push
from tests.fleet.test_push import fill_up_to
from tests.tools import READY, execute, query, sandbox, tamper

BREAKS = "SELECT kind, incarnation, after, before FROM fleet_breaks ORDER BY incarnation"
GREATEST = 2**63 - 1


@pytest.fixture
def filled(path: str) -> str:
    """Return a registry of 100 transitions."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("a"), READY)
    fill_up_to(path, 100)
    return path


@pytest.mark.parametrize(
    ("change", "back"),
    [
        ("registry_id = 'x'", "registry_id = '{}'"),
        ("incarnation = -1", "incarnation = 1"),
        (f"incarnation = {GREATEST}", "incarnation = 1"),
    ],
)
def test_registry_without_a_valid_identity_is_broken(
    filled: str, database: Database, new_pusher: NewPusher, change: str, back: str
) -> None:
    """It is reported as one that cannot be read, whether the pusher was running or is started."""
    ((id,),) = query(filled, "SELECT registry_id FROM registry")
    running = new_pusher()
    push(running)
    tamper(filled, f"UPDATE registry SET {change}")
    with pytest.raises(SourceError, match="valid id"):
        push(running)
    with pytest.raises(SourceError):
        push(new_pusher())
    tamper(filled, f"UPDATE registry SET {back.format(id)}")
    push(running)
    assert [] == database.query(BREAKS)
    assert_equal(database, filled)


def test_seq_at_the_end_of_64_bits_is_pushed(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """The last transition there can be; nothing is computed past it."""
    running = new_pusher()
    push(running)
    tamper(filled, f"UPDATE sandbox_transitions SET seq = {GREATEST} WHERE seq = 100")
    push(running)
    assert [("restored", 2, 99, 100)] == database.query(BREAKS)
    push(new_pusher())
    assert 100 == assert_equal(database, filled)


def test_hole_in_the_history_stops_nothing(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """Before the cursor it is not seen; a missing transition at the cursor is a lost one."""
    running = new_pusher()
    push(running)
    tamper(filled, "DELETE FROM sandbox_transitions WHERE seq BETWEEN 50 AND 60")
    for state in ("NOTREADY", "READY"):
        execute(filled, f"UPDATE sandbox_statuses SET state = 'SANDBOX_{state}'")
    assert 2 == push(running)
    assert [] == database.query(BREAKS)
    tamper(filled, "DELETE FROM sandbox_transitions WHERE seq = 102")
    push(running)
    # The hole counts as lost too, so that the present line is that of the registry.
    assert [("restored", 2, 49, 102)] == database.query(BREAKS)
    assert 90 == assert_equal(database, filled)


def test_values_of_the_wrong_type_are_pushed(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """A table that is not STRICT any more has them; each is stored as a text, or left out."""
    with closing(sqlite3.connect(filled, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute(
            "UPDATE sqlite_master SET sql = replace(replace(sql, ') STRICT', ')'), ', STRICT', '')"
            " WHERE name IN ('sandbox_transitions', 'sandbox_statuses')"
        )
        db.execute("PRAGMA writable_schema = RESET")
    pusher = new_pusher()
    columns = {
        "sandbox_transitions": ("at", "pid", "reason", "message", "boot_id", "to_state", "event"),
        "sandbox_statuses": ("state", "pid", "reason", "created_at", "exit_status", "changed_at"),
    }
    for table, names in columns.items():
        for name in names:
            for value in ("x'00ff'", "9e999", "'text'"):
                tamper(filled, f"UPDATE {table} SET {name} = {value}")
                pusher.round()
                pusher.disconnect()
                database.query("DELETE FROM fleet_transitions")
                database.query("UPDATE fleet_registries SET cursor = 0, fingerprint = ''")


def test_registry_that_is_gone_is_broken_until_it_is_back(
    filled: str, database: Database, new_pusher: NewPusher, tmp_path: Path
) -> None:
    """Deleted, unmounted, or another kind of file: nothing is created at its path."""
    pusher, folder = new_pusher(), Path(filled).parent
    push(pusher)
    away = tmp_path.parent / f"{tmp_path.name}-away"
    folder.rename(away)
    with pytest.raises(SourceError, match="no such file"):
        push(pusher)
    folder.mkdir()
    with pytest.raises(SourceError, match="no such file"):
        push(pusher)
    os.mkfifo(filled)
    with pytest.raises(SourceError, match="not a regular file"):
        push(pusher)
    pusher.report("gone")
    assert [("broken", "gone")] == database.query("SELECT status, problem FROM fleet_nodes")
    os.unlink(filled)
    folder.rmdir()
    away.rename(folder)
    push(pusher)
    assert [("alive", "")] == database.query("SELECT status, problem FROM fleet_nodes")
    assert_equal(database, filled)
