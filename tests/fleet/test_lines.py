"""Registries that do not continue what was pushed: restored, copied, put back, replaced."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from registry import Store, restore
from registry.fleet.lines import Registered, Segment, gap, segments
from registry.fleet.source import Snapshot
from registry.tables.version import BLOCK
from tests.fleet.compare import assert_equal, transitions_of
from tests.fleet.conftest import Database, NewPusher, push, registry_id
from tests.fleet.test_push import compact, fill_up_to
from tests.tools import READY, execute, query, sandbox

GROW = [
    f"UPDATE sandbox_statuses SET state = 'SANDBOX_{each}'" for each in ("NOTREADY", "READY")
] * 20
"""SQL that adds 40 transitions to a registry with one sandbox."""
BREAKS = "SELECT kind, incarnation, after, before FROM fleet_breaks ORDER BY incarnation, after"


@pytest.fixture
def backed_up(path: str) -> str:
    """Return a registry of 300 transitions with a backup and a raw copy of it beside it."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("a"), READY)
    fill_up_to(path, 300)
    with Store.open(path, reconcile=False) as store:
        store.backup(f"{path}.backup")
    shutil.copy(path, f"{path}.raw")
    return path


def put_back(path: str) -> None:
    """Put the raw copy in the place of the registry, as by `cp`: its incarnation is the old one."""
    for suffix in ("", "-wal", "-shm"):
        if os.path.exists(path + suffix):
            os.unlink(path + suffix)
    shutil.copy(f"{path}.raw", path)


def test_rule_5_restored_registry_begins_a_line_where_it_parts(
    backed_up: str, database: Database, new_pusher: NewPusher
) -> None:
    """The seq of the registry jumps by a restore: no gap, and what was lost stays an old line."""
    fill_up_to(backed_up, 500)
    pusher = new_pusher()
    push(pusher)
    restore(f"{backed_up}.backup", backed_up, force=True)
    with Store.open(backed_up, reconcile=False) as store:
        store.add(sandbox("after"), READY)
    push(pusher)
    assert [("restored", 2, 300, 500)] == database.query(BREAKS)
    assert 301 <= assert_equal(database, backed_up)
    newest = transitions_of(database, backed_up)[-1]
    assert newest[0] > BLOCK
    assert 200 == database.one(
        "SELECT count(*) FROM fleet_transitions WHERE incarnation = 1 AND seq > 300"
    )
    assert [(2, 2)] == database.query(
        "SELECT incarnation, source_incarnation FROM fleet_registries"
    )


def test_rule_5_restore_that_lost_nothing_pushed_is_a_break_too(
    backed_up: str, database: Database, new_pusher: NewPusher
) -> None:
    """A pure prefix: what was not pushed yet is lost without a trace but this break."""
    push(new_pusher())
    fill_up_to(backed_up, 400)
    restore(f"{backed_up}.backup", backed_up, force=True)
    push(new_pusher())
    assert [("restored", 2, 300, 300)] == database.query(BREAKS)
    assert_equal(database, backed_up)


def test_rule_5_file_put_back_is_found_by_its_newest_transition(
    backed_up: str, database: Database, new_pusher: NewPusher
) -> None:
    """A pure prefix of what was pushed, whose own incarnation has not changed."""
    fill_up_to(backed_up, 500)
    pusher = new_pusher()
    push(pusher)
    put_back(backed_up)
    push(pusher)
    assert [("restored", 2, 300, 500)] == database.query(BREAKS)
    assert 300 == assert_equal(database, backed_up)


def test_rule_5_file_put_back_that_has_grown_is_found_by_the_fingerprint(
    backed_up: str, database: Database, new_pusher: NewPusher
) -> None:
    """Grown past the cursor, by other transitions with the same seqs; a second time too."""
    pusher = new_pusher()
    for line in (2, 3):
        fill_up_to(backed_up, 500)
        push(pusher)
        put_back(backed_up)
        with Store.open(backed_up, reconcile=False) as store:
            store.add(sandbox(f"grown-{line}"), READY)
        fill_up_to(backed_up, 700)
        push(pusher)
        assert 700 == assert_equal(database, backed_up)
        put_back(backed_up)
        push(pusher)
        assert 300 == assert_equal(database, backed_up)
    expected = [(2, 500), (3, 700), (4, 500), (5, 700)]
    assert [("restored", line, 300, last) for line, last in expected] == database.query(BREAKS)


def test_rule_5_parting_is_found_in_what_postgresql_still_keeps(
    backed_up: str, database: Database, new_pusher: NewPusher
) -> None:
    """Where retention has deleted the common part, the new line begins with what the node keeps."""
    fill_up_to(backed_up, 500)
    pusher = new_pusher()
    push(pusher)
    database.query("DELETE FROM fleet_transitions WHERE seq <= 350")
    put_back(backed_up)
    push(pusher)
    assert [("restored", 2, 0, 500)] == database.query(BREAKS)
    assert 300 == assert_equal(database, backed_up)


def test_rule_5_cursor_that_is_shared_needs_no_rows(
    backed_up: str, database: Database, new_pusher: NewPusher
) -> None:
    """A restore that lost nothing parts at the cursor, though retention took its rows."""
    push(new_pusher())
    database.query("DELETE FROM fleet_transitions")
    restore(f"{backed_up}.backup", backed_up, force=True)
    push(new_pusher())
    assert [("restored", 2, 300, 300)] == database.query(BREAKS)


def test_rule_5_restored_registry_that_was_compacted_has_a_gap(
    backed_up: str, database: Database, new_pusher: NewPusher
) -> None:
    """Down for long: the common part is gone from the node, so nothing is claimed to be shared."""
    fill_up_to(backed_up, 500)
    push(new_pusher())
    restore(f"{backed_up}.backup", backed_up, force=True)
    execute(backed_up, *GROW)
    ((newest,),) = query(backed_up, "SELECT max(seq) FROM sandbox_transitions")
    compact(backed_up, newest - 10)
    push(new_pusher())
    assert [("restored", 2, 0, 500), ("gap", 2, 0, newest - 10)] == sorted(
        database.query(BREAKS), reverse=True
    )
    assert 11 == assert_equal(database, backed_up)


def test_registry_restored_from_an_empty_backup_has_no_gap(
    path: str, database: Database, new_pusher: NewPusher
) -> None:
    """Its first transition of all has a seq after a jump: nothing came before it."""
    with Store.open(path, reconcile=False) as store:
        store.backup(f"{path}.backup")
    restore(f"{path}.backup", path)
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("a"), READY)
    push(new_pusher())
    assert [] == database.query(BREAKS)
    assert 1 == assert_equal(database, path)
    assert [(2,)] == database.query("SELECT incarnation FROM fleet_registries")


def test_copy_that_was_opened_is_a_registry_of_its_own(
    backed_up: str, database: Database, new_pusher: NewPusher
) -> None:
    """Both are pushed: the copy has an id of its own, and a jump that is no gap."""
    push(new_pusher())
    copy = f"{backed_up}.backup"
    with Store.open(copy, reconcile=False) as store:
        store.add(sandbox("b"), READY)
    push(new_pusher(copy))
    assert registry_id(copy) != registry_id(backed_up)
    assert [] == database.query(BREAKS)
    assert 300 == assert_equal(database, backed_up)
    assert 301 == assert_equal(database, copy)


def test_postgresql_restored_to_yesterday_gets_everything_again(
    backed_up: str, database: Database, new_pusher: NewPusher
) -> None:
    """Also if the registry was restored in between; the running pusher notices by its heartbeat."""
    name = f"{database.name}_yesterday"
    pusher = new_pusher()
    push(pusher)
    pusher.disconnect()
    database.cluster.query(f"CREATE DATABASE {name} TEMPLATE {database.name}")
    fill_up_to(backed_up, 500)
    push(pusher)
    restore(f"{backed_up}.backup", backed_up, force=True)
    push(pusher)
    pusher.disconnect()
    database.cluster.query(f"DROP DATABASE {database.name}")
    database.cluster.query(f"ALTER DATABASE {name} RENAME TO {database.name}")
    push(pusher)
    assert [("restored", 2, 300, 300)] == database.query(BREAKS)
    assert_equal(database, backed_up)


def test_registry_replaced_beneath_a_pusher_is_opened_again(
    backed_up: str, tmp_path: Path, database: Database, new_pusher: NewPusher
) -> None:
    """Another registry at the path is not pushed as the old one, whose lease is fresh."""
    other = str(tmp_path / "other.db")
    with Store.open(other, reconcile=False) as store:
        store.add(sandbox("other"), READY)
    pusher = new_pusher()
    push(pusher)
    before = transitions_of(database, backed_up)
    old = registry_id(backed_up)
    os.replace(other, backed_up)
    with pytest.raises(Exception, match="another registry from this path"):
        push(pusher)
    database.query("UPDATE fleet_registries SET seen_at = seen_at - interval '91 s'")
    push(pusher)
    assert 1 == assert_equal(database, backed_up)
    assert len(before) == database.one(
        f"SELECT count(*) FROM fleet_history WHERE registry_id = '{old}'"
    )
    assert [("replaced", 1, 300, 300)] == database.query(BREAKS)


def test_present_line_is_made_of_segments() -> None:
    """Each incarnation up to where the next one parts; a later parting may cut several."""
    assert [Segment(1, 0, 9)] == segments(9, 1, [])
    assert [Segment(3, 0, 9)] == segments(9, 3, [])
    assert [Segment(2, 5, 9), Segment(1, 0, 5)] == segments(9, 2, [(2, 5)])
    assert [Segment(3, 4, 9), Segment(2, 5, 4), Segment(1, 0, 4)] == segments(
        9, 3, [(3, 4), (2, 5)]
    )


def test_gap_needs_a_missing_transition() -> None:
    """Neither the next seq nor a jump behind a kept cursor is one."""
    known = Registered("r", 1, 1, 5, 0, "")
    found = Snapshot("r", 1, 1, 9, None, [], 0, None)
    assert gap(known, found) is None
    assert gap(known, found._replace(oldest=6)) is None
    assert gap(known, found._replace(oldest=7)) == (5, 7)
    assert gap(known, found._replace(oldest=BLOCK + 1)) == (5, BLOCK + 1)
    assert gap(known, found._replace(oldest=3, at_cursor=(5,))) is None
    assert gap(known._replace(cursor=0), found._replace(oldest=BLOCK + 1)) is None
