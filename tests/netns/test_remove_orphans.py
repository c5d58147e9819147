"""Removal of orphans: which are refused, and that one keeps no other."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from registry import NetNS, NetNSError, Store
from registry.host import kernel, netns
from registry.recovery import orphans
from tests import needs
from tests.netns.removal import refused
from tests.netns.test_remove import SWAPS
from tests.tools import (
    READY,
    environment,
    line,
    python,
    sandbox,
    tamper,
    until,
)

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
]


def test_an_orphan_that_cannot_be_removed_keeps_no_other(store: Store, base_dir: str) -> None:
    """A process lives in the first: EBUSY, and the second is removed."""
    lived_in, left = sorted(
        (NetNS.create(store.new_netns_path(base_dir)) for _ in range(2)),
        key=lambda each: each.path,
    )
    process = lived_in.do(lambda: subprocess.Popen(["sleep", "1000"]))
    try:
        paths = [lived_in.path, left.path]
        refused(lambda: store.remove_orphans(paths), errno.EBUSY, lived_in.path)
        assert (False, True) == (lived_in.closed, left.closed)
    finally:
        process.kill()
        process.wait()
    assert [lived_in.path] == store.remove_orphans(paths)


@needs.program("setpriv")
@pytest.mark.parametrize("options", ["hidepid=0", "hidepid=2,gid=65534", "hidepid=4"])
def test_remove_orphans_refuses_while_proc_hides_processes(
    store: Store, path: str, base_dir: str, options: str
) -> None:
    """A hidden process may live in the orphan: EACCES, and EBUSY once it can be seen.

    With hidepid=0 the process is listed, and without CAP_SYS_PTRACE its namespaces are not.
    """
    orphan = NetNS.create(store.new_netns_path(base_dir))
    code = """
        import sys
        from registry import NetNSError, Store
        with Store.open(sys.argv[1], reconcile=False) as store:
            try:
                print(store.remove_orphans([sys.argv[2]]))
            except NetNSError as error:
                print(error.errno, error)
        """
    hiding = f"mount -t proc -o {options} proc /proc"
    unprivileged = "exec setpriv --bounding-set=-sys_ptrace"
    command = ["unshare", "--mount", "sh", "-c", f'{hiding} && {unprivileged} "$@"', "-"]
    process = orphan.do(lambda: subprocess.Popen(["sleep", "1000"]))
    try:
        said = subprocess.run(
            [*command, *python(code, path, orphan.path)],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        assert said.startswith(f"{errno.EACCES} remove orphaned network namespace")
        assert "a process may live in it, since /proc hides processes" in said
        assert not orphan.closed
        refused(lambda: store.remove_orphans([orphan.path]), errno.EBUSY, orphan.path)
    finally:
        process.kill()
        process.wait()
    assert [orphan.path] == store.remove_orphans([orphan.path])


def test_remove_orphans_finds_a_process_whose_main_thread_has_ended(
    store: Store, base_dir: str
) -> None:
    """/proc/PID/ns is that of the main thread, which is a zombie: another thread lives there."""
    orphan = NetNS.create(store.new_netns_path(base_dir))
    code = """
        import ctypes, threading, time
        threading.Thread(target=time.sleep, args=[1000], daemon=True).start()
        print("ready", flush=True)
        ctypes.CDLL(None).pthread_exit(None)
        """
    process = orphan.do(lambda: subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True))
    try:
        assert "ready" == line(process)
        until(lambda: not os.path.exists(f"/proc/{process.pid}/ns/net"))
        refused(lambda: store.remove_orphans([orphan.path]), errno.EBUSY, orphan.path)
    finally:
        process.kill()
        process.communicate()
    assert [orphan.path] == store.remove_orphans([orphan.path])


def test_remove_orphans_stops_at_the_first_lock_that_times_out(
    store: Store, base_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the write lock of the registry, and must not wait once for each orphan."""
    paths = [NetNS.create(store.new_netns_path(base_dir)).path for _ in range(2)]
    calls = []

    def times_out(path: str, *_: object) -> None:
        calls.append(path)
        raise NetNSError("timed out", path=path, errno=errno.ETIMEDOUT)

    monkeypatch.setattr(netns, "remove", times_out)
    refused(lambda: store.remove_orphans(paths), errno.ETIMEDOUT, min(paths))
    assert [min(paths)] == calls
    monkeypatch.undo()
    assert sorted(paths) == store.remove_orphans(paths)


def test_an_orphan_whose_path_cannot_be_passed_keeps_no_other(path: str, base_dir: str) -> None:
    """The command line names what lies in a directory with a control character, and goes on."""
    odd = f"{base_dir}/a\x01"
    os.mkdir(odd)
    with Store.open(path) as store:
        kept = NetNS.create(store.new_netns_path(f"{base_dir}/kept"))
        orphan = NetNS.create(store.new_netns_path(f"{base_dir}/removed"))
        for id, each in (("kept", kept), ("removed", orphan)):
            store.add(sandbox(id, netns_path=f"{os.path.dirname(each.path)}/none"), READY)
    moved = f"{odd}/{os.path.basename(kept.path)}"
    Path(moved).touch()
    kernel.mount(kept.path, moved, "none", kernel.MS_BIND)
    tamper(path, f"UPDATE sandboxes SET netns_path = '{odd}/none' WHERE id = 'kept'")
    done = subprocess.run(
        [sys.executable, "-m", "registry", "--db", path, "reconcile", "--remove-orphans"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert 1 == done.returncode, done.stderr
    assert "holds a control character" in done.stderr
    assert (False, True) == (kept.closed, orphan.closed)


def test_an_orphan_that_is_gone_by_then_is_not_removed(
    store: Store, base_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process was faster: no error, and it is not among the removed."""
    orphan = NetNS.create(store.new_netns_path(base_dir))
    find = orphans.without_owner

    def racing(found: Iterable[str], owned: Iterable[str]) -> list[str]:
        orphans = find(found, owned)
        orphan.remove()
        return orphans

    monkeypatch.setattr(orphans, "without_owner", racing)
    assert [] == store.remove_orphans([orphan.path])


@pytest.mark.parametrize("moment", ["comparison", "umount"])
@pytest.mark.parametrize("swap", SWAPS)
def test_a_path_swapped_while_an_orphan_is_removed_hits_no_other(
    store: Store,
    base_dir: str,
    victim: NetNS,
    monkeypatch: pytest.MonkeyPatch,
    *,
    swap: str,
    moment: str,
) -> None:
    """Nothing is unmounted but the orphan that was found and in which no process lives."""
    orphan = NetNS.create(store.new_netns_path(f"{base_dir}/above/in"))
    where: tuple[object, str] = (
        (orphans, "_require_no_process") if moment == "comparison" else (kernel, "umount")
    )
    original = getattr(*where)

    def racing(*args: object) -> None:
        monkeypatch.undo()
        SWAPS[swap](victim.path, orphan.path)
        original(*args)

    monkeypatch.setattr(*where, racing)
    with contextlib.suppress(NetNSError):
        store.remove_orphans([orphan.path])
    assert original is getattr(*where)
    assert not victim.closed
