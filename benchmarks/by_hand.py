"""Runs of sandboxes by hand, without a shim: the references of its runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from registry import Metadata, NetNS, Sandbox, State, Status, Store
from registry.cri import NamespaceMode, PodSandboxConfig
from tests.shim.node import PLUGINS, Node


class ByHand(Protocol):
    """Runs by hand."""

    def run(self, n: int) -> None:
        """Run the sandbox with the number *n*."""

    def undo(self) -> None:
        """Remove what the last run has made."""


class HostRuns(ByHand):
    """Steps of a run on the host network: a process, and two commits."""

    def __init__(self, store: Store) -> None:
        """Record the runs in *store*."""
        self._store: Final = store
        self._made: list[tuple[Sandbox, int]] = []

    def run(self, n: int) -> None:
        """Record a sandbox, spawn its process, and record that it is READY."""
        metadata = Metadata(f"hand-{n}", f"hand-{n}", config(n, is_pod=False))
        sandbox = self._store.add(metadata, Status(State.UNKNOWN))
        pid = os.posix_spawn("/bin/sleep", ["sleep", "infinity"], {})
        self._made.append((sandbox, pid))
        ready = Status(State.READY, pid, time.time_ns())
        sandbox.status.update(lambda _: ready)

    def undo(self) -> None:
        """End the process, and delete the record."""
        sandbox, pid = self._made.pop()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        sandbox.delete()


class PodRuns(ByHand):
    """Plugins of a node, run in its host network for one namespace, without a registry."""

    def __init__(self, found: Node) -> None:
        """Create the namespace of the pod."""
        written = Path(found.conf_dir, "10-tests.conflist").read_text(encoding="utf-8")
        self._network: Final = json.loads(written)
        self._host: Final = found.host
        self._pod: Final = NetNS.create()
        self._result: Any = None

    def run(self, _: int) -> None:
        """Run ADD of each plugin."""
        self._result = None
        self._host.do(lambda: self._each("ADD", self._network["plugins"]))

    def undo(self) -> None:
        """Run DEL of each plugin, last first."""
        self._host.do(lambda: self._each("DEL", self._network["plugins"][::-1]))

    def close(self) -> None:
        """Remove the namespace."""
        self._pod.remove()

    def _each(self, command: str, plugins: Sequence[Mapping[str, Any]]) -> None:
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "by-hand",
            "CNI_NETNS": self._pod.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": PLUGINS,
            "PATH": os.environ["PATH"],
        }
        for plugin in plugins:
            request = {**plugin, "name": self._network["name"]}
            request["cniVersion"] = self._network["cniVersion"]
            if "capabilities" in plugin:
                port = {"hostPort": 19_999, "containerPort": 80, "protocol": "tcp"}
                request["runtimeConfig"] = {"portMappings": [port]}
            if self._result is not None:
                request["prevResult"] = self._result
            done = subprocess.run(
                [f"{PLUGINS}/{plugin['type']}"],
                input=json.dumps(request).encode(),
                env=environment,
                stdout=subprocess.PIPE,
                check=True,
            )
            if command == "ADD":
                self._result = json.loads(done.stdout)


def config(n: int, *, is_pod: bool) -> PodSandboxConfig:
    """Return the config of a sandbox, with the labels and annotations of a kubelet."""
    made = PodSandboxConfig(labels={"app": f"web-{n}", "tier": "front"}, log_directory="/var/log")
    made.metadata.name, made.metadata.namespace = f"web-{n}", "default"
    made.metadata.uid = f"00000000-0000-0000-0000-{n:012}"
    made.annotations["kubernetes.io/config.source"] = "api"
    if is_pod:
        made.port_mappings.add(container_port=80, host_port=20_000 + n)
    else:
        made.linux.security_context.namespace_options.network = NamespaceMode.NODE
    return made
