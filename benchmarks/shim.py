"""Start and calls of the shim, with 50 sandboxes on the host network, and with 50 on a pod network.

    python -m benchmarks.shim

Needs root, and for the pod network the CNI plugins of Debian. The references are an empty gRPC
server, whose start is the share of grpcio; the call Version, which reads nothing; and the steps of
a run by hand.
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
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.by_hand import ByHand, HostRuns, PodRuns, config
from benchmarks.measure import HEAD, Figure, of_rounds, single, took
from examples.demo_shim import Runtime
from registry import Store
from registry.shim import runtime_pb2 as api
from tests.shim.node import PLUGINS, PORTMAP, Node, bridged, node

SANDBOXES = 50
HOST_RUNS: Final = 15
POD_RUNS: Final = 5
"""Runs of sandboxes in one round at most: a run in a pod and its undo by plugins take 0.4 s."""
EMPTY = """
import sys
from concurrent.futures import ThreadPoolExecutor
import grpc
class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
server = grpc.server(ThreadPoolExecutor(1), handlers=[Handler()])
server.add_insecure_port(sys.argv[1])
server.start()
server.wait_for_termination()
"""
"""Server that answers each call with no byte, at the address in its argument."""


def measure(
    folder: str, rounds: int, *, calls: int, sandboxes: int = SANDBOXES
) -> Iterator[Figure]:
    """Yield the figures of the shim, and remove its sandboxes afterwards.

    Args:
        folder: for the registries and the sockets.
        rounds: number of rounds of each row; each gives a ratio.
        calls: number of calls in one round.
        sandboxes: number of sandboxes beside which the calls are made.
    """
    place = Path(folder, "shim")
    place.mkdir()
    yield from Shim(str(place), rounds, sandboxes).on_the_host(calls)
    if not os.path.exists(f"{PLUGINS}/bridge"):
        print(f"no CNI plugins in {PLUGINS}: the rows of pods are left out", file=sys.stderr)
        return
    place = Path(folder, "pods")
    place.mkdir()
    with node(place) as found:
        found.configure(bridged(found.data, PORTMAP))
        yield from Shim(str(place), rounds, sandboxes, found).in_pods(calls)


class Shim:
    """Shim that is started and killed again and again, with the sandboxes of one registry."""

    def __init__(self, folder: str, rounds: int, sandboxes: int, found: Node | None = None) -> None:
        """Serve a registry in *folder*; with a node, its sandboxes are pods of its network."""
        self._folder, self._rounds, self._sandboxes = folder, rounds, sandboxes
        self._node = found

    def on_the_host(self, calls: int) -> Iterator[Figure]:
        """Yield the rows of sandboxes on the host network."""
        with self._filled():
            yield self._starts("shim: start to {} listed after SIGKILL", "aim: ours 122 ms")
            with self._serving() as runtime:
                yield from self._reads(runtime, calls)
                with Store.open(f"{self._folder}/hand.db", reconcile=False) as store:
                    work = "RunPodSandbox, host network / spawn of sleep, two commits"
                    yield self._runs(work, runtime, HostRuns(store), min(calls, HOST_RUNS))

    def in_pods(self, calls: int) -> Iterator[Figure]:
        """Yield the rows of sandboxes on a pod network."""
        assert self._node is not None
        with self._filled():
            yield self._starts("shim: start to {} listed after SIGKILL, CNI")
            with self._serving() as runtime, closing(PodRuns(self._node)) as by_hand:
                work = "RunPodSandbox, CNI / bridge and portmap by hand"
                yield self._runs(work, runtime, by_hand, min(calls, POD_RUNS))

    def _reads(self, runtime: Runtime, calls: int) -> Iterator[Figure]:
        row = partial(single, rounds=self._rounds, calls=calls, warm=calls // 3)

        def version(_: int) -> object:
            return runtime.call("Version", api.VersionRequest())

        with _empty(self._folder) as empty:
            yield row(
                "Version / empty response of a gRPC server",
                version,
                lambda _: empty.call("Version", api.VersionRequest()),
                "",
            )
        status = api.PodSandboxStatusRequest(pod_sandbox_id=runtime.sandboxes()[0].id)
        yield row(
            "PodSandboxStatus / Version",
            lambda _: runtime.call("PodSandboxStatus", status),
            version,
            "",
        )
        yield row(
            f"ListPodSandbox of {self._sandboxes} / Version",
            lambda _: runtime.call("ListPodSandbox", api.ListPodSandboxRequest()),
            version,
            "at most 2",
        )

    def _starts(self, work: str, goal: str = "") -> Figure:
        self._start()  # not timed: writes the compiled files
        ours, empty = [], []
        for _ in range(self._rounds):
            ours.append(took(self._start))
            empty.append(took(lambda: _start_empty(self._folder)))
        work = f"{work.format(self._sandboxes)} / empty gRPC server"
        return of_rounds(work, ours, empty, "ms", goal=goal)

    def _start(self) -> None:
        """Start the shim, list all sandboxes, and kill it."""
        with self._serving() as runtime:
            found = len(runtime.sandboxes())
        if found != self._sandboxes:
            raise SystemExit(f"the shim lists {found} of {self._sandboxes} sandboxes")

    def _runs(self, work: str, runtime: Runtime, by_hand: ByHand, calls: int) -> Figure:
        """Return the figure of runs; both are undone after each, which is not timed."""
        ids = list[str]()

        def undo(_: int) -> None:
            runtime.remove(ids.pop())
            by_hand.undo()

        return single(
            work,
            lambda n: ids.append(self._run(runtime, self._sandboxes + n)),
            by_hand.run,
            "",
            rounds=self._rounds,
            calls=calls,
            warm=1,
            after=undo,
        )

    @contextmanager
    def _filled(self) -> Iterator[None]:
        """Run the sandboxes; remove all that there are at the end."""
        try:
            with self._serving() as runtime:
                for n in range(self._sandboxes):
                    self._run(runtime, n)
            yield
        finally:
            with self._serving() as runtime:
                for item in runtime.sandboxes():
                    runtime.remove(item.id)

    def _run(self, runtime: Runtime, n: int) -> str:
        request = api.RunPodSandboxRequest(config=config(n, is_pod=self._node is not None))
        return str(runtime.call("RunPodSandbox", request).pod_sandbox_id)

    @contextmanager
    def _serving(self) -> Iterator[Runtime]:
        """Serve the registry; the server is killed at the end, the sandboxes stay."""
        address, enter, network = f"{self._folder}/cri.sock", list[str](), list[str]()
        if self._node is not None:
            enter = ["nsenter", f"--net={self._node.host.path}"]
            network = ["--cni-conf-dir", str(self._node.conf_dir), "--cni-bin-dir", PLUGINS]
        command = [*enter, sys.executable, "-m", "registry", "serve", *network]
        command += ["--db", f"{self._folder}/registry.db", "--listen", f"unix://{address}"]
        with _process(command, address) as runtime:
            yield runtime


def _start_empty(folder: str) -> None:
    """Start an empty gRPC server, get an answer from it, and kill it."""
    with _empty(folder) as runtime:
        runtime.call("Version", api.VersionRequest())


@contextmanager
def _empty(folder: str) -> Iterator[Runtime]:
    """Return the client of an empty gRPC server, which is killed at the end."""
    address = f"{folder}/empty.sock"
    with _process([sys.executable, "-c", EMPTY, f"unix:{address}"], address) as runtime:
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
