"""Fixtures: a real server on a real socket, whose sandboxes are removed at the end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from registry import NetNS, Store
from registry.shim.network import Network
from registry.shim.sandboxer import Sandboxer
from tests.shim import traces
from tests.shim.client import Client
from tests.tools import ROOT, environment, query, until

CNI = os.path.join(ROOT, "tests", "shim", "cni")
"""Directory of the configuration and the plugin for pods that need no connection."""
NETWORK = Network(CNI, [CNI])

CHANGE = re.compile(r" sandbox '\w+' of pod .*: \w+ -> \w+")
"""A change of a sandbox, in the log of a server."""


def pauses(db: str) -> set[int]:
    """Return the pids of the pause processes of a registry, held ones too.

    Zombies whose parent is this process or a child of it are included: a zombie has no environment
    that names its registry, and no test may leave one.
    """
    ours = {f"SANDBOX_ID={id}".encode() for (id,) in asked(db, "sandbox_id", "sandbox_transitions")}
    found = set()
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with suppress(OSError):  # the process has ended meanwhile
            with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
                environ = file.readall()
            if environ:
                if not ours.isdisjoint(environ.split(b"\0")):
                    found.add(pid)
            elif state_and_parent(pid)[0] == "Z":
                parent = state_and_parent(pid)[1]
                if os.getpid() in {parent, state_and_parent(parent)[1]}:
                    found.add(pid)
    return found


def state_and_parent(pid: int) -> tuple[str, int]:
    """Return the state of a process, Z for a zombie, and the pid of its parent."""
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
        state, parent = file.readall().decode("latin-1").rpartition(") ")[2].split()[:2]
    return state, int(parent)


def namespaces(db: str) -> set[str]:
    """Return the names of the namespaces of a registry, and of remaining mount-point files."""
    of_ours = tuple(f"sr-{id}-" for (id,) in asked(db, "registry_id", "registry"))
    try:
        return {name for name in os.listdir("/run/netns") if name.startswith(of_ours)}
    except FileNotFoundError:
        return set()


def asked(db: str, column: str, table: str) -> list[tuple[Any, ...]]:
    """Return a column of a registry by plain SQL; [] while the file is missing."""
    return query(db, f"SELECT {column} FROM {table}") if os.path.exists(db) else []


def left_of(db: str) -> tuple[set[int], set[str], set[str]]:
    """Return the processes, the namespaces and the other traces of a registry."""
    return pauses(db), namespaces(db), traces.traces(db)


NOTHING: tuple[set[int], set[str], set[str]] = (set(), set(), set())


class Server:
    """Process `sandbox-registry serve`, which tests kill and start again."""

    def __init__(self, directory: Path) -> None:
        self.db = str(directory / "registry.db")
        self.socket = str(directory / "cri.sock")
        self.log = directory / "log"
        self.cni_conf_dir = self.cni_bin_dir = CNI
        self.netns = ""
        """Path of the network namespace to serve in; "": that of this process."""
        self.process: subprocess.Popen[bytes] | None = None
        self.options: list[str] = []
        """Options beside socket and registry."""

    def lines(self) -> list[str]:
        """Return the lines of the log, without the changes, which a thread of its own logs."""
        lines = self.log.read_text().splitlines()
        return [line for line in lines if not CHANGE.search(line)]

    def command(self) -> list[str]:
        """Return the command line."""
        command = [sys.executable, "-m", "registry", "serve", "--listen", f"unix://{self.socket}"]
        network = ["--cni-conf-dir", self.cni_conf_dir, "--cni-bin-dir", self.cni_bin_dir]
        enter = ["nsenter", f"--net={self.netns}"] if self.netns else []
        return [*enter, *command, *network, "--db", self.db, *self.options]

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        with self.log.open("ab") as log:
            # The server inherits a descriptor, which no sandbox may get.
            self.process = subprocess.Popen(
                self.command(), env=environment(), stderr=log, pass_fds=[log.fileno()]
            )
        with Client(self.socket) as client:
            client.call("Version", wait=True)

    def kill(self) -> None:
        """Kill the server, as the kernel does when memory is short."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """End the server as systemd does, and return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def serving(server: Server | Path, *options: str) -> Iterator[Server]:
    """Run a server; remove its sandboxes at the end, and check that nothing is left.

    A path is the directory of a server with the network of `CNI`.
    """
    if isinstance(server, Path):
        server = Server(server)
    server.options += options
    server.start()
    try:
        yield server
    finally:
        server.kill()
        network = Network(server.cni_conf_dir, [server.cni_bin_dir])
        if server.netns:
            NetNS.load(server.netns).do(lambda: remove_all(server.db, network))
        else:
            remove_all(server.db, network)
    until(lambda: NOTHING == left_of(server.db))
    traces.remove_cgroup(server.db)
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return a running server that the tests of a module share."""
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Server]:
    """Return a running server that the test may kill."""
    with serving(tmp_path) as server:
        yield server


def remove_all(db: str, network: Network = NETWORK) -> None:
    """Remove every sandbox of a registry, and check it."""
    with Store.open(db) as store, closing(Sandboxer(store, network)) as sandboxer:
        for sandbox in store.list(include_unknown=True):
            sandboxer.remove(sandbox.id)
        assert [] == store.list(include_unknown=True)
        assert [] == store.check()


@pytest.fixture
def cri(server: Server) -> Iterator[Client]:
    """Return a client of the server; there are no sandboxes before and after the test."""
    with Client(server.socket) as client:
        yield client
        for item in client.list():
            client.remove(item.id)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[str]:
    """Return the path of a registry to create; it may leave no process and no namespace."""
    db = str(tmp_path / "registry.db")
    yield db
    remove_all(db)
    assert NOTHING == left_of(db)
    traces.remove_cgroup(db)
