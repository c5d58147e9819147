"""One flipped bit in the record of a sandbox that lives never makes it NOTREADY."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from registry import DataLossError, MetadataError, NetNS, RegistryError, State, Store, Verdict
from registry.tables.rows import Row
from tests import needs
from tests.pages import Place, flip, places
from tests.tools import READY, UNKNOWN, query, sandbox, tamper

pytestmark = needs.namespaces

SEED = int(os.environ.get("DAMAGE_SEED", "0"))
FLIPS = int(os.environ.get("DAMAGE_FLIPS", "40"))
"""Bits that are flipped in the values of one kind of record; in the types all are."""
IDENTITIES = [name for name in Row._fields if name.startswith(("netns_", "creator_", "process_"))]
PLAIN = ["netns_path", "process_label"]
"""Columns that identify nothing: another path is another namespace."""
TABLES = {"sandboxes": "id", "sandbox_statuses": "sandbox_id"}


@pytest.fixture
def alive(base_dir: str) -> Iterator[tuple[str, int]]:
    """Return the path of a network namespace, and the pid of a process that lives in it."""
    netns = NetNS.create(f"{base_dir}/alive")
    process = netns.do(lambda: subprocess.Popen(["sleep", "1000"]))
    try:
        yield netns.path, process.pid
    finally:
        process.kill()
        process.wait()
        netns.remove()


@pytest.fixture(params=["READY", "UNKNOWN"])
def closed(request: pytest.FixtureRequest, tmp_path: Path, alive: tuple[str, int]) -> str:
    """Return a closed registry with a sandbox that lives, or is being created by this process."""
    path, (netns_path, pid) = str(tmp_path / "whole.db"), alive
    status = READY if request.param == "READY" else UNKNOWN
    with Store.open(path) as store:
        store.add(sandbox("alive", netns_path=netns_path), replace(status, pid=pid))
    return path


def copied(closed: str, tmp_path: Path) -> str:
    """Return a copy of the closed registry, without what lies beside it."""
    path = str(tmp_path / "damaged.db")
    for leftover in tmp_path.glob("damaged.db*"):
        leftover.unlink()
    shutil.copy(closed, path)
    return path


def all_places(closed: str) -> Iterator[tuple[str, str, Place]]:
    """Yield each column of the record, with its table."""
    for table in TABLES:
        for column, place in places(closed, table, "alive").items():
            yield table, column, place


def assert_left_as_it_is(path: str, state: str, what: str) -> None:
    """Open the registry, which reconciles, and expect no change of state."""
    try:
        with Store.open(path) as store:
            assert store.recovery is not None
            changed = [str(each) for each in store.recovery.findings if each.changed]
            assert [] == changed, what
    except DataLossError:
        return  # SQLite itself has found the damage
    states = query(path, "SELECT to_state FROM sandbox_transitions ORDER BY seq")
    assert [(state,)] == states, what


def test_a_flipped_bit_of_a_type_marks_nothing(closed: str, tmp_path: Path) -> None:
    """Every bit of every column: a text becomes a blob, and what follows is shifted."""
    ((state,),) = query(closed, "SELECT state FROM sandbox_statuses")
    for table, column, place in all_places(closed):
        for bit in range(8 * len(place.type)):
            path = copied(closed, tmp_path)
            flip(path, place.type, bit)
            assert_left_as_it_is(path, state, f"bit {bit} of the type of {table}.{column}")


def test_a_flipped_bit_of_an_identity_marks_nothing(closed: str, tmp_path: Path) -> None:
    """The other observations contradict the damaged value."""
    ((state,),) = query(closed, "SELECT state FROM sandbox_statuses")
    bits = [
        (table, column, place.value, bit)
        for table, column, place in all_places(closed)
        if column in {*IDENTITIES, "pid", "boot_id"} - set(PLAIN)
        for bit in range(8 * len(place.value))
    ]
    for table, column, value, bit in random.Random(SEED).sample(bits, min(FLIPS, len(bits))):
        path = copied(closed, tmp_path)
        flip(path, value, bit)
        what = f"bit {bit} of the value of {table}.{column}; DAMAGE_SEED={SEED}"
        assert_left_as_it_is(path, state, what)


TYPES = {
    "netns_boot_id": "sandboxes",
    "boot_id": "sandbox_statuses",
    "process_boot_id": "sandbox_statuses",
}


@pytest.mark.parametrize("column", TYPES)
@pytest.mark.parametrize("closed", ["READY"], indirect=True)
def test_a_blob_in_the_place_of_a_boot_id_is_reported_and_stops_no_other(
    closed: str, column: str
) -> None:
    """SQLite tells, so `open` refuses it. A store that reads it trusts no process of it."""
    with Store.open(closed) as store:
        store.add(sandbox("gone", netns_path="/run/netns/none"), READY)
    table = TYPES[column]
    flip(closed, places(closed, table, "alive")[column].type, 0)
    said = f"{column} is a blob, not text or NULL"
    with pytest.raises(DataLossError, match=f"non-TEXT value in {table}.{column}"):
        Store.open(closed)
    with Store.open(closed, damaged="read") as store:
        found = {each.sandbox_id: each for each in store.reconcile(dry_run=True).findings}
        assert (Verdict.UNREACHABLE, False) == (found["alive"].verdict, found["alive"].changed)
        assert f"its record is damaged: {said}" == found["alive"].message
        assert Verdict.CLOSED is found["gone"].verdict
        assert ["alive", "gone"] == [each.id for each in store.list()]
        alive = store.get("alive")
        assert State.READY is alive.status.get().state
        with pytest.raises(RegistryError, match=said):
            alive.open_process()
        assert {"alive"} == {each.sandbox_id for each in store.check() if said in each.found}


@pytest.mark.parametrize("closed", ["READY"], indirect=True)
def test_an_inode_that_no_namespace_can_have_is_damage(closed: str) -> None:
    """Its namespace is neither looked up in the kernel nor removed, and the error names it."""
    tamper(
        closed, "UPDATE sandboxes SET netns_inode = 1 << 40, netns_mount_ns = 1, netns_number = 9"
    )
    said = "netns_inode is 1099511627776, not an inode of a namespace"
    with Store.open(closed) as store:
        assert store.recovery is not None
        (finding,) = store.recovery.findings
        assert (Verdict.UNREACHABLE, False) == (finding.verdict, finding.changed)
        alive = store.get("alive")
        with pytest.raises(MetadataError, match=said):
            _ = alive.netns
        with pytest.raises(MetadataError, match=said):
            alive.remove_netns()
        assert State.READY is alive.status.get().state
