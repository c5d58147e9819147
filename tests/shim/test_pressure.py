"""Server under pressure: limits of tasks and memory, a lost registry, a stopped or deaf server."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from ctypes.util import find_library
from pathlib import Path

import grpc
import pytest

from tests import needs
from tests.shim.client import NOTREADY, READY, Client, pod_config, refused
from tests.shim.conftest import NOTHING, Server, left_of, serving
from tests.tools import environment, python, run, small_file_system, until

pytestmark = [pytest.mark.netns, needs.namespaces]

PIDS = Path("/sys/fs/cgroup/pids")
"""Hierarchy of the controller of pids, version 1."""
GIB = 1 << 30


@pytest.fixture
def limit() -> Iterator[Path]:
    """Return a cgroup whose limit of tasks the test sets."""
    path = PIDS / f"sandbox-registry-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup of the controller of pids can be made: {error.strerror}")
    yield path
    (path / "pids.max").write_text("max")
    for pid in (path / "cgroup.procs").read_text().split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    until(lambda: not (path / "cgroup.procs").read_text())
    path.rmdir()


def join(cgroup: Path) -> list[str]:
    """Return the words before a command line that run the command in *cgroup*."""
    return ["/bin/sh", "-c", f'echo $$ >{cgroup}/cgroup.procs && exec "$@"', "sh"]


@contextmanager
def started(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server that may end by itself, and kill it at the end."""
    with log.open("ab") as file:
        process = subprocess.Popen(command, env=environment(), stderr=file)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def failed(command: list[str]) -> str:
    """Return the one line on stderr of a server that must end by itself with exit code 3."""
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert 3 == done.returncode, done.stderr
    *_, line = done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    return line


@pytest.mark.parametrize("tasks", [2, 20, 50])
def test_server_does_not_start_when_it_cannot_have_its_threads(
    limit: Path, tmp_path: Path, tasks: int
) -> None:
    """The message names the limit; the socket is not there."""
    (limit / "pids.max").write_text(str(tasks))
    server = Server(tmp_path)
    message = failed([*join(limit), *server.command()])
    assert "raise the limit" in message
    assert not os.path.exists(server.socket)


@pytest.mark.parametrize("descriptors", [20, 63])
def test_server_does_not_start_with_few_descriptors(tmp_path: Path, descriptors: int) -> None:
    """GRPC would abort the process without a message that helps."""
    server = Server(tmp_path)
    message = failed(["prlimit", f"--nofile={descriptors}", *server.command()])
    assert f"serve: {descriptors} descriptors are too few; raise their limit" in message
    assert not os.path.exists(server.socket)


@pytest.mark.parametrize("spare", [0, 1, 2, 3, 4])
def test_server_answers_and_ends_when_no_task_can_be_started(
    limit: Path, tmp_path: Path, spare: int
) -> None:
    """Runs are refused; all else works, nothing is left later, and SIGTERM ends the server."""
    with serving(tmp_path) as server, Client(server.socket) as cri:
        id = cri.run(pod_config("before"))
        assert server.process is not None
        (limit / "cgroup.procs").write_text(str(server.process.pid))
        tasks = int((limit / "pids.current").read_text())
        (limit / "pids.max").write_text(str(tasks + spare))
        with ThreadPoolExecutor(64) as pool:
            assert {"sandbox-registry"} == {
                answer.runtime_name
                for answer in pool.map(lambda _: cri.call("Version"), range(256))
            }
        for network in (True, False) if spare == 0 else ():
            refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                cri,
                "RunPodSandbox",
                config=pod_config(f"web-{network}", host_network=network),
            )
            assert [id] == [item.id for item in cri.list()]  # no plugin has begun: none has to end
        with suppress(grpc.RpcError):
            cri.remove(cri.run(pod_config("web")))
        (limit / "pids.max").write_text("max")
        # A plugin that has connected a pod could not be started to disconnect it.
        until(lambda: [id] == [item.id for item in cri.list()])
        cri.remove(id)
        assert NOTHING == left_of(server.db)
        assert 0 == server.end()


def test_stops_and_exits_are_recorded_when_no_task_can_be_started(
    limit: Path, mortal: Server
) -> None:
    """A stop that needs a plugin is refused, and finished by the next server."""
    names = ("host", "pod", "ended")
    with Client(mortal.socket) as cri:
        ids = {name: cri.run(pod_config(name, host_network=name == "host")) for name in names}
        assert mortal.process is not None
        (limit / "cgroup.procs").write_text(str(mortal.process.pid))
        (limit / "pids.max").write_text("0")
        os.kill(cri.info(ids["ended"])["pid"], signal.SIGKILL)
        until(lambda: cri.status(ids["ended"]).state == NOTREADY)
        cri.remove(ids["host"])
        message = refused(
            grpc.StatusCode.RESOURCE_EXHAUSTED, cri, "StopPodSandbox", pod_sandbox_id=ids["pod"]
        )
        assert "raise the limit of tasks" in message
        assert {ids["pod"], ids["ended"]} == {item.id for item in cri.list(state=NOTREADY)}
        assert 0 == mortal.end()
    mortal.start()
    with Client(mortal.socket) as cri:
        assert "not cleaned up yet" not in cri.info(ids["pod"])["message"]
        for id in (ids["pod"], ids["ended"]):
            cri.remove(id)
    assert NOTHING == left_of(mortal.db)


@pytest.mark.parametrize("size", [GIB // 4, GIB // 2, 3 * GIB // 4, GIB, 2 * GIB])
def test_server_serves_or_ends_within_any_address_space(tmp_path: Path, size: int) -> None:
    """It is never alive without answering."""
    server = Server(tmp_path)
    command = ["prlimit", f"--as={size}", *server.command()]
    with started(command, server.log) as process, Client(server.socket) as cri:
        call = cri.begin("Version", timeout=60, wait=True)
        until(lambda: call.done() or process.poll() is not None)
        if process.poll() is None:
            assert "sandbox-registry" == call.result().runtime_name
            process.terminate()
            assert 0 == process.wait()
        else:
            assert 0 != process.returncode
            call.cancel()


def fill_address_space(pid: int, spare: int = 0) -> tuple[int, int]:
    """Let a process have *spare* bytes of address space more, and return its limits before."""
    size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (size + spare, before[1]))
    return before


@pytest.mark.parametrize("spare", [0, 1 << 16, 1 << 20, 9 << 20, 17 << 20, 40 << 20])
def test_server_answers_or_ends_when_its_address_space_is_full(mortal: Server, spare: int) -> None:
    """Runs are refused, all else works, and nothing is left later; SIGTERM ends the server.

    It ends by itself if another thread takes the memory for a frame of a new thread.
    """
    assert mortal.process is not None
    with Client(mortal.socket) as cri:
        id = cri.run(pod_config("before", host_network=True))
        before = fill_address_space(mortal.process.pid, spare)

        def use(number: int) -> set[grpc.StatusCode]:
            config = pod_config(f"web-{number}", host_network=number % 2 == 0)
            calls = [cri.begin("RunPodSandbox", timeout=60, config=config)]
            calls.append(cri.begin("Version", timeout=60))
            calls.append(cri.begin("StopPodSandbox", timeout=60, pod_sandbox_id=id))
            return {call.code() for call in calls}

        with ThreadPoolExecutor(16) as pool:
            codes = set().union(*pool.map(use, range(32)))
        ended = mortal.process.poll()
        if ended is not None or grpc.StatusCode.UNAVAILABLE in codes:
            assert 3 == mortal.process.wait()
            mortal.start()
        else:
            assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert spare or grpc.StatusCode.RESOURCE_EXHAUSTED in codes
            resource.prlimit(mortal.process.pid, resource.RLIMIT_AS, before)
        for item in cri.list():
            cri.remove(item.id)
        cri.remove(cri.run(pod_config("web"), wait=True))
        until(lambda: NOTHING == left_of(mortal.db))
        assert 0 == mortal.end()


def test_full_address_space_does_not_keep_server_from_its_end(mortal: Server) -> None:
    """It is no failure of the server, although no thread can wait for the calls in progress."""
    assert mortal.process is not None
    with Client(mortal.socket) as cri:
        cri.remove(cri.run(pod_config("web")))  # libc keeps the stacks of its threads
        events = cri.stream("GetContainerEvents")
        fill_address_space(mortal.process.pid)
        assert 0 == mortal.end()
        assert events.code() is not None


def test_server_ends_when_a_thread_has_no_memory_to_begin(tmp_path: Path) -> None:
    """The thread that has started it waits for ever, and would keep the server from ending."""
    server = Server(tmp_path)
    code = """
        import sys
        from registry.__main__ import main
        from registry.sync import threads

        threads.require_memory = lambda *_: None
        sys.exit(main())
    """
    command = python(code, *server.command()[3:])
    with started(command, server.log) as process, Client(server.socket) as cri:
        cri.remove(cri.run(pod_config("web"), wait=True))  # libc keeps the stacks of its threads
        fill_address_space(process.pid)
        call = cri.begin("RunPodSandbox", timeout=60, config=pod_config("web"))
        assert 3 == process.wait()
        assert grpc.StatusCode.UNAVAILABLE is call.code()
    assert "Exception ignored in thread started by" in server.log.read_text()
    with serving(server):
        until(lambda: NOTHING == left_of(server.db))


def test_server_says_that_its_descriptors_are_used_up(mortal: Server) -> None:
    """Neither a configuration nor a process is called missing; it serves on once they are not."""
    assert mortal.process is not None
    pid = mortal.process.pid
    with Client(mortal.socket) as cri:
        id = cri.run(pod_config("before"))
        used = set(map(int, os.listdir(f"/proc/{pid}/fd")))
        free = min(set(range(len(used) + 1)) - used)
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, before[1]))
        runtime, network = cri.call("Status").status.conditions
        assert runtime.status
        assert (False, "ResourceExhausted") == (network.status, network.reason)
        assert "raise the limit of descriptors" in network.message
        for host_network in (True, False):
            config = pod_config(f"web-{host_network}", host_network=host_network)
            message = refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED, cri, "RunPodSandbox", config=config
            )
            assert "Too many open files; raise the limit of descriptors" in message
        assert [id] == [item.id for item in cri.list(state=READY)]
        for method in ("StopPodSandbox", "RemovePodSandbox"):
            refused(grpc.StatusCode.RESOURCE_EXHAUSTED, cri, method, pod_sandbox_id=id)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        assert all(each.status for each in cri.call("Status").status.conditions)
        cri.remove(id)
        cri.remove(cri.run(pod_config("web")))
        until(lambda: NOTHING == left_of(mortal.db))
    assert 0 == mortal.end()


@pytest.mark.skipif(find_library("seccomp") is None, reason="libseccomp is not installed")
def test_seccomp_filter_is_not_called_missing_when_no_descriptor_is_left() -> None:
    """A pause process without its filter would be the result, for as long as the server runs."""
    code = """
        import ctypes, resource
        from registry import ResourceExhaustedError
        from registry.shim import seccomp

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            seccomp._library()
        except ResourceExhaustedError as error:
            message = str(error)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        print(message, seccomp._library() is not None)
    """
    assert "Too many open files; raise the limit" in run(code)


def test_full_disk_refuses_runs_and_nothing_else(tmp_path: Path) -> None:
    """Exits and stops are recorded in the disk reserve; runs go on once there is space."""
    server = Server(tmp_path)
    with small_file_system(str(tmp_path / "disk"), 24) as disk:
        server.db = f"{disk}/registry.db"
        with serving(server), Client(server.socket) as cri:
            stopped, ended = cri.run(pod_config("stopped")), cri.run(pod_config("ended"))
            with open(f"{disk}/fill", "wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(4096))
            config = pod_config("web")
            message = refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED, cri, "RunPodSandbox", config=config
            )
            assert "is full" in message
            os.kill(cri.info(ended)["pid"], signal.SIGKILL)
            until(lambda: cri.status(ended).state == NOTREADY)
            cri.remove(stopped)
            assert [ended] == [item.id for item in cri.list()]
            os.unlink(f"{disk}/fill")
            cri.remove(cri.run(config))


def test_server_ends_when_the_thread_of_grpc_has_ended(tmp_path: Path) -> None:
    """The exit code has a supervisor start it again."""
    server = Server(tmp_path)
    code = """
        import sys
        import grpc._server
        from registry.__main__ import main

        def fail(*_):
            raise RuntimeError("can't start new thread")

        grpc._server._process_event_and_continue = fail
        sys.exit(main())
    """
    command = python(code, *server.command()[3:])
    with started(command, server.log) as process, Client(server.socket) as cri:
        call = cri.begin("Version", timeout=60, wait=True)
        assert 3 == process.wait()
        assert call.exception() is not None
    *_, line = server.log.read_text().splitlines()
    assert line.startswith("sandbox-registry: error: serve: thread ")
    assert "RuntimeError" in line


def test_server_without_registry_says_so_and_ends(mortal: Server) -> None:
    """Status has the reason; the next server serves the registry that is in its place."""
    with Client(mortal.socket) as cri:
        id = cri.run(pod_config("web"))
        os.rename(mortal.db, f"{mortal.db}-away")
        message = refused(grpc.StatusCode.DATA_LOSS, cri, "StopPodSandbox", pod_sandbox_id=id)
        ready, _ = cri.call("Status").status.conditions
        assert ("RuntimeReady", False, "DataLoss") == (ready.type, ready.status, ready.reason)
        assert ready.message == message
        assert mortal.process is not None
        assert 3 == mortal.process.wait()
    *_, line = mortal.log.read_text().splitlines()
    assert f"sandbox-registry: error: {message}" == line
    os.rename(f"{mortal.db}-away", mortal.db)
    mortal.start()
    with Client(mortal.socket) as cri:
        assert READY == cri.status(id).state


def test_server_whose_failure_no_client_asks_for_ends_on_a_signal(mortal: Server) -> None:
    """The exit code is that of the failure."""
    with Client(mortal.socket) as cri:
        id = cri.run(pod_config("web"))
        os.rename(mortal.db, f"{mortal.db}-away")
        refused(grpc.StatusCode.DATA_LOSS, cri, "StopPodSandbox", pod_sandbox_id=id)
        assert 3 == mortal.end()
    os.rename(f"{mortal.db}-away", mortal.db)


def test_server_notices_the_loss_of_its_registry_when_a_process_ends(mortal: Server) -> None:
    """No client has to make a change; the next server records the end."""
    with Client(mortal.socket) as cri:
        id = cri.run(pod_config("web"))
        pid = cri.info(id)["pid"]
        os.rename(mortal.db, f"{mortal.db}-away")
        os.kill(pid, signal.SIGKILL)
        until(lambda: not cri.call("Status").status.conditions[0].status)
        assert mortal.process is not None
        assert 3 == mortal.process.wait()
    os.rename(f"{mortal.db}-away", mortal.db)
    mortal.start()
    with Client(mortal.socket) as cri:
        assert "ProcessExited" == cri.info(id)["reason"]


def test_start_beside_stopped_server_is_refused(mortal: Server, tmp_path: Path) -> None:
    """Also when its queue of connections is full; the message says that it is stopped."""
    assert mortal.process is not None
    pid = mortal.process.pid
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    clients = []
    try:
        listen = ["--listen", f"unix://{tmp_path}/other.sock"]
        same = [sys.executable, "-m", "registry", "serve", "--db", mortal.db]
        named = f"another process does, pid {pid} (python, stopped)"
        assert named in failed(mortal.command())
        assert named in failed([*same, *listen])
        while True:
            clients.append(socket.socket(socket.AF_UNIX))
            clients[-1].settimeout(0)
            try:
                clients[-1].connect(mortal.socket)
            except BlockingIOError:
                break
        assert named in failed(mortal.command())
    finally:
        os.kill(pid, signal.SIGCONT)
        for client in clients:
            client.close()


def test_server_does_not_start_without_proc(tmp_path: Path) -> None:
    """Processes of sandboxes are observed there."""
    server = Server(tmp_path)
    hide = ["unshare", "--mount", "/bin/sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    message = failed([*hide, *server.command()])
    assert "serve: /proc cannot be read: No such file or directory; mount it" in message


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x7f\x1b[31m\n2026 forged", b"\x0a\x02\xff\xfe"])
@pytest.mark.parametrize("method", ["RunPodSandbox", "PodSandboxStatus", "Version"])
def test_malformed_request_is_refused_in_one_line_of_the_log(
    server: Server, method: str, data: bytes
) -> None:
    """The bytes stay out of the log, and no traceback is there."""
    before = len(server.lines())
    with grpc.insecure_channel(f"unix://{server.socket}") as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/runtime.v1.RuntimeService/{method}"
        )
        with pytest.raises(grpc.RpcError) as caught:
            call(data, timeout=60)
    assert grpc.StatusCode.INVALID_ARGUMENT is caught.value.code()
    (line,) = server.lines()[before:]
    assert line.endswith(f"INVALID_ARGUMENT: {method}: the request is no valid {method}Request")
