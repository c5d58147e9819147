"""Start and calls of the shim, with 50 sandboxes on the host network.

    python -m benchmarks.shim

Needs root. The references are an empty gRPC server, whose start is the share of grpcio, and the
call Version, which reads nothing.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from benchmarks.measure import HEAD, Figure, of_rounds, single, took
from examples.demo_shim import Runtime
from registry.cri import NamespaceMode, PodSandboxConfig
from registry.shim import runtime_pb2 as api

SANDBOXES = 50
EMPTY = """
import sys
from concurrent.futures import ThreadPoolExecutor
import grpc
server = grpc.server(ThreadPoolExecutor(1))
server.add_insecure_port(sys.argv[1])
server.start()
server.wait_for_termination()
"""


def measure(folder: str, rounds: int, *, calls: int) -> Iterator[Figure]:
    """Yield the figures of the shim, and remove its sandboxes afterwards."""
    place = f"{folder}/shim"
    os.makedirs(place)
    try:
        with serving(place) as runtime:
            for n in range(SANDBOXES):
                run(runtime, n)
        start(place)  # not timed: writes the compiled files
        ours, empty = [], []
        for _ in range(max(rounds, 5)):
            ours.append(took(lambda: start(place)))
            empty.append(took(lambda: start_empty(place)))
        work = f"shim: start to {SANDBOXES} listed after SIGKILL / empty gRPC server"
        yield of_rounds(work, ours, empty, "ms", goal="aim: ours 122 ms")
        with serving(place) as runtime:
            yield single(
                f"ListPodSandbox of {SANDBOXES} / Version",
                lambda _: runtime.call("ListPodSandbox", api.ListPodSandboxRequest()),
                lambda _: runtime.call("Version", api.VersionRequest()),
                "at most 2",
                rounds=rounds,
                calls=calls,
                warm=calls // 3,
            )
    finally:
        with serving(place) as runtime:
            for item in runtime.sandboxes():
                runtime.remove(item.id)


def run(runtime: Runtime, n: int) -> None:
    """Run a sandbox on the host network, with the labels and annotations of a kubelet."""
    config = PodSandboxConfig(labels={"app": f"web-{n}", "tier": "front"}, log_directory="/var/log")
    config.metadata.name, config.metadata.namespace = f"web-{n}", "default"
    config.metadata.uid = f"00000000-0000-0000-0000-{n:012}"
    config.annotations["kubernetes.io/config.source"] = "api"
    config.linux.security_context.namespace_options.network = NamespaceMode.NODE
    runtime.call("RunPodSandbox", api.RunPodSandboxRequest(config=config))


def start(folder: str) -> None:
    """Start the shim, list all sandboxes, and kill it."""
    with serving(folder) as runtime:
        found = len(runtime.sandboxes())
    if found != SANDBOXES:
        raise SystemExit(f"the shim lists {found} of {SANDBOXES} sandboxes")


def start_empty(folder: str) -> None:
    """Start an empty gRPC server, get an answer from it, and kill it."""
    address = f"{folder}/empty.sock"
    with _process([sys.executable, "-c", EMPTY, f"unix:{address}"], address) as runtime:
        try:
            runtime.call("Version", api.VersionRequest())
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise


@contextmanager
def serving(folder: str) -> Iterator[Runtime]:
    """Serve the registry of *folder*; the server is killed at the end, the sandboxes stay."""
    address = f"{folder}/cri.sock"
    command = [sys.executable, "-m", "registry", "serve", "--db", f"{folder}/registry.db"]
    with _process([*command, "--listen", f"unix://{address}"], address) as runtime:
        yield runtime


@contextmanager
def _process(command: list[str], address: str) -> Iterator[Runtime]:
    # With compiled files, as an installed package has them.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    with open(f"{address}.log", "ab") as log:
        process = subprocess.Popen(command, stderr=log, env=environment)
    try:
        _wait(lambda: _answers(address))
        runtime = Runtime(address)
        yield runtime
        runtime.close()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _wait(done: Callable[[], bool]) -> None:
    """Wait until *done*. A gRPC client would reconnect only every 20 ms or more."""
    end = time.monotonic() + 60
    while not done():
        if time.monotonic() > end:
            raise SystemExit("the server does not answer")
        time.sleep(0.001)


def _answers(address: str) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(address)
    except OSError:
        return False
    return True


def main() -> None:
    """Print the figures of the shim."""
    with tempfile.TemporaryDirectory(prefix="sandbox-registry-bench-") as folder:
        print(HEAD)
        for figure in measure(folder, 9, calls=300):
            print(figure, flush=True)


if __name__ == "__main__":
    main()
