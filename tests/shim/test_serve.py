"""Server: command, socket, concurrent calls, and errors of the store."""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from registry import (
    NetNS,
    NetNSError,
    RegistryError,
    State,
    Store,
    UnavailableError,
)
from registry.shim import pause
from registry.shim.sandboxer import Sandboxer
from registry.shim.server import ANSWERS, RUNS
from tests import needs
from tests.shim.client import READY, Client, config, pod_config
from tests.shim.conftest import NETWORK, NOTHING, Server, left_of, pauses
from tests.tools import environment, execute, query, until

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
]


# The command.


def refused(*options: str) -> str:
    """Return the error of a `serve` that must fail."""
    command = [sys.executable, "-m", "registry", "serve", *options]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, check=False, timeout=20
    )
    assert done.returncode in {2, 3}
    assert "Traceback" not in done.stderr
    assert "" == done.stdout
    return done.stderr


@pytest.mark.parametrize(
    "listen",
    ["tcp://127.0.0.1:80", "/run/x.sock", "unix:x.sock", "unix://x.sock", "unix:///run/x/", ""],
)
def test_serve_refuses_other_addresses_than_unix_sockets(tmp_path: Path, listen: str) -> None:
    """The path must be absolute; the message has an example."""
    message = refused("--listen", listen, "--db", str(tmp_path / "registry.db"))
    assert f"serve at {listen!r}" in message
    assert "unix:///run/sandbox-registry.sock" in message
    assert [] == os.listdir(tmp_path)


@pytest.mark.parametrize("name", [b"%41", b"\xff", b"a\nb", b"x" * 108, b"folder", b"file"])
def test_serve_refuses_paths_that_cannot_be_sockets(tmp_path: Path, name: bytes) -> None:
    """The message has one line; files and folders at the path stay."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    listen = os.fsdecode(b"unix://" + os.fsencode(tmp_path) + b"/" + name)
    message = refused("--listen", listen, "--db", str(tmp_path / "registry.db"))
    assert "serve at" in message
    assert 1 == len(message.splitlines())
    assert {"folder", "file"} == set(os.listdir(tmp_path))


def test_serve_refuses_socket_of_another_program(tmp_path: Path) -> None:
    """The other program holds no lock of ours."""
    path = str(tmp_path / "cri.sock")
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(path)
        foreign.listen()
        message = refused("--listen", f"unix://{path}", "--db", str(tmp_path / "registry.db"))
        assert "another process" in message
    assert ["cri.sock"] == os.listdir(tmp_path)


def test_serve_refuses_registry_of_another_server(
    server: Server, cri: Client, tmp_path: Path
) -> None:
    """Another socket or another name of the file makes no difference."""
    id = cri.run(pod_config("web"))
    (tmp_path / "link.db").symlink_to(server.db)
    for db in (server.db, str(tmp_path / "link.db")):
        message = refused("--listen", f"unix://{tmp_path}/other.sock", "--db", db)
        assert f"serve registry {db!r}: another process does" in message
        assert 1 == len(message.splitlines())
    assert READY == cri.status(id).state
    assert ["link.db", "other.sock.lock"] == sorted(os.listdir(tmp_path))


def test_serve_refuses_socket_of_another_server(server: Server) -> None:
    """The first server continues."""
    message = refused("--listen", f"unix://{server.socket}", "--db", server.db)
    assert server.process is not None
    process = f"another process does, pid {server.process.pid} (python"
    assert f"serve at {server.socket!r}: {process}" in message
    assert "; end it first" in message
    with Client(server.socket) as cri:
        cri.call("Version")


def test_serve_fails_when_socket_cannot_be_created(tmp_path: Path) -> None:
    """The path is too long, or its directory is a file."""
    db = str(tmp_path / "registry.db")
    assert "serve at" in refused("--listen", f"unix:///tmp/{'x' * 120}", "--db", db)
    (tmp_path / "file").touch()
    assert "serve at" in refused("--listen", f"unix://{tmp_path}/file/s.sock", "--db", db)


def test_socket_has_mode_0600(server: Server) -> None:
    """A client can start processes as root."""
    assert 0o600 == stat.S_IMODE(os.stat(server.socket).st_mode)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(server.socket)


def test_sigterm_removes_socket_and_finishes_calls(mortal: Server) -> None:
    """Calls in progress are answered."""
    with Client(mortal.socket) as cri, ThreadPoolExecutor(8) as pool:
        runs = [pool.submit(cri.run, pod_config(f"web-{n}")) for n in range(8)]
        until(lambda: any(run.done() for run in runs))
        assert 0 == mortal.end()
        assert {"registry.db", "registry.db-serve", "cri.sock.lock", "log"} == {
            name
            for name in os.listdir(mortal.log.parent)
            if not name.endswith(("-wal", "-shm", "db-lock", "-queue", "-reserve", "-spare"))
        }
        answered = {run.result() for run in runs if run.exception() is None}
    with Store.open(mortal.db, reconcile=False) as store:
        assert answered <= {each.id for each in store.list(state=State.READY)}
        assert [] == [
            each for each in store.list(include_unknown=True) if not each.status_as_read.pid
        ]


# Concurrent calls.


def test_50_pods_run_at_the_same_time(server: Server, cri: Client) -> None:
    """Each has a name, a namespace and a process of its own."""
    with ThreadPoolExecutor(50) as pool:
        pods = [pod_config(f"web-{n}") for n in range(50)]
        ids = list(pool.map(cri.run, pods))
    listed = cri.list(state=READY)
    assert sorted(ids) == sorted(item.id for item in listed)
    infos = [cri.info(id) for id in ids]
    assert 50 == len({info["pid"] for info in infos})
    assert 50 == len({info["netNamespacePath"] for info in infos})
    assert {info["pid"] for info in infos} == pauses(server.db)
    with ThreadPoolExecutor(50) as pool:
        list(pool.map(cri.stop, ids))
    assert [] == cri.list(state=READY)


def test_runs_with_the_same_config_make_one_sandbox(cri: Client) -> None:
    """A call during the run gets its id; the error of a later call names it."""

    def attempt(_: int) -> str:
        try:
            return cri.run(pod_config("web"))
        except grpc.RpcError as error:
            return str(error.details())

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(8)))
    (id,) = [item.id for item in cri.list()]
    assert id in outcomes
    assert all(outcome == id or f'is reserved for "{id}"' in outcome for outcome in outcomes)


@pytest.mark.parametrize("verb", ["stop", "remove"])
@pytest.mark.parametrize(
    ("moment", "host_network"),
    [("create", False), *itertools.product(("spawn", "release"), (False, True))],
)
def test_run_that_is_stopped_meanwhile_is_undone(
    db: str, verb: str, moment: str, monkeypatch: pytest.MonkeyPatch, *, host_network: bool
) -> None:
    """The run fails at whatever step it is, and nothing is left."""
    with Store.open(db) as store, closing(Sandboxer(store, NETWORK)) as sandboxer:
        owner: Any = {"create": NetNS, "spawn": pause, "release": pause.Pause}[moment]
        step = getattr(owner, moment)

        def change_before(*given: Any) -> Any:
            (sandbox,) = store.list(include_unknown=True)
            getattr(sandboxer, verb)(sandbox.id)
            return step(*given)

        monkeypatch.setattr(owner, moment, change_before)
        with pytest.raises(RegistryError):
            sandboxer.run(config(host_network=host_network))
        assert [] == store.list(include_unknown=True)
        assert NOTHING == left_of(db)


def test_concurrent_stops_and_removes_of_one_sandbox_succeed(cri: Client) -> None:
    """The sandbox is gone afterwards."""
    for n in range(5):
        id = cri.run(pod_config(f"web-{n}"))
        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(verb, id) for verb in [cri.stop, cri.remove] * 4]
        assert [None] * 8 == [call.result() for call in calls]
    assert [] == cri.list()


@pytest.mark.parametrize("asked", [1, 2, 3])
def test_cancelled_run_is_undone(db: str, asked: int) -> None:
    """The cancellation is noticed at each step before READY."""
    answers = iter([True] * (asked - 1) + [False])
    with Store.open(db) as store, closing(Sandboxer(store, NETWORK)) as sandboxer:
        with pytest.raises(RegistryError, match="cancelled the call"):
            sandboxer.run(config(), wanted=lambda: next(answers))
        assert [] == store.list(include_unknown=True)
        assert NOTHING == left_of(db)


# Errors.


def pipes_and_processes() -> list[str]:
    """Return the pipes and pidfds that this process has open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(each for each in found if each.startswith("pipe") or "pidfd" in each)


def test_spawn_leaves_no_process_when_descriptors_run_out(db: str) -> None:
    """A failed spawn leaks no descriptor at any limit."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    failed = 0
    with Store.open(db) as store, closing(Sandboxer(store, NETWORK)) as sandboxer:
        sandboxer.remove(sandboxer.run(config()))
        before = pipes_and_processes()
        top = max(int(fd) for fd in os.listdir("/proc/self/fd"))
        fillers = [os.dup(0)]
        while fillers[-1] < top:  # no number below the last one is free
            fillers.append(os.dup(0))
        for spare in range(12):
            resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + spare, limits[1]))
            held = None
            try:
                held = pause.spawn("a", None, config())
            except RegistryError:
                failed += 1
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            if held is not None:
                held.close()
                assert held.process.wait(60)
                held.process.exit_status()
                held.process.close()
            assert set() == pauses(db)
            assert before == pipes_and_processes()
        for filler in fillers:
            os.close(filler)
    assert 0 < failed < 12


def test_server_raises_its_limit_of_descriptors(server: Server) -> None:
    """Each sandbox needs one descriptor."""
    assert server.process is not None
    soft, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    assert hard == soft


def test_damaged_record_does_not_hide_others(mortal: Server) -> None:
    """It is listed by its columns, its status is DATA_LOSS, and it can be stopped and removed."""
    with Client(mortal.socket) as cri:
        whole = cri.run(pod_config("whole"))
        damaged = [cri.run(pod_config(name)) for name in ("hurt-1", "hurt-2")]
    triggers = query(mortal.db, "SELECT name FROM sqlite_schema WHERE type = 'trigger'")
    texts = query(mortal.db, "SELECT sql FROM sqlite_schema WHERE type = 'trigger'")
    mortal.kill()
    execute(
        mortal.db,
        *[f"DROP TRIGGER {name}" for (name,) in triggers],
        "UPDATE sandboxes SET config = x'ffff' WHERE name LIKE 'hurt%'",
        *[sql for (sql,) in texts],
    )
    mortal.start()
    with Client(mortal.socket) as cri:
        found = {item.id: item for item in cri.list()}
        assert {whole, *damaged} == found.keys()
        assert ["hurt-1", "hurt-2"] == [found[id].metadata.name for id in damaged]
        metadata = found[damaged[0]].metadata
        assert ("default", "uid-hurt-1", 1) == (
            metadata.namespace,
            metadata.uid,
            metadata.attempt,
        )
        assert f"read metadata of sandbox {damaged[0]!r}" in mortal.log.read_text()
        with pytest.raises(grpc.RpcError) as caught:
            cri.status(damaged[0])
        assert grpc.StatusCode.DATA_LOSS is caught.value.code()
        cri.stop(damaged[0])
        for id in damaged:
            cri.remove(id)
        assert [whole] == [item.id for item in cri.list()]


def test_failed_change_is_logged_in_one_line(server: Server, cri: Client) -> None:
    """A failed query is not logged."""
    before = len(server.lines())
    for method in ("StopPodSandbox", "PodSandboxStatus"):
        with pytest.raises(grpc.RpcError):
            cri.call(method, pod_sandbox_id="")
    (message,) = server.lines()[before:]
    assert "INVALID_ARGUMENT: get sandbox ''" in message


def test_text_of_a_client_stays_in_its_line_of_the_log(server: Server, cri: Client) -> None:
    """Neither an escape sequence, nor a forged line, nor a character that is not seen."""
    before = len(server.lines())
    refused = pod_config("web")
    refused.hostname = "\x1b[31mx\n2026-01-01 00:00:00,000 registry.shim: forged\u202e\u3164"
    with pytest.raises(grpc.RpcError):
        cri.run(refused)
    (message,) = server.lines()[before:]
    assert message.isprintable()
    assert r"'\x1b[31mx\n2026-01-01 00:00:00,000 registry.shim: forged\u202e\u3164'" in message


def test_list_answers_while_the_database_is_locked(server: Server, cri: Client) -> None:
    """More runs than threads wait until their deadlines; nothing is left, and a retry succeeds."""
    id = cri.run(pod_config("first", host_network=True))
    pods = [pod_config(f"web-{n}", host_network=n % 2 == 0) for n in range(RUNS + ANSWERS + 9)]
    with ThreadPoolExecutor(len(pods)) as pool:
        with Store.open(server.db, reconcile=False) as other, other.transaction():
            runs = [pool.submit(cri.run, pod, timeout=2) for pod in pods]
            while not all(run.done() for run in runs):
                for method in ("Version", "Status", "ListPodSandbox"):
                    cri.call(method)
                assert READY == cri.status(id).state
        errors = [run.exception() for run in runs]
    assert {grpc.StatusCode.DEADLINE_EXCEEDED} == {
        error.code() for error in errors if isinstance(error, grpc.RpcError)
    }
    with Store.open(server.db, read_only=True) as store:
        until(lambda: [id] == [each.id for each in store.list(include_unknown=True)])
    until(lambda: {cri.info(id)["pid"]} == pauses(server.db))

    def retry() -> str:
        try:
            return cri.run(pods[0])
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise
            return ""  # a run that was given up has begun only now, and is being undone

    until(retry)


def test_failed_undo_of_run_is_retried(
    db: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The name is free after the database can be written again."""
    monkeypatch.setattr("registry.handles.exit_watcher.RETRY", 0.01)
    reached, go = threading.Event(), threading.Event()
    create = NetNS.create

    def create_slowly(path: str) -> NetNS:
        reached.set()
        go.wait()
        return create(path)

    monkeypatch.setattr(NetNS, "create", create_slowly)
    with (
        Store.open(db, timeout=0.05) as store,
        closing(Sandboxer(store, NETWORK)) as sandboxer,
        ThreadPoolExecutor(1) as pool,
    ):
        run = pool.submit(sandboxer.run, config())
        reached.wait()
        with Store.open(db, timeout=5) as other, other.transaction():
            go.set()
            assert isinstance(run.exception(), UnavailableError)
            (left,) = store.list(include_unknown=True)
            assert State.UNKNOWN is left.status_as_read.state
            assert f"undo run of sandbox {left.id!r}" in caplog.text
        until(lambda: [] == store.list(include_unknown=True))
        assert NOTHING == left_of(db)
        sandboxer.run(config())


def test_run_that_cannot_be_undone_is_listed_and_can_be_removed(
    db: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The record gives the cause and names what is left; the first error is raised."""
    with Store.open(db) as store, closing(Sandboxer(store, NETWORK)) as sandboxer:
        monkeypatch.setattr("registry.handles.exit_watcher.RETRY", 60)
        with monkeypatch.context() as trouble:
            trouble.setattr("registry.handles.sandbox.Sandbox.remove_netns", _stuck)
            bad = config()
            bad.linux.sysctls["net.ipv4.no_such_thing"] = "1"
            with pytest.raises(RegistryError, match="no_such_thing"):
                sandboxer.run(bad)
        (left,) = store.list()
        assert (State.NOTREADY, "CreationFailed") == (
            left.status_as_read.state,
            left.status_as_read.reason,
        )
        assert "stuck" in left.status_as_read.message
        assert f"undo run of sandbox {left.id!r}" in caplog.text
        assert not NetNS.load(left.netns_path).closed
        sandboxer.remove(left.id)
        assert [] == store.list(include_unknown=True)


def _stuck(_: object) -> None:
    raise NetNSError("it is stuck", path="/run/netns/x", errno=16)


def test_why_names_the_server_and_its_client_as_the_way_to_remove(
    server: Server, cri: Client
) -> None:
    """A namespace or record that is removed by hand leaves the addresses of the pod taken."""
    id = cri.run(pod_config("web"))
    os.kill(cri.info(id)["pid"], signal.SIGKILL)
    until(lambda: cri.status(id).state != READY)
    assert server.process is not None
    actor = f"sandbox-registry serve[{server.process.pid}]"
    history = query(server.db, f"SELECT DISTINCT actor FROM sandbox_history WHERE id = '{id}'")
    assert [(actor,)] == history
    command = [sys.executable, "-m", "registry", "--db", server.db, "why", id, "--json"]
    steps = json.loads(subprocess.check_output(command, env=environment()))["next"]
    assert f"crictl rmp --force {id}" == steps[0]["command"]
    assert f"the last shim in its history is {actor}, and process " in steps[-2]["purpose"]
    assert steps[-2]["purpose"].endswith(" still runs")
    cri.remove(id)
