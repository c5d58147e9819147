"""Ends of pause processes, which the shim watches and records."""

from __future__ import annotations

import os
import signal
from contextlib import closing

import pytest

from registry import (
    Exits,
    FailedPreconditionError,
    NetNS,
    State,
    Store,
)
from registry.shim.recovery import Recovery
from registry.shim.sandboxer import Sandboxer
from tests import needs
from tests.shim.client import NOTREADY, READY, Client, config, pod_config
from tests.shim.conftest import NETWORK, NOTHING, left_of, pauses
from tests.tools import until

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
]


def test_exit_is_recorded_after_database_was_locked(
    db: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The exit status is kept meanwhile."""
    monkeypatch.setattr("registry.handles.exit_watcher.RETRY", 0.01)
    with Store.open(db, timeout=0.05) as store, closing(Sandboxer(store, NETWORK)) as sandboxer:
        id = sandboxer.run(config())
        pid = store.get(id).status_as_read.pid
        with Store.open(db, timeout=5) as other, other.transaction():
            os.kill(pid, signal.SIGKILL)
            until(lambda: "trying again" in caplog.text)
            assert State.READY is store.get(id).status_as_read.state
        until(lambda: store.get(id).status_as_read.state is State.NOTREADY)
        assert 137 == store.get(id).status_as_read.exit_status
        assert "Traceback" not in caplog.text


def test_watcher_continues_after_unexpected_exception(
    db: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The exception is logged, and the call retried."""
    monkeypatch.setattr("registry.handles.exit_watcher.RETRY", 0.01)
    with Store.open(db) as store, closing(Sandboxer(store, NETWORK)) as sandboxer:
        first, second = (store.get(sandboxer.run(config(name))) for name in ("a", "b"))
        with monkeypatch.context() as trouble:
            trouble.setattr(Recovery, "note_exit", None)
            os.kill(first.status_as_read.pid, signal.SIGKILL)
            until(lambda: "Traceback" in caplog.text)
        os.kill(second.status_as_read.pid, signal.SIGKILL)
        until(lambda: State.NOTREADY is first.status.get().state is second.status.get().state)


def test_exit_is_dropped_after_store_was_closed(db: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once, and the process is reaped."""
    with Store.open(db) as store:
        sandboxer = Sandboxer(store, NETWORK)
        pid = store.get(sandboxer.run(config())).status_as_read.pid
    with closing(sandboxer):
        os.kill(pid, signal.SIGKILL)
        until(lambda: "the end is not noted" in caplog.text)
        until(lambda: pid not in pauses(db))
    assert 1 == caplog.text.count("the end is not noted")


def test_shim_leaves_no_zombies(db: str) -> None:
    """Killed, stopped and removed sandboxes are reaped by the process that forked them."""
    with Store.open(db) as store, closing(Sandboxer(store, NETWORK)) as sandboxer:
        for n in range(5):
            killed, stopped, removed, both = (sandboxer.run(config(f"{n}-{m}")) for m in range(4))
            for id in (killed, both):
                os.kill(store.get(id).status_as_read.pid, 9)
            sandboxer.stop(stopped)
            for id in (removed, both):
                sandboxer.remove(id)
        until(lambda: set() == pauses(db))
        ends = {(State.NOTREADY, 137)}
        until(
            lambda: (
                ends
                == {
                    (each.status_as_read.state, each.status_as_read.exit_status)
                    for each in store.list()
                }
            )
        )
        for each in store.list():
            sandboxer.remove(each.id)
    assert NOTHING == left_of(db)


def test_exits_close_keeps_watched_processes(db: str) -> None:
    """The descriptors are closed, and the processes run."""
    with Store.open(db) as store, closing(Sandboxer(store, NETWORK)) as sandboxer:
        sandbox = store.get(sandboxer.run(config()))
        process = sandbox.open_process()
        assert process is not None
        exits = Exits(lambda _: None)
        exits.watch(sandbox, process)
        exits.close()
        with pytest.raises(FailedPreconditionError):
            process.fileno()
        assert sandbox.status_as_read.pid in pauses(db)


def test_removed_namespace_is_no_exit(cri: Client) -> None:
    """The process runs; the verbose status shows it, and a restart records NOTREADY."""
    id = cri.run(pod_config("web"))
    path = cri.info(id)["netNamespacePath"]
    NetNS.load(path).remove()
    assert (READY, True) == (cri.status(id).state, cri.info(id)["netNamespaceClosed"])
    cri.stop(id)
    assert NOTREADY == cri.status(id).state
