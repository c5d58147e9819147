"""Habits of a service: log, metrics, health, and the protocol of systemd."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from tests import needs
from tests.shim.client import NOTREADY, Client, pod_config, refused
from tests.shim.conftest import CHANGE, Server, serving, state_and_parent
from tests.tools import ROOT, environment, python, run, until

pytestmark = [pytest.mark.netns, needs.namespaces]

PROXY = "/lib/systemd/systemd-socket-proxyd"
HOSTILE = "\x1b[31mx\n2026-01-01 00:00:00,000 registry.shim: forged\u202e\u3164"


# The log.


def test_every_change_is_one_line_of_the_log(mortal: Server) -> None:
    """Also the end of a process, and what a hostile client calls its pods."""
    with Client(mortal.socket) as cri:
        config = pod_config("web")
        config.metadata.namespace = "pods\u202e\u3164"
        id = cri.run(config)
        os.kill(cri.info(id)["pid"], signal.SIGKILL)
        until(lambda: cri.status(id).state)
        cri.remove(id)
    assert 0 == mortal.end()
    lines = mortal.log.read_text().splitlines()
    changes = [line for line in lines if CHANGE.search(line)]
    assert all(line.isprintable() for line in lines)
    assert all(f"sandbox {id!r} of pod " in line for line in changes)
    assert [
        "none -> SANDBOX_UNKNOWN",
        "SANDBOX_UNKNOWN -> SANDBOX_READY",
        "SANDBOX_READY -> SANDBOX_NOTREADY, ProcessExited",
        "SANDBOX_NOTREADY -> none",
    ] == [re.sub(r".*: (\w+ -> \w+(, ProcessExited)?).*", r"\1", line) for line in changes]


def test_log_as_json_has_one_object_a_line(tmp_path: Path) -> None:
    """With the fields that docs/logging.md names, and the text of a client as a value."""
    with serving(tmp_path, "--log-format", "json") as server:
        with Client(server.socket) as cri:
            config = pod_config("web")
            config.hostname = HOSTILE
            refused(grpc.StatusCode.INVALID_ARGUMENT, cri, "RunPodSandbox", config=config)
            id = cri.run(pod_config("web"))
        assert 0 == server.end()
        text = server.log.read_text()
    assert text.isascii()
    records = [json.loads(line) for line in text.splitlines()]
    for record in records:
        assert {"time", "level", "logger", "message"} <= record.keys()
    by_event = {record.get("event"): record for record in records}
    failed, changed = by_event["call_failed"], by_event["sandbox_changed"]
    assert ("WARNING", "RunPodSandbox", "INVALID_ARGUMENT") == (
        failed["level"],
        failed["method"],
        failed["code"],
    )
    assert (id, "SANDBOX_UNKNOWN", "SANDBOX_READY") == (
        changed["sandbox_id"],
        changed["from_state"],
        changed["to_state"],
    )
    assert re.fullmatch(r"sandbox-registry serve\[\d+\]", changed["actor"])
    assert "SIGTERM" == by_event["ending"]["signal"]


def test_runtime_handler_of_a_client_stays_in_its_line(server: Server, cri: Client) -> None:
    """It is text of the client in a message of containerd's."""
    before = len(server.lines())
    with pytest.raises(grpc.RpcError):
        cri.call("RunPodSandbox", config=pod_config("web"), runtime_handler=HOSTILE)
    (line,) = server.lines()[before:]
    assert line.isprintable()


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("statement", ["log.error(text)", "log.error('%s', text)", "fail()"])
def test_text_that_a_library_logs_stays_in_its_line(form: str, statement: str) -> None:
    """Also an exception that ends the program; the lines of a traceback are indented."""
    code = f"""
        import logging, sys
        from registry.shim.command import configure_log

        def fail():
            raise ValueError(text)

        configure_log({form!r})
        log, text = logging.getLogger("grpc._server"), {HOSTILE!r}
        try:
            fail()
        except ValueError:
            log.exception(text)
        {statement}
    """
    done = subprocess.run(
        python(code), env=environment(), capture_output=True, text=True, check=False
    )
    lines = done.stderr.splitlines()
    assert lines
    for line in lines:
        assert line.removeprefix("\t").isprintable()
    whole = [line for line in lines if not line.startswith("\t")]
    assert 2 == len(whole)
    if form == "json":
        for line in whole:
            json.loads(line)


# Metrics.


def scrape(server: Server) -> str:
    """Return the metrics of a server that was told to choose a port."""
    (address,) = re.findall(r"serving metrics at (\S+)", server.log.read_text())
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
        text: str = answer.read().decode()
    return text


def count(text: str, method: str, code: str) -> int:
    """Return the number of calls of *method* that were answered with *code*."""
    labels = f'{{code="{code}",method="{method}"}}'
    pattern = rf"^sandbox_registry_cri_call_seconds_count{re.escape(labels)} (\S+)$"
    return int(float(next(iter(re.findall(pattern, text, re.MULTILINE)), 0)))


def test_calls_are_counted_by_method_and_code(tmp_path: Path) -> None:
    """With their durations, beside the metrics of the registry; unknown names share a label."""
    with (
        serving(tmp_path, "--metrics-listen", "127.0.0.1:0") as server,
        Client(server.socket) as cri,
    ):
        cri.remove(cri.run(pod_config("web")))
        refused(grpc.StatusCode.NOT_FOUND, cri, "PodSandboxStatus", pod_sandbox_id="none")
        refused(grpc.StatusCode.UNIMPLEMENTED, cri, "CreateContainer")
        text = scrape(server)
        assert 1 == count(text, "RunPodSandbox", "OK") == count(text, "RemovePodSandbox", "OK")
        assert 1 == count(text, "PodSandboxStatus", "NOT_FOUND")
        assert 1 == count(text, "other", "UNIMPLEMENTED")
        assert 'sandbox_registry_cri_call_seconds_bucket{code="OK",le="0.001"' in text
        assert "sandbox_registry_up{" in text
        assert 0 == server.end()


def test_client_that_sends_its_request_slowly_does_not_block_others(tmp_path: Path) -> None:
    """It is cut off, although each of its bytes comes soon after the one before."""
    closing = threading.Event()

    def send() -> None:
        with suppress(OSError):  # it is cut off
            slow.sendall(b"GET /metrics HTTP/1.0\r\nX: ")
            while not closing.wait(0.1):
                slow.sendall(b"x")

    with serving(tmp_path, "--metrics-listen", "127.0.0.1:0") as server:
        (port,) = re.findall(r"serving metrics at 127.0.0.1:(\d+)", server.log.read_text())
        with socket.create_connection(("127.0.0.1", int(port))) as slow:
            sender = threading.Thread(target=send)
            sender.start()
            try:
                assert "sandbox_registry_up{" in scrape(server)
            finally:
                closing.set()
                sender.join()


def test_metrics_wait_for_a_descriptor_and_serve_then(path: str) -> None:
    """The server does not try to accept the client again at once."""
    code = """
        import resource, socket, sys, threading, time
        from registry import Store
        from registry.shim import metrics

        limits = resource.getrlimit(resource.RLIMIT_NOFILE)

        class Clock:
            monotonic = time.monotonic

            def sleep(self, seconds):
                print("waits")
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)

        metrics.time = Clock()
        with Store.open(sys.argv[1]) as store, socket.socket() as client:
            serve = metrics.Metrics(store).listen("127.0.0.1:0")
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
            threading.Thread(target=serve, daemon=True).start()
            client.connect(serve.__self__.server_address)
            client.sendall(b"GET /metrics HTTP/1.0\\r\\n\\r\\n")
            print(client.recv(15).decode())
    """
    assert ["waits", "HTTP/1.0 200 OK"] == run(code, path).splitlines()


@pytest.mark.parametrize("address", ["9464", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536"])
def test_address_of_metrics_must_have_host_and_port(tmp_path: Path, address: str) -> None:
    """The server does not start."""
    server = Server(tmp_path)
    server.options += ["--metrics-listen", address]
    done = subprocess.run(
        server.command(), env=environment(), capture_output=True, text=True, check=False
    )
    assert 2 == done.returncode
    assert f"serve metrics at {address!r}: not HOST:PORT" in done.stderr


def test_taken_port_of_metrics_is_refused(tmp_path: Path) -> None:
    """The message has the cause."""
    server = Server(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server.options += ["--metrics-listen", f"127.0.0.1:{taken.getsockname()[1]}"]
        done = subprocess.run(
            server.command(), env=environment(), capture_output=True, text=True, check=False
        )
    assert 3 == done.returncode
    assert "Address already in use" in done.stderr.splitlines()[-1]


# Health.


def health(channel: grpc.Channel, service: str) -> Any:
    """Return the answer of gRPC's health service about *service*."""
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    return check(HealthCheckRequest(service=service), timeout=60).status


def test_health_service_answers_and_tells_of_the_end(mortal: Server) -> None:
    """An unknown service is NOT_FOUND; a client that watches gets the change before the end."""
    with grpc.insecure_channel(f"unix://{mortal.socket}") as channel:
        assert HealthCheckResponse.SERVING == health(channel, "")
        with pytest.raises(grpc.RpcError) as caught:
            health(channel, "other")
        assert grpc.StatusCode.NOT_FOUND is caught.value.code()
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        statuses = watch(HealthCheckRequest())
        assert HealthCheckResponse.SERVING == next(statuses).status
        assert 0 == mortal.end()
        assert HealthCheckResponse.NOT_SERVING == next(statuses).status
        assert [] == list(statuses)


def test_server_reaps_only_the_processes_of_its_sandboxes(tmp_path: Path) -> None:
    """A child that the program had before belongs to another supervisor."""
    server = Server(tmp_path)
    code = 'sleep infinity & echo $! >"$0" && exec "$@"'
    with ExitStack() as stack:
        process = subprocess.Popen(
            ["/bin/sh", "-c", code, str(tmp_path / "pid"), *server.command()],
            env=environment(),
            stderr=subprocess.DEVNULL,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        with Client(server.socket) as cri:
            ids = [cri.run(pod_config(f"web-{n}"), wait=True) for n in range(2)]
            foreign = int((tmp_path / "pid").read_text())
            assert process.pid == state_and_parent(foreign)[1]
            ended = cri.info(ids[0])["pid"]
            for pid in (foreign, ended):
                os.kill(pid, signal.SIGKILL)
            until(lambda: cri.status(ids[0]).state == NOTREADY)
            until(lambda: not os.path.exists(f"/proc/{ended}"))
            for id in ids:
                cri.remove(id)
            assert ("Z", process.pid) == state_and_parent(foreign)
        process.terminate()
        assert 0 == process.wait()


# systemd.


@needs.program("systemd-analyze")
def test_units_are_accepted_by_systemd(tmp_path: Path) -> None:
    """With the program where it is on this machine."""
    units = sorted(Path(ROOT, "examples").glob("sandbox-registry*.s*"))
    units = [each for each in units if each.stem in {"sandbox-registry", "sandbox-registry-proxy"}]
    assert 3 == len(units)
    for unit in units:
        text = unit.read_text(encoding="utf-8")
        text = text.replace("/usr/local/bin/sandbox-registry", "/bin/true")
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit.name) for unit in units)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert [] == [line for line in done.stderr.splitlines() if "sandbox-registry" in line]


def test_passed_socket_is_refused(tmp_path: Path) -> None:
    """Grpcio cannot serve it, and its clients would wait for ever."""
    server = Server(tmp_path)
    passed = ["/bin/sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3</dev/null', "sh"]
    done = subprocess.run(
        [*passed, *server.command()],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert 3 == done.returncode
    assert "serve: a socket is passed by the supervisor" in done.stderr
    assert not os.path.exists(server.db)


@pytest.mark.parametrize(
    "variables", ["LISTEN_PID=$$ LISTEN_FDS=0", f"NOTIFY_SOCKET=/{'n' * 300}"], ids=["none", "long"]
)
def test_environment_without_a_usable_socket_is_ignored(tmp_path: Path, variables: str) -> None:
    """No descriptor is passed, or the address of the supervisor is longer than the kernel takes."""
    server = Server(tmp_path)
    with ExitStack() as stack:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f'{variables} exec "$@"', "sh", *server.command()],
            env=environment(),
            stderr=subprocess.DEVNULL,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        with Client(server.socket) as cri:
            cri.call("Version", wait=True)


@needs.program("systemd-socket-activate")
@pytest.mark.skipif(not os.path.exists(PROXY), reason=f"{PROXY} is not installed")
def test_socket_of_systemd_is_served_through_its_proxy(server: Server, tmp_path: Path) -> None:
    """As the units in examples/ do; the client connects before the proxy runs."""
    path = str(tmp_path / "activated.sock")
    with ExitStack() as stack:
        process = subprocess.Popen(
            ["systemd-socket-activate", "--listen", path, PROXY, server.socket],
            stderr=subprocess.DEVNULL,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        until(lambda: os.path.exists(path))
        with Client(path) as cri:
            id = cri.run(pod_config("web"), wait=True)
            stream = cri.stream("GetContainerEvents")
            cri.remove(id)
            assert [2, 3] == [next(stream).container_event_type for _ in range(2)]
            stream.cancel()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Return the socket of a supervisor that is told of the state."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        yield manager


def supervised(
    stack: ExitStack, server: Server, manager: socket.socket, **variables: str
) -> subprocess.Popen[bytes]:
    """Start *server* beneath *manager*, and return its process, which is killed at the end."""
    env = {**environment(), "NOTIFY_SOCKET": manager.getsockname(), **variables}
    with server.log.open("ab") as log:
        process = subprocess.Popen(server.command(), env=env, stderr=log)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def test_supervisor_is_told_of_start_and_end(tmp_path: Path, manager: socket.socket) -> None:
    """READY=1 when calls are answered, and STOPPING=1 on SIGTERM."""
    server = Server(tmp_path)
    with ExitStack() as stack:
        process = supervised(stack, server, manager)
        assert f"READY=1\nSTATUS=serving {server.db}" == manager.recv(4096).decode()
        with Client(server.socket) as cri:
            cri.call("Version")
        process.terminate()
        assert b"STATUS=ending: SIGTERM" == manager.recv(4096)
        assert b"STOPPING=1" == manager.recv(4096)
        assert 0 == process.wait()


def drain(manager: socket.socket) -> int:
    """Receive what was sent so far, and return the number of messages."""
    manager.settimeout(0)
    for count in range(1000):
        try:
            manager.recv(4096)
        except BlockingIOError:
            return count
    raise AssertionError("the messages have no end")


def test_watchdog_is_fed_while_calls_are_answered(tmp_path: Path, manager: socket.socket) -> None:
    """Not when the socket is no longer that of the server."""
    server = Server(tmp_path)
    with ExitStack() as stack:
        supervised(stack, server, manager, WATCHDOG_USEC="200000")
        assert manager.recv(4096).startswith(b"READY=1")
        assert b"WATCHDOG=1" == manager.recv(4096) == manager.recv(4096)
        os.unlink(server.socket)
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.bind(server.socket)
            deaf.listen()
            deaf.settimeout(60)
            deaf.accept()[0].close()  # the check that was under way before is over
            drain(manager)
            for _ in range(3):
                deaf.accept()[0].close()
            assert 0 == drain(manager)


def test_failure_is_told_to_the_supervisor(tmp_path: Path, manager: socket.socket) -> None:
    """The status has the cause; the end is told after a client has asked for the state."""
    server = Server(tmp_path)
    with ExitStack() as stack:
        process = supervised(stack, server, manager)
        manager.recv(4096)
        os.rename(server.db, f"{server.db}-away")
        with Client(server.socket) as cri:
            refused(grpc.StatusCode.DATA_LOSS, cri, "RunPodSandbox", config=pod_config("web"))
            assert manager.recv(4096).startswith(b"STATUS=ending: ")
            assert 0 == drain(manager)
            cri.call("Status")
        manager.settimeout(60)
        assert b"STOPPING=1" == manager.recv(4096)
        assert 3 == process.wait()
