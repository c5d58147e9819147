"""Demo of the shim: pods run over the CRI, the server is killed, and the next one recovers.

    make demo-shim

It serves the CRI on a socket in a temporary directory, runs three pods over gRPC, kills the server
and one pause process, serves again, and lists. It needs root, or a kernel that lets users make
namespaces. At the end it removes the pods.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc

from examples.demo import in_namespaces, say, show
from registry import Process
from registry.cri import NamespaceMode, PodSandboxConfig
from registry.shim import runtime_pb2 as api

CONFLIST = '{"cniVersion": "1.0.0", "name": "demo", "plugins": [{"type": "demo"}]}'
PLUGIN = """#!/bin/sh
# CNI plugin of the demo: gives a pod an address, and connects it to nothing.
[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.88.0.7/16"}]}'
"""
EXPECTED = {"web-0": "SANDBOX_READY", "web-1": "SANDBOX_NOTREADY", "proxy": "SANDBOX_READY"}


class Runtime:
    """Client of the CRI."""

    def __init__(self, socket: str) -> None:
        """Prepare the connection, which is made by the first call."""
        options = [(f"grpc.{name}_reconnect_backoff_ms", 20) for name in ("initial", "min", "max")]
        # Otherwise all clients of this process share one connection, also that to a killed server.
        options.append(("grpc.use_local_subchannel_pool", 1))
        self._channel = grpc.insecure_channel(f"unix://{socket}", options)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def call(self, method: str, request: Any) -> Any:
        """Call *method*, and wait for the server if it is starting."""
        return self._channel.unary_unary(
            f"/runtime.v1.RuntimeService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(api, f"{method}Response").FromString,
        )(request, timeout=20, wait_for_ready=True)

    def run(self, pod: str) -> str:
        """Run a pod, and return the id of its sandbox."""
        config = PodSandboxConfig(hostname=pod)
        config.metadata.name, config.metadata.namespace, config.metadata.uid = pod, "default", pod
        if pod == "proxy":
            config.linux.security_context.namespace_options.network = NamespaceMode.NODE
        id = self.call("RunPodSandbox", api.RunPodSandboxRequest(config=config)).pod_sandbox_id
        return str(id)

    def sandboxes(self) -> list[Any]:
        """Return all sandboxes."""
        return list(self.call("ListPodSandbox", api.ListPodSandboxRequest()).items)

    def info(self, id: str) -> Any:
        """Return the verbose information about a sandbox."""
        request = api.PodSandboxStatusRequest(pod_sandbox_id=id, verbose=True)
        return json.loads(self.call("PodSandboxStatus", request).info["info"])

    def remove(self, id: str) -> None:
        """Stop and remove a sandbox."""
        self.call("RemovePodSandbox", api.RemovePodSandboxRequest(pod_sandbox_id=id))


def serve(folder: str) -> subprocess.Popen[bytes]:
    """Start the server; its log goes to a file in *folder*."""
    command = [sys.executable, "-m", "registry", "serve", "--listen", f"unix://{folder}/cri.sock"]
    command += ["--cni-conf-dir", folder, "--cni-bin-dir", folder]
    with open(f"{folder}/log", "ab") as log:
        # A process group of its own: Ctrl-C must not end the server before the pods are removed.
        command += ["--db", f"{folder}/registry.db"]
        return subprocess.Popen(command, stderr=log, process_group=0)


def demonstrate(folder: str) -> None:
    """Run pods, kill the server, serve again, and remove the pods, also when a step fails."""
    overview = "SELECT pod, state, pid, reason FROM sandbox_overview"
    ids: dict[str, str] = {}
    server, runtime = serve(folder), Runtime(f"{folder}/cri.sock")
    try:
        say("A server runs three pods, one of them on the host network.")
        runtime.call("Version", api.VersionRequest())
        for pod in EXPECTED:
            began = time.monotonic()
            ids[pod] = runtime.run(pod)
            print(f"  {pod:6} {ids[pod][:13]}  {(time.monotonic() - began) * 1000:4.0f} ms")

        say("The server is killed with SIGKILL; then the pause process of web-1 is, too.")
        pid = runtime.info(ids["web-1"])["pid"]
        server.kill()
        server.wait()
        kill(pid)
        show(f"{folder}/registry.db", overview)

        say("Another server takes over: ListPodSandbox says")
        began = time.monotonic()
        server = serve(folder)
        states = {
            item.metadata.name: api.PodSandboxState.Name(item.state) for item in runtime.sandboxes()
        }
        for pod, state in states.items():
            print(f"  {pod:6} {state}")
        print(f"\n  {(time.monotonic() - began) * 1000:.0f} ms after its start; and the file says")
        show(f"{folder}/registry.db", overview)
        if states != EXPECTED:
            raise SystemExit(f"the demo expected {EXPECTED}")
    finally:
        # The demo may have been interrupted while no server ran, or while one was dying.
        server.kill()
        server.wait()
        server, runtime = serve(folder), Runtime(f"{folder}/cri.sock")
        for item in runtime.sandboxes():
            runtime.remove(item.id)
        server.terminate()
        server.wait()
        print("\nAll of it is removed again.")


def kill(pid: int) -> None:
    """Kill a process, and wait for its end."""
    with Process.of_pid(pid) as process:
        process.kill()
        process.wait(10)


def main() -> int:
    """Run the demo in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="sandbox-registry-demo-") as folder:
        Path(folder, "10-demo.conflist").write_text(CONFLIST, encoding="utf-8")
        Path(folder, "demo").write_text(PLUGIN, encoding="utf-8")
        Path(folder, "demo").chmod(0o700)
        demonstrate(folder)
    return 0


if __name__ == "__main__":
    sys.exit(in_namespaces(main, ["-m", "examples.demo_shim"]))
