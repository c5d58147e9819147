"""Retried runs: a call with an equal config joins a run, or takes over what it has run."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from registry import FailedPreconditionError, NameReservedError, RegistryError, State, Store
from registry.cri import PodSandboxConfig
from registry.shim import plugins
from registry.shim.network import Network, PluginError
from registry.shim.runs import Run, Runs
from registry.shim.sandboxer import Sandboxer
from registry.shim.server import RUNS
from tests import needs
from tests.shim.client import Client, config, pod_config
from tests.shim.conftest import CNI, NOTHING, Server, left_of, serving
from tests.tools import pod, until

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
]


class Steps:
    """Steps of a run, which wait until the test lets them go on."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.began, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None

    def __call__(self, run: Run) -> None:
        self.runs.append(run)
        self.began.release()
        assert self.go.acquire(timeout=240)
        if not run.is_wanted():
            self.began.release()
            assert self.go.acquire(timeout=240)  # the undo
            raise RegistryError("cancelled")
        if self.error:
            raise self.error


class Calls:
    """Calls of several clients."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool, self.runs, self.steps = pool, Runs(), Steps()

    def call(
        self, waits: Callable[[], bool] = lambda: True, config: PodSandboxConfig | None = None
    ) -> Future[str]:
        """Begin a call; *waits* returns whether its client waits."""
        return self.pool.submit(self.runs.run, "web", config or pod(), waits, self.steps)

    def joined(self, waits: list[bool]) -> Future[str]:
        """Begin a call that joins a run, and return once it has done so.

        A client is asked whether it waits when the run goes on; the last of *waits* is the answer.
        """
        before = len(self.steps.runs[-1]._clients)
        call = self.call(lambda: waits[-1])
        until(lambda: len(self.steps.runs[-1]._clients) > before)
        return call


@pytest.fixture
def calls() -> Iterator[Calls]:
    """Return calls without a run."""
    with ThreadPoolExecutor(8) as pool:
        yield Calls(pool)


def test_equal_call_joins_the_run_and_gets_its_id(calls: Calls) -> None:
    """The steps are taken once."""
    first = calls.call()
    assert calls.steps.began.acquire(timeout=240)
    second = calls.joined([True])
    assert not first.done()
    calls.steps.go.release()
    (run,) = calls.steps.runs
    assert (run.id, run.id) == (first.result(), second.result())


def test_equal_call_gets_the_error_of_the_run(calls: Calls) -> None:
    """The next call runs again."""
    first = calls.call()
    assert calls.steps.began.acquire(timeout=240)
    second = calls.joined([True])
    calls.steps.error = RegistryError("no")
    calls.steps.go.release()
    assert calls.steps.error is first.exception() is second.exception()
    calls.steps.error = None
    calls.steps.go.release()
    assert calls.call().result() != calls.steps.runs[0].id


def test_call_with_another_config_is_refused_and_names_the_run(calls: Calls) -> None:
    """It does not wait for the run."""
    first = calls.call()
    assert calls.steps.began.acquire(timeout=240)
    other = pod()
    other.hostname = "other"
    error = calls.call(config=other).exception()
    assert isinstance(error, NameReservedError)
    assert calls.steps.runs[0].id == error.holder
    calls.steps.go.release()
    first.result()


def test_run_goes_on_while_one_client_waits(calls: Calls) -> None:
    """The first has gone."""
    first = calls.call(lambda: False)
    assert calls.steps.began.acquire(timeout=240)
    second = calls.joined([True])
    calls.steps.go.release()
    assert first.result() == second.result()


def test_retry_during_the_undo_waits_and_runs_again(calls: Calls) -> None:
    """All clients had gone before."""
    first = calls.call(lambda: False)
    assert calls.steps.began.acquire(timeout=240)
    calls.steps.go.release()
    assert calls.steps.began.acquire(timeout=240)  # the undo has begun
    retry = calls.call()
    assert not retry.done()
    calls.steps.go.release()
    assert isinstance(first.exception(), RegistryError)
    calls.steps.go.release()
    id = retry.result()
    assert [id] == [run.id for run in calls.steps.runs[1:]]


def test_retry_cancelled_during_the_undo_begins_no_run(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a later retry would wait for the undo of a run that no client wants."""
    waits, waiting = [True], threading.Event()

    def leave(futures: list[Future[str]]) -> None:
        waits.append(False)
        waiting.set()
        wait(futures)

    monkeypatch.setattr("registry.shim.runs.wait", leave)
    first = calls.call(lambda: False)
    calls.steps.go.release()
    for _ in ("run", "undo"):
        assert calls.steps.began.acquire(timeout=240)
    retry = calls.call(lambda: waits[-1])
    assert waiting.wait(240)
    calls.steps.go.release(3)
    assert isinstance(first.exception(), RegistryError)
    assert isinstance(retry.exception(), FailedPreconditionError)
    assert 1 == len(calls.steps.runs)


def test_retry_takes_over_a_run_that_was_told_to_none(calls: Calls) -> None:
    """Once, with an equal config; a client that has gone again does not take it."""
    answers = [True]
    first = calls.call(lambda: answers.pop() if answers else False)
    calls.steps.go.release()
    id = first.result()
    assert id == calls.call(lambda: False).result()
    assert id == calls.call().result()
    assert 1 == len(calls.steps.runs)
    calls.steps.go.release()
    assert id != calls.call().result()


def test_stopped_sandbox_is_not_taken_over(calls: Calls) -> None:
    """The next call runs again."""
    answers = [True]
    first = calls.call(lambda: answers.pop() if answers else False)
    calls.steps.go.release()
    calls.runs.forget(first.result())
    calls.steps.go.release()
    assert first.result() != calls.call().result()


def test_sandbox_that_is_stopped_before_its_run_ends_is_not_taken_over(calls: Calls) -> None:
    """Its last step was READY, and no client waits."""
    answers = [True]
    first = calls.call(lambda: answers.pop() if answers else False)
    assert calls.steps.began.acquire(timeout=240)
    (run,) = calls.steps.runs
    calls.runs.forget(run.id)
    calls.steps.go.release(2)
    assert run.id == first.result()
    assert run.id != calls.call().result()


# With a server.


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[Server]:
    """Return a server whose plugin waits for a line in a FIFO before it answers ADD."""
    server = Server(tmp_path)
    os.mkfifo(tmp_path / "gate")
    (tmp_path / "began").mkdir()
    (tmp_path / "10-gated.conflist").write_text(
        '{"cniVersion": "1.0.0", "name": "gated", "plugins": [{"type": "gated"}]}'
    )
    (tmp_path / "gated").write_text(
        f"#!/bin/sh\n[ $CNI_COMMAND != ADD ] || {{ : > {tmp_path}/began/$CNI_CONTAINERID\n"
        f"read -r go < {tmp_path}/gate; }}\nexec {CNI}/given\n"
    )
    (tmp_path / "gated").chmod(0o755)
    server.cni_conf_dir = server.cni_bin_dir = str(tmp_path)
    with serving(server):
        yield server


def let_go(server: Server) -> None:
    """Let one ADD go on, once a plugin waits."""
    with open(Path(server.cni_conf_dir, "gate"), "w", encoding="ascii") as gate:
        gate.write("go\n")


def adds(server: Server) -> set[str]:
    """Return the ids of the sandboxes whose ADD has begun."""
    return set(os.listdir(Path(server.cni_conf_dir, "began")))


def test_retry_of_a_kubelet_gets_the_id_of_its_first_try(gated: Server, db: str) -> None:
    """The first call has timed out while the plugin worked."""
    waits = [True]
    network = Network(gated.cni_conf_dir, [gated.cni_bin_dir])
    with (
        Store.open(db) as store,
        closing(Sandboxer(store, network)) as sandboxer,
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(sandboxer.run, config(), wanted=lambda: waits[-1])
        until(lambda: adds(gated))
        retry = pool.submit(sandboxer.run, config())
        (run,) = sandboxer._runs._running.values()
        until(lambda: len(run._clients) > 1)
        waits.append(False)
        let_go(gated)
        (id,) = adds(gated)
        assert id == retry.result() == first.result()
        assert State.READY is store.get(id).status_as_read.state
        with pytest.raises(NameReservedError):
            sandboxer.run(config())
        sandboxer.remove(id)


def test_cancelled_run_is_undone_and_the_retry_runs(gated: Server) -> None:
    """No client waits when ADD has ended."""
    with Client(gated.socket) as cri, ThreadPoolExecutor(1) as pool:
        first = cri.begin("RunPodSandbox", timeout=60, config=pod_config("web"))
        until(lambda: adds(gated))
        first.cancel()
        (cancelled,) = adds(gated)
        with Store.open(gated.db, read_only=True) as store:
            let_go(gated)
            until(lambda: not store.list(include_unknown=True))
        retry = pool.submit(cri.run, pod_config("web"))
        until(lambda: len(adds(gated)) == 2)
        let_go(gated)
        assert {cancelled, retry.result()} == adds(gated)


def test_stop_during_add_waits_for_the_plugin(gated: Server) -> None:
    """DEL must not run beside it; the run fails and nothing is left."""
    with Client(gated.socket) as cri, ThreadPoolExecutor(1) as pool:
        run = cri.begin("RunPodSandbox", timeout=240, config=pod_config("web"))
        until(lambda: adds(gated))
        (id,) = adds(gated)
        stop = pool.submit(cri.stop, id, 240)
        with Store.open(gated.db, read_only=True) as store:
            until(lambda: [State.NOTREADY] == [each.status_as_read.state for each in store.list()])
        assert not stop.done()
        let_go(gated)
        stop.result()
        with pytest.raises(grpc.RpcError):
            run.result()
        until(lambda: NOTHING == left_of(gated.db))


def test_add_does_not_begin_for_a_client_that_has_gone(gated: Server, db: str) -> None:
    """The sandbox is recorded already."""
    network = Network(gated.cni_conf_dir, [gated.cni_bin_dir])
    with Store.open(db) as store, closing(Sandboxer(store, network)) as sandboxer:
        with pytest.raises(FailedPreconditionError, match="client has cancelled"):
            sandboxer.run(config(), wanted=lambda: False)
        assert [] == store.list(include_unknown=True)
    assert set() == adds(gated)


def test_stop_is_answered_while_all_runs_wait_for_plugins(gated: Server) -> None:
    """It has threads of its own."""
    with Client(gated.socket) as cri:
        other = cri.run(pod_config("other", host_network=True))
        pods = [pod_config(f"web-{n}") for n in range(RUNS)]
        runs = [cri.begin("RunPodSandbox", timeout=240, config=pod) for pod in pods]
        until(lambda: len(adds(gated)) == RUNS)
        cri.stop(other)
        cri.remove(other)
        # Each reader takes one byte, an empty line.
        with open(Path(gated.cni_conf_dir, "gate"), "w", encoding="ascii") as gate:
            gate.write("\n" * RUNS)
            gate.flush()
            assert adds(gated) == {run.result().pod_sandbox_id for run in runs}


def test_server_ends_while_a_plugin_hangs(gated: Server) -> None:
    """The plugin is left to the next server, which undoes the run."""
    with Client(gated.socket) as cri:
        run = cri.begin("RunPodSandbox", timeout=240, config=pod_config("web"))
        until(lambda: adds(gated))
        assert 0 == gated.end()
        with pytest.raises(grpc.RpcError):
            run.result()
    # Without the plugin, which reads, this would raise.
    gate = os.open(Path(gated.cni_conf_dir, "gate"), os.O_WRONLY | os.O_NONBLOCK)
    os.write(gate, b"go\n")
    os.close(gate)
    gated.start()
    until(lambda: NOTHING == left_of(gated.db))


def slow_to_delete(folder: Path) -> Network:
    """Return a network whose plugin notes the namespace of a DEL, and then waits at the gate."""
    os.mkfifo(folder / "gate")
    (folder / "10-a.conflist").write_text(
        '{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "slow"}]}'
    )
    (folder / "slow").write_text(
        f"#!/bin/sh\n[ $CNI_COMMAND != DEL ] || {{ echo $CNI_NETNS >> {folder}/deleted\n"
        f"read -r go < {folder}/gate; }}\nexec {CNI}/given\n"
    )
    (folder / "slow").chmod(0o755)
    return Network(str(folder), [str(folder)])


def test_stop_and_remove_at_once_run_the_plugins_once(db: str, tmp_path: Path) -> None:
    """The second call would give them a namespace that the first one is removing."""
    network, deleted = slow_to_delete(tmp_path), tmp_path / "deleted"
    with (
        Store.open(db) as store,
        closing(Sandboxer(store, network)) as sandboxer,
        ThreadPoolExecutor(2) as pool,
    ):
        sandbox = store.get(sandboxer.run(config()))
        stopping = pool.submit(sandboxer.stop, sandbox.id)
        until(deleted.exists)
        removing = pool.submit(sandboxer.remove, sandbox.id)
        until(lambda: sandbox.status.get().reason == "SandboxRemoved")
        (tmp_path / "gate").write_text("go\n")
        stopping.result()
        removing.result()
        assert [] == store.list(include_unknown=True)
    assert f"{sandbox.netns_path}\n" == deleted.read_text(encoding="ascii")


def test_stop_during_an_undo_runs_the_plugins_once(db: str, tmp_path: Path) -> None:
    """The run has failed after ADD; its undo and the stop follow each other whole."""
    network, deleted = slow_to_delete(tmp_path), tmp_path / "deleted"
    answers = [True]
    with (
        Store.open(db) as store,
        closing(Sandboxer(store, network)) as sandboxer,
        ThreadPoolExecutor(2) as pool,
    ):
        # The client waits before ADD, and not when the pid is recorded.
        run = pool.submit(sandboxer.run, config(), wanted=lambda: bool(answers and answers.pop()))
        until(deleted.exists)
        (sandbox,) = store.list(include_unknown=True)
        stopping = pool.submit(sandboxer.stop, sandbox.id)
        until(lambda: sandbox.status.get().reason == "SandboxStopped")
        (tmp_path / "gate").write_text("go\n")
        assert isinstance(run.exception(), FailedPreconditionError)
        stopping.result()
        assert [] == store.list(include_unknown=True)
    assert f"{sandbox.netns_path}\n" == deleted.read_text(encoding="ascii")


def test_recovery_runs_delete_after_the_end_of_the_plugin(
    gated: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plugin of a server that was killed works on ADD until the next server waits for it."""
    with Client(gated.socket) as cri:
        run = cri.begin("RunPodSandbox", timeout=240, config=pod_config("web"))
        until(lambda: adds(gated))
        gated.kill()
        with pytest.raises(grpc.RpcError):
            run.result()
    end = plugins.end
    ended: list[str] = []

    def let_go_and_end(ids: Collection[str], deadline: float) -> None:
        let_go(gated)
        end(ids, deadline)
        ended.extend(ids)

    def delete(*_: object) -> None:
        assert list(adds(gated)) == ended

    monkeypatch.setattr(plugins, "end", let_go_and_end)
    network = Network(gated.cni_conf_dir, [gated.cni_bin_dir])
    monkeypatch.setattr(network, "delete", delete)
    with Store.open(gated.db) as store, closing(Sandboxer(store, network)):
        assert [] == store.list(include_unknown=True)


def test_ready_sandbox_that_no_client_knows_is_taken_over(db: str) -> None:
    """The last client had gone after the last step."""
    answers = iter([True, True, True, False, False])
    network = Network(CNI, [CNI])
    with Store.open(db) as store, closing(Sandboxer(store, network)) as sandboxer:
        id = sandboxer.run(config(), wanted=lambda: next(answers))
        assert State.READY is store.get(id).status_as_read.state
        assert id == sandboxer.run(config(), wanted=lambda: next(answers))
        assert id == sandboxer.run(config())
        with pytest.raises(NameReservedError):
            sandboxer.run(config())
        sandboxer.remove(id)


def test_removed_sandbox_that_no_client_knows_is_not_taken_over(db: str) -> None:
    """The kubelet has found it in its list."""
    answers = iter([True, True, True, False])
    with Store.open(db) as store, closing(Sandboxer(store, Network(CNI, [CNI]))) as sandboxer:
        id = sandboxer.run(config(), wanted=lambda: next(answers))
        sandboxer.remove(id)
        again = sandboxer.run(config())
        assert [again] == [each.id for each in store.list()]
        sandboxer.remove(again)


def test_delete_gets_no_path_of_a_namespace_that_is_gone(db: str, tmp_path: Path) -> None:
    """As the specification wants it; another namespace may have the path by then."""
    network, deleted = slow_to_delete(tmp_path), tmp_path / "deleted"
    with (
        Store.open(db) as store,
        closing(Sandboxer(store, network)) as sandboxer,
        ThreadPoolExecutor(1) as pool,
    ):
        sandbox = store.get(sandboxer.run(config()))
        sandbox.remove_netns()
        stopping = pool.submit(sandboxer.stop, sandbox.id)
        (tmp_path / "gate").write_text("go\n")
        stopping.result()
    assert "\n" == deleted.read_text(encoding="ascii")


def test_failed_stops_are_retried_once_at_a_time(
    db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kubelet repeats a stop for as long as it fails; the retries do not pile up."""
    network, retries = slow_to_delete(tmp_path), list[Callable[[], None]]()
    with Store.open(db) as store, closing(Sandboxer(store, network)) as sandboxer:
        monkeypatch.setattr(sandboxer._recovery._retries, "retry", retries.append)
        id = sandboxer.run(config())
        plugin = tmp_path / "slow"
        plugin.rename(tmp_path / "away")
        for _ in range(3):
            with pytest.raises(PluginError):
                sandboxer.stop(id)
        (retry,) = retries
        plugin.symlink_to(f"{CNI}/given")
        retry()
        assert "" == store.get(id).status_as_read.message
        assert {} == dict(store.get(id).extensions)  # a later stop runs no plugin
        assert 1 == len(retries)
