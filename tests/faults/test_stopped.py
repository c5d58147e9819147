"""A process that is stopped at any of its system calls holds up no other longer than its timeout.

A workload that creates a registry, writes, runs checkpoints, closes and opens it again is stopped
(SIGSTOP) at one system call. Another process then reads and writes with a short timeout. Afterwards
the workload goes on to its end.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue

import pytest

from registry.host import paths
from tests import needs
from tests.faults.calls import Call, Server, serving
from tests.faults.stopped import TIMEOUT
from tests.tools import line, running, until

pytestmark = needs.strace

ONE_OF = 23
"""Of so many calls the short form tries one."""
FIRST = 200
"""Calls of an open that recovers a WAL, and of some writes."""


def is_in_time(outcome: list[str], pid: int) -> bool:
    """Return whether a call has succeeded, or named process *pid* when its timeout was over."""
    return outcome == ["done"] or (
        outcome[0] == "UnavailableError"
        and outcome[1].startswith(f"process {pid} (")
        and f"timed out after {TIMEOUT:g} s" in outcome[2]
    )


LEFT = """
    import sys
    from registry import Store
    from tests.faults.stopped import metadata, small_bounds
    from tests.tools import READY
    small_bounds()
    store = Store.open(sys.argv[1])
    store.add(metadata("left"), READY)
    print("written", flush=True)
    sys.stdin.readline()
    """


def leave_wal(folder: str) -> None:
    """Make *folder* with a registry whose process was killed: the next open recovers the WAL."""
    os.mkdir(folder)
    with running(LEFT, f"{folder}/registry.db") as process:
        assert "written" == line(process)
        process.kill()
        process.wait()


def stop_at(call: Call, working: Server, others: Server, path: str) -> tuple[list[str], str]:
    """Return what is wrong after a stop at *call*, and what a read by another process met.

    The numbers of a registry are random, so a run has some calls more or less.
    """
    log = f"{path}.log"
    rule = f"inject={call.name}:signal=SIGSTOP:when={call.nth}"
    options = ("-e", f"trace={call.name}", "-e", rule)
    child, tracer = working.trace(path, *options, log=log, verb="work")

    def happened() -> str:  # it was stopped for strace before
        return Path(log).read_text(encoding="utf-8", errors="replace").partition("SIGCONT")[2]

    until(lambda: "--- stopped by SIGSTOP" in happened() or "+++ exited" in happened())
    tracer.send_signal(signal.SIGINT)  # detaches: the stopped child stays stopped
    tracer.communicate()
    begun = paths.size(f"{path}-lock") > 0
    found = others.ask("probe", path)
    with suppress(ProcessLookupError):  # this run has ended before it came to the call
        os.kill(child, signal.SIGCONT)
    run = working.ended()
    read, write = found.get("read", ["hangs"]), found.get("write", ["hangs"])
    wrong = [f"{write}"] if not is_in_time(write, child) else []
    if not is_in_time(read, child) and (begun or read[0] != "NotFoundError"):
        wrong.append(f"{read}")
    if run.said != ["['done']"]:
        wrong.append(f"the workload: {run}")
    wrong += others.ask("check", path)["check"]
    return [f"{call}: {each}" for each in wrong], read[0]


def edges(calls: list[Call]) -> list[Call]:
    """Return the first and the last of each sequence of equal calls on the same file."""
    starts = [after for before, after in pairwise(calls) if before[::2] != after[::2]]
    ends = [before for before, after in pairwise(calls) if before[::2] != after[::2]]
    return sorted({calls[0], *starts, *ends, calls[-1]}, key=calls.index)


@pytest.mark.parametrize("prepare", [os.mkdir, leave_wal])
def test_a_process_stopped_at_any_call_holds_up_no_other(
    tmp_path: Path, long: bool, tried: Callable[[str], None], prepare: Callable[[str], object]
) -> None:
    """The other one succeeds, or raises UnavailableError in time and names the stopped process."""
    servers: SimpleQueue[tuple[Server, Server]] = SimpleQueue()
    wrong, reads = [], []

    def attempt(number: int, call: Call) -> None:
        pair = servers.get()
        prepare(f"{tmp_path}/{number}")
        try:
            found, read = stop_at(call, *pair, f"{tmp_path}/{number}/registry.db")
        finally:
            servers.put(pair)
        wrong.extend(found)
        reads.append(read)
        shutil.rmtree(f"{tmp_path}/{number}")

    module = "tests.faults.stopped"
    with (
        serving(str(tmp_path), module) as one,
        serving(str(tmp_path), module) as two,
        serving(str(tmp_path), module) as three,
        serving(str(tmp_path), module) as four,
    ):
        prepare(f"{tmp_path}/all")
        calls = one.calls(f"{tmp_path}/all/registry.db", f"{tmp_path}/log")
        if prepare is leave_wal:
            calls = calls[:FIRST]  # the rest is as without a recovery
        chosen = edges(calls)[:: 1 if long else ONE_OF]
        servers.put((one, two))
        servers.put((three, four))
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(attempt, n, call) for n, call in enumerate(chosen)]:
                done.result()
    met = ", ".join(f"{reads.count(each)} {each}" for each in sorted(set(reads)))
    where = f"{len(chosen)} of {len(calls)} calls ({prepare.__name__})"
    tried(f"stopped at {where}; a read meanwhile: {met}")
    assert [] == wrong, "\n".join(wrong)
    assert reads.count("done") > len(reads) // 2
