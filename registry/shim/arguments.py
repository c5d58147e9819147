"""Arguments of CNI plugins from the config of a pod, as containerd passes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import ceil
from typing import Any, Final

from registry.cri import PodSandboxConfig, Protocol
from registry.shim.validate import Refusal

BURST: Final = 2**32 - 1
RATES: Final = range(1000, 10**15 + 1)
"""Burst in bits, and the rates in bits per second that Kubernetes admits."""
SCALES: Final = ("", "k", "M", "G", "T", "P", "E")
"""Suffixes of a quantity of Kubernetes, by powers of 1000; with an i, of 1024."""
BANDWIDTH: Final = "kubernetes.io/{}-bandwidth"
"""Annotation that limits the rate of a pod; ingress or egress."""
NEEDS: Final = {"portMappings": "port_mappings.host_port", "bandwidth": "annotations"}
"""Capability that a plugin of the network must have for a field of a config."""


def cni_args(id: str, config: PodSandboxConfig) -> str:
    """Return CNI_ARGS as containerd does.

    Raises:
        InvalidArgumentError: a name would change the other arguments.
    """
    pod = {"namespace": "K8S_POD_NAMESPACE", "name": "K8S_POD_NAME", "uid": "K8S_POD_UID"}
    args = {"IgnoreUnknown": "1", "K8S_POD_INFRA_CONTAINER_ID": id}
    for name, key in pod.items():
        value = args[key] = getattr(config.metadata, name)
        if not {";", "=", "\0"}.isdisjoint(value):
            why = "has a character that separates arguments of CNI plugins"
            raise Refusal(f"metadata.{name}", value, why).error()
    return ";".join(f"{key}={value}" for key, value in args.items())


def capabilities_of(config: PodSandboxConfig) -> Iterator[tuple[str, Any]]:
    """Yield name and argument of each capability that *config* has something for."""
    ports = [
        {
            "hostPort": port.host_port,
            "containerPort": port.container_port,
            "protocol": Protocol.Name(port.protocol).lower(),
            "hostIP": port.host_ip,
        }
        for port in config.port_mappings
        if port.host_port
    ]
    if ports:
        yield "portMappings", ports
    limits: dict[str, int] = {}
    for kind in ("ingress", "egress"):
        text = config.annotations.get(BANDWIDTH.format(kind))
        if text is not None:
            limits |= {f"{kind}Rate": _rate(kind, text), f"{kind}Burst": BURST}
    if limits:
        yield "bandwidth", limits
    if config.HasField("dns_config"):
        dns = config.dns_config
        lists = {"servers": dns.servers, "searches": dns.searches, "options": dns.options}
        yield "dns", {name: list(values) for name, values in lists.items() if values}
    if config.linux.cgroup_parent:
        yield "cgroupPath", config.linux.cgroup_parent
    yield "io.kubernetes.cri.pod-annotations", dict(config.annotations)


def _rate(kind: str, text: str) -> int:
    """Return the bits per second of a quantity such as 10M.

    Raises:
        InvalidArgumentError: it is none, or Kubernetes does not admit it.
    """
    from decimal import Decimal  # noqa: PLC0415 - few pods have a limit

    found = re.fullmatch(
        r"([0-9]+\.?[0-9]*|\.[0-9]+)(?:([kMGTPE]?)|([KMGTPE])i|[eE]([0-9]{1,2}))", text
    )
    rate = 0
    if found:
        number, decimal, binary, exponent = found.groups()
        scale = 1000 ** SCALES.index(decimal or "")
        scale *= 1024 ** (SCALES.index(binary.replace("K", "k")) if binary else 0)
        rate = ceil(Decimal(number) * scale * 10 ** int(exponent or 0))
    if rate not in RATES:
        why = f"is no rate from {RATES[0]} to {RATES[-1]} bits per second"
        raise Refusal(f"annotations[{BANDWIDTH.format(kind)}]", text, why).error()
    return rate
