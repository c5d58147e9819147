"""Reconcile of paths through /proc, of paths that cannot be observed, and of other boots."""

from __future__ import annotations

import errno
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from registry import NetNS, NetNSError, Store, Verdict
from tests import needs
from tests.netns.conftest import Sleeper
from tests.netns.findings import add, marked, unmarked
from tests.tools import (
    READY,
    UNKNOWN,
    end_pid_namespaces,
    environment,
    execute,
    python,
    run,
    sandbox,
    tamper,
)

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
]

ELSEWHERE = "00000000-0000-4000-8000-000000000000"


def add_process(store: Store, netns: NetNS) -> subprocess.Popen[bytes]:
    """Add a sandbox whose path is the namespace of a process in *netns*, which it returns."""
    process = netns.do(lambda: subprocess.Popen(["sleep", "1000"]))
    store.add(sandbox("a", netns_path=f"/proc/{process.pid}/ns/net"), READY)
    return process


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_the_namespace_of_a_process_is_open_until_the_process_ends(
    store: Store, base_dir: str, reaped: bool
) -> None:
    """/proc/PID/ns/net is looked at and entered as any other path; it closes with the process."""
    netns = NetNS.create(f"{base_dir}/made")
    process = add_process(store, netns)
    try:
        assert {Verdict.OPEN: 1} == store.reconcile().counts
        found = store.get("a").netns
        assert found is not None
        assert found.identity.same_as(netns.identity)
        inside = os.readlink(f"/proc/{process.pid}/ns/net")
        assert inside == found.do(lambda: os.readlink("/proc/thread-self/ns/net"))
    finally:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        if reaped:
            process.wait()
    marked(store, Verdict.CLOSED, "NetNSClosed")
    assert None is store.get("a").netns
    process.wait()
    assert not netns.closed
    netns.remove()


def test_another_process_under_the_pid_of_a_path_replaces_the_namespace(tmp_path: Path) -> None:
    """In a pid namespace of its own, where numbers come again."""
    code = """
        import os, sys
        from registry import Metadata, State, Status, Store
        from registry.host import kernel
        def spawn():
            pid = os.fork()
            if not pid:
                kernel.unshare(kernel.CLONE_NEWNET)
                os.execlp("sh", "sh", "-c", "echo; exec sleep 1000")
            return pid
        read, write = os.pipe()
        os.dup2(write, 1)
        def spawned():
            pid = spawn()
            os.read(read, 1)
            return pid
        first = spawned()
        with Store.open(sys.argv[1]) as store:
            metadata = Metadata("a", "a", None, netns_path=f"/proc/{first}/ns/net")
            store.add(metadata, Status(State.READY))
            os.kill(first, 9)
            os.waitpid(first, 0)
            for _ in range(100):  # the kernel may take a moment to free the number
                with open("/proc/sys/kernel/ns_last_pid", "w") as last:
                    last.write(str(first - 1))
                second = spawned()
                if second == first:
                    break
                os.kill(second, 9)
                os.waitpid(second, 0)
            finding, = store.reconcile().findings
            print(first == second, finding.verdict, finding.reason, file=sys.stderr)
            store.get("a").remove_netns()
            os.kill(second, 0)
            os.kill(second, 9)
        """
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", *python(code, tmp_path / "registry.db")],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert 0 == done.returncode, done.stderr
    assert "True REPLACED NetNSReplaced" == done.stderr.strip()


def test_the_namespace_of_a_hidden_process_is_not_closed(tmp_path: Path) -> None:
    """With hidepid= other users do not see /proc/PID of one that lives, nor of one that is dead."""
    out = run(
        """
        import os, subprocess, sys
        from registry.host import kernel, namespaces
        from registry.host.context import HostContext
        kernel.unshare(0x20000)  # CLONE_NEWNS
        kernel.mount("", "/", "none", 0x44000)  # private
        subprocess.run(["mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"], check=True)
        context = HostContext.current()
        living, dead = subprocess.Popen(["sleep", "1000"]), subprocess.Popen(["true"])
        dead.wait()
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.setgroups([]); os.setgid(65534); os.setuid(65534)
            for pid in (living.pid, dead.pid, 10**20):
                observed = namespaces.observe(f"/proc/{pid}/ns/net", context)
                print(observed.presence.name,
                      observed.detail == f"{observed.path!r} cannot be seen: "
                      f"process {pid} is hidden from us", flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        living.kill()
        living.wait()
        """
    )
    assert ["UNSEEN True", "ABSENT False", "ABSENT False"] == out.splitlines()


def test_a_path_through_a_process_that_is_gone_is_unreachable(
    store: Store, base_dir: str, sleeper: Sleeper
) -> None:
    """/proc/PID/root leads to what may outlive the process; while it lives, nothing is nothing."""
    netns = NetNS.create(f"{base_dir}/made")
    process = sleeper()
    root = f"/proc/{process.pid}/root"
    store.add(sandbox("a", netns_path=f"{root}{netns.path}"), READY)
    assert {Verdict.OPEN: 1} == store.reconcile().counts
    process.kill()
    process.wait()
    finding = unmarked(store, Verdict.UNREACHABLE)
    assert f"process {process.pid}, through which it leads, is gone" in finding.message
    with pytest.raises(NetNSError) as caught:
        store.get("a").netns  # noqa: B018 - the property raises
    assert errno.ESRCH == caught.value.errno
    store.delete("a")
    other = sleeper()
    store.add(sandbox("a", netns_path=f"/proc/{other.pid}/root{base_dir}/none"), READY)
    marked(store, Verdict.CLOSED, "NetNSClosed")
    netns.remove()


def test_a_path_that_may_not_be_searched_is_unreachable(
    store: Store, path: str, base_dir: str
) -> None:
    """A permission error is no proof of anything; here without root's rights."""
    netns = add(store, base_dir)
    os.chmod(base_dir, 0o700)
    code = """
        import os, sys
        from registry import Store
        with Store.open(sys.argv[1], read_only=True) as store:
            print(len(store.reconcile(dry_run=True).findings))
            os.setgroups([]); os.setgid(65534); os.setuid(65534)
            for finding in store.reconcile(dry_run=True).findings:
                print(finding.verdict, finding.message)
        """
    before, after = run(code, path).splitlines()
    assert "0" == before
    assert after.startswith("UNREACHABLE")
    assert "Permission denied" in after
    netns.remove()


@pytest.mark.parametrize("lives", [False, True], ids=["empty", "lived in"])
def test_a_loop_of_symlinks_is_unreachable(store: Store, base_dir: str, lives: bool) -> None:
    """Its target is not known, unless the recorded process lives in it."""
    netns = add(store, base_dir)
    process = netns.do(lambda: subprocess.Popen(["sleep", "1000"]))
    try:
        store.get("a").status.update(lambda old: replace(old, pid=process.pid if lives else 0))
        netns.remove()
        os.symlink(netns.path, netns.path)
        finding = unmarked(store, Verdict.UNREACHABLE)
        assert "Too many levels of symbolic links" in finding.message
        assert lives is ("still lives in the recorded namespace" in finding.message)
        assert os.path.islink(netns.path)
    finally:
        process.kill()
        process.wait()


def test_another_boot_is_a_closed_namespace(store: Store, path: str, base_dir: str) -> None:
    """Recorded under a boot id that is not ours; the reason is that, and not what follows."""
    add(store, base_dir).remove()
    execute(path, f"UPDATE sandbox_statuses SET boot_id = '{ELSEWHERE}'")
    finding = marked(store, Verdict.CLOSED, "HostRebooted")
    assert ELSEWHERE in finding.message
    assert "nothing is at" in finding.message


def test_another_boot_clears_the_pid(store: Store, path: str) -> None:
    """Another process has it now, with another pidfd inode and start time."""
    store.add(sandbox("a"), replace(READY, pid=os.getpid()))
    tamper(
        path,
        f"UPDATE sandbox_statuses SET process_boot_id = '{ELSEWHERE}',"
        " process_inode = process_inode + 1, process_start_time = process_start_time + 1",
    )
    end_pid_namespaces(path)
    finding = marked(store, Verdict.CLOSED, "HostRebooted")
    assert f"process {os.getpid()} ran before the host was booted" in finding.message
    assert 0 == store.get("a").status.get().pid


@pytest.mark.parametrize(
    "column", ["netns_boot_id", "boot_id", "process_boot_id", "creator_boot_id"]
)
def test_another_boot_id_alone_marks_nothing_that_lives(
    store: Store, path: str, base_dir: str, sleeper: Sleeper, column: str
) -> None:
    """Whichever of the recorded ids it is, the process and the namespace are there."""
    pid = sleeper().pid
    netns = NetNS.create(store.new_netns_path(base_dir))
    status = UNKNOWN if column == "creator_boot_id" else READY
    store.add(sandbox("a", netns_path=netns.path), replace(status, pid=pid))
    table = "sandboxes" if column.startswith(("netns", "creator")) else "sandbox_statuses"
    tamper(path, f"UPDATE {table} SET {column} = '{ELSEWHERE}'")
    finding = unmarked(store, Verdict.UNREACHABLE)
    assert f"recorded under boot '{ELSEWHERE}'" in finding.message
    assert f"process {os.getpid() if status is UNKNOWN else pid} runs" in finding.message
    netns.remove()


def test_a_namespace_in_which_the_recorded_process_lives_is_not_replaced(
    store: Store, path: str, base_dir: str
) -> None:
    """Whatever its recorded number says."""
    netns = NetNS.create(store.new_netns_path(base_dir))
    process = netns.do(lambda: subprocess.Popen(["sleep", "1000"]))
    store.add(sandbox("a", netns_path=netns.path), replace(READY, pid=process.pid))
    tamper(path, "UPDATE sandboxes SET netns_number = netns_number + 1")
    finding = unmarked(store, Verdict.UNREACHABLE)
    assert "but the recorded process lives in it" in finding.message
    process.kill()
    process.wait()
    marked(store, Verdict.REPLACED, "NetNSReplaced")
    netns.remove()
