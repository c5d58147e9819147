"""Every system call of an upgrade can be the last one, or fail.

A registry that the code of revision 0001 has made is opened, once for each call and each fault.
Afterwards it is of the old revision or of the new one, whole, and the next open upgrades it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import pytest

from registry import ResourceExhaustedError, Store
from registry.tables.upgrade_backup import PART, SUFFIX
from registry.tables.version import LEVEL
from tests import needs
from tests.faults.calls import Call, Run, Server, serving
from tests.faults.test_calls import FAULTS, GUARANTEES, MISSED, TRIES
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


def inject(server: Server, old: str, folder: str, call: Call, fault: str) -> tuple[list[str], bool]:
    """Return the faults found after *fault* in *call* of an upgrade, and whether a call raised.

    Args:
        server: runs the upgrade.
        old: folder of the registry to upgrade.
        folder: that is made for a copy of it, and removed.
        call: the system call that kills or fails.
        fault: a key of `FAULTS`.
    """
    shutil.copytree(old, folder)
    rule = f"inject={call.name}:{FAULTS[fault]}:when={call.nth}"
    log = f"{folder}.log"
    path = f"{folder}/registry.db"
    run = server.work(path, "-e", f"trace={call.name}", "-e", rule, log=log, verb="upgrade")
    wrong = faults_of(server, folder, run)
    with open(log, encoding="utf-8", errors="replace") as lines:
        if not (run.code == -9 if fault == "killed" else "(INJECTED)" in lines.read()):
            wrong.append(MISSED)
    os.unlink(log)
    shutil.rmtree(folder)
    told = run.code == -9 or any(text.startswith("error ") for text in run.said)
    return [f"{fault} at {call}: {each}" for each in wrong], told


@needs.strace
def test_every_call_of_an_upgrade_can_be_the_last_or_fail(
    tmp_path: Path, long: bool, tried: Callable[[str], None]
) -> None:
    """All of them, in the long form."""
    servers: SimpleQueue[Server] = SimpleQueue()
    wrong: list[str] = []
    swallowed: Counter[str] = Counter()
    old = str(tmp_path / "old")
    make_old_registry(f"{old}/registry.db")

    def attempt(number: int, call: Call, fault: str) -> None:
        server = servers.get()
        try:
            for _ in range(TRIES):
                found, told = inject(server, old, f"{tmp_path}/{number}", call, fault)
                if MISSED not in "".join(found):
                    break
        finally:
            servers.put(server)
        wrong.extend(found)
        if not told:
            swallowed[f"{call.name} of {call.file}"] += 1

    with serving(str(tmp_path)) as one, serving(str(tmp_path)) as two:
        shutil.copytree(old, tmp_path / "all")
        calls = one.calls(f"{tmp_path}/all/registry.db", str(tmp_path / "log"), "upgrade")
        assert {"database", "-wal", "-lock", PART, "directory"} < {call.file for call in calls}
        cases = [(call, fault) for call in calls for fault in FAULTS]
        chosen = cases if long else cases[::ONE_OF]
        servers.put(one)
        servers.put(two)
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(attempt, n, *case) for n, case in enumerate(chosen)]:
                done.result()
    tried(f"upgrade: {len(calls)} calls, {len(chosen)} of {len(cases)} faults injected")
    for what, times in sorted(swallowed.items()):
        tried(f"  upgrade, {what}: failed {times} times, and no call raised")
    assert [] == wrong, "\n".join(wrong)
    documented = set(re.findall(r"`(\w+)` of `([\w.-]+)`", GUARANTEES.read_text(encoding="utf-8")))
    assert set(swallowed) <= {f"{call} of {file}" for call, file in documented}


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
