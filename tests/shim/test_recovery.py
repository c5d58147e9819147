"""Servers that are killed at any moment, and the recovery by the next one."""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import grpc
import pytest

from registry import NetNS, State, Store, Verdict
from registry.shim import cgroups
from registry.shim.network import Network
from registry.shim.sandboxer import Sandboxer
from tests import needs
from tests.shim.client import NOTREADY, READY, Client, nanoseconds, pod_config
from tests.shim.conftest import NETWORK, NOTHING, Server, left_of, pauses, remove_all, serving
from tests.shim.traces import with_traces
from tests.tools import execute, is_recent, line, running, say, until

pytestmark = [pytest.mark.netns, pytest.mark.crash, needs.namespaces]

Shims = subprocess.Popen[str]
SHARDS = 4
"""Number of tests that share the lines, so that they can run in parallel."""
every_line = pytest.mark.parametrize("first", range(1, SHARDS + 1), ids="lines {}".format)


@pytest.fixture(scope="module")
def shims() -> Iterator[Shims]:
    """Return a process that forks shims, see `tests.shim.dying`."""
    with running("from tests.shim.dying import serve; serve()") as server:
        yield server


def died(shims: Shims, db: str, verb: str, argument: str, place: int = 0) -> bool:
    """Fork a shim that is killed before its *place*-th line; False if it finished its call."""
    say(shims, f"{db} {verb} {argument} {place}")
    code = int(line(shims))
    assert code in {0, -signal.SIGKILL}
    return code != 0


def ran(shims: Shims, db: str, name: str = "web") -> str:
    """Run a sandbox in a process that ends afterwards, so that its pause is a child of init."""
    assert not died(shims, db, "run", name)
    with Store.open(db, read_only=True) as store:
        return store.list()[-1].id


def recovered(db: str, network: Network = NETWORK) -> list[tuple[str, State]]:
    """Start and end a shim; return ids and states of all sandboxes, UNKNOWN included."""
    with Store.open(db) as store, closing(Sandboxer(store, network)):
        assert [] == store.check()
        found = store.list(include_unknown=True)
        return [(each.id, each.status_as_read.state) for each in found]


@every_line
def test_run_killed_before_any_line_is_undone_or_kept(shims: Shims, db: str, first: int) -> None:
    """Before READY nothing is left and the name is free; afterwards the sandbox runs."""
    place, lived = first, 0
    # A run that finished need not be the last: the number of lines depends on its threads.
    while lived < 12 / SHARDS:
        lived = 0 if died(shims, db, "run", "web", place) else lived + 1
        found = recovered(db)
        assert found or not lived
        if found:
            assert [State.READY] == [state for _, state in found]
            assert is_whole(db)
            remove_all(db)
        # A held pause process reads end of file, and ends.
        until(lambda: NOTHING == left_of(db))
        place += SHARDS
    assert place > 100


@every_line
@pytest.mark.parametrize("verb", ["stop", "remove"])
def test_stop_and_remove_killed_before_any_line_are_finished(
    shims: Shims, db: str, verb: str, first: int
) -> None:
    """A kill before the intent is recorded leaves a READY sandbox as it was."""
    begun = False
    for place in itertools.count(first, SHARDS):
        id = ran(shims, db)
        end = not died(shims, db, verb, id, place)
        begun = begun or not untouched(recovered(db), db)
        if begun:
            # True for all later lines.
            after = [] if verb == "remove" else [(id, State.NOTREADY)]
            assert after == recovered(db)
            assert NOTHING == left_of(db)
        remove_all(db)
        assert NOTHING == left_of(db)
        if end:
            break
    assert begun
    assert place > 30


def untouched(found: list[tuple[str, State]], db: str) -> bool:
    """Return whether a sandbox is READY, with its process and its namespace."""
    if State.READY not in {state for _, state in found}:
        return False
    assert is_whole(db)
    return True


def is_whole(db: str) -> bool:
    """Return whether a registry has all of one sandbox: process, namespace, cgroup and file."""
    return (1, 1, 1) == tuple(len(each) for each in left_of(db))


@every_line
@pytest.mark.parametrize("reason", ["ProcessExited", "NetNSClosed"])
def test_stop_after_exit_killed_before_any_line_is_finished(
    shims: Shims, db: str, reason: str, first: int
) -> None:
    """The reason of the exit stays."""
    begun = False
    for place in itertools.count(first, SHARDS):
        id = ran(shims, db)
        with Store.open(db, reconcile=False) as store:
            sandbox = store.get(id)
            if reason == "ProcessExited":
                process = sandbox.open_process()
                assert process is not None
                with process:  # its environment is gone before the process has ended
                    process.kill()
                    assert process.wait(60)
            else:
                sandbox.remove_netns()
        end = not died(shims, db, "stop", id, place)
        assert [(id, State.NOTREADY)] == recovered(db)
        with Store.open(db, read_only=True) as store:
            status = store.get(id).status_as_read
        assert reason == status.reason
        begun = begun or status.message.endswith("; then it was stopped")
        assert begun == status.message.endswith("; then it was stopped")
        assert begun == (NOTHING == left_of(db))
        remove_all(db)
        if end:
            break
    assert begun
    assert place > 10


def test_running_sandboxes_are_watched_after_restart(mortal: Server) -> None:
    """Process, namespace and status are unchanged; a later exit is recorded."""
    with Client(mortal.socket) as cri:
        ids = [cri.run(pod_config(f"web-{n}")) for n in range(3)]
        before = [cri.info(id) for id in ids]
    mortal.kill()
    os.kill(before[1]["pid"], signal.SIGKILL)
    until(lambda: before[1]["pid"] not in pauses(mortal.db))
    mortal.start()
    with Client(mortal.socket) as cri:
        assert [READY, NOTREADY, READY] == [cri.status(id).state for id in ids]
        info = cri.info(ids[1])
        assert ("ProcessExited", 0) == (info["reason"], info["pid"])
        assert is_recent(nanoseconds(info["exitedAt"]))
        assert [before[0], before[2]] == [cri.info(ids[0]), cri.info(ids[2])]
        os.kill(before[2]["pid"], signal.SIGKILL)
        until(lambda: cri.status(ids[2]).state == NOTREADY)
        assert "ProcessExited" == cri.info(ids[2])["reason"]
        cri.stop(ids[0])
        assert cri.info(ids[0])["netNamespaceClosed"]


def test_exit_status_of_earlier_servers_process_is_recorded(
    mortal: Server,
) -> None:
    """The kernel reports it from Linux 6.15 on, when init has reaped the process."""
    if not kernel_tells_exits():
        pytest.skip("this kernel does not report the exit status of other processes' children")
    with Client(mortal.socket) as cri:
        id = cri.run(pod_config("web"))
        pid = cri.info(id)["pid"]
    mortal.kill()
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        parent = int(stat.read().rpartition(")")[2].split()[1])
    mortal.start()
    with Client(mortal.socket) as cri:
        os.kill(pid, signal.SIGKILL)
        until(lambda: cri.info(id)["exitStatus"] == 137)
        assert parent != mortal.process.pid  # type: ignore[union-attr]


def test_exits_are_recorded_before_init_reaps(mortal: Server) -> None:
    """Ten zombies are NOTREADY; the exit status follows if the kernel reports it."""
    subreaper = 36
    ctypes.CDLL(None).prctl(subreaper, 1)
    try:
        with Client(mortal.socket) as cri:
            ids = [cri.run(pod_config(f"web-{n}", host_network=True)) for n in range(10)]
        mortal.kill()
    finally:
        ctypes.CDLL(None).prctl(subreaper, 0)
    mortal.start()
    with Client(mortal.socket) as cri:
        pids = [cri.info(id)["pid"] for id in ids]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        until(lambda: not cri.list(state=READY))
        infos = [cri.info(id) for id in ids]  # all ten are zombies still
        for pid in pids:
            os.waitpid(pid, 0)
        assert {f"pause process {pid} has ended" for pid in pids} == {i["message"] for i in infos}
        assert [None] * 10 == [info["exitStatus"] for info in infos]
        if kernel_tells_exits():
            until(lambda: {137} == {cri.info(id)["exitStatus"] for id in ids})


def kernel_tells_exits() -> bool:
    """Return whether the kernel reports the exit status of a process that is no child."""
    return tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (6, 15)


def test_sigterm_ends_server_and_keeps_sandboxes(mortal: Server) -> None:
    """The exit code is 0."""
    with Client(mortal.socket) as cri:
        id = cri.run(pod_config("web"))
    assert 0 == mortal.end()
    mortal.start()
    with Client(mortal.socket) as cri:
        assert READY == cri.status(id).state


@pytest.mark.parametrize("stopped", [True, False])
def test_namespace_removed_while_no_server_ran_is_noticed(mortal: Server, stopped: bool) -> None:
    """The process still runs, and is watched, or ended by a stop."""
    with Client(mortal.socket) as cri:
        id = cri.run(pod_config("web"))
        pid = cri.info(id)["pid"]
    mortal.kill()
    with Store.open(mortal.db, reconcile=False) as store:
        store.get(id).remove_netns()
    mortal.start()
    with Client(mortal.socket) as cri:
        assert (NOTREADY, "NetNSClosed") == (cri.status(id).state, cri.info(id)["reason"])
        assert pid == cri.info(id)["pid"]
        if stopped:
            cri.stop(id)
        else:
            os.kill(pid, signal.SIGKILL)
        until(lambda: cri.info(id)["pid"] == 0)
        assert pid not in pauses(mortal.db)
        assert "NetNSClosed" == cri.info(id)["reason"]


def test_sandboxes_of_other_programs_are_kept(db: str) -> None:
    """An embedder has added one NOTREADY sandbox, and another process is creating one."""
    code = """
        import sys
        from registry import Metadata, State, Status, Store
        with Store.open(sys.argv[1]) as store:
            store.add(Metadata("dead", "dead", None), Status(State.NOTREADY))
            store.add(Metadata("born", "born", None), Status(State.UNKNOWN))
            print("added", flush=True)
            sys.stdin.readline()
        """
    with running(code, db) as other:
        assert "added" == line(other)
        expected = [("born", State.UNKNOWN), ("dead", State.NOTREADY)]
        assert expected == sorted(recovered(db))
    assert [("dead", State.NOTREADY)] == recovered(db)


def test_namespace_without_record_is_removed(db: str) -> None:
    """It remains when a record is removed by hand during a run."""
    with Store.open(db) as store:
        orphan = NetNS.create(store.new_netns_path())
    assert [] == recovered(db)
    assert orphan.closed
    assert not os.path.exists(orphan.path)


def test_resolv_conf_without_record_is_removed(shims: Shims, db: str) -> None:
    """It remains when a record is deleted by hand; that of another sandbox stays."""
    kept, deleted = ran(shims, db, "a"), ran(shims, db, "b")
    with Store.open(db, reconcile=False) as store:
        sandbox = store.get(deleted)
        pid = sandbox.status_as_read.pid
        config = sandbox.config
        assert config is not None
        sandbox.delete()
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in pauses(db))
    assert [(kept, State.READY)] == recovered(db)
    assert [kept] == os.listdir(f"{os.path.realpath(db)}-resolv")
    cgroups.remove(cgroups.path_of(config, deleted))


def test_recovery_continues_after_a_sandbox_that_fails(
    shims: Shims, db: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The config is damaged, or the process cannot be identified; both are logged and kept."""
    first, second = ran(shims, db, "a"), ran(shims, db, "b")
    with Store.open(db, read_only=True) as store:
        pid = store.get(first).status_as_read.pid
    execute(
        db,
        "UPDATE sandbox_statuses SET process_boot_id = NULL, process_pid_ns = NULL, "
        "process_time_ns = NULL, process_inode = NULL, process_start_time = NULL "
        f"WHERE pid = {pid}",
    )
    with Store.open(db) as store, closing(Sandboxer(store, NETWORK)):
        assert {State.READY} == {each.status_as_read.state for each in store.list()}
        assert f"recover sandbox {first!r}" in caplog.text
        os.kill(store.get(second).status_as_read.pid, signal.SIGKILL)
        until(lambda: store.get(second).status_as_read.state is State.NOTREADY)
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in pauses(db))


def test_servers_killed_at_random_lose_no_acknowledged_call(tmp_path: Path) -> None:
    """Eight clients run, stop and remove meanwhile; no other sandbox runs at the end."""
    acknowledged: dict[str, str] = {}
    unsure: set[str] = set()
    stop = threading.Event()

    def churn(worker: int, socket: str, db: str) -> None:
        n = 0
        with Client(socket) as cri:
            while not stop.is_set():
                name, n = f"pod-{worker}-{n}", n + 1
                unsure.add(name)
                with suppress(grpc.RpcError):
                    config = pod_config(name, host_network=worker % 2 == 0)
                    id = cri.run(with_traces(db, config))
                    acknowledged[name] = id
                    unsure.discard(name)
                    if n % 3:
                        unsure.add(name)
                        (cri.stop if n % 3 == 1 else cri.remove)(id)
                        acknowledged[name] = f"{('', 'stopped ', 'removed ')[n % 3]}{id}"
                        unsure.discard(name)

    with serving(tmp_path) as server, ThreadPoolExecutor(8) as pool:
        workers = [pool.submit(churn, worker, server.socket, server.db) for worker in range(8)]
        try:
            for _ in range(5):
                before = len(acknowledged)
                until(lambda before=before: len(acknowledged) > before + 4)  # type: ignore[misc]
                time.sleep(random.uniform(0, 0.1))
                server.kill()
                server.start()
        finally:
            stop.set()
        for worker in workers:
            worker.result()
        server.kill()
        server.start()
        with Client(server.socket) as cri:
            found = {item.id: item.state for item in cri.list()}
            for name, answer in acknowledged.items():
                if name in unsure:
                    continue
                verb, _, id = answer.rpartition(" ")
                expected = {"": READY, "stopped": NOTREADY, "removed": None}[verb]
                assert expected == found.get(id), (name, answer)
            running = {cri.info(id)["pid"] for id, state in found.items() if state == READY}
        with Store.open(server.db, reconcile=False) as store:
            report = store.reconcile(dry_run=True)
            assert {Verdict.OPEN, Verdict.HOST, Verdict.CLOSED} >= set(report.counts)
            assert not any(each.changed for each in report.findings)
            assert () == report.orphans
        assert running == pauses(server.db)
        assert len(acknowledged) >= 25
