"""One batch: exactly once, equal column by column, and in one transaction."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any, Final

import pytest

from registry import RegistryError, Store, UnavailableError
from registry.fleet import push as push_module
from registry.fleet import source as source_module
from registry.fleet import statements
from registry.fleet.push import Pusher
from registry.fleet.source import Source
from tests.fleet.compare import assert_equal, sandboxes_of
from tests.fleet.conftest import Database, NewPusher, push, registry_id
from tests.tools import NOTREADY, READY, execute, fill, pod, query, sandbox, tamper

NEWEST: Final = 2 * push_module.BATCH + 500
"""Seq of the newest transition of the fixture, which takes three batches."""


def fill_up_to(path: str, newest: int) -> None:
    """Add transitions until the newest one has the seq *newest*."""
    ((present,),) = query(path, "SELECT max(seq) FROM sandbox_transitions")
    execute(path, fill(newest - (present or 0)))


@pytest.fixture
def filled(path: str) -> str:
    """Return a registry of three sandboxes and `NEWEST` transitions."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("a", config=pod("web", "shop", app="web", tier="front")), READY)
        store.add(sandbox("b"), NOTREADY)
        store.add(sandbox("c", config=None), replace(NOTREADY, exit_status=2**32 - 1))
    fill_up_to(path, NEWEST)
    return path


def test_first_push_copies_history_and_sandboxes(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """In batches; an exit status of 32 bits fits, and a second push sends nothing."""
    pusher = new_pusher()
    assert push(pusher) == NEWEST
    assert NEWEST == assert_equal(database, filled)
    assert 0 == push(pusher)
    assert 0 == push(new_pusher())
    assert_equal(database, filled)
    assert [] == database.query("SELECT * FROM fleet_breaks")


def test_rule_1_batch_of_a_moved_cursor_is_rolled_back_whole(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """The next round reads the cursor, and nothing is stored twice."""
    first, second = new_pusher(), new_pusher()
    first.round()
    second.round()
    with pytest.raises(RegistryError, match="row is not as"):
        first.round()
    assert 500 == push(first)
    assert_equal(database, filled)


def test_rule_1_rows_and_cursor_are_committed_together(
    filled: str, database: Database, new_pusher: NewPusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement that fails at the end of a batch takes the transitions and the cursor back."""
    monkeypatch.setattr(statements, "UPSERT_SANDBOXES", "SELECT 1 / 0")
    with pytest.raises(RegistryError, match="division by zero"):
        push(new_pusher())
    assert 2 * push_module.BATCH == database.one("SELECT cursor FROM fleet_registries")
    assert 2 * push_module.BATCH == database.one("SELECT count(*) FROM fleet_transitions")
    monkeypatch.undo()
    push(new_pusher())
    assert_equal(database, filled)


def test_rule_1_violated_key_is_raised(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """It would be an error of this code: a row that is there already is not skipped."""
    push(new_pusher())
    database.query("UPDATE fleet_registries SET cursor = 0, fingerprint = ''")
    with pytest.raises(RegistryError, match="23505") as caught:
        push(new_pusher())
    assert caught.type is RegistryError
    assert 0 == database.one("SELECT cursor FROM fleet_registries")


class Spy(Source):
    """Source that records whether a snapshot is held."""

    held = False

    def _with_fetch(self, read: Any) -> Any:
        self.held = True
        try:
            return super()._with_fetch(read)
        finally:
            self.held = False


def test_rule_2_snapshot_is_closed_before_postgresql_is_spoken_to(
    filled: str, new_pusher: NewPusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for each batch: a server that hangs keeps no WAL from being reset."""
    pusher = new_pusher()
    spy = Spy(filled)
    monkeypatch.setattr(pusher, "source", spy)
    connection = pusher._connect()[0]
    speak, spoken = type(connection).execute, []

    def execute_it(self: Any, *args: Any, **options: Any) -> Any:
        assert not spy.held
        spoken.append(args[0])
        return speak(self, *args, **options)

    monkeypatch.setattr(type(connection), "execute", execute_it)
    push(pusher)
    assert statements.INSERT_TRANSITIONS in spoken
    spy.close()


def test_rule_2_state_of_a_newer_program_stops_nothing(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """Rows are raw: what this code cannot decode is copied."""
    tamper(
        filled,
        "UPDATE sandbox_statuses SET state = 'SANDBOX_PAUSED' WHERE sandbox_id = 'a'",
        "UPDATE sandbox_transitions SET to_state = 'SANDBOX_PAUSED' WHERE seq = 3",
    )
    push(new_pusher())
    assert_equal(database, filled)
    assert 1 == database.one("SELECT count(*) FROM fleet_overview WHERE state = 'SANDBOX_PAUSED'")


def statements_of(pusher: Pusher, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list to which the statements of *pusher* are appended from now on."""
    connection = pusher._connect()[0]
    run, spoken = type(connection).execute, list[str]()

    def execute_it(self: Any, *args: Any, **options: Any) -> Any:
        spoken.append(args[0])
        return run(self, *args, **options)

    monkeypatch.setattr(type(connection), "execute", execute_it)
    return spoken


def test_rule_3_change_without_transition_is_sent(
    filled: str, database: Database, new_pusher: NewPusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sandboxes are compared, not derived from transitions; what did not change is not sent."""
    pusher = new_pusher()
    push(pusher)
    spoken = statements_of(pusher, monkeypatch)
    push(pusher)
    assert statements.UPSERT_SANDBOXES not in spoken
    execute(filled, "UPDATE sandbox_statuses SET message = 'new', pid = 7 WHERE sandbox_id = 'a'")
    push(pusher)
    assert 1 == spoken.count(statements.UPSERT_SANDBOXES)
    assert statements.DELETE_OTHERS not in spoken
    assert_equal(database, filled)


def test_rule_3_deleted_sandbox_is_deleted(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """By a running pusher, and by one that was started since."""
    pusher = new_pusher()
    push(pusher)
    with Store.open(filled, reconcile=False) as store:
        store.delete("a")
        push(pusher)
        assert_equal(database, filled)
        store.delete("b")
    push(new_pusher())
    assert ["c"] == [row[0] for row in sandboxes_of(database, filled)]
    assert_equal(database, filled)


def test_rule_3_start_repairs_what_differs(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """A row that was changed, deleted or made up in PostgreSQL becomes that of the registry."""
    push(new_pusher())
    database.query("UPDATE fleet_sandboxes SET state = 'x' WHERE sandbox_id = 'a'")
    database.query("DELETE FROM fleet_sandboxes WHERE sandbox_id = 'b'")
    database.query("UPDATE fleet_sandboxes SET sandbox_id = 'd' WHERE sandbox_id = 'c'")
    push(new_pusher())
    assert_equal(database, filled)


def test_rule_3_sandboxes_are_sent_only_with_the_head(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """A batch that does not reach the head leaves present sandboxes as they were."""
    pusher = new_pusher()
    assert not pusher.round().is_head
    assert push_module.BATCH == database.one("SELECT count(*) FROM fleet_transitions")
    assert 0 == database.one("SELECT count(*) FROM fleet_sandboxes")


def test_rule_7_heartbeat_reads_the_sandboxes_only_after_a_commit(
    filled: str, database: Database, new_pusher: NewPusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing is committed, the sandboxes that were sent are the present ones."""
    pusher, reads, read = new_pusher(), list[None](), source_module._sandboxes

    def count_and_read(fetch: Any) -> Any:
        reads.append(None)
        return read(fetch)

    monkeypatch.setattr(source_module, "_sandboxes", count_and_read)
    push(pusher)
    for _ in range(3):
        assert pusher.round().is_head
    assert 1 == len(reads)
    execute(filled, "UPDATE sandbox_statuses SET pid = 7 WHERE sandbox_id = 'a'")
    for _ in range(3):
        assert pusher.round().is_head
    assert 2 == len(reads)
    assert_equal(database, filled)


def test_rule_7_heartbeat_after_the_registry_was_reopened_reads_the_sandboxes(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """SQLite counts the commits that a connection sees: a new one has the number of the old one."""
    pusher = new_pusher()
    push(pusher)
    pusher.source.close()
    execute(filled, "UPDATE sandbox_statuses SET pid = 7 WHERE sandbox_id = 'a'")
    push(pusher)
    assert_equal(database, filled)


def test_rule_3_commit_at_the_moment_of_a_heartbeat_is_sent_whole(
    filled: str, database: Database, new_pusher: NewPusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after the data version was read, and before the snapshot begins."""
    pusher, read = new_pusher(), source_module._incarnation
    push(pusher)

    def commit_and_read(fetch: Any) -> Any:
        with Store.open(filled, reconcile=False) as store:
            store.add(sandbox("d"), READY)
        return read(fetch)

    monkeypatch.setattr(source_module, "_incarnation", commit_and_read)
    assert 1 == pusher.round().transitions
    assert_equal(database, filled)


def compact(path: str, oldest: int) -> None:
    """Delete the transitions before *oldest*, as the bound of the history does."""
    tamper(path, f"DELETE FROM sandbox_transitions WHERE seq < {oldest}")


def test_rule_4_compaction_is_one_gap(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """The transitions that are kept follow; none is made up."""
    pusher = new_pusher()
    push(pusher)
    fill_up_to(filled, NEWEST + 1500)
    compact(filled, NEWEST + 1001)
    push(pusher)
    assert [("gap", 1, NEWEST, NEWEST + 1001)] == database.query(
        "SELECT kind, incarnation, after, before FROM fleet_breaks"
    )
    assert 500 == assert_equal(database, filled, since=NEWEST + 1000)
    assert NEWEST + 500 == database.one("SELECT count(*) FROM fleet_history")


def test_rule_4_registry_that_was_compacted_before_its_first_push_has_a_gap(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """Nothing is known of what it no longer keeps."""
    compact(filled, NEWEST - 499)
    assert 500 == push(new_pusher())
    assert [("gap", 0, NEWEST - 499)] == database.query(
        "SELECT kind, after, before FROM fleet_breaks"
    )


def test_rule_8_transaction_is_not_synced(
    filled: str, new_pusher: NewPusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting holds for the transaction alone, as a pooler requires."""
    pusher = new_pusher()
    pusher._connect()[0].execute("SET synchronous_commit = on")
    spoken = statements_of(pusher, monkeypatch)
    push(pusher)
    assert "SET LOCAL synchronous_commit = off" in spoken
    assert ("on",) == pusher._connect()[0].execute("SHOW synchronous_commit").fetchone()


SAVED = ("registries", "sandboxes")


def test_rule_8_lost_batch_without_transitions_is_sent_again(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """Behind a pooler, a connection outlives the server; the cursor does not tell of the loss."""
    pusher = new_pusher()
    push(pusher)
    for table in SAVED:
        database.query(f"CREATE TABLE saved_{table} AS TABLE fleet_{table}")
    execute(filled, "UPDATE sandbox_statuses SET message = 'new', pid = 7 WHERE sandbox_id = 'a'")
    push(pusher)
    with database.cluster.connect(database.name) as connection, connection.transaction():
        for table in SAVED:
            connection.execute(f"DELETE FROM fleet_{table}")
            connection.execute(f"INSERT INTO fleet_{table} TABLE saved_{table}")
    with pytest.raises(UnavailableError, match="row is not as"):
        push(pusher)
    push(pusher)
    assert_equal(database, filled)


def test_snapshot_of_a_second_pusher_that_is_older_is_not_committed(
    filled: str, database: Database, new_pusher: NewPusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run by hand beside a follower: it reads first and commits last, without a transition."""
    follower, second = new_pusher(), new_pusher()
    push(follower)
    push(second)
    read = second.source.read

    def read_and_wait(*args: Any, **options: Any) -> Any:
        found = read(*args, **options)
        execute(filled, "UPDATE sandbox_statuses SET message = 'new' WHERE sandbox_id = 'a'")
        with contextlib.suppress(UnavailableError):
            push(follower)
        push(follower)
        return found

    monkeypatch.setattr(second.source, "read", read_and_wait)
    with pytest.raises(UnavailableError, match="row is not as"):
        push(second)
    assert_equal(database, filled)


def test_two_pushers_of_one_registry_store_each_transition_once(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """Started twice on one node: they alternate, and both end at the head."""
    pushers = [new_pusher(), new_pusher()]
    with Store.open(filled, reconcile=False) as store:
        for number in range(60):
            store.add(sandbox(f"n{number}"), READY)
            if number % 3 == 0:
                store.delete(f"n{number}")
            try:
                pushers[number % 2].round()
            except RegistryError as error:
                assert "row is not as" in str(error)  # noqa: PT017 - either may lose
    for pusher in pushers:
        push(pusher)
    assert_equal(database, filled)
    assert [registry_id(filled)] == [
        each.hex for (each,) in database.query("SELECT registry_id FROM fleet_registries")
    ]
