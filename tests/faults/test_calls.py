"""Every system call that a registry makes can be the last one, or fail.

A workload of open with migration, add, update, nested and refused transactions, checkpoints,
delete, close and reopen is run once for each call and each fault: killed at it, failed with EIO,
failed with ENOSPC. Afterwards what was acknowledged is there, nothing is half there, and what was
refused is not there.
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

from tests import needs
from tests.faults.calls import Call, Run, Server, serving
from tests.faults.workload import UNSURE, possible
from tests.tools import ROOT

pytestmark = needs.strace

FAULTS = {"killed": "signal=SIGKILL", "EIO": "error=EIO", "ENOSPC": "error=ENOSPC"}
GUARANTEES = Path(ROOT, "docs", "guarantees.md")
"""Says of each call that may fail without a word why nothing is lost."""
MISSED = "it did not strike"
TRIES = 20
"""A run has some calls more or less, for the creations are random numbers."""
ONE_OF = 97
"""Of so many the short form tries one."""


def faults_of(server: Server, path: str, run: Run) -> list[str]:
    """Return what is wrong with what a workload said, and with what it left."""
    killed = run.code == -9
    wrong = [text for text in run.said if text.startswith("raw ")]
    if not killed and run.code != 0:
        wrong.append(f"ended {run.code}")
    failed = [text.split()[1:3] for text in run.said if text.startswith("error ")]
    twice = Counter(step for step, error in failed if error not in UNSURE)
    wrong += [f"{step} failed twice: {failed}" for step, times in twice.items() if times > 1]
    found = server.verify(path)
    models = possible(run.said, killed=killed)
    if found.get("sandboxes") not in models:
        wrong.append(f"found {found}, possible {models} after {run.said}")
    return wrong + list(found.get("check", []))


def inject(server: Server, folder: str, call: Call, fault: str) -> tuple[list[str], bool]:
    """Return the faults found after *fault* in *call*, and whether a call raised."""
    path = f"{folder}/registry.db"
    os.mkdir(folder)
    rule = f"inject={call.name}:{FAULTS[fault]}:when={call.nth}"
    log = f"{folder}.log"
    run = server.work(path, "-e", f"trace={call.name}", "-e", rule, log=log)
    wrong = faults_of(server, path, run)
    with open(log, encoding="utf-8", errors="replace") as lines:
        if not (run.code == -9 if fault == "killed" else "(INJECTED)" in lines.read()):
            wrong.append(MISSED)
    os.unlink(log)
    shutil.rmtree(folder)
    told = run.code == -9 or any(text.startswith("error ") for text in run.said)
    return [f"{fault} at {call}: {each}" for each in wrong], told


def test_every_call_can_be_the_last_or_fail(
    tmp_path: Path, long: bool, tried: Callable[[str], None]
) -> None:
    """All of them, in the long form."""
    servers: SimpleQueue[Server] = SimpleQueue()
    wrong: list[str] = []
    swallowed: Counter[str] = Counter()

    def attempt(number: int, call: Call, fault: str) -> None:
        server = servers.get()
        try:
            for _ in range(TRIES):
                found, told = inject(server, f"{tmp_path}/{number}", call, fault)
                if MISSED not in "".join(found):
                    break
        finally:
            servers.put(server)
        wrong.extend(found)
        if not told:
            swallowed[f"{call.name} of {call.file}"] += 1

    with serving(str(tmp_path)) as one, serving(str(tmp_path)) as two:
        os.mkdir(tmp_path / "all")
        calls = one.calls(f"{tmp_path}/all/registry.db", str(tmp_path / "log"))
        assert {"database", "-wal", "-shm", "-lock", "-queue"} < {call.file for call in calls}
        cases = [(call, fault) for call in calls for fault in FAULTS]
        chosen = cases if long else cases[::ONE_OF]
        servers.put(one)
        servers.put(two)
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(attempt, n, *case) for n, case in enumerate(chosen)]:
                done.result()
    tried(f"system calls: {len(calls)} calls, {len(chosen)} of {len(cases)} faults injected")
    for what, times in sorted(swallowed.items()):
        tried(f"  {what}: failed {times} times, and no call raised")
    assert [] == wrong, "\n".join(wrong)
    documented = set(re.findall(r"`(\w+)` of `([\w-]+)`", GUARANTEES.read_text(encoding="utf-8")))
    assert set(swallowed) <= {f"{call} of {file}" for call, file in documented}
