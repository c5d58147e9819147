"""Every system call of a backup can be the last one, or fail.

A registry is backed up over an earlier backup, once for each call and each fault. Afterwards there
is the earlier backup or the new one, whole, and the registry is as it was.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from registry import Store
from tests import needs
from tests.faults.calls import Run, Server, Workload, try_every_call
from tests.faults.workload import COPY
from tests.tools import READY, query, sandbox

ONE_OF = 41
"""Of so many cases the short form tries one."""
MEMBERS = {"a": ["SANDBOX_READY", "", ""], "b": ["SANDBOX_READY", "", ""]}
"""Sandboxes of the registry, as `verify` returns them; the earlier backup has the first one."""


def make(folder: str) -> None:
    """Make a registry of two sandboxes, with a backup of when it had one."""
    os.mkdir(folder)
    with Store.open(f"{folder}/registry.db") as store:
        store.add(sandbox("a"), READY)
        store.backup(f"{folder}/registry.db{COPY}")
        store.add(sandbox("b"), READY)


def faults_of(server: Server, folder: str, run: Run) -> list[str]:
    """Return what is wrong with what a backup said, and with what it left in *folder*."""
    killed, path = run.code == -9, f"{folder}/registry.db"
    wrong = [text for text in run.said if text.startswith("raw ")]
    if not killed and "done backup" not in run.said:
        wrong.append(f"ended {run.code} after {run.said}")
    wrong += [text for (text,) in query(path + COPY, "PRAGMA integrity_check") if text != "ok"]
    found = [id for (id,) in query(path + COPY, "SELECT id FROM sandboxes ORDER BY id")]
    if found != ["a", "b"] and not (killed and found == ["a"]):
        wrong.append(f"the backup has {found}")
    if query(path + COPY, "SELECT count(*) FROM registry WHERE copied_at > 0") != [(1,)]:
        wrong.append("the backup has no mark")
    verified = server.verify(path)
    if verified != {"sandboxes": MEMBERS, "check": []}:
        wrong.append(f"found {verified} after {run.said}")
    left = [name for name in os.listdir(folder) if name.startswith(f"registry.db{COPY}.")]
    if left and not killed:
        wrong.append(f"left {left}")
    return wrong


@needs.strace
def test_every_call_of_a_backup_can_be_the_last_or_fail(
    tmp_path: Path, long: bool, tried: Callable[[str], None]
) -> None:
    """All of them, in the long form."""
    made = str(tmp_path / "made")
    make(made)
    files = {"database", "-wal", "-lock", COPY, f"{COPY}.part", "directory"}
    workload = Workload("backup", "backup", files, partial(shutil.copytree, made), faults_of)
    try_every_call(workload, str(tmp_path), 1 if long else ONE_OF, tried)
