"""Every system call of a restore can be the last one, or fail.

A backup of one sandbox is put in the place of a registry of two, or of a damaged one, once for each
call and each fault. Afterwards there is the old content or the new one; or each open is refused,
and says that a backup is to be restored. Restoring again succeeds in any case.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from registry import Store
from registry.maintenance.restore import PREPARED
from tests import needs
from tests.faults.calls import Run, Server, Workload, try_every_call
from tests.faults.workload import COPY
from tests.tools import READY, sandbox

ONE_OF = 61
"""Of so many cases the short form tries one."""
NEW = {"sandboxes": {"a": ["SANDBOX_READY", "", ""]}, "check": []}
"""What `verify` returns of the restored registry."""
OLD = {"sandboxes": {**NEW["sandboxes"], "b": ["SANDBOX_READY", "", ""]}, "check": []}  # type: ignore[dict-item]


def make(folder: str, *, damaged: bool) -> None:
    """Make a registry of two sandboxes, with a backup of when it had one."""
    path = f"{folder}/registry.db"
    os.mkdir(folder)
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
        store.backup(path + COPY)
        store.add(sandbox("b"), READY)
    if damaged:
        with open(path, "r+b") as file:
            file.seek(4096)
            file.write(b"\xaa" * 4096)


def faults_of(damaged: bool, server: Server, folder: str, run: Run) -> list[str]:
    """Return what is wrong with what a restore said, and with what it left in *folder*."""
    killed, path = run.code == -9, f"{folder}/registry.db"
    wrong = [text for text in run.said if text.startswith("raw ")]
    if not killed and "done restore" not in run.said:
        wrong.append(f"ended {run.code} after {run.said}")
    found = server.verify(path)
    refused = found.get("error", "").startswith("DataLossError(")
    if not (found == NEW or (killed and (refused if damaged else found == OLD))):
        wrong.append(f"found {found} after {run.said}")
    left = [name for name in os.listdir(folder) if name.startswith(f"registry.db{PREPARED}")]
    if left and not killed and any(text.startswith("error") for text in run.said):
        wrong.append(f"left {left}")  # else the removal itself has failed
    again = server.work(path, "-e", "trace=none", verb="restore")
    if "done restore" not in again.said or server.verify(path) != NEW:
        wrong.append(f"restored again after {found}: {again.said}")
    return wrong


@needs.strace
@pytest.mark.parametrize("damaged", [False, True], ids=["in use", "damaged"])
def test_every_call_of_a_restore_can_be_the_last_or_fail(
    tmp_path: Path, long: bool, tried: Callable[[str], None], damaged: bool
) -> None:
    """All of them, in the long form."""
    made = str(tmp_path / "made")
    make(made, damaged=damaged)
    files = {"database", "-lock", COPY, f"{PREPARED}.part", PREPARED, "directory"}
    name = "restore over a damaged registry" if damaged else "restore"
    prepare, find = partial(shutil.copytree, made), partial(faults_of, damaged)
    workload = Workload(name, "restore", files, prepare, find)
    try_every_call(workload, str(tmp_path), 1 if long else ONE_OF, tried)
