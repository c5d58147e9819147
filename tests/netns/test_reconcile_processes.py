"""Reconcile of processes and creators: EXITED, INTERRUPTED, and their evidence."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from registry import State, Store, Verdict
from registry.host import kernel
from tests import needs
from tests.netns.conftest import Sleeper
from tests.netns.findings import marked, unmarked
from tests.tools import (
    READY,
    environment,
    execute,
    line,
    python,
    query,
    running,
    sandbox,
    tamper,
)

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
]


def test_a_killed_process_is_exited(store: Store, sleeper: Sleeper) -> None:
    """And its pid is cleared."""
    process = sleeper()
    store.add(sandbox("a"), replace(READY, pid=process.pid))
    assert () == store.reconcile().findings
    process.kill()
    process.wait()
    finding = marked(store, Verdict.EXITED, "ProcessExited")
    assert str(process.pid) in finding.message
    assert 0 == store.get("a").status.get().pid


def test_a_zombie_is_exited(store: Store, sleeper: Sleeper) -> None:
    """Though it still has its /proc/PID."""
    process = sleeper()
    store.add(sandbox("a"), replace(READY, pid=process.pid))
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert os.path.exists(f"/proc/{process.pid}")
    marked(store, Verdict.EXITED, "ProcessExited")


def test_a_reused_pid_is_exited(tmp_path: Path) -> None:
    """Another process has the number; in a pid namespace of its own, where numbers come again."""
    code = """
        import os, sys
        from registry import Metadata, State, Status, Store
        def spawn():
            return os.posix_spawnp("sleep", ["sleep", "1000"], os.environ)
        def started(pid):  # in clock ticks, in one of which no kernel uses up all pids
            with open(f"/proc/{pid}/stat", "rb") as file:
                return file.read().rpartition(b")")[2].split()[19]
        with Store.open(sys.argv[1]) as store:
            first = spawn()
            store.add(Metadata("a", "a", None), Status(State.READY, pid=first))
            since = started(first)
            os.kill(first, 9)
            os.waitpid(first, 0)
            for _ in range(100):  # the kernel may take a moment to free the number
                with open("/proc/sys/kernel/ns_last_pid", "w") as last:
                    last.write(str(first - 1))
                second = spawn()
                if second == first and started(second) != since:
                    break
                os.kill(second, 9)
                os.waitpid(second, 0)
            finding, = store.reconcile().findings
            print(first == second, finding.verdict, finding.reason, finding.message)
            os.kill(second, 0)
            os.kill(second, 9)
        """
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", *python(code, tmp_path / "registry.db")],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert 0 == done.returncode, done.stderr
    assert done.stdout.startswith("True EXITED ProcessExited")
    assert "another one has its pid" in done.stdout


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("pid", ["--pid", "--fork", "--mount-proc"]),
        ("time", ["--time", "--boottime", "1000", "--fork"]),
    ],
    ids=["pid", "time"],
)
def test_a_process_of_another_namespace_is_unreachable(
    store: Store, path: str, kind: str, options: list[str]
) -> None:
    """Its number, or its start time, means something else there."""
    code = """
        import os, sys
        from registry import Metadata, State, Status, Store
        with Store.open(sys.argv[1]) as store:
            store.add(Metadata("a", "a", None), Status(State.READY, pid=os.getpid()))
        """
    subprocess.run(["unshare", *options, *python(code, path)], env=environment(), check=True)
    finding = unmarked(store, Verdict.UNREACHABLE)
    assert f"recorded in {kind} namespace" in finding.message


UNDETERMINED = (
    "UPDATE sandbox_statuses SET process_inode = NULL, process_start_time = NULL",
    "UPDATE sandboxes SET creator_inode = NULL, creator_start_time = NULL",
)
"""Leaves of a process only where it was recorded, as without descriptors."""


def test_a_process_whose_identity_could_not_be_determined_is_unreachable_until_it_is_gone(
    store: Store, path: str, sleeper: Sleeper
) -> None:
    """A process with that pid may be the recorded one."""
    process = sleeper()
    store.add(sandbox("a"), replace(READY, pid=process.pid))
    tamper(path, *UNDETERMINED)
    finding = unmarked(store, Verdict.UNREACHABLE)
    assert "the identity of the recorded one is not known" in finding.message
    process.kill()
    process.wait()
    marked(store, Verdict.EXITED, "ProcessExited")


def test_a_process_is_gone_if_only_its_pid_is_recorded_and_no_process_has_it(
    store: Store, path: str, sleeper: Sleeper
) -> None:
    """The shim died after it had recorded the pid, and before the identity."""
    process = sleeper()
    store.add(sandbox("a"), replace(READY, pid=process.pid))
    columns = ("boot_id", "pid_ns", "time_ns", "inode", "start_time")
    nothing = ", ".join(f"process_{column} = NULL" for column in columns)
    tamper(path, f"UPDATE sandbox_statuses SET {nothing}")
    unmarked(store, Verdict.UNREACHABLE)
    process.kill()
    process.wait()
    marked(store, Verdict.EXITED, "ProcessExited")


def test_a_record_whose_process_runs_under_another_pid_is_not_exited(
    store: Store, path: str, sleeper: Sleeper
) -> None:
    """The pid is damaged: the kernel knows the process by the inode of its pidfd."""
    process, other = sleeper(), sleeper()
    store.add(sandbox("a"), replace(READY, pid=process.pid))
    other.kill()
    other.wait()
    tamper(path, f"UPDATE sandbox_statuses SET pid = {other.pid}")
    ((inode,),) = query(path, "SELECT process_inode FROM sandbox_statuses")
    if kernel.pid_of_inode(inode) != process.pid:
        pytest.skip("this kernel opens no process by the inode of its pidfd")
    finding = unmarked(store, Verdict.UNREACHABLE)
    assert f"the recorded process runs with pid {process.pid}" in finding.message


def test_a_process_that_started_at_the_recorded_time_is_not_another_one(
    store: Store, path: str, sleeper: Sleeper
) -> None:
    """Though its pidfd has another inode than the recorded one."""
    store.add(sandbox("a"), replace(READY, pid=sleeper().pid))
    tamper(path, "UPDATE sandbox_statuses SET process_inode = process_inode + 1000000")
    finding = unmarked(store, Verdict.UNREACHABLE)
    assert "started when the recorded one did" in finding.message


class Task:
    """Container with a given answer."""

    def __init__(self, pid: int | None) -> None:
        self.id = "c1"
        self._pid = pid

    def pid(self) -> int | None:
        return self._pid


def test_the_answer_of_a_container_takes_precedence_over_proc(
    store: Store, sleeper: Sleeper
) -> None:
    """It says that there is no task, though the process lives."""
    store.add(sandbox("a"), replace(READY, pid=sleeper().pid), container=Task(None))
    finding = marked(store, Verdict.EXITED, "ProcessExited")
    assert "'c1' has no task" in finding.message


def test_a_container_that_runs_keeps_the_sandbox(store: Store, path: str) -> None:
    """Although the process cannot be observed from here."""
    store.add(sandbox("a"), replace(READY, pid=os.getpid()), container=Task(os.getpid()))
    tamper(path, "UPDATE sandbox_statuses SET process_pid_ns = 1")
    assert () == store.reconcile().findings


def test_a_container_that_raises_stops_no_other_sandbox(store: Store) -> None:
    """Its sandbox is unreachable, and the other one gets its verdict."""

    class Broken(Task):
        def pid(self) -> int | None:
            raise ConnectionError("no answer")

    store.add(sandbox("a"), READY, container=Broken(None))
    store.add(sandbox("b", netns_path="/run/netns/none"), READY)
    report = store.reconcile()
    assert {Verdict.UNREACHABLE: 1, Verdict.CLOSED: 1} == report.counts
    assert ["a", "b"] == [finding.sandbox_id for finding in report.findings]
    assert State.READY == store.get("a").status.get().state


# Creations.


CREATOR = """
    import sys
    from registry import Metadata, State, Status, Store
    store = Store.open(sys.argv[1])
    store.add(Metadata("a", "a", None, netns_path=sys.argv[2]), Status(State.UNKNOWN))
    print("added", flush=True)
    sys.stdin.readline()
    store.close()
    print("closed", flush=True)
    sys.stdin.readline()
    """


def test_a_creation_whose_creator_lives_is_creating(store: Store, path: str) -> None:
    """Nothing is changed, and the finding has its age."""
    with running(CREATOR, path, "/run/netns/planned") as child:
        assert "added" == line(child)
        finding = unmarked(store, Verdict.CREATING)
        assert str(child.pid) in finding.message
        assert re.search(r"being created for \d+\.\d s: ", finding.message)


def test_a_creation_whose_creator_died_is_interrupted(
    store: Store, path: str, base_dir: str
) -> None:
    """Killed before it made the namespace: the record names all there is to clean up."""
    with running(CREATOR, path, f"{base_dir}/planned") as child:
        assert "added" == line(child)
    finding = marked(store, Verdict.INTERRUPTED, "CreationInterrupted")
    assert f"{base_dir}/planned" in finding.message
    assert f"{base_dir}/planned" == store.get("a").netns_path


def test_a_creator_whose_identity_could_not_be_determined_is_unreachable_until_it_is_gone(
    store: Store, path: str
) -> None:
    """It is never taken for a sandbox that was adopted."""
    with running(CREATOR, path, "/run/netns/planned") as child:
        assert "added" == line(child)
        tamper(path, *UNDETERMINED)
        finding = unmarked(store, Verdict.UNREACHABLE)
        assert "its creator: a process" in finding.message
    marked(store, Verdict.INTERRUPTED, "CreationInterrupted")


def test_a_namespace_that_was_never_made_is_not_closed_ever_after(
    store: Store, path: str, base_dir: str
) -> None:
    """There is no verdict on a namespace that is not recorded; the file at its path is removed."""
    with running(CREATOR, path, f"{base_dir}/planned") as child:
        assert "added" == line(child)
    marked(store, Verdict.INTERRUPTED, "CreationInterrupted")
    assert ((), {Verdict.OPEN: 1}) == (store.reconcile().findings, store.reconcile().counts)
    Path(f"{base_dir}/planned").touch()
    finding = unmarked(store, Verdict.OPEN)
    assert f"still to be cleaned up: '{base_dir}/planned' is no namespace" == finding.message
    os.unlink(f"{base_dir}/planned")
    assert () == store.reconcile().findings


def test_an_imported_creation_is_unverified(store: Store, path: str) -> None:
    """It is UNKNOWN and has no creator."""
    execute(
        path,
        "INSERT INTO sandboxes (id, name) VALUES ('a', 'a')",
        "INSERT INTO sandbox_statuses (sandbox_id, state) VALUES ('a', 'SANDBOX_UNKNOWN')",
    )
    unmarked(store, Verdict.UNVERIFIED)
