"""Looking from elsewhere, or at another time: nothing that lives is called dead.

One sandbox lives, with a namespace and a process, and one has ended. Whoever opens the registry,
from wherever, leaves the living one READY.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry import NetNS, State, Status, Store, Verdict, kernel
from registry.kernel import BOOT_ID
from tests.tools import READY, environment, query, sandbox

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root here")

ALIVE = {Verdict.OPEN, Verdict.HOST, Verdict.UNREACHABLE}
OPEN = """
    import json, os, subprocess, sys
    from registry import Store
    with Store.open(sys.argv[1], timeout=20) as store:
        counts = {str(verdict): count for verdict, count in store.recovery.counts.items()}
        print(json.dumps([counts, str(store.get("alive").status.get().state)]))
    """


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


def assert_alive(path: str) -> None:
    """From here, both are what they are, and the history says nothing else."""
    with Store.open(path) as store:
        assert store.recovery is not None
        assert {Verdict.OPEN: 2} == dict(store.recovery.counts)
        assert [State.READY] * 2 == [each.seen.state for each in store.list()]
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
    "user namespace": "unshare --user --map-root-user",
    "user namespace of nobody": "unshare --user",
    "all at once": "unshare --pid --fork --mount-proc --user --map-root-user --ipc --uts --cgroup",
    "no boot id": f"unshare --mount sh -c '{hidden(BOOT_ID)} && exec \"$@\"' -",
    "no /proc": (
        "unshare --mount sh -c 'umount -l /proc; mount -t tmpfs none /proc && exec \"$@\"' -"
    ),
    "hidden processes": (
        "unshare --mount sh -c 'mount -o remount,hidepid=2 /proc"
        ' && exec setpriv --reuid 65534 --clear-groups "$@"\' -'
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_from_another_place_nothing_alive_is_marked(
    path: str, tmp_path: Path, place: str, tried: Callable[[str], None]
) -> None:
    """Open reconciles, and writes what it takes for gone."""
    for each in (tmp_path, *tmp_path.parents[:3]):
        os.chmod(each, 0o755)
    if "setpriv" in PLACES[place]:  # who is nobody there has to own the registry
        for name in ("", *os.listdir(tmp_path)):
            os.chown(tmp_path / name, 65534, 65534)
    base = f"{tmp_path}/netns"
    code = [sys.executable, "-c", textwrap.dedent(OPEN), path]
    done = subprocess.run(
        ["sh", "-c", PLACES[place].format(base=base) + ' "$@"', "sh", *code],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout.strip() or done.stderr.strip().splitlines()[-1]
    assert 0 == done.returncode, said
    counts, state = json.loads(said)
    assert (True, "SANDBOX_READY") == (set(counts) <= {str(each) for each in ALIVE}, state)
    tried(f"looked from {place}: {said}")
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


def test_what_was_recorded_without_a_boot_id_is_not_of_another_boot(path: str) -> None:
    """Nobody knows of which it is."""
    code = """
        import sys
        from registry import Store
        from tests.tools import sandbox
        with Store.open(sys.argv[1]) as store:
            alive = store.get("alive")
            store.add(sandbox("blind", netns_path=alive.netns_path), alive.seen)
        """
    recorder = [sys.executable, "-c", textwrap.dedent(code), path]
    place = PLACES["no boot id"]
    subprocess.run(["sh", "-c", f'{place} "$@"', "sh", *recorder], env=environment(), check=True)
    with Store.open(path) as store:
        assert State.READY is store.get("blind").seen.state
        assert State.READY is store.get("alive").seen.state


def test_a_pid_that_is_used_again_at_once_is_another_process(path: str) -> None:
    """The sandbox whose process has ended is marked, and the one that lives is not."""
    first = subprocess.Popen(["sleep", "1000"])
    with Store.open(path) as store:
        store.add(sandbox("gone"), Status(State.READY, pid=first.pid))
        first.kill()
        first.wait()
        for _ in range(50):
            with open("/proc/sys/kernel/ns_last_pid", "w", encoding="ascii") as last:
                last.write(str(first.pid - 1))
            second = subprocess.Popen(["sleep", "1000"])
            if second.pid == first.pid:
                break
            second.kill()
            second.wait()
        else:
            pytest.skip("the kernel gave the pid to somebody else each time")
        try:
            report = store.reconcile()
            assert {"gone": Verdict.EXITED} == {
                each.sandbox_id: each.verdict for each in report.findings
            }
            assert State.NOTREADY is store.get("gone").seen.state
            assert State.READY is store.get("alive").seen.state
        finally:
            second.kill()
            second.wait()
