"""Identities and observations of processes, on the real kernel."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from registry import (
    FailedPreconditionError,
    InvalidArgumentError,
    Process,
    Sandbox,
    State,
    Store,
    StoreClosedError,
    UpdateFunc,
)
from registry.host import kernel, process
from registry.host.context import HostContext
from registry.host.process import INODE, START_TIME, Liveness
from registry.model.identity import ProcessIdentity
from tests import needs
from tests.conftest import OpenStore
from tests.netns.conftest import Sleeper
from tests.tools import READY, UNKNOWN, in_another_thread, line, run, running, sandbox, tamper

pytestmark = pytest.mark.netns

UNUSED_INODE = 2**62
"""Of a pidfd; the kernel counts them from the boot on."""


@pytest.fixture
def here() -> HostContext:
    """Return from where this test looks."""
    return HostContext.current()


def test_a_running_process_is_known_again(here: HostContext, sleeper: Sleeper) -> None:
    """Ourselves, init, a child."""
    for pid in (os.getpid(), 1, sleeper().pid):
        identity = process.identify(pid, here)
        assert identity is not None
        assert (pid, here.boot_id) == (identity.pid, identity.boot_id)
        assert Liveness.RUNNING is process.observe(identity, here).liveness


@pytest.mark.parametrize("reaped", [True, False], ids=["gone", "zombie"])
def test_a_process_that_ended_is_gone(here: HostContext, sleeper: Sleeper, reaped: bool) -> None:
    """A zombie too, which keeps its /proc/PID; neither can be identified any more."""
    child = sleeper()
    identity = process.identify(child.pid, here)
    assert identity is not None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    if reaped:
        child.wait()
    assert reaped != os.path.exists(f"/proc/{child.pid}")
    assert Liveness.GONE is process.observe(identity, here).liveness
    assert None is process.identify(child.pid, here)


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 2**31 - 1, 2**40])
def test_a_pid_that_names_nothing_has_no_identity(here: HostContext, pid: int) -> None:
    """Nor does looking for one raise."""
    assert None is process.identify(pid, here)
    identity = process.identify(os.getpid(), here)
    assert identity is not None
    assert Liveness.GONE is process.observe(identity._replace(pid=pid, inode=None), here).liveness


def test_another_process_of_that_pid_is_not_it(here: HostContext) -> None:
    """By the inode of its pidfd and its start time together, or by the start time alone.

    With the recorded start time and another inode, one of the two is damaged.
    """
    identity = process.identify(os.getpid(), here)
    assert identity is not None
    assert identity.inode is not None
    assert identity.start_time is not None
    other = identity._replace(inode=UNUSED_INODE)
    assert Liveness.UNSEEN is process.observe(other, here).liveness
    other = other._replace(start_time=identity.start_time + 1)
    assert Liveness.GONE is process.observe(other, here).liveness
    by_time = identity._replace(inode=None)
    assert Liveness.RUNNING is process.observe(by_time, here).liveness
    later = by_time._replace(start_time=identity.start_time + 1)
    assert Liveness.GONE is process.observe(later, here).liveness


def test_look_compares_all_but_the_boot_id(here: HostContext) -> None:
    """The caller weighs it: a process whose inode and start time are the recorded ones lives."""
    identity = process.identify(os.getpid(), here)
    assert identity is not None
    assert identity.inode is not None
    assert identity.start_time is not None
    assert (Liveness.RUNNING, (INODE,)) == seen_as(identity)
    other = identity._replace(boot_id="00000000-0000-4000-8000-000000000000")
    assert (Liveness.RUNNING, (INODE, START_TIME)) == seen_as(other)
    assert (Liveness.RUNNING, (START_TIME,)) == seen_as(other._replace(inode=None))
    assert (Liveness.RUNNING, (INODE,)) == seen_as(other._replace(start_time=None))
    assert (Liveness.UNSEEN, ()) == seen_as(other._replace(inode=UNUSED_INODE))
    assert (Liveness.GONE, ()) == seen_as(other._replace(start_time=identity.start_time + 1))
    assert (Liveness.UNSEEN, ()) == seen_as(other._replace(inode=None, start_time=None))


def seen_as(identity: ProcessIdentity) -> tuple[Liveness, tuple[str, ...]]:
    """Return what a look from here tells, without its message."""
    observed = process.observe(identity, HostContext.current())
    return observed.liveness, observed.matched


def test_a_process_of_another_namespace_is_unseen(here: HostContext) -> None:
    """Its pid, or its start time, means another one there."""
    identity = process.identify(os.getpid(), here)
    assert identity is not None
    assert Liveness.UNSEEN is process.observe(identity._replace(pid_ns=1), here).liveness
    assert Liveness.UNSEEN is process.observe(identity._replace(time_ns=1), here).liveness


def test_a_process_without_a_recorded_identity_is_unseen_or_gone(
    here: HostContext, sleeper: Sleeper
) -> None:
    """It may be the recorded one; when no process has the pid it is not."""
    child = sleeper()
    bare = identified(child.pid, here)._replace(inode=None, start_time=None)
    assert Liveness.UNSEEN is process.observe(bare, here).liveness
    child.kill()
    child.wait()
    assert Liveness.GONE is process.observe(bare, here).liveness


def test_a_name_with_spaces_and_parentheses_is_no_hindrance(here: HostContext) -> None:
    """The start time is found behind the last parenthesis."""
    code = """
        import sys
        with open("/proc/self/comm", "w") as name:
            name.write("a) 1 (b c")
        print("named", flush=True)
        sys.stdin.readline()
        """
    with running(code) as child:
        assert "named" == line(child)
        assert b"(a) 1 (b c)" in Path(f"/proc/{child.pid}/stat").read_bytes()
        identity = process.identify(child.pid, here)
    ours = process.identify(os.getpid(), here)
    assert identity is not None
    assert ours is not None
    assert identity.start_time is not None
    assert ours.start_time is not None
    assert identity.start_time >= ours.start_time


@needs.namespaces
def test_the_namespace_of_a_process_is_found_wherever_it_is_mounted() -> None:
    """Ours by number; of a pid that is gone nothing."""
    with open("/proc/self/ns/net", "rb") as file:
        expected = kernel.namespace_number(file.fileno())
    assert expected == process.net_namespace_of(os.getpid())
    assert None is process.net_namespace_of(2**22 + 1)


def test_the_boot_id_of_a_host_context_is_the_kernels() -> None:
    """Also the second time, when it is not read again."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        assert file.read().strip() == HostContext.current().boot_id
    assert HostContext.current() == HostContext.current()


@needs.namespaces
def test_the_host_context_is_the_threads_own() -> None:
    """In another mount namespace it is another one, for that thread alone."""
    out = run(
        """
        import threading
        from registry.host import kernel
        from registry.host.context import HostContext
        before, seen = HostContext.current(), []
        def elsewhere():
            kernel.unshare(0x20000 | 0x200)  # CLONE_NEWNS, CLONE_FS
            seen.append(HostContext.current())
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        print(before.mount_ns != seen[0].mount_ns, before.pid_ns == seen[0].pid_ns,
              before == HostContext.current())
        """
    )
    assert "True True True" == out.strip()


# Process.


def identified(pid: int, here: HostContext) -> ProcessIdentity:
    """Return which process *pid* names; it runs."""
    identity = process.identify(pid, here)
    assert identity is not None
    return identity


def test_a_held_process_is_killed_and_waited_for(here: HostContext, sleeper: Sleeper) -> None:
    """By its pidfd, to which select listens too."""
    child = sleeper()
    held = Process.of_identity(identified(child.pid, here))
    assert held is not None
    with held:
        assert not held.ended
        assert not held.wait(0)
        assert held.kill()
        assert held.wait(10)
        assert [held] == select.select([held], [], [], 0)[0]
        assert held.ended
        assert 128 + signal.SIGKILL == held.exit_status()
        assert -signal.SIGKILL == child.wait()  # it was not reaped
        assert not held.kill()
    child.wait()


@pytest.mark.parametrize(
    ("command", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 128 + signal.SIGTERM)]
)
def test_the_exit_status_of_a_child_is_told_as_a_shell_does(command: str, status: int) -> None:
    """As often as it is asked for, until it is reaped; while it runs there is none."""
    go, held = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, go, 0)]
    script = ["sh", "-c", f"read go; {command}"]
    pid = os.posix_spawn("/bin/sh", script, os.environ, file_actions=actions)
    os.close(go)
    with Process.of_pid(pid) as child:
        assert None is child.exit_status()
        os.close(held)
        assert child.wait(60)
        assert status == child.exit_status() == child.exit_status()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in {code, 128 - code}


@pytest.mark.parametrize(("command", "status"), [("exit 7", 7), ("kill -TERM $$", 143)])
def test_the_exit_status_of_a_stranger_is_told_once_it_is_reaped(command: str, status: int) -> None:
    """By the kernel, if it is new enough; a zombie's is not known."""
    recent = tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (6, 15)
    # Where a shell puts a job into the background it takes its input away, but not descriptor 3.
    script = f"exec 3<&0; sh -c 'read go <&3; {command}' & echo $!; wait $!; read end"
    with subprocess.Popen(
        ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        with Process.of_pid(int(parent.stdout.readline())) as stranger:
            parent.stdin.write("\n")
            parent.stdin.flush()
            assert stranger.wait(60)
            told = stranger.exit_status(60 if recent else 0)
    assert (status if recent else None) == told


def test_the_exit_status_of_a_strangers_zombie_is_not_known() -> None:
    """Its parent has not reaped it, and the call does not wait long for that."""
    code = """
        import os, sys
        pid = os.fork()
        if pid == 0:
            os._exit(3)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        print(pid, flush=True)
        sys.stdin.readline()
        """
    with running(code) as parent, Process.of_pid(int(line(parent))) as zombie:
        assert zombie.ended
        assert None is zombie.exit_status()


def test_a_process_that_ended_is_not_held(here: HostContext, sleeper: Sleeper) -> None:
    """Nor is the one that has its pid now."""
    child = sleeper()
    identity = identified(child.pid, here)
    assert identity.start_time is not None
    other = identity._replace(inode=UNUSED_INODE, start_time=identity.start_time + 1)
    assert None is Process.of_identity(other)
    child.kill()
    child.wait()
    assert None is Process.of_identity(identity)


def test_a_process_that_cannot_be_told_from_another_is_not_held(
    here: HostContext, sleeper: Sleeper
) -> None:
    """It might be killed. Neither one of which only the pid was noted, nor one of elsewhere."""
    identity = identified(sleeper().pid, here)
    with pytest.raises(FailedPreconditionError, match="identity of the recorded one is not known"):
        Process.of_identity(identity._replace(inode=None, start_time=None))
    with pytest.raises(FailedPreconditionError, match="pid namespace"):
        Process.of_identity(identity._replace(pid_ns=1))


def test_a_process_of_another_boot_is_held_if_both_parts_of_its_identity_agree(
    here: HostContext, sleeper: Sleeper
) -> None:
    """After a reboot one of them may be the same by chance, and a stranger would be killed."""
    child = sleeper()
    other = identified(child.pid, here)._replace(boot_id="00000000-0000-4000-8000-000000000000")
    with Process.of_identity(other) or pytest.fail("it runs") as held:
        assert child.pid == held.pid
    by_inode, by_time = other._replace(start_time=None), other._replace(inode=None)
    for one_part, left in ((by_inode, INODE), (by_time, START_TIME)):
        with pytest.raises(FailedPreconditionError) as caught:
            Process.of_identity(one_part)
        for evidence in (other.boot_id, here.boot_id, left):
            assert evidence in str(caught.value)
    child.kill()
    child.wait()
    assert None is Process.of_identity(other)


@pytest.mark.parametrize("pid", [0, -1, 2**31, True, "1"])
def test_of_pid_refuses_what_is_no_pid(pid: int) -> None:
    """0 and negative numbers mean process groups elsewhere."""
    with pytest.raises(InvalidArgumentError) as caught:
        Process.of_pid(pid)
    assert ("pid", pid) == (caught.value.field, caught.value.value)


def test_of_pid_of_no_process_raises() -> None:
    """Above what the kernel gives out."""
    with pytest.raises(FailedPreconditionError, match="no such process"):
        Process.of_pid(2**22 + 1)


def test_a_sandbox_gives_its_process(store: Store, sleeper: Sleeper) -> None:
    """The recorded one; none where there is no pid, or it has ended."""
    child = sleeper()
    added = store.add(sandbox("a"), replace(READY, pid=child.pid))
    held = added.open_process()
    assert held is not None
    with held:
        assert (child.pid, f"Process({child.pid})") == (held.pid, repr(held))
    assert None is store.add(sandbox("b"), READY).open_process()
    child.kill()
    child.wait()
    assert None is added.open_process()


def open_pid(handle: Sandbox) -> int | None:
    """Return the pid of the process that *handle* opens; None when it opens none."""
    opened = handle.open_process()
    if opened is None:
        return None
    with opened:
        assert not opened.ended
        return opened.pid


def set_pid(pid: int) -> UpdateFunc:
    """Return the UpdateFunc that records *pid*."""
    return lambda old: replace(old, pid=pid, state=State.READY)


def test_open_process_follows_the_latest_record(
    store: Store, open_store: OpenStore, path: str, sleeper: Sleeper
) -> None:
    """The handle was made before any pid was recorded; each record replaces the one before."""
    handle = store.add(sandbox("a"), UNKNOWN)
    assert None is open_pid(handle)
    first, second, third = (sleeper().pid for _ in range(3))
    handle.status.update(set_pid(first))
    assert first == open_pid(handle)
    open_store().get("a").status.update(set_pid(second))
    assert second == open_pid(handle)
    run(
        """
        import sys
        from dataclasses import replace
        from registry import Store
        with Store.open(sys.argv[1], reconcile=False) as store:
            store.get("a").status.update(lambda old: replace(old, pid=int(sys.argv[2])))
        """,
        path,
        third,
    )
    assert third == open_pid(handle)
    assert (0, third) == (handle.status_as_read.pid, handle.status.get().pid)


def test_open_process_sees_the_change_of_the_callers_transaction(
    store: Store, sleeper: Sleeper
) -> None:
    """Also in a savepoint; a part that is rolled back leaves the record before it."""
    handle = store.add(sandbox("a"), UNKNOWN)
    first, second = sleeper().pid, sleeper().pid
    with store.transaction():
        handle.status.update(set_pid(first))
        assert first == open_pid(handle)
        with pytest.raises(ZeroDivisionError), store.transaction():
            handle.status.update(set_pid(second))
            assert second == open_pid(handle)
            raise ZeroDivisionError
        assert first == open_pid(handle)
        assert None is in_another_thread(lambda: open_pid(handle))
    assert first == open_pid(handle)


def test_open_process_does_not_identify_a_pid_of_an_earlier_transaction(
    store: Store, path: str, sleeper: Sleeper
) -> None:
    """Its pid may name another process by now, whatever else the transaction changes."""
    handle = store.add(sandbox("a"), replace(UNKNOWN, pid=2**22 + 1))  # no such process
    tamper(path, f"UPDATE sandbox_statuses SET pid = {sleeper().pid}")
    with store.transaction():
        handle.status.update(lambda old: replace(old, message="changed"))
        with pytest.raises(FailedPreconditionError):
            handle.open_process()


@pytest.mark.parametrize("deleted_by", ["handle", "store", "transaction"])
def test_open_process_of_a_deleted_sandbox_is_that_of_the_last_reading(
    store: Store, sleeper: Sleeper, deleted_by: str
) -> None:
    """The process has to be ended after the deletion, too."""
    handle, child = store.add(sandbox("a"), UNKNOWN), sleeper()
    handle.status.update(set_pid(child.pid))
    if deleted_by == "handle":
        assert handle.delete()
    elif deleted_by == "store":
        assert child.pid == open_pid(handle)
        assert store.delete("a")
    else:
        with store.transaction():
            assert handle.delete()
            assert child.pid == open_pid(handle)
    store.add(sandbox("a"), replace(READY, pid=sleeper().pid))
    assert child.pid == open_pid(handle)
    assert handle.stopped.is_set()


def test_open_process_of_a_closed_store_raises(path: str, sleeper: Sleeper) -> None:
    """The latest record cannot be read, and an older one is no answer."""
    with Store.open(path) as store:
        handle = store.add(sandbox("a"), replace(READY, pid=sleeper().pid))
    with pytest.raises(StoreClosedError) as caught:
        handle.open_process()
    assert path == caught.value.path
