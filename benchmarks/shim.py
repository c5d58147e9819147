"""How long the shim's calls take, with 50 sandboxes on the host network.

    python -m benchmarks.shim

Needs root. Prints medians in milliseconds. The aim: a list takes at most twice as long as Version.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median

from examples.demo_shim import Runtime, serve
from registry.cri import NamespaceMode, PodSandboxConfig
from registry.shim import runtime_pb2 as api

SANDBOXES = 50
CALLS = 300
STARTS = 9


def took(work: Callable[[], object]) -> float:
    """Return how many milliseconds *work* takes."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def run(runtime: Runtime, n: int) -> str:
    """Run a sandbox on the host network, with labels and annotations as a kubelet's has."""
    config = PodSandboxConfig(labels={"app": f"web-{n}", "tier": "front"}, log_directory="/var/log")
    config.metadata.name, config.metadata.namespace = f"web-{n}", "default"
    config.metadata.uid = f"00000000-0000-0000-0000-{n:012}"
    config.annotations["kubernetes.io/config.source"] = "api"
    config.linux.security_context.namespace_options.network = NamespaceMode.NODE
    request = api.RunPodSandboxRequest(config=config)
    return str(runtime.call("RunPodSandbox", request).pod_sandbox_id)


def measure(folder: str) -> None:
    """Print the medians, and remove all sandboxes again."""
    server, runtime = serve(folder), Runtime(f"{folder}/cri.sock")
    try:
        runtime.call("Version", api.VersionRequest())
        runs = [took(lambda n=n: run(runtime, n)) for n in range(SANDBOXES)]  # type: ignore[misc]
        id = runtime.sandboxes()[0].id
        calls = {
            "Version": ("Version", api.VersionRequest()),
            "PodSandboxStatus": (
                "PodSandboxStatus",
                api.PodSandboxStatusRequest(pod_sandbox_id=id, verbose=True),
            ),
            "ListPodSandbox": ("ListPodSandbox", api.ListPodSandboxRequest()),
        }
        for name, (method, request) in calls.items():
            times = [took(lambda m=method, r=request: runtime.call(m, r)) for _ in range(CALLS)]  # type: ignore[misc]
            print(f"{name:28} {median(times):8.2f} ms")
        print(f"{'RunPodSandbox, host network':28} {median(runs):8.2f} ms")
        starts = []
        for _ in range(STARTS):
            server.kill()
            server.wait()
            began = time.perf_counter()
            server, runtime = serve(folder), Runtime(f"{folder}/cri.sock")
            if len(runtime.sandboxes()) != SANDBOXES:
                raise SystemExit("it does not list them all")
            starts.append((time.perf_counter() - began) * 1000)
        print(f"{'start to all 50 listed':28} {median(starts):8.0f} ms")
    finally:
        for item in runtime.sandboxes():
            runtime.call("RemovePodSandbox", api.RemovePodSandboxRequest(pod_sandbox_id=item.id))
        server.terminate()
        server.wait()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="sandbox-registry-bench-") as folder:
        measure(folder)
    sys.exit()
