"""Every system call of an upgrade can be the last one, or fail.

A registry that the code of revision 0001 has made is opened, once for each call and each fault.
Afterwards it is of the old revision or of the new one, whole, and the next open upgrades it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from registry import ResourceExhaustedError, Store
from registry.tables.upgrade_backup import PART, SUFFIX
from registry.tables.version import LEVEL
from tests import needs
from tests.faults.calls import Run, Server, Workload, try_every_call
from tests.tools import make_old_registry, query, run_old, small_file_system

ONE_OF = 41
"""Of so many cases the short form tries one."""
EXPECTED = {
    "s0": ["SANDBOX_UNKNOWN", "", "10.0.0.1"],
    "s1": ["SANDBOX_READY", "kept", "10.0.0.1"],
    "s2": ["SANDBOX_NOTREADY", "", "10.0.0.1"],
}
"""Sandboxes of `make_old_registry`, as `verify` returns them."""


def damage_of(folder: str) -> list[str]:
    """Return what is wrong with the registry in *folder* after a fault, as a copy of it shows."""
    copy = f"{folder}-copy"
    shutil.copytree(folder, copy)
    path, wrong = f"{copy}/registry.db", []
    (level,), (made,) = (
        query(path, f"SELECT {what}")[0]
        for what in (
            "level FROM registry",
            "count(*) FROM sqlite_master WHERE tbl_name = 'sandbox_extensions'",
        )
    )
    if (level, made > 0) not in {(1, False), (LEVEL, True)}:
        wrong.append(f"level {level} with {made} objects of the new revision")
    backup = path + SUFFIX
    if os.path.exists(backup):
        wrong += [text for (text,) in query(backup, "PRAGMA integrity_check") if text != "ok"]
        if query(backup, "SELECT level, count(*) FROM registry, sandboxes") != [(1, 3)]:
            wrong.append("the backup is not what was there")
    elif level == LEVEL:
        wrong.append("upgraded without a backup")
    shutil.rmtree(copy)
    return wrong


def faults_of(server: Server, folder: str, run: Run) -> list[str]:
    """Return what is wrong with what an upgrade said, and with what it left in *folder*."""
    killed = run.code == -9
    wrong = [text for text in run.said if text.startswith("raw ")]
    if not killed and "done upgrade" not in run.said:
        wrong.append(f"ended {run.code} after {run.said}")
    wrong += damage_of(folder)
    found = server.verify(f"{folder}/registry.db")
    if found != {"sandboxes": EXPECTED, "check": []}:
        wrong.append(f"found {found} after {run.said}")
    if os.path.exists(f"{folder}/registry.db{PART}") and not killed:
        wrong.append("half a backup is left")
    return wrong


@needs.strace
def test_every_call_of_an_upgrade_can_be_the_last_or_fail(
    tmp_path: Path, long: bool, tried: Callable[[str], None]
) -> None:
    """All of them, in the long form."""
    old = str(tmp_path / "old")
    make_old_registry(f"{old}/registry.db")
    files = {"database", "-wal", "-lock", PART, "directory"}
    workload = Workload("upgrade", "upgrade", files, partial(shutil.copytree, old), faults_of)
    try_every_call(workload, str(tmp_path), 1 if long else ONE_OF, tried)


LARGE = """
    import sys
    from registry import Metadata, State, Status, Store
    from registry.cri import PodSandboxConfig
    with Store.open(sys.argv[1]) as store:  # larger than the disk reserve
        config = PodSandboxConfig(annotations={"a": "x" * 500_000})
        store.add(Metadata("s1", "n1", config), Status(State.READY))
    """


@needs.namespaces
def test_an_upgrade_without_space_for_the_backup_changes_nothing(tmp_path: Path) -> None:
    """The error says so, nothing is left of the copy, and older code still opens the registry."""
    with small_file_system(str(tmp_path / "disk"), 4) as disk:
        path = f"{disk}/registry.db"
        run_old(LARGE, path)
        with open(f"{disk}/filler", "wb", buffering=0) as filler:
            filler.write(bytes(os.statvfs(disk).f_bavail * 4096 - 100_000))
        with pytest.raises(ResourceExhaustedError, match="before its upgrade to revision"):
            Store.open(path)
        assert not [name for name in os.listdir(disk) if "before" in name]
        assert [(1,)] == query(path, "SELECT level FROM registry")
        run_old("import sys\nfrom registry import Store\nStore.open(sys.argv[1]).close()", path)
        os.unlink(f"{disk}/filler")
        with Store.open(path, reconcile=False) as store:
            assert [] == store.check()
