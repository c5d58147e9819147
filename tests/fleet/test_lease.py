"""Registration: one machine and path pushes a registry, until it is silent."""

from __future__ import annotations

import glob
import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from registry import FailedPreconditionError, Store, UnavailableError
from registry.fleet import lease
from tests.fleet.compare import assert_equal
from tests.fleet.conftest import Database, NewPusher, push, registry_id
from tests.tools import READY, run, sandbox, until

STALE = "UPDATE fleet_registries SET seen_at = seen_at - interval '91 seconds'"
PLACE = "SELECT node, machine_id, ended_at IS NULL FROM fleet_registries ORDER BY node, machine_id"


@pytest.fixture
def filled(path: str) -> str:
    """Return a registry of one sandbox."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("a"), READY)
    return path


def test_rule_6_clone_on_another_machine_is_refused_while_the_original_is_seen(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """After three heartbeats of silence it takes over; the original is then refused."""
    original, clone = new_pusher(), new_pusher(machine_id="m2", node="node-2")
    push(original)
    with pytest.raises(UnavailableError, match="a copy must not be pushed") as caught:
        push(clone)
    assert "node-1" == caught.value.holder
    assert [("node-1", "m1", True)] == database.query(PLACE)
    database.query(STALE)
    push(clone)
    with pytest.raises(UnavailableError, match="row is not as"):
        push(original)
    with pytest.raises(UnavailableError, match="a copy must not be pushed"):
        push(original)
    assert [("node-2", "m2", True)] == database.query(PLACE)
    assert_equal(database, filled)


def test_rule_6_registry_that_was_moved_is_pushed_from_its_new_path(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """On one machine too, after the silence: it may be a copy that is still there."""
    push(new_pusher())
    moved = f"{filled}.moved"
    with Store.open(filled, reconcile=False) as store:
        store.backup(moved)
    run("import os, sys; os.replace(sys.argv[1], sys.argv[2])", moved, moved + "2")
    clone = new_pusher(moved + "2")
    with pytest.raises(UnavailableError, match="of this machine"):
        push(clone)
    database.query(STALE)
    push(clone)
    assert [("node-1", "m1", True)] == database.query(PLACE)


def test_rule_6_reimaged_node_replaces_the_registry_of_its_name(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """Its old sandboxes are deleted, its history stays, and a break says when."""
    pusher = new_pusher()
    push(pusher)
    old = registry_id(filled)
    pusher.close()
    run("import os, sys; [os.unlink(each) for each in sys.argv[1:]]", *glob.glob(f"{filled}*"))
    with Store.open(filled, reconcile=False) as store:
        store.add(sandbox("new"), READY)
    reimaged = new_pusher(machine_id="m2")
    with pytest.raises(UnavailableError, match="another registry from this path"):
        push(reimaged)
    database.query(STALE)
    push(reimaged)
    assert [("node-1", "m1", False), ("node-1", "m2", True)] == database.query(PLACE)
    assert ["new"] == [id for (id,) in database.query("SELECT id FROM fleet_overview")]
    assert [(1, "replaced")] == database.query(
        f"SELECT after, kind FROM fleet_breaks WHERE registry_id = '{old}'"
    )
    assert 1 == database.one(f"SELECT count(*) FROM fleet_history WHERE registry_id = '{old}'")
    assert [("alive",), ("ended",)] == database.query("SELECT status FROM fleet_nodes ORDER BY 1")


def test_two_first_pushes_at_once_register_one_registry(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """The second waits for the first, is refused for this moment, and then pushes."""
    pusher = new_pusher()
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
    columns = "incarnation, source_incarnation, node, path, machine_id, boot_id, kernel, cursor"
    with (
        database.cluster.connect(database.name) as first,
        ThreadPoolExecutor(1) as pool,
    ):
        with first.transaction():
            first.execute(
                f"INSERT INTO fleet_registries (registry_id, {columns}, fingerprint, newest, every,"
                f" skew_ms) VALUES ('{registry_id(filled)}', 1, 1, 'node-1', '{filled}', 'm1', 'b',"
                " 'k', 0, '', 0, 30, 0)"
            )
            second = pool.submit(push, pusher)
            until(lambda: database.one(waiting) == 1)
        with pytest.raises(UnavailableError, match="at this moment"):
            second.result()
    push(pusher)
    assert_equal(database, filled)


def test_lease_of_the_same_place_is_renewed_at_once(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """A pusher that was killed is started again without waiting."""
    for _ in range(3):
        push(new_pusher())
    assert_equal(database, filled)


@pytest.mark.parametrize("years", [1, -1])
def test_clock_of_the_node_takes_no_part_in_the_lease(
    filled: str,
    database: Database,
    new_pusher: NewPusher,
    monkeypatch: pytest.MonkeyPatch,
    years: int,
) -> None:
    """A year off: the skew is recorded, and silence is measured by the server."""
    year = years * 365 * 86_400 * 10**9
    now = os.stat(filled).st_mtime_ns + year
    monkeypatch.setattr("registry.fleet.push.time.time_ns", lambda: now)
    push(new_pusher())
    skew = database.one("SELECT skew_ms FROM fleet_registries")
    assert abs(skew - years * 365 * 86_400 * 1000) < 86_400 * 1000
    assert [("alive",)] == database.query("SELECT status FROM fleet_nodes")


def test_boot_is_recorded_with_its_kernel(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """So that "since the kernel roll-out" is a join, which needs no clock."""
    push(new_pusher())
    push(new_pusher())
    ((boot_id, kernel),) = database.query("SELECT boot_id, kernel FROM fleet_boots")
    at = lease.place(filled, "n", "m")
    assert (at.boot_id, at.kernel) == (boot_id, kernel)
    assert [(kernel,)] == database.query("SELECT kernel FROM fleet_history")


def test_machine_without_an_id_is_refused(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """With what to do about it; the id itself is never sent."""
    monkeypatch.setattr(lease, "MACHINE_ID", "/nowhere")
    with pytest.raises(FailedPreconditionError, match="machine-id-setup"):
        lease.place(path, "n")
    monkeypatch.setattr(lease, "MACHINE_ID", __file__)
    with pytest.raises(FailedPreconditionError):
        lease.place(path, "n")


def test_machine_id_is_derived(
    monkeypatch: pytest.MonkeyPatch, path: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It is confidential: what is sent is a hash of it."""
    file = tmp_path_factory.mktemp("etc") / "machine-id"
    file.write_text("0123456789abcdef0123456789abcdef\n")
    monkeypatch.setattr(lease, "MACHINE_ID", str(file))
    found = lease.place(path, "n").machine_id
    assert re.fullmatch("[0-9a-f]{32}", found)
    assert "0123456789abcdef" not in found
    assert found == lease.place(path, "n").machine_id
