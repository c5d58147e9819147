"""Sample sandboxes that resemble a kubelet's."""

from __future__ import annotations

from registry import Metadata, State, Status, Store
from registry.cri import NamespaceMode, PodSandboxConfig


def config(n: int) -> PodSandboxConfig:
    """Return a config of about 600 bytes."""
    uid = f"00000000-0000-0000-0000-{n:012}"
    made = PodSandboxConfig(
        hostname=f"web-{n}", log_directory=f"/var/log/pods/default_web-{n}_{uid}"
    )
    made.metadata.name, made.metadata.namespace, made.metadata.uid = f"web-{n}", "default", uid
    made.dns_config.servers.append("10.96.0.10")
    made.dns_config.searches.extend(["default.svc.cluster.local", "svc.cluster.local"])
    made.dns_config.options.append("ndots:5")
    made.labels.update(
        {
            "app": "web",
            "tier": "front",
            "pod-template-hash": f"{n % 50:08x}",
            "io.kubernetes.pod.name": f"web-{n}",
            "io.kubernetes.pod.namespace": "default",
            "io.kubernetes.pod.uid": uid,
        }
    )
    made.annotations.update(
        {
            "kubernetes.io/config.source": "api",
            "kubernetes.io/config.seen": "2026-11-25T10:00:00.000000000Z",
            "prometheus.io/scrape": "true",
        }
    )
    made.linux.cgroup_parent = f"/kubepods/besteffort/pod{uid}"
    made.linux.security_context.namespace_options.pid = NamespaceMode.CONTAINER
    return made


def sandbox(n: int, *, netns_path: str = "", pid: int = 0) -> tuple[Metadata, Status]:
    """Return a sandbox that is READY."""
    metadata = Metadata(
        f"{n:064x}",
        f"web-{n}_default_{n}",
        config(n),
        ip=f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}",
        netns_path=netns_path,
        runtime_handler="runc",
    )
    return metadata, Status(State.READY, created_at=1 + n, pid=pid)


def name(n: int) -> str:
    """Return the id of the *n*-th sample."""
    return f"{n:064x}"


def fill(path: str, count: int) -> None:
    """Create a registry of *count* sandboxes, in one commit."""
    with Store.open(path, reconcile=False) as store, store.transaction():
        for n in range(count):
            store.add(*sandbox(n))
