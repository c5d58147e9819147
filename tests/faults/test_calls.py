"""Every system call that a registry makes can be the last one, or fail.

A workload of open with migration, add, update, nested and refused transactions, checkpoints,
delete, close and reopen is run once for each call and each fault: killed at it, failed with EIO,
failed with ENOSPC. Afterwards what was acknowledged is there, nothing is half there, and what was
refused is not there.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests import needs
from tests.faults.calls import Run, Server, Workload, try_every_call
from tests.faults.workload import UNSURE, possible

pytestmark = needs.strace

ONE_OF = 97
"""Of so many cases the short form tries one."""


def faults_of(server: Server, folder: str, run: Run) -> list[str]:
    """Return what is wrong with what a workload said, and with what it left in *folder*."""
    killed = run.code == -9
    wrong = [text for text in run.said if text.startswith("raw ")]
    if not killed and run.code != 0:
        wrong.append(f"ended {run.code}")
    failed = [text.split()[1:3] for text in run.said if text.startswith("error ")]
    twice = Counter(step for step, error in failed if error not in UNSURE)
    wrong += [f"{step} failed twice: {failed}" for step, times in twice.items() if times > 1]
    found = server.verify(f"{folder}/registry.db")
    models = possible(run.said, killed=killed)
    if found.get("sandboxes") not in models:
        wrong.append(f"found {found}, possible {models} after {run.said}")
    return wrong + list(found.get("check", []))


def test_every_call_can_be_the_last_or_fail(
    tmp_path: Path, long: bool, tried: Callable[[str], None]
) -> None:
    """All of them, in the long form."""
    files = {"database", "-wal", "-shm", "-lock", "-queue"}
    workload = Workload("system calls", "work", files, os.mkdir, faults_of)
    try_every_call(workload, str(tmp_path), 1 if long else ONE_OF, tried)
