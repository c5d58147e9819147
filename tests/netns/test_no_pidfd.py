"""Processes where pidfds or /proc are refused: an uncertain process is not taken for ended."""

from __future__ import annotations

import os
import subprocess
from ast import literal_eval
from pathlib import Path

import pytest

from registry import Store, Verdict
from registry.host import process
from registry.host.context import HostContext
from registry.host.process import Liveness
from registry.model.identity import ProcessIdentity
from tests import needs
from tests.netns.conftest import Sleeper
from tests.tools import environment, python, run

pytestmark = pytest.mark.netns

START = """
import errno, os, resource, subprocess, sys
from contextlib import suppress
from registry import (
    FailedPreconditionError, Metadata, Process, ResourceExhaustedError, State, Status, Store,
)
from registry.host import kernel, process
from registry.host.context import HostContext
from registry.host.process import Liveness
from tests.netns import seccomp

def sleeper():
    # It ends with us, at the end of its input.
    return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

def life(identity):
    return process.observe(identity, HostContext.current()).liveness

def fill():
    # Leave no descriptor.
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    held = []
    with suppress(OSError):
        while True:
            held.append(os.dup(0))
    return held

def raised(call):
    try:
        call()
    except (FailedPreconditionError, ResourceExhaustedError) as error:
        return type(error).__name__

here = HostContext.current()
"""

REFUSALS = ["EPERM", "EACCES", "ENOSYS", "ENODEV", "EMFILE", "ENFILE", "ENOMEM"]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_start_times_serve_where_pidfd_open_is_refused(refusal: str) -> None:
    """By seccomp. A process is known again, told from another one, and found to have ended."""
    out = run(
        START
        + """
child, zombie = sleeper(), sleeper()
before = process.identify(child.pid, here)
seccomp.refuse(seccomp.PIDFD_OPEN, getattr(errno, sys.argv[1]))
after = process.identify(child.pid, here)
assert after == before._replace(inode=None), (after, before)
assert life(before) is life(after) is Liveness.RUNNING
assert life(before._replace(start_time=after.start_time + 1)) is Liveness.GONE
assert life(before._replace(start_time=None)) is Liveness.UNSEEN  # its inode cannot be compared
assert life(after._replace(start_time=None)) is Liveness.UNSEEN
assert life(after._replace(pid=0)) is life(after._replace(pid=-1)) is Liveness.GONE
assert life(after._replace(pid=2**40)) is Liveness.GONE
assert process.identify(2**22 + 1, here) is None
expected = "FailedPreconditionError"
if sys.argv[1] in {"EMFILE", "ENFILE", "ENOMEM"}:
    expected = "ResourceExhaustedError"
assert raised(lambda: Process.of_identity(before)) == expected
assert raised(lambda: Process.of_pid(child.pid)) == expected

dying = process.identify(zombie.pid, here)
zombie.kill()
os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
assert life(dying) is Liveness.GONE
assert process.identify(zombie.pid, here) is None
assert Process.of_identity(dying) is None
zombie.wait()
assert life(dying) is Liveness.GONE
child.kill()
child.wait()
assert life(after._replace(start_time=None)) is Liveness.GONE
print("done")
""",
        refusal,
    )
    assert "done" == out.strip()


def test_a_process_whose_main_thread_has_ended_lives() -> None:
    """/proc calls it a zombie, and its other threads go on."""
    out = run(
        START
        + """
code = '''
import ctypes, platform, threading, time
threading.Thread(target=ctypes.CDLL(None).sleep, args=(1000,)).start()
print("started", flush=True)
ctypes.CDLL(None).syscall({"x86_64": 60}.get(platform.machine(), 93), 0)  # exit, of this thread
'''
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
child.stdout.readline()
identity = process.identify(child.pid, here)
while b") Z" not in open(f"/proc/{child.pid}/stat", "rb").read():
    pass
seccomp.refuse(seccomp.PIDFD_OPEN, errno.EPERM)
print(life(identity).name, process.identify(child.pid, here).start_time == identity.start_time)
child.kill()
child.wait()
print(life(identity).name)
"""
    )
    assert ["RUNNING True", "GONE"] == out.splitlines()


@needs.namespaces
@pytest.mark.parametrize("hidepid", [1, 2, 4])
@pytest.mark.parametrize("pidfd", ["allowed", "refused"])
def test_a_process_that_proc_hides_is_not_gone(hidepid: int, pidfd: str) -> None:
    """As `ProtectProc=` of systemd hides it; the pidfd tells, and without one nothing does."""
    out = run(
        START
        + """
pid = os.getppid()
full = process.identify(pid, here)
kernel.unshare(0x20000)  # CLONE_NEWNS
kernel.mount("", "/", "none", 0x44000)  # private
subprocess.run(["mount", "-t", "proc", "-o", f"hidepid={sys.argv[1]}", "proc", "/proc"], check=True)
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
if sys.argv[2] == "refused":
    seccomp.refuse(seccomp.PIDFD_OPEN, errno.EPERM)
seen = process.identify(pid, here)
expected = full._replace(start_time=None)
if sys.argv[2] == "refused":
    expected = expected._replace(inode=None)
    assert life(full) is Liveness.UNSEEN
    assert raised(lambda: Process.of_identity(full)) == "FailedPreconditionError"
else:
    assert life(full) is Liveness.RUNNING
assert seen == expected, (seen, expected)
assert life(full._replace(inode=None)) is Liveness.UNSEEN
assert life(full._replace(pid=2**22 + 1, inode=None)) is Liveness.GONE
print("done")
""",
        hidepid,
        pidfd,
    )
    assert "done" == out.strip()


@needs.namespaces
def test_proc_of_another_pid_namespace_is_not_asked() -> None:
    """There another process has the number, or none."""
    code = (
        START
        + """
child = sleeper()
identity = process.identify(child.pid, here)
assert (identity.pid, identity.start_time) == (child.pid, None)
assert identity.inode is not None
assert life(identity) is Liveness.RUNNING
assert life(identity._replace(inode=None, start_time=1)) is Liveness.UNSEEN
seccomp.refuse(seccomp.PIDFD_OPEN, errno.EPERM)
assert process.identify(child.pid, here) == identity._replace(inode=None)
assert life(identity) is Liveness.UNSEEN
child.kill()
child.wait()
assert life(identity) is Liveness.GONE
print("done")
"""
    )
    command = ["unshare", "--pid", "--fork", "--kill-child", *python(code)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert (0, "done") == (done.returncode, done.stdout.strip()), done.stderr


@needs.namespaces
def test_a_process_recorded_without_proc_is_not_gone_where_its_pid_means_another() -> None:
    """Without /proc nothing tells in which pid namespace it is recorded."""
    code = """
        from registry.host import process
        from registry.host.context import HostContext
        identity = process.identify(1, HostContext.current())
        print(repr(tuple(identity)), flush=True)
        input()
        """
    hide = 'mount -t tmpfs none /proc && exec "$@"'
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", hide, "sh"]
    with subprocess.Popen(
        [*command, *python(code)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as container:
        assert container.stdout is not None
        recorded = ProcessIdentity(*literal_eval(container.stdout.readline()))
        assert (1, None) == (recorded.pid, recorded.pid_ns)
        known = recorded._replace(pid=2**22 + 1)
        for each in (recorded, known):
            observed = process.observe(each, HostContext.current())
            assert Liveness.UNSEEN is observed.liveness, observed.detail
        container.communicate("\n")


@needs.namespaces
def test_the_pid_namespace_is_known_although_proc_is_hidden_later() -> None:
    """No process leaves it; a forked child looks for itself."""
    out = run(
        START
        + """
kernel.unshare(0x20000)  # CLONE_NEWNS
kernel.mount("", "/", "none", 0x44000)  # private
subprocess.run(["mount", "-t", "tmpfs", "none", "/proc"], check=True)
later = HostContext.current()
print(later.pid_ns == here.pid_ns, later.mount_ns, flush=True)
child = os.fork()
if child == 0:
    print(HostContext.current().pid_ns, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
    )
    assert ["True None", "None"] == out.splitlines()


def test_a_process_that_neither_pidfd_nor_kill_shows_is_not_gone() -> None:
    """A filter refuses both, and /proc has no such process, or hides it."""
    out = run(
        START
        + """
identity = process.identify(os.getppid(), here)
seccomp.refuse(seccomp.PIDFD_OPEN, errno.ENOSYS)
seccomp.refuse(seccomp.KILL, errno.EPERM)
nothing = identity._replace(pid=2**22 + 1)
print(life(identity).name, life(nothing).name, process.identify(nothing.pid, here) is None)
"""
    )
    assert "RUNNING UNSEEN False" == out.strip()


def test_without_descriptors_an_identity_is_recorded_as_not_determined() -> None:
    """With pid, boot and namespaces; nothing is remembered of the want of descriptors."""
    out = run(
        START
        + """
child = sleeper()
held = fill()
seen = process.identify(child.pid, HostContext.current())
assert seen == (child.pid, here.boot_id, here.pid_ns, here.time_ns, None, None), seen
own = process.identify(os.getpid(), HostContext.current())
assert own.pid == os.getpid()
assert life(seen) is Liveness.UNSEEN
assert raised(lambda: Process.of_pid(child.pid)) == "ResourceExhaustedError"
os.close(held.pop())  # one is left
one = process.identify(child.pid, HostContext.current())
for fd in held:
    os.close(fd)
full = process.identify(child.pid, here)
assert full.inode is not None
assert full.start_time is not None
assert one.inode in {None, full.inode}
assert raised(lambda: Process.of_identity(seen)) == "FailedPreconditionError"
assert process.identify(os.getpid(), here).inode is not None
child.kill()
child.wait()
assert life(seen) is Liveness.GONE
print("done")
"""
    )
    assert "done" == out.strip()


def test_the_identity_of_the_calling_process_is_kept_until_it_forks() -> None:
    """It is known when no descriptor is left; a child has its own."""
    out = run(
        START
        + """
own = process.identify(os.getpid(), here)
child = os.fork()
if child == 0:
    mine = process.identify(os.getpid(), here)
    os._exit(mine.pid != os.getpid() or mine.inode in {None, own.inode})
_, status = os.waitpid(child, 0)
assert status == 0
fill()
assert process.identify(os.getpid(), HostContext.current()) == own
assert own.inode is not None
print("done")
"""
    )
    assert "done" == out.strip()


@pytest.mark.parametrize("known", [True, False], ids=["opened before", "never identified"])
def test_a_creation_recorded_without_descriptors_is_interrupted_once_its_creator_is_gone(
    path: str, known: bool
) -> None:
    """And while the creator lives nothing calls it imported or interrupted."""
    code = (
        START
        + """
with Store.open(sys.argv[1]) as store:
    store.list(include_unknown=True)
    if sys.argv[2] == "True":
        store.add(Metadata("known", "known", None), Status(State.UNKNOWN))
        store.delete("known")
    fill()
    store.add(Metadata("aa", "web", None), Status(State.UNKNOWN))
    print("added", flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), 9)
"""
    )
    with subprocess.Popen(
        python(code, path, known),
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as creator:
        assert creator.stdin is not None
        assert creator.stdout is not None
        assert "added\n" == creator.stdout.readline()
        with Store.open(path) as store:
            (living,) = store.reconcile().findings
        creator.stdin.write("\n")
    assert (Verdict.CREATING if known else Verdict.UNREACHABLE) is living.verdict
    with Store.open(path) as store:
        assert store.recovery is not None
        (dead,) = store.recovery.findings
    assert (Verdict.INTERRUPTED, "CreationInterrupted", True) == (
        dead.verdict,
        dead.reason,
        dead.changed,
    )


def test_a_python_without_pidfds_reconciles_by_start_times(path: str, tmp_path: Path) -> None:
    """As one that was built with the headers of Linux 5.2; a handle cannot hold a process there."""
    lacking = "import os, signal\ndel os.pidfd_open, signal.pidfd_send_signal\n"
    lacking += "if hasattr(os, 'P_PIDFD'): del os.P_PIDFD\n"
    (tmp_path / "sitecustomize.py").write_text(lacking)
    code = (
        START
        + """
assert not hasattr(os, "pidfd_open")
child = sleeper()
with Store.open(sys.argv[1]) as store:
    handle = store.add(Metadata("aa", "web", None), Status(State.READY, pid=child.pid))
    print(len(store.reconcile().findings), raised(handle.open_process))
    child.kill()
    child.wait()
    print(handle.open_process())
    store.reconcile()
    status = handle.status.get()
    print(status.state, status.reason, status.pid)
"""
    )
    path_of_imports = os.pathsep.join((str(tmp_path), environment()["PYTHONPATH"]))
    out = subprocess.run(
        python(code, path),
        env={**environment(), "PYTHONPATH": path_of_imports},
        capture_output=True,
        text=True,
        check=False,
    )
    assert [
        "0 FailedPreconditionError",
        "None",
        "SANDBOX_NOTREADY ProcessExited 0",
    ] == out.stdout.splitlines(), out.stderr


@pytest.mark.parametrize("refused_when", ["recorded", "observed", "both"])
def test_a_sandbox_stays_ready_whenever_pidfds_are_refused(
    path: str, sleeper: Sleeper, refused_when: str
) -> None:
    """The recorded inode cannot be compared then, and the start time is."""
    child = sleeper()
    code = (
        START
        + """
if sys.argv[3] == "refused":
    seccomp.refuse(seccomp.PIDFD_OPEN, errno.EPERM)
with Store.open(sys.argv[1]) as store:
    if not store.list():
        store.add(Metadata("a", "a", None), Status(State.READY, pid=int(sys.argv[2])))
    print(store.get("a").status.get().state, *store.reconcile().findings)
"""
    )
    for step in ("recorded", "observed"):
        refused = "refused" if refused_when in {step, "both"} else "allowed"
        assert "SANDBOX_READY" == run(code, path, child.pid, refused).strip()
    child.kill()
    child.wait()
    assert run(code, path, child.pid, refused).startswith("SANDBOX_NOTREADY")
