"""Frozen pause processes, which do not end when they are killed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace

import pytest

from registry import Process, RegistryError, State, Store
from registry.cri import PodSandboxConfig
from registry.shim import recovery
from registry.shim.recovery import REMOVED, STOPPED
from registry.shim.sandboxer import Sandboxer
from tests import needs
from tests.shim.client import NOTREADY, Client, pod_config
from tests.shim.conftest import NETWORK, Server, namespaces, pauses
from tests.tools import until

pytestmark = [pytest.mark.netns, needs.namespaces]

PTRACE_SEIZE, PTRACE_DETACH, PTRACE_O_TRACEEXIT = 0x4206, 17, 0x40  # linux/ptrace.h
N = 3
"""Frozen processes."""


@contextmanager
def frozen(pids: Sequence[int]) -> Iterator[None]:
    """Keep processes from ending when they are killed, as the cgroup freezer of version 1 does.

    A tracer can stop a process at its exit, before the kernel releases its resources.
    """
    trace = ctypes.CDLL(None, use_errno=True).ptrace
    trace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    seized = []
    try:
        for pid in pids:
            if trace(PTRACE_SEIZE, pid, None, PTRACE_O_TRACEEXIT) != 0:
                pytest.skip(f"ptrace is refused: {os.strerror(ctypes.get_errno())}")
            seized.append(pid)
        yield
    finally:
        for pid in seized:
            trace(PTRACE_DETACH, pid, None, None)
            with suppress(ChildProcessError):  # of this process, where no server is the parent
                os.waitpid(pid, 0)


def configs(*names: str) -> list[PodSandboxConfig]:
    """Return the configs of pods with a network of their own."""
    return [PodSandboxConfig.FromString(pod_config(name).SerializeToString()) for name in names]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Return the calls to every Process: `kill`, and `wait` with its timeout in seconds."""
    found: list[tuple[str, float]] = []
    kill, wait = Process.kill, Process.wait

    def noted_kill(process: Process, *args: int) -> bool:
        found.append(("kill", 0))
        return kill(process, *args)

    def noted_wait(process: Process, timeout: float | None = None) -> bool:
        assert timeout is not None
        found.append(("wait", timeout))
        return wait(process, timeout)

    monkeypatch.setattr(Process, "kill", noted_kill)
    monkeypatch.setattr(Process, "wait", noted_wait)
    return found


def interrupt_stops(db: str, reasons: Sequence[str]) -> list[int]:
    """Run sandboxes whose stop or removal is only recorded, and return their pids."""
    with Store.open(db) as store, closing(Sandboxer(store, NETWORK)) as sandboxer:
        pids = []
        for n, reason in enumerate(reasons):
            (config,) = configs(f"frozen-{n}")
            sandbox = store.get(sandboxer.run(config))
            pids.append(sandbox.status_as_read.pid)
            intent = replace(sandbox.status_as_read, state=State.NOTREADY, reason=reason)
            sandbox.status.update(lambda _, intent=intent: intent)  # type: ignore[misc]
        return pids


def test_start_waits_for_frozen_processes_together(
    db: str, calls: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are killed before the first is waited for, and share one deadline."""
    monkeypatch.setattr(recovery, "KILLED_WITHIN", 0.5)
    pids = interrupt_stops(db, [STOPPED, REMOVED, STOPPED])
    with frozen(pids), Store.open(db) as store:
        calls.clear()
        with closing(Sandboxer(store, NETWORK)) as sandboxer:
            assert ["kill"] * N == [name for name, _ in calls[:N]]
            assert 0.5 >= sum(seconds for _, seconds in calls)
            assert N <= sum(name == "wait" for name, _ in calls)
            assert set(pids) <= pauses(db)
            (config,) = configs("another")
            sandboxer.stop(sandboxer.run(config))


def test_frozen_process_is_ended_after_it_is_thawed(
    db: str, calls: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retries do not wait, so that other work is not delayed."""
    monkeypatch.setattr(recovery, "KILLED_WITHIN", 0.1)
    pids = interrupt_stops(db, [STOPPED, REMOVED])
    with Store.open(db) as store:
        with frozen(pids):
            calls.clear()
            sandboxer = Sandboxer(store, NETWORK)
            begun = len(calls)
            until(lambda: len(calls) >= begun + 8)
            assert {0.0} == {seconds for _, seconds in calls[begun:]}
            assert set(pids) <= pauses(db)
        with closing(sandboxer):
            until(lambda: set(pids).isdisjoint(pauses(db)))
            until(lambda: namespaces(db) == set())
            until(
                lambda: ["SandboxStopped"] == [each.status_as_read.reason for each in store.list()]
            )
            until(lambda: [0] == [each.status_as_read.pid for each in store.list()])


def test_stop_of_frozen_process_fails_with_advice(db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second stop succeeds after the process was thawed."""
    monkeypatch.setattr(recovery, "KILLED_WITHIN", 0.1)
    with Store.open(db) as store, closing(Sandboxer(store, NETWORK)) as sandboxer:
        (config,) = configs("web")
        id = sandboxer.run(config)
        pid = store.get(id).status_as_read.pid
        with frozen([pid]), pytest.raises(RegistryError, match=f"process {pid}: .*frozen"):
            sandboxer.stop(id)
        assert State.NOTREADY is store.get(id).status_as_read.state
        sandboxer.stop(id)
        assert pid not in pauses(db)


def test_calls_are_answered_while_stop_waits_for_frozen_process(mortal: Server) -> None:
    """Other sandboxes are run, listed and stopped, and their exits recorded."""
    with Client(mortal.socket) as cri:
        held, other, ended = (cri.run(pod_config(name)) for name in ("held", "other", "ended"))
        pid = cri.info(held)["pid"]
        with frozen([pid]):
            stop = cri.begin("StopPodSandbox", pod_sandbox_id=held, timeout=60)
            until(lambda: cri.status(held).state == NOTREADY)
            os.kill(cri.info(ended)["pid"], 9)
            until(lambda: cri.status(ended).state == NOTREADY)
            cri.stop(other)
            cri.remove(cri.run(pod_config("new")))
        assert stop.exception() is None or "frozen" in stop.exception().details()
        cri.stop(held)
        assert pid not in pauses(mortal.db)
        assert 1 == len(namespaces(mortal.db))  # of the one that has ended by itself
