"""A boot id that differs is weighed against what lives: LXC, nspawn and mounts show other ones.

Each boot id that is shown here is a file, bound over the real one in a mount namespace of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from registry import FailedPreconditionError, NetNS, State, Status, Store, Verdict
from registry.host import kernel
from registry.host.context import BOOT_ID, HostContext
from tests import needs
from tests.tools import (
    READY,
    end_pid_namespaces,
    environment,
    line,
    python,
    query,
    run,
    sandbox,
    tamper,
)

pytestmark = needs.namespaces

BOOTS = tuple(f"00000000-0000-4000-8000-00000000000{n}" for n in range(3))
OPEN = """
    import json, sys
    from registry import Store
    with Store.open(sys.argv[1]) as store:
        print(json.dumps({
            each.id: [str(each.status.get().state), each.status.get().reason]
            for each in store.list(include_unknown=True)
        }))
        print(json.dumps({
            each.sandbox_id: [each.verdict, each.message] for each in store.recovery.findings
        }))
    """


class Seen(NamedTuple):
    """Findings of an open of the registry, by sandbox."""

    statuses: dict[str, tuple[str, str]]
    findings: dict[str, tuple[str, str]]


def shown(tmp_path: Path, boot: str, options: str = "--mount") -> list[str]:
    """Return the command that shows the boot id *boot* to what follows, by `unshare` *options*."""
    file = tmp_path / boot
    file.write_text(f"{boot}\n")
    bind = f'mount --bind {file} {BOOT_ID} && exec "$@"'
    return ["unshare", *options.split(), "sh", "-c", bind, "sh"]


def open_under(tmp_path: Path, boot: str, options: str = "--mount") -> Seen:
    """Open the registry where the boot id *boot* is shown."""
    command = [*shown(tmp_path, boot, options), *python(OPEN, tmp_path / "registry.db")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    statuses, findings = map(json.loads, done.stdout.splitlines())
    return Seen(
        {id: (state, reason) for id, (state, reason) in statuses.items()},
        {id: (verdict, message) for id, (verdict, message) in findings.items()},
    )


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return where the registry is that `open_under` opens."""
    return str(tmp_path / "registry.db")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Return a process that sleeps."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


@pytest.fixture
def netns(tmp_path: Path) -> Iterator[NetNS]:
    """Return a network namespace in which no process lives."""
    base = tmp_path / "netns"
    base.mkdir()
    netns = NetNS.create(f"{base}/alone")
    yield netns
    netns.remove()
    kernel.umount(str(base), kernel.MNT_DETACH)


def test_living_sandboxes_stay_ready_and_dead_ones_are_marked(
    tmp_path: Path, path: str, sleeper: subprocess.Popen[bytes]
) -> None:
    """One process that runs shows that the host was not booted, for all sandboxes of that boot."""
    with subprocess.Popen(["sleep", "1000"]) as ends, Store.open(path) as store:
        store.add(sandbox("lives"), Status(State.READY, pid=sleeper.pid))
        store.add(sandbox("gone"), Status(State.READY, pid=ends.pid))
        store.add(sandbox("bare"), READY)
        ends.kill()
    seen = open_under(tmp_path, BOOTS[1])
    assert {
        "lives": ("SANDBOX_READY", ""),
        "gone": ("SANDBOX_NOTREADY", "ProcessExited"),
        "bare": ("SANDBOX_READY", ""),
    } == seen.statuses
    assert {"lives": "UNREACHABLE", "gone": "EXITED", "bare": "UNREACHABLE"} == {
        id: verdict for id, (verdict, _) in seen.findings.items()
    }
    assert f"process {sleeper.pid} runs" in seen.findings["lives"][1]
    assert "under the same boot id was recorded: process" in seen.findings["bare"][1]
    with Store.open(path) as store:
        assert {"lives": State.READY, "gone": State.NOTREADY, "bare": State.READY} == {
            each.id: each.status_as_read.state for each in store.list()
        }
        assert store.recovery is not None
        assert Verdict.OPEN in store.recovery.counts


def test_a_creator_that_lives_shows_that_the_host_was_not_booted(tmp_path: Path, path: str) -> None:
    """Also of a sandbox of which nothing else is recorded, and of one that it is creating."""
    with Store.open(path) as store:
        store.add(sandbox("bare"), READY)
        store.add(sandbox("new"), Status(State.UNKNOWN))
        seen = open_under(tmp_path, BOOTS[1])
    assert {"bare": ("SANDBOX_READY", ""), "new": ("SANDBOX_UNKNOWN", "")} == seen.statuses
    for verdict, message in seen.findings.values():
        assert "UNREACHABLE" == verdict
        assert f"process {os.getpid()} runs" in message


def test_a_sandbox_recorded_under_another_boot_id_stays_ready(
    tmp_path: Path, path: str, sleeper: subprocess.Popen[bytes]
) -> None:
    """A container that is shown one id after another, and then the real one."""
    add = """
        import sys
        from registry import Metadata, State, Status, Store
        with Store.open(sys.argv[1]) as store:
            store.add(Metadata("a", "a", None), Status(State.READY, pid=int(sys.argv[2])))
        """
    command = [*shown(tmp_path, BOOTS[0]), *python(add, path, sleeper.pid)]
    subprocess.run(command, env=environment(), check=True)
    assert [(BOOTS[0],)] == query(path, "SELECT process_boot_id FROM sandbox_statuses")
    for boot in (BOOTS[1], BOOTS[2]):
        seen = open_under(tmp_path, boot)
        assert ("SANDBOX_READY", "") == seen.statuses["a"]
        assert "UNREACHABLE" == seen.findings["a"][0]
    assert {} == open_under(tmp_path, BOOTS[0]).findings
    with Store.open(path) as store:
        assert State.READY is store.get("a").status_as_read.state
    sleeper.kill()
    sleeper.wait()
    end_pid_namespaces(path)
    assert ("SANDBOX_NOTREADY", "HostRebooted") == open_under(tmp_path, BOOTS[1]).statuses["a"]
    assert [(0,)] == query(path, "SELECT pid FROM sandbox_statuses")


def test_open_process_of_a_not_ready_sandbox_returns_none_after_a_reboot(
    path: str, sleeper: subprocess.Popen[bytes]
) -> None:
    """Its pid names nothing that can be observed from the pid namespace of another boot.

    Reconcile sets the pid to 0, so that it does not block the cleanup for ever; state, reason and
    history stay.
    """
    with Store.open(path) as store:
        status = Status(State.NOTREADY, pid=sleeper.pid, reason="Stopped")
        store.add(sandbox("a"), status)
    tamper(
        path, f"UPDATE sandbox_statuses SET boot_id = '{BOOTS[0]}', process_boot_id = '{BOOTS[0]}'"
    )
    end_pid_namespaces(path)
    history = query(path, "SELECT count(*) FROM sandbox_transitions")
    with Store.open(path, reconcile=False) as store:
        handle = store.get("a")
        with pytest.raises(FailedPreconditionError, match="was recorded in pid namespace"):
            handle.open_process()
        (finding,) = store.reconcile(dry_run=True).findings
        assert sleeper.pid == handle.status.get().pid
        assert (finding,) == store.reconcile().findings
        assert ("HostRebooted", False) == (finding.reason, finding.changed)
        assert None is handle.open_process()
        assert replace(status, pid=0) == handle.status.get()
        assert not store.reconcile().findings
        assert [] == store.check()
    assert history == query(path, "SELECT count(*) FROM sandbox_transitions")


@pytest.mark.parametrize("options", ["--mount", "--mount --pid --fork --mount-proc"])
def test_a_namespace_that_is_at_no_path_here_still_exists(
    tmp_path: Path, path: str, netns: NetNS, options: str
) -> None:
    """The kernel knows it by its id, though no process lives in it and its path leads nowhere."""
    identity = netns.identity
    if not kernel.namespace_exists(identity.number or 0, kernel.CLONE_NEWNET, identity.inode):
        pytest.skip("this kernel opens no namespace by its id")
    run(
        """
        import sys
        from registry import Metadata, State, Status, Store
        with Store.open(sys.argv[1]) as store:
            store.add(Metadata("a", "a", None, netns_path=sys.argv[2]), Status(State.READY))
        """,
        path,
        netns.path,
    )
    hide = ["unshare", *options.split(), "sh", "-c", f'umount -l {netns.path} && exec "$@"', "sh"]
    command = [*hide, *shown(tmp_path, BOOTS[1]), *python(OPEN, path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    statuses, findings = map(json.loads, done.stdout.splitlines())
    assert ["SANDBOX_READY", ""] == statuses["a"]
    verdict, message = findings["a"]
    assert "UNREACHABLE" == verdict
    assert f"network namespace {netns.identity.number} still exists" in message


CONTAINER = """
    import os, subprocess, sys
    from registry import Metadata, State, Status, Store
    from registry.host.context import HostContext
    with Store.open(sys.argv[1]) as store:
        child = subprocess.Popen(["sleep", "1000"])
        store.add(Metadata("a", "a", None), Status(State.READY, pid=child.pid))
        print(HostContext.current().pid_ns, flush=True)
    sys.stdin.readline()
    """


@contextmanager
def container(command: list[str], path: str) -> Iterator[int]:
    """Run a container that adds a sandbox, and lend the number of its pid namespace."""
    process = subprocess.Popen(
        [*command, *python(CONTAINER, path)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield int(line(process))
    finally:
        process.communicate("\n")


def test_a_container_that_lives_keeps_its_sandboxes_and_one_that_ended_does_not(
    tmp_path: Path, path: str
) -> None:
    """From outside, its pid namespace is all that can be seen of it."""
    command = shown(tmp_path, BOOTS[0], "--mount --pid --fork --mount-proc --kill-child")
    for _ in range(20):  # the first namespaces after the boot may have numbers that recur
        with container(command, path) as pid_ns:
            recurs = kernel.recurs(pid_ns)
            with Store.open(path) as store:
                assert recurs or State.READY is store.get("a").status_as_read.state
                assert store.recovery is not None
                (finding,) = store.recovery.findings
                assert recurs or Verdict.UNREACHABLE is finding.verdict
                assert recurs or f"pid namespace {pid_ns} still exists" in finding.message
        if not recurs:
            break
        with Store.open(path) as store:
            store.delete("a")
    else:
        pytest.skip("this kernel gives no ids to namespaces")
    with Store.open(path) as store:
        status = store.get("a").status_as_read
    assert (State.NOTREADY, "HostRebooted", 0) == (status.state, status.reason, status.pid)


def test_a_process_of_the_host_is_not_called_dead_in_a_container(
    tmp_path: Path, path: str, sleeper: subprocess.Popen[bytes]
) -> None:
    """Nothing of the host can be seen from there."""
    run(
        """
        import sys
        from registry import Metadata, State, Status, Store
        with Store.open(sys.argv[1]) as store:
            store.add(Metadata("a", "a", None), Status(State.READY, pid=int(sys.argv[2])))
        """,
        path,
        sleeper.pid,
    )
    if not HostContext.current().in_initial_pid_ns:
        pytest.skip("this is a container already")
    seen = open_under(tmp_path, BOOTS[1], "--mount --pid --fork --mount-proc")
    assert ("SANDBOX_READY", "") == seen.statuses["a"]
    assert "was recorded outside of our pid namespace" in seen.findings["a"][1]


def test_a_process_is_not_called_dead_from_another_time_namespace(
    tmp_path: Path, path: str, sleeper: subprocess.Popen[bytes]
) -> None:
    """Its start time cannot be compared from there, but it has the pid; once that is free it is."""
    if not os.path.exists("/proc/self/ns/time"):
        pytest.skip("this kernel has no time namespaces")
    run(
        """
        import sys
        from registry import Metadata, State, Status, Store
        with Store.open(sys.argv[1]) as store:
            store.add(Metadata("a", "a", None), Status(State.READY, pid=int(sys.argv[2])))
        """,
        path,
        sleeper.pid,
    )
    seen = open_under(tmp_path, BOOTS[1], "--mount --time --fork")
    assert ("SANDBOX_READY", "") == seen.statuses["a"]
    assert "UNREACHABLE" == seen.findings["a"][0]
    assert "was recorded in time namespace" in seen.findings["a"][1]
    sleeper.kill()
    sleeper.wait()
    end_pid_namespaces(path)
    seen = open_under(tmp_path, BOOTS[1], "--mount --time --fork")
    assert ("SANDBOX_NOTREADY", "HostRebooted") == seen.statuses["a"]


def test_an_id_that_changes_between_two_observations_of_one_process_is_no_reboot(
    tmp_path: Path, path: str, sleeper: subprocess.Popen[bytes]
) -> None:
    """No process outlives the boot; and one that began under another id uses the real one."""
    boot = tmp_path / "boot"
    boot.write_text(f"{BOOTS[1]}\n")
    code = """
        import os, subprocess, sys
        from registry import Metadata, State, Status, Store
        path, boot, boot_id, pid = sys.argv[1:]
        store = Store.open(path)
        if not store.list():
            store.add(Metadata("a", "a", None), Status(State.READY, pid=int(pid)))
            subprocess.run(["mount", "--bind", boot, boot_id], check=True)
            print(*store.reconcile().findings)
            os.execv(sys.executable, sys.orig_argv)
        print(*(each.verdict for each in store.recovery.findings))
        subprocess.run(["umount", boot_id], check=True)
        print(*store.reconcile().findings, store.get("a").status_as_read.state)
        """
    command = ["unshare", "--mount", *python(code, path, boot, BOOT_ID, sleeper.pid)]
    environment_ = environment() | {"PYTHONWARNINGS": "ignore"}  # the store that exec leaves open
    done = subprocess.run(command, env=environment_, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    assert ["", "UNREACHABLE", "SANDBOX_READY"] == done.stdout.splitlines()


@pytest.mark.parametrize("later", [True, False])
def test_a_process_that_started_later_than_the_boot_is_old_shows_that_the_host_was_booted(
    tmp_path: Path, path: str, sleeper: subprocess.Popen[bytes], later: bool
) -> None:
    """Although a process with its pid and the recorded pidfd inode may be there by chance."""
    run(
        """
        import sys
        from registry import Metadata, State, Status, Store
        with Store.open(sys.argv[1]) as store:
            store.add(Metadata("a", "a", None), Status(State.READY, pid=int(sys.argv[2])))
            store.add(Metadata("b", "b", None), Status(State.READY, pid=int(sys.argv[2])))
        """,
        path,
        sleeper.pid,
    )
    start = "process_start_time = 1000000000000" if later else "process_start_time = 1"
    tamper(
        path,
        "UPDATE sandbox_statuses SET process_start_time = NULL WHERE sandbox_id = 'a'",
        f"UPDATE sandbox_statuses SET pid = 2147483647, {start} WHERE sandbox_id = 'b'",
    )
    seen = open_under(tmp_path, BOOTS[1])
    state = "SANDBOX_NOTREADY" if later else "SANDBOX_READY"
    assert state == seen.statuses["a"][0]


def test_a_registry_of_another_boot_is_marked_as_a_whole(tmp_path: Path, path: str) -> None:
    """Nothing of it lives: its creator has ended too."""
    run(
        """
        import subprocess, sys
        from registry import Metadata, State, Status, Store
        with Store.open(sys.argv[1]) as store, subprocess.Popen(["sleep", "1000"]) as child:
            store.add(Metadata("a", "a", None), Status(State.READY, pid=child.pid))
            store.add(Metadata("b", "b", None), Status(State.READY))
            store.add(Metadata("c", "c", None, netns_path="/run/n"), Status(State.UNKNOWN))
            child.kill()
        """,
        path,
    )
    end_pid_namespaces(path)
    seen = open_under(tmp_path, BOOTS[1])
    assert dict.fromkeys("abc", ("SANDBOX_NOTREADY", "HostRebooted")) == seen.statuses
