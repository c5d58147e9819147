"""Every verdict of the reconciler, produced for real."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from registry import Finding, NetNS, NetNSError, Report, State, Status, Store, Verdict
from registry.cri import NamespaceMode
from registry.host import kernel, namespaces
from registry.recovery import reconcile
from tests import needs
from tests.conftest import OpenStore
from tests.netns.conftest import Sleeper
from tests.tools import (
    NOTREADY,
    READY,
    UNKNOWN,
    end_pid_namespaces,
    environment,
    execute,
    line,
    pod,
    python,
    query,
    run,
    running,
    sandbox,
    tamper,
)

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
]

ELSEWHERE = "00000000-0000-4000-8000-000000000000"


def only(report: Report) -> Finding:
    """Return the one finding."""
    (finding,) = report.findings
    assert {finding.verdict: 1} == dict(report.counts)
    return finding


def marked(store: Store, verdict: Verdict, reason: str) -> Finding:
    """Reconcile, and expect the one sandbox to be made NOTREADY; a dry run says the same before."""
    before = store.list(include_unknown=True)[0].status.get()
    dry = only(store.reconcile(dry_run=True))
    assert (verdict, reason, False) == (dry.verdict, dry.reason, dry.changed)
    assert before == store.list(include_unknown=True)[0].status.get()
    finding = only(store.reconcile())
    assert (verdict, reason, True) == (finding.verdict, finding.reason, finding.changed)
    (handle,) = store.list()
    status = handle.status.get()
    assert (State.NOTREADY, reason, finding.message) == (
        status.state,
        status.reason,
        status.message,
    )
    assert handle.stopped.is_set()
    assert (reason, "changed") == (store.history()[-1].reason, store.history()[-1].event)
    assert not any(again.changed for again in store.reconcile().findings)
    assert status == handle.status.get()
    return finding


def unmarked(store: Store, verdict: Verdict) -> Finding:
    """Reconcile, and expect a finding that changes nothing."""
    before = store.list(include_unknown=True)[0].status.get()
    seq = store.history()[-1].seq
    finding = only(store.reconcile())
    assert (verdict, "", False) == (finding.verdict, finding.reason, finding.changed)
    assert before == store.list(include_unknown=True)[0].status.get()
    assert [] == store.history(after=seq)
    return finding


def add(store: Store, base_dir: str, status: Status = READY) -> NetNS:
    """Add a sandbox with a namespace of its own."""
    netns = NetNS.create(store.new_netns_path(base_dir))
    store.add(sandbox("a", netns_path=netns.path), status)
    return netns


# Namespaces.


def test_an_open_namespace_is_open(store: Store, base_dir: str) -> None:
    """Nothing is done, and nothing is said."""
    netns = add(store, base_dir)
    report = store.reconcile()
    assert ((), {Verdict.OPEN: 1}, ()) == (report.findings, report.counts, report.orphans)
    assert READY == store.get("a").status.get()
    assert netns.path == getattr(store.get("a").netns, "path", None)
    netns.remove()


def test_a_sandbox_removes_its_namespace(store: Store, base_dir: str) -> None:
    """The recorded one, once; it is closed from then on, and what is stored is as it was."""
    netns = add(store, base_dir)
    sandbox = store.get("a")
    for _ in range(2):
        sandbox.remove_netns()
        assert not os.path.exists(netns.path)
    assert READY == sandbox.status.get()
    assert netns.path == sandbox.netns_path
    assert None is sandbox.netns


@pytest.mark.parametrize("step", ["nothing", "file", "namespace"])
def test_a_sandbox_removes_what_an_interrupted_creation_has_left(
    store: Store, base_dir: str, step: str
) -> None:
    """No identity is recorded; at the intended path it can be no other namespace."""
    path = store.new_netns_path(base_dir)
    sandbox_ = store.add(sandbox("a", netns_path=path), UNKNOWN)
    if step == "file":
        Path(path).touch()
    elif step == "namespace":
        NetNS.create(path)
    sandbox_.remove_netns()
    assert not os.path.exists(path)


def test_a_sandbox_leaves_what_is_not_its_namespace(store: Store, base_dir: str) -> None:
    """Another one in its place, and any on the host network."""
    netns = add(store, base_dir)
    netns.remove()
    other = NetNS.create(netns.path)
    store.get("a").remove_netns()
    assert not other.closed
    config = pod()
    config.linux.security_context.namespace_options.network = NamespaceMode.NODE
    store.add(sandbox("b", config=config, netns_path=netns.path), READY).remove_netns()
    assert not other.closed
    other.remove()


def test_a_host_network_sandbox_is_not_looked_at(store: Store) -> None:
    """Whatever its path says."""
    config = pod()
    config.linux.security_context.namespace_options.network = NamespaceMode.NODE
    store.add(sandbox("a", config=config, netns_path="/run/netns/none"), READY)
    report = store.reconcile()
    assert ((), {Verdict.HOST: 1}) == (report.findings, report.counts)
    assert None is store.get("a").netns


def test_a_removed_namespace_is_closed(store: Store, base_dir: str) -> None:
    """Nothing is at the path."""
    add(store, base_dir).remove()
    finding = marked(store, Verdict.CLOSED, "NetNSClosed")
    assert "nothing is at" in finding.message
    assert None is store.get("a").netns


def test_an_unmounted_namespace_is_closed_and_the_file_left_alone(
    store: Store, base_dir: str
) -> None:
    """An empty file is at the path, and stays."""
    netns = add(store, base_dir)
    kernel.umount(netns.path, 0)
    marked(store, Verdict.CLOSED, "NetNSClosed")
    assert os.path.isfile(netns.path)


@pytest.mark.parametrize("what", ["file", "directory", "fifo"])
def test_something_that_is_no_namespace_is_closed_and_left_alone(
    store: Store, base_dir: str, what: str
) -> None:
    """A plain file, a directory, a fifo without a reader."""
    path = add(store, base_dir).path
    NetNS.load(path).remove()
    if what == "file":
        Path(path).write_text("mine")
    elif what == "directory":
        os.mkdir(path)
        Path(path, "mine").touch()
    else:
        os.mkfifo(path)
    marked(store, Verdict.CLOSED, "NetNSClosed")
    assert os.path.lexists(path)
    assert what != "directory" or os.path.exists(f"{path}/mine")


def test_another_namespace_at_the_path_is_replaced(store: Store, base_dir: str) -> None:
    """And left alone."""
    netns = add(store, base_dir)
    netns.remove()
    other = NetNS.create(netns.path)
    marked(store, Verdict.REPLACED, "NetNSReplaced")
    assert None is store.get("a").netns
    assert not other.closed
    other.remove()


def test_a_namespace_of_another_type_is_replaced(store: Store, base_dir: str) -> None:
    """One of UTS at the path."""
    netns = add(store, base_dir)
    netns.remove()
    Path(netns.path).touch()
    kernel.mount("/proc/self/ns/uts", netns.path, "none", kernel.MS_BIND)
    finding = marked(store, Verdict.REPLACED, "NetNSReplaced")
    assert "not net" in finding.message


IN_OTHER_MOUNT_NS = """
    import os, sys
    from registry import Metadata, NetNS, State, Status, Store
    from registry.host import kernel
    path, base_dir, pid = sys.argv[1:]
    os.makedirs(base_dir, exist_ok=True)
    netns = NetNS.create(os.path.join(base_dir, "theirs"))
    if pid == "inside":
        pid = netns.do(lambda: os.posix_spawnp("sleep", ["sleep", "1000"], os.environ))
    with Store.open(path) as store:
        status = Status(State.READY, pid=int(pid))
        store.add(Metadata("a", "a", None, netns_path=netns.path), status)
    print(pid, flush=True)
    sys.stdin.readline()
    """


@pytest.mark.parametrize("file_visible", [True, False], ids=["empty-file", "nothing"])
def test_a_namespace_made_in_another_mount_namespace_is_unreachable(
    store: Store, path: str, base_dir: str, file_visible: bool
) -> None:
    """From here it is an empty file, or nothing: neither dead nor to be touched."""
    where = base_dir if file_visible else f"{base_dir}/tmpfs"
    prepare = (
        []
        if file_visible
        else ["sh", "-c", f'mkdir -p {where}; mount -t tmpfs x {where}; exec "$@"', "sh"]
    )
    child = subprocess.Popen(
        ["unshare", "--mount", *prepare, *python(IN_OTHER_MOUNT_NS, path, where, 0)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert "0" == line(child)
        assert file_visible == os.path.exists(f"{where}/theirs")
        finding = unmarked(store, Verdict.UNREACHABLE)
        assert "recorded in another one" in finding.message
        assert file_visible == os.path.exists(f"{where}/theirs")
        # Where it was made it is open still.
        found = subprocess.run(
            ["nsenter", "--mount", f"--target={child.pid}", *python(
                "import sys; from registry import NetNS; print(NetNS.load(sys.argv[1]).closed)",
                f"{where}/theirs",
            )],
            env=environment(), capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "False" == found.stdout.strip()
    finally:
        child.kill()
        child.communicate()


def test_an_unreachable_sandbox_whose_process_lives_in_its_namespace_says_so(
    store: Store, path: str, base_dir: str
) -> None:
    """The namespace is known to live, though its path does not lead there from here."""
    child = subprocess.Popen(
        ["unshare", "--mount", *python(IN_OTHER_MOUNT_NS, path, base_dir, "inside")],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pid = int(line(child))
    try:
        finding = unmarked(store, Verdict.UNREACHABLE)
        assert "still lives in the recorded namespace" in finding.message
    finally:
        os.kill(pid, signal.SIGKILL)
        child.kill()
        child.communicate()


# Namespaces of processes.


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


# Processes.


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
    """A container that says what it is told to."""

    def __init__(self, pid: int | None) -> None:
        self.id = "c1"
        self._pid = pid

    def pid(self) -> int | None:
        return self._pid


def test_a_containers_word_goes_before_proc(store: Store, sleeper: Sleeper) -> None:
    """It says that there is no task, though the process lives."""
    store.add(sandbox("a"), replace(READY, pid=sleeper().pid), container=Task(None))
    finding = marked(store, Verdict.EXITED, "ProcessExited")
    assert "'c1' has no task" in finding.message


def test_a_container_that_runs_keeps_the_sandbox(store: Store, path: str) -> None:
    """Though the process cannot be judged from here."""
    store.add(sandbox("a"), replace(READY, pid=os.getpid()), container=Task(os.getpid()))
    tamper(path, "UPDATE sandbox_statuses SET process_pid_ns = 1")
    assert () == store.reconcile().findings


def test_a_container_that_raises_stops_no_other_sandbox(store: Store) -> None:
    """Its sandbox is unreachable, the other one is judged."""

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
    """Nothing is done, and its age is told."""
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
    """A namespace that is not recorded is not judged; the file at its path is removed."""
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


# Several at once, and what is left.


def test_several_reasons_are_all_named(store: Store, base_dir: str, sleeper: Sleeper) -> None:
    """The reason is the first of them, the message names all."""
    process = sleeper()
    netns = add(store, base_dir, replace(READY, pid=process.pid))
    netns.remove()
    process.kill()
    process.wait()
    finding = marked(store, Verdict.CLOSED, "NetNSClosed")
    assert f"process {process.pid} is gone" in finding.message
    assert 0 == store.get("a").status.get().pid


def test_a_notready_sandbox_with_something_alive_is_reported(
    store: Store, base_dir: str, sleeper: Sleeper
) -> None:
    """So that what there is to clean up is known; without it nothing is said."""
    process = sleeper()
    netns = add(store, base_dir, replace(READY, pid=process.pid))
    store.get("a").status.update(lambda old: replace(old, state=State.NOTREADY))
    finding = unmarked(store, Verdict.OPEN)
    assert netns.path in finding.message
    assert str(process.pid) in finding.message
    netns.remove()


def test_an_orphan_of_ours_is_reported_and_removed_on_request(
    store: Store, base_dir: str, tmp_path: Path
) -> None:
    """Not containerd's, not another registry's, not what a sandbox owns, not a plain file."""
    owned = add(store, base_dir)
    orphan = NetNS.create(store.new_netns_path(base_dir))
    with Store.open(tmp_path / "other.db") as other:
        theirs = NetNS.create(other.new_netns_path(base_dir))
    cni = NetNS.create(f"{base_dir}/cni-6a9d6f1c-5a5b-4bd7-8f5c-9a8f4d6f1c5a")
    Path(store.new_netns_path(base_dir)).touch()
    assert (orphan.path,) == store.reconcile(dry_run=True).orphans == store.reconcile().orphans
    assert not orphan.closed
    wanted = [orphan.path, theirs.path, cni.path, owned.path]
    assert [orphan.path] == store.remove_orphans(wanted)
    assert [True, False, False, False] == [netns.closed for netns in (orphan, theirs, cni, owned)]
    assert () == store.reconcile().orphans
    for netns in (theirs, cni, owned):
        netns.remove()


def test_an_orphan_in_which_a_process_lives_is_kept(
    store: Store, path: str, base_dir: str, tmp_path: Path
) -> None:
    """A copy of the registry would take a running sandbox for an orphan."""
    copy = tmp_path / "copy.db"
    execute(path, f"VACUUM INTO '{copy}'")
    netns = NetNS.create(store.new_netns_path(base_dir))
    store.add(sandbox("a", netns_path=netns.path), READY)
    process = netns.do(lambda: subprocess.Popen(["sleep", "1000"]))
    with Store.open(copy) as other:
        with pytest.raises(NetNSError, match=f"process {process.pid} lives in it") as caught:
            other.remove_orphans([netns.path])
        assert (netns.path, errno.EBUSY) == (caught.value.path, caught.value.errno)
        assert not netns.closed
        process.kill()
        process.wait()
        assert [netns.path] == other.remove_orphans([netns.path])


def test_an_orphan_that_became_somebodys_meanwhile_is_kept(store: Store, base_dir: str) -> None:
    """The second look is under the write lock."""
    orphan = NetNS.create(store.new_netns_path(base_dir))
    store.add(sandbox("a", netns_path=orphan.path), UNKNOWN)
    assert [] == store.remove_orphans([orphan.path])
    assert not orphan.closed
    orphan.remove()


def test_orphans_are_found_beside_what_is_not_looked_at_in_the_order_of_their_names(
    store: Store, base_dir: str
) -> None:
    """A sandbox on the host's network names a directory, too."""
    config = pod()
    config.linux.security_context.namespace_options.network = NamespaceMode.NODE
    store.add(sandbox("a", config=config, netns_path=f"{base_dir}/host"), READY)
    orphans = [NetNS.create(store.new_netns_path(base_dir)) for _ in range(3)]
    assert tuple(sorted(orphan.path for orphan in orphans)) == store.reconcile().orphans
    for orphan in orphans:
        orphan.remove()


@pytest.fixture
def odd_paths(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Return paths that cannot be resolved, each by what is odd about it."""
    loop, chain = tmp_path / "loop", tmp_path / "chain"
    loop.symlink_to(loop)
    chain.mkdir()
    for n in range(1200):  # more than Python resolves, and than the kernel follows
        (chain / str(n)).symlink_to(str(n + 1))
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    yield {
        "zombie's root": f"/proc/{zombie.pid}/root/run/netns/x",
        "zombie's namespace": f"/proc/{zombie.pid}/ns/net",
        "init's root": "/proc/1/root/run/netns/x",
        "loop": str(loop),
        "below a loop": f"{loop}/x",
        "chain": f"{chain}/0",
        "below a chain": f"{chain}/0/x",
        "long name": f"{tmp_path}/{'n' * 300}",
        "below a long name": f"{tmp_path}/{'n' * 300}/x",
        "long path": str(tmp_path) + "/x" * 1900,
        "below a device": "/dev/null/x",
        "below a file": "/etc/passwd/x",
        "not ASCII": f"{tmp_path}/aä一/x",
    }
    zombie.wait()


def test_a_path_that_cannot_be_resolved_stops_nothing_else(
    open_store: OpenStore, base_dir: str, odd_paths: dict[str, str]
) -> None:
    """The store opens, the other sandbox is judged, and the orphan is found and removed."""
    store = open_store(reconcile=False)
    other = add(store, base_dir)
    orphan = NetNS.create(store.new_netns_path(base_dir))
    for n, path in enumerate(odd_paths.values()):
        store.add(sandbox(f"odd{n}", netns_path=path), READY)
    store.close()
    store = open_store()
    assert store.recovery is not None
    assert (orphan.path,) == store.recovery.orphans
    assert 1 + len(odd_paths) == sum(store.recovery.counts.values())
    assert "a" not in {finding.sandbox_id for finding in store.recovery.findings}
    assert [orphan.path] == store.remove_orphans([orphan.path])
    assert (True, False) == (orphan.closed, other.closed)
    other.remove()


@pytest.mark.parametrize(
    "value",
    ["'/a' || char(0) || 'b'", "CAST(x'2fff' AS TEXT)", "'x'", "'/' || char(1)"],
    ids=["nul", "not utf-8", "relative", "control"],
)
def test_a_damaged_path_stops_nothing_else(
    open_store: OpenStore, tmp_path: Path, base_dir: str, value: str
) -> None:
    """The other sandbox is judged and the orphan found, whatever the column of one holds."""
    path = str(tmp_path / "damaged.db")  # in which `check` finds something
    with Store.open(path) as store:
        other = add(store, base_dir)
        orphan = NetNS.create(store.new_netns_path(base_dir))
        store.add(sandbox("odd", netns_path=f"{base_dir}/none"), READY)
    tamper(path, f"UPDATE sandboxes SET netns_path = {value} WHERE id = 'odd'")
    with Store.open(path) as store:
        assert store.recovery is not None
        assert (orphan.path,) == store.recovery.orphans
        assert 2 == sum(store.recovery.counts.values())
        assert State.READY is store.get("a").status_as_read.state
        assert [orphan.path] == store.remove_orphans([orphan.path])
    assert (True, False) == (orphan.closed, other.closed)
    other.remove()


def test_a_symlink_is_no_orphan(store: Store, base_dir: str) -> None:
    """Anyone may plant one in a sticky directory; the namespace behind it is another's."""
    victim = add(store, base_dir)
    stranger = NetNS.create(f"{base_dir}/stranger")
    for target in (victim, stranger):
        planted = store.new_netns_path(base_dir)
        os.symlink(target.path, planted)
        assert () == store.reconcile().orphans
        assert [] == store.remove_orphans([planted])
        assert os.path.islink(planted)
    assert (False, False) == (victim.closed, stranger.closed)
    victim.remove()
    stranger.remove()


def test_a_namespace_that_a_sandbox_names_otherwise_is_no_orphan(
    store: Store, base_dir: str, tmp_path: Path
) -> None:
    """Through a symlink to its directory (/var/run is /run), a symlink to it, or another mount."""
    (tmp_path / "link").symlink_to(base_dir)
    names = ("through directory", "symlink", "bind")
    made = {name: NetNS.create(store.new_netns_path(base_dir)) for name in names}
    (tmp_path / "symlink").symlink_to(made["symlink"].path)
    bind = f"{base_dir}/bind"
    Path(bind).touch()
    kernel.mount(made["bind"].path, bind, "none", kernel.MS_BIND)
    paths = (
        made["through directory"].path.replace(base_dir, f"{tmp_path}/link"),
        str(tmp_path / "symlink"),
        bind,
    )
    for name, path in zip(names, paths, strict=True):
        store.add(sandbox(name.replace(" ", "-"), netns_path=path), READY)
    assert () == store.reconcile().orphans
    assert [] == store.remove_orphans(each.path for each in made.values())
    for each in made.values():
        assert not each.closed
        each.remove()


def test_an_orphan_in_a_directory_of_two_names_is_reported_once(
    store: Store, base_dir: str, tmp_path: Path
) -> None:
    """It may be removed by either."""
    (tmp_path / "link").symlink_to(base_dir)
    for n, directory in enumerate((base_dir, tmp_path / "link")):
        store.add(sandbox(f"s{n}", netns_path=f"{directory}/none"), NOTREADY)
    for directory in (base_dir, f"{tmp_path}/link"):
        orphan = NetNS.create(store.new_netns_path(base_dir))
        (reported,) = store.reconcile().orphans
        assert os.path.samefile(orphan.path, reported)
        by_name = orphan.path.replace(base_dir, directory)
        assert [by_name] == store.remove_orphans([by_name])
        assert orphan.closed


def test_orphans_are_not_looked_for_where_nothing_is_recorded(
    store: Store, base_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox without a path says nothing of the working directory."""
    theirs = NetNS.create(store.new_netns_path(base_dir))
    store.add(sandbox("a"), READY)
    monkeypatch.chdir(base_dir)
    assert () == store.reconcile().orphans
    theirs.remove()


# The whole.


def test_open_reconciles_before_the_caller_gets_the_store(
    open_store: OpenStore, base_dir: str
) -> None:
    """And tells in `recovery`; with reconcile=False it does neither."""
    store = open_store()
    add(store, base_dir).remove()
    store.close()
    untouched = open_store(reconcile=False)
    assert (None, State.READY) == (untouched.recovery, untouched.get("a").status.get().state)
    untouched.close()
    recovered = open_store()
    assert recovered.recovery is not None
    assert "NetNSClosed" == only(recovered.recovery).reason
    assert State.NOTREADY == recovered.get("a").status.get().state
    assert str(only(recovered.recovery)).startswith("sandbox 'a': CLOSED (now NOTREADY): ")


def test_10000_sandboxes_are_one_write_transaction(store: Store, path: str) -> None:
    """1,000 of them closed: one commit, and as many findings."""
    with store.transaction():
        for n in range(10_000):
            gone = {"netns_path": f"/run/netns/none-{n}"} if n % 10 == 0 else {}
            store.add(sandbox(f"s{n}", config=None, **gone), READY)
    begun: list[str] = []
    engine = store._session.engine
    assert engine.writer.connection is not None
    engine.writer.connection.set_trace_callback(begun.append)
    report = store.reconcile()
    engine.writer.connection.set_trace_callback(None)
    assert {Verdict.CLOSED: 1_000, Verdict.OPEN: 9_000} == report.counts
    assert 1_000 == len(report.findings) == sum(finding.changed for finding in report.findings)
    assert 1 == sum(statement.startswith("BEGIN") for statement in begun)
    assert [(1_000,)] == query(path, "SELECT count(*) FROM why_not_ready")


def test_sandbox_changed_by_another_writer_meanwhile_is_judged_again(
    open_store: OpenStore, base_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the write one is deleted, one moved on, one mended, one added."""
    store = open_store()
    for id in ("deleted", "moved", "kept"):
        store.add(sandbox(id, netns_path=f"{base_dir}/none"), READY)
    run(
        """
        import sys
        from registry import Metadata, State, Status, Store
        with Store.open(sys.argv[1], reconcile=False) as store:
            for id in ("interrupted", "given up"):
                store.add(Metadata(id, id, None), Status(State.UNKNOWN))
        """,
        store.path,
    )
    with subprocess.Popen(["true"]) as gone:
        store.add(sandbox("mended"), replace(READY, pid=gone.pid))
    mark = reconcile._mark
    rounds: list[object] = []

    def interfere(*args: object) -> object:
        if not rounds:
            other = threading.Thread(target=change)
            other.start()
            other.join()
        rounds.append(args)
        return mark(*args)  # type: ignore[arg-type]

    def change() -> None:
        store.delete("deleted")
        store.get("moved").status.update(lambda old: replace(old, message="meanwhile"))
        store.get("mended").status.update(lambda old: replace(old, pid=os.getpid()))
        store.update_metadata("given up", lambda old: replace(old, ip="10.0.0.1"))
        store.add(sandbox("added", netns_path=f"{base_dir}/none"), READY)

    monkeypatch.setattr(reconcile, "_mark", interfere)
    report = store.reconcile()
    assert ["given up", "interrupted", "kept", "moved"] == sorted(
        finding.sandbox_id for finding in report.findings
    )
    assert all(finding.changed for finding in report.findings)
    assert {Verdict.CLOSED: 2, Verdict.INTERRUPTED: 2, Verdict.OPEN: 1} == report.counts
    assert 2 == len(rounds)
    assert State.READY == store.get("mended").status.get().state
    assert State.READY == store.get("added").status.get().state


def test_identities_are_noted_once_when_the_thing_exists(
    store: Store, path: str, base_dir: str, sleeper: Sleeper
) -> None:
    """At the first write after it was made; a namespace put in its place changes nothing."""
    planned = store.new_netns_path(base_dir)
    handle = store.add(sandbox("a", netns_path=planned), UNKNOWN)
    noted = "SELECT netns_number, netns_inode FROM sandboxes"
    assert [(None, None)] == query(path, noted)
    netns = NetNS.create(planned)
    store.update_metadata("a", lambda old: replace(old, ip="10.0.0.1"))
    expected = [(netns.identity.number, netns.identity.inode)]
    assert expected == query(path, noted)
    pid = sleeper().pid
    handle.status.update(lambda old: replace(old, state=State.READY, pid=pid))
    (first,) = query(path, "SELECT process_inode, process_start_time FROM sandbox_statuses")
    assert None not in first
    netns.remove()
    NetNS.create(planned)
    handle.status.update(lambda old: replace(old, message="again"))
    assert expected == query(path, noted)
    other = sleeper().pid
    handle.status.update(lambda old: replace(old, pid=other))
    (second,) = query(path, "SELECT process_inode, process_start_time FROM sandbox_statuses")
    assert first != second
    NetNS.load(planned).remove()


def test_identities_are_looked_up_outside_the_lock(
    store: Store, base_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call observes the host while a transaction is open."""
    held = []

    def watched(observe: Callable[..., object], *args: object) -> object:
        held.append(store._session.engine.writes.mutex.holder)
        return observe(*args)

    for name in ("observe", "may_be_at"):
        monkeypatch.setattr(namespaces, name, partial(watched, getattr(namespaces, name)))
    planned = f"{base_dir}/later"
    handle = store.add(sandbox("a", netns_path=planned), UNKNOWN)
    store.update_metadata("a", lambda old: replace(old, ip="10.0.0.1"))
    handle.status.update(lambda old: replace(old, state=State.READY))
    store.reconcile()
    assert [None] * 4 == held
