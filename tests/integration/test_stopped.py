"""A process that stands still while it holds a lock: the others go on, or name it in time.

tests/faults/test_stopped.py stops a process at each of its system calls.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from registry import State, Store, UnavailableError
from registry.engine import readers
from registry.tables import inspection
from tests import needs
from tests.conftest import OpenStore
from tests.convoy import more
from tests.integration.test_deadline import RECOVERY
from tests.tools import READY, line, run, running, sandbox, say, until

SHORT = 0.05
"""Seconds that a call waits."""
WRITER = """
    import sys
    from dataclasses import replace
    from registry import State, Store
    with Store.open(sys.argv[1], reconcile=False) as store:
        def hold(old):
            print("inside", flush=True)
            sys.stdin.readline()
            return replace(old, state=State.NOTREADY)
        store.get("a").status.update(hold)
        print("done", flush=True)
    """


def state_of(pid: int) -> str:
    """Return the state of process *pid* as the kernel shows it: T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop process *pid* during the block."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: state_of(pid) == "T")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def cgroups() -> str:
    """Return where cgroups of version 2 may be created; empty if they may not."""
    for mount in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        place, kind = mount.split()[1:3]
        if kind == "cgroup2" and os.access(f"{place}/cgroup.procs", os.W_OK):
            return place
    return ""


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Freeze process *pid* in a cgroup of its own during the block."""
    group = Path(cgroups(), f"sandbox-registry-{os.getpid()}-{pid}")
    before = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8")
    home = next(text[3:] for text in before.splitlines() if text.startswith("0::"))
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid), encoding="utf-8")
        (group / "cgroup.freeze").write_text("1", encoding="utf-8")
        until(lambda: "frozen 1" in (group / "cgroup.events").read_text(encoding="utf-8"))
        yield
    finally:
        (group / "cgroup.freeze").write_text("0", encoding="utf-8")
        Path(f"{cgroups()}{home}", "cgroup.procs").write_text(str(pid), encoding="utf-8")
        until(lambda: not (group / "cgroup.procs").read_text(encoding="utf-8"))
        group.rmdir()


def may_freeze() -> bool:
    """Return whether a process of ours can be frozen."""
    if not cgroups():
        return False
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        try:
            with frozen(process.pid):
                return True
        except OSError:
            return False
        finally:
            process.kill()


@pytest.mark.parametrize(
    "still",
    [
        stopped,
        pytest.param(
            frozen,
            marks=pytest.mark.skipif(not may_freeze(), reason="needs a writable cgroup2 mount"),
        ),
    ],
    ids=["stopped", "frozen"],
)
def test_others_read_and_name_a_writer_that_stands_still(
    open_store: OpenStore, path: str, still: Callable[[int], AbstractContextManager[None]]
) -> None:
    """A watch and a StopCh wait on; when the writer goes on, they get its change."""
    store = open_store(timeout=SHORT)
    handle = store.add(sandbox("a"), READY)
    quiet, watch = store.watch(timeout=SHORT), store.watch()
    with running(WRITER, path) as child:
        assert "inside" == line(child)
        with still(child.pid):
            with pytest.raises(UnavailableError, match=f"timed out after {SHORT:g} s") as caught:
                handle.status.update(more)
            assert caught.value.holder.startswith(f"process {child.pid} (")
            assert READY == store.get("a").status.get()
            with Store.open(path, read_only=True, timeout=SHORT) as reader:
                assert ["a"] == [each.id for each in reader.list()]
                assert [] == reader.check()
            assert [] == list(quiet)
            assert not handle.stopped.wait(SHORT)
        say(child)
        assert "done" == line(child)
        assert handle.stopped.wait(240)
        assert State.NOTREADY is next(watch).to_state
    watch.close()
    quiet.close()
    assert 1 == open_store().get("a").status.update(more).exited_at


@pytest.mark.parametrize("begin", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
@needs.program("sqlite3")
def test_a_shell_that_is_stopped_in_a_transaction_is_named(
    open_store: OpenStore, path: str, begin: str
) -> None:
    """It holds SQLite's lock alone. Reads and read-only opens go on."""
    store = open_store(timeout=SHORT)
    handle = store.add(sandbox("a"), READY)
    shell = shutil.which("sqlite3")
    assert shell is not None
    with subprocess.Popen(
        [shell, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        say(process, f"{begin}; SELECT 'inside';")
        assert "inside" == line(process)
        with stopped(process.pid):
            with pytest.raises(UnavailableError) as caught:
                handle.status.update(more)
            assert f"process {process.pid} (sqlite3, stopped)" in caught.value.holder
            assert READY == store.get("a").status.get()
            Store.open(path, read_only=True, timeout=SHORT).close()
        say(process, "ROLLBACK;")
        process.communicate()
    assert 1 == open_store().get("a").status.update(more).exited_at


def test_a_read_only_open_beside_a_recovery_names_it_in_time(
    store: Store, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the open waits for, its timeout is the limit; and so it is for a read."""
    store.add(sandbox("a"), READY)
    monkeypatch.setattr(readers, "BUSY_TIMEOUT", 3600.0)
    monkeypatch.setattr(inspection, "_BUSY_TIMEOUT", 3600.0)
    with running(RECOVERY, path) as process, stopped_after(process, "held"):
        with pytest.raises(UnavailableError, match=f"timed out after {SHORT:g} s") as caught:
            Store.open(path, read_only=True, timeout=SHORT)
        assert f"process {process.pid} (python" in caught.value.holder
        assert "stopped" in caught.value.holder
        assert SHORT == caught.value.timeout
        with pytest.raises(UnavailableError) as caught, store.deadline(SHORT):
            store.list()
        assert f"process {process.pid} (python" in caught.value.holder
    Store.open(path, read_only=True).close()


@contextmanager
def stopped_after(process: subprocess.Popen[str], said: str) -> Iterator[None]:
    """Stop *process* during the block once it has *said* so; then it goes on to its end."""
    assert said == line(process)
    with stopped(process.pid):
        yield
    say(process)
    line(process)


def test_an_open_for_writing_beside_a_recovery_names_it_in_time(store: Store, path: str) -> None:
    """A client that bypasses the process lock recovers; the open has that lock meanwhile."""
    store.add(sandbox("a"), READY)
    code = """
        import sys
        from registry import Store, UnavailableError
        try:
            Store.open(sys.argv[1], timeout=float(sys.argv[2]))
        except UnavailableError as error:
            print(error.holder, error, sep=": ")
        """
    with running(RECOVERY, path) as process, stopped_after(process, "held"):
        said = run(code, path, SHORT)
        assert said.startswith(f"process {process.pid} (python")
        assert f"timed out after {SHORT:g} s" in said
        store.close()  # closes, or leaks, and does not wait for the recovery
    with Store.open(path) as again:
        assert [] == again.check()


def test_a_read_only_open_waits_for_a_process_that_opens(
    store: Store, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until that process goes on: SQLite is not asked before."""
    store.add(sandbox("a"), READY)
    blockers = [7, 7, None]
    monkeypatch.setattr(
        "registry.host.file_locks.reader_blocker",
        lambda _path: blockers.pop(0) if blockers else None,
    )
    with Store.open(path, read_only=True) as reader:
        assert ["a"] == [each.id for each in reader.list()]
    assert [] == blockers
