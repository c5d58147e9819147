"""No observer in another namespace, or at another time, marks a living sandbox.

One sandbox lives, with a namespace and a process, and one has ended. Each open of the registry,
from any place, leaves the living one READY.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry import NetNS, State, Status, Store, Verdict
from registry.host import kernel
from registry.host.context import BOOT_ID
from tests import needs
from tests.tools import READY, environment, python, query, run, sandbox

pytestmark = needs.namespaces

ALIVE = {Verdict.OPEN, Verdict.HOST, Verdict.UNREACHABLE}
OPEN = """
    import json, os, sys
    from registry import Store
    from registry.host import kernel

    def look():
        with Store.open(sys.argv[1]) as store:
            counts = {str(verdict): count for verdict, count in store.recovery.counts.items()}
            return json.dumps([counts, str(store.get("alive").status.get().state)])

    def enter(namespaces, map_root):
        kernel.unshare(namespaces)
        for name, text in map_root.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        if namespaces & 0x20000000:  # CLONE_NEWPID: its first process is a child
            child = os.fork()
            if child:
                sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            kernel.mount("proc", "/proc", "proc", 0)

    if len(sys.argv) > 2:
        look()  # imports everything: this Python may be where only its owner may read it
        enter(*json.loads(sys.argv[2]))
    print(look())
    """
MAP_ROOT = {"setgroups": "deny", "uid_map": "0 0 1", "gid_map": "0 0 1"}
"""What `unshare --map-root-user` writes, by the file in /proc/self."""


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """Return a registry with a sandbox that lives, and one that lives on the host network."""
    base = tmp_path / "netns"
    base.mkdir()
    netns = NetNS.create(f"{base}/alive")
    process = netns.do(lambda: subprocess.Popen(["sleep", "1000"]))
    path = str(tmp_path / "registry.db")
    with Store.open(path) as store:
        store.add(
            sandbox("alive", netns_path=netns.path),
            Status(State.READY, pid=process.pid, created_at=time.time_ns()),
        )
        store.add(sandbox("host"), Status(State.READY, pid=process.pid))
    yield path
    process.kill()
    process.wait()
    netns.remove()
    kernel.umount(str(base), kernel.MNT_DETACH)


def run_in(place: str, code: str, *args: object) -> str:
    """Run Python code by the shell command *place*, and return its output; it must succeed."""
    done = subprocess.run(
        ["sh", "-c", f'{place} "$@"', "sh", *python(code, *args)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout


def assert_alive(path: str) -> None:
    """Assert that both sandboxes are as before here, and that the history is unchanged."""
    with Store.open(path) as store:
        assert store.recovery is not None
        assert {Verdict.OPEN: 2} == dict(store.recovery.counts)
        assert [State.READY] * 2 == [each.status_as_read.state for each in store.list()]
        assert [] == store.check()
    assert [("created",)] * 2 == query(path, "SELECT event FROM sandbox_transitions")


def hidden(what: str) -> str:
    """Return the command that binds an empty file over *what*."""
    return f"mount --bind /dev/null {what}"


PLACES = {
    "pid namespace": "unshare --pid --fork --mount-proc",
    "pid namespace, our /proc": "unshare --pid --fork",
    "time namespace": "unshare --time --boottime 100000 --monotonic 100000 --fork",
    "mount namespace": "unshare --mount",
    "mount namespace without the mounts": (
        "unshare --mount sh -c 'umount -l {base}/alive && exec \"$@\"' -"
    ),
    "mount namespace with an empty directory": (
        "unshare --mount sh -c 'mount -t tmpfs empty {base} && exec \"$@\"' -"
    ),
    "no boot id": f"unshare --mount sh -c '{hidden(BOOT_ID)} && exec \"$@\"' -",
    "no /proc": (
        "unshare --mount sh -c 'umount -l /proc; mount -t tmpfs none /proc && exec \"$@\"' -"
    ),
    # A new /proc: to remount the old one would hide the processes of the whole host. Root sees
    # all the same, unless it lacks a capability that they have, and is not in the group of it.
    "hidden processes": (
        "unshare --mount sh -c 'mount -t proc -o hidepid=2,gid=65534 proc /proc"
        ' && exec setpriv --bounding-set=-sys_ptrace "$@"\' -'
    ),
}
ANOTHER_BOOT_ID = f"unshare --mount sh -c 'mount --bind {{boot_id}} {BOOT_ID} && exec \"$@\"' - "
"""The command that shows another boot id to what follows, as LXC and nspawn do."""
PLACES |= {
    f"another boot id, {place}": ANOTHER_BOOT_ID + command
    for place, command in PLACES.items()
    if place not in {"no boot id", "pid namespace", "hidden processes"}
}
# A new /proc would show the real one again.
PLACES["another boot id, pid namespace"] = (
    f"unshare --pid --fork --mount-proc sh -c 'mount --bind {{boot_id}} {BOOT_ID} && exec \"$@\"' -"
)
PLACES["another boot id, hidden processes"] = PLACES["hidden processes"].replace(
    "/proc &&", f"/proc && mount --bind {{boot_id}} {BOOT_ID} &&"
)
USER_NAMESPACES: dict[str, tuple[int, dict[str, str]]] = {
    "user namespace": (0x10000000, MAP_ROOT),  # CLONE_NEWUSER
    "user namespace without a map": (0x10000000, {}),
    "all at once": (0x3E020000, MAP_ROOT),  # with NEWPID, NEWNS, NEWIPC, NEWUTS, NEWCGROUP
}
"""Entered by the process itself, by the flags of `unshare` and the files to write there."""


@pytest.mark.parametrize("place", [*PLACES, *USER_NAMESPACES])
def test_from_another_place_nothing_alive_is_marked(
    path: str, tmp_path: Path, place: str, tried: Callable[[str], None]
) -> None:
    """Open reconciles, and writes what it takes for gone."""
    if place in USER_NAMESPACES:
        said = run(OPEN, path, json.dumps(USER_NAMESPACES[place]))
    else:
        boot_id = tmp_path / "boot_id"
        boot_id.write_text("00000000-0000-4000-8000-000000000001\n")
        command = PLACES[place].format(base=f"{tmp_path}/netns", boot_id=boot_id)
        said = run_in(command, OPEN, path)
    counts, state = json.loads(said)
    assert (True, "SANDBOX_READY") == (set(counts) <= {str(each) for each in ALIVE}, state)
    tried(f"looked from {place}: {said.strip()}")
    assert_alive(path)


@pytest.mark.parametrize("now", [0, 1, 2**62, 10**18], ids=str)
def test_a_clock_that_jumps_changes_no_verdict(path: str, now: int) -> None:
    """To 1970, and far ahead, and back: the history keeps its order."""
    for moment in (now, time.time_ns(), now):
        with Store.open(path, clock=lambda moment=moment: moment) as store:  # type: ignore[misc]
            store.add(sandbox(f"at-{moment}-{len(store.list())}"), READY)
            handle = store.get("alive")
            handle.status.update(lambda old: old)
            assert store.recovery is not None
            assert not [finding for finding in store.recovery.findings if finding.changed]
            seqs = [each.seq for each in store.history()]
            assert sorted(seqs) == seqs
            assert State.READY is handle.status.get().state
            assert [] == store.check()


def test_a_record_without_a_boot_id_is_not_of_another_boot(path: str) -> None:
    """The boot to which it belongs is unknown."""
    code = """
        import sys
        from registry import Store
        from tests.tools import sandbox
        with Store.open(sys.argv[1]) as store:
            alive = store.get("alive")
            store.add(sandbox("blind", netns_path=alive.netns_path), alive.status_as_read)
        """
    run_in(PLACES["no boot id"], code, path)
    with Store.open(path) as store:
        assert State.READY is store.get("blind").status_as_read.state
        assert State.READY is store.get("alive").status_as_read.state


def test_a_pid_that_is_used_again_at_once_is_another_process(path: str) -> None:
    """The sandbox whose process has ended is marked, and those that live are not.

    In a pid namespace of its own, where no other process takes the number meanwhile.
    """
    code = """
        import os, sys
        from registry import Metadata, State, Status, Store
        def spawn():
            return os.posix_spawnp("sleep", ["sleep", "1000"], os.environ)
        def end(pid):
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        def started(pid):  # in clock ticks, in one of which no kernel uses up all pids
            with open(f"/proc/{pid}/stat", "rb") as file:
                return file.read().rpartition(b")")[2].split()[19]
        with Store.open(sys.argv[1]) as store:
            first = spawn()
            store.add(Metadata("gone", "gone", None), Status(State.READY, pid=first))
            store.add(Metadata("lives", "lives", None), Status(State.READY, pid=spawn()))
            since = started(first)
            end(first)
            while True:  # the kernel may take a moment to free the number
                with open("/proc/sys/kernel/ns_last_pid", "w") as last:
                    last.write(str(first - 1))
                second = spawn()
                if second == first and started(second) != since:
                    break
                end(second)
            marked = [each for each in store.reconcile().findings if each.changed]
            print(*(f"{each.sandbox_id} {each.verdict}" for each in marked))
            for id in ("gone", "lives", "alive"):
                print(id, store.get(id).status_as_read.state)
        """
    marked, *states = run_in("unshare --pid --fork --mount-proc", code, path).splitlines()
    assert "gone EXITED" == marked
    assert ["gone SANDBOX_NOTREADY", "lives SANDBOX_READY", "alive SANDBOX_READY"] == states
