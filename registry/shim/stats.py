"""Statistics and metrics of a sandbox, from the cgroup of its pod and its network namespace.

A value that the kernel does not tell is absent, never zero: of a pod without a cgroup, of a
controller that is not enabled, of a kernel without PSI.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from registry import ClosedNetNSError, MetadataError, NetNSError, Sandbox
from registry.shim import runtime_pb2 as api
from registry.shim.cgroups import Counters, parent_of
from registry.sync.interrupts import suppress_os_errors

UNLIMITED: Final = 1 << 62
"""Bytes from which on a limit of cgroup v1 is none: the kernel rounds 2^63 - 1 down to a page."""
DEFAULT_INTERFACE: Final = "eth0"
"""Interface that CNI makes for a pod."""
LOOPBACK: Final = "lo"
NANOSECONDS: Final = 10**9
LABELS: Final = ("id", "namespace", "pod")
"""Labels of all metrics; those of an interface have its name too."""


class MetricOf(NamedTuple):
    """Metric of a pod or of an interface, by the name that cAdvisor has given it.

    Attributes:
        name: name of the metric.
        help: its meaning, for people.
        kind: COUNTER or GAUGE.
        part: field of LinuxPodSandboxStats; "" for a metric of an interface.
        field: field of that part, or of NetworkInterfaceUsage.
        divisor: number by which the value is divided.
    """

    name: str
    help: str
    kind: api.MetricType
    part: str
    field: str
    divisor: int = 1

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels."""
        return LABELS if self.part else (*LABELS, "interface")


METRICS: Final = (
    MetricOf(
        "container_cpu_usage_seconds_total",
        "Processor time of the pod in whole seconds.",
        api.COUNTER,
        "cpu",
        "usage_core_nano_seconds",
        NANOSECONDS,
    ),
    MetricOf(
        "container_memory_usage_bytes",
        "Memory of the pod in bytes, with the page cache.",
        api.GAUGE,
        "memory",
        "usage_bytes",
    ),
    MetricOf(
        "container_memory_working_set_bytes",
        "Memory of the pod in bytes, without the page cache that can be dropped.",
        api.GAUGE,
        "memory",
        "working_set_bytes",
    ),
    MetricOf(
        "container_memory_rss",
        "Anonymous memory of the pod in bytes.",
        api.GAUGE,
        "memory",
        "rss_bytes",
    ),
    MetricOf("container_processes", "Processes of the pod.", api.GAUGE, "process", "process_count"),
    *(
        MetricOf(
            f"container_network_{verb}_{unit}_total",
            f"{unit.capitalize()} that the interface {past}.",
            api.COUNTER,
            "",
            f"{short}_{unit}",
        )
        for verb, short, past in (("receive", "rx", "received"), ("transmit", "tx", "sent"))
        for unit in ("bytes", "errors")
    ),
)


def descriptors() -> Iterator[api.MetricDescriptor]:
    """Yield the description of each metric."""
    for each in METRICS:
        yield api.MetricDescriptor(name=each.name, help=each.help, label_keys=each.labels)


def stats_of(item: api.PodSandbox, sandbox: Sandbox, hierarchies: list[str]) -> api.PodSandboxStats:
    """Return the statistics of one sandbox.

    Args:
        item: the sandbox as an item of a list.
        sandbox: its record.
        hierarchies: mount points of the cgroups.
    """
    stats = api.PodSandboxStats(
        attributes=api.PodSandboxAttributes(
            id=item.id,
            metadata=item.metadata,
            labels=item.labels,
            annotations=item.annotations,
        )
    )
    linux = stats.linux
    with suppress(MetadataError):  # a damaged record does not name its cgroup
        if sandbox.config and sandbox.config.linux.cgroup_parent:
            _count(linux, Counters(hierarchies, parent_of(sandbox.config)))
    interfaces = _interfaces(sandbox)
    if interfaces:
        # A kubelet reads the default interface unchecked.
        names = [each.name for each in interfaces]
        default = names.index(DEFAULT_INTERFACE) if DEFAULT_INTERFACE in names else 0
        linux.network.default_interface.CopyFrom(interfaces[default])
        linux.network.interfaces.extend(interfaces)
    now = time.time_ns()
    for _, part in linux.ListFields():
        part.timestamp = now
    return stats


def metrics_of(stats: api.PodSandboxStats) -> api.PodSandboxMetrics:
    """Return the metrics of one sandbox, made of its statistics."""
    attributes, linux = stats.attributes, stats.linux
    labels = (attributes.id, attributes.metadata.namespace, attributes.metadata.name)
    found = api.PodSandboxMetrics(pod_sandbox_id=attributes.id)
    for each in METRICS:
        part = getattr(linux, each.part or "network")
        for source in [part] if each.part else part.interfaces:
            if source.HasField(each.field):
                value = getattr(source, each.field).value // each.divisor
                found.metrics.add(
                    name=each.name,
                    timestamp=part.timestamp,
                    metric_type=each.kind,
                    label_values=labels if each.part else (*labels, source.name),
                    value=api.UInt64Value(value=value),
                )
    return found


def _count(linux: api.LinuxPodSandboxStats, counters: Counters) -> None:
    """Set what the kernel counts in a cgroup."""
    microseconds = counters.table("cpu.stat").get("usage_usec")
    used = counters.number("cpuacct.usage") if microseconds is None else microseconds * 1000
    if used is not None:
        linux.cpu.usage_core_nano_seconds.value = used
    usage = counters.number("memory.current", "memory.usage_in_bytes")
    if usage is not None:
        _count_memory(linux.memory, counters, usage)
    processes = counters.number("pids.current")
    if processes is not None:
        linux.process.process_count.value = processes
    for name in ("cpu", "memory", "io"):
        for kind, values in counters.pressure(name).items():
            data = getattr(getattr(linux, name).psi, kind.capitalize())
            data.Total = int(values["total"]) * 1000
            data.Avg10, data.Avg60, data.Avg300 = (values[f"avg{n}"] for n in (10, 60, 300))


def _count_memory(memory: api.MemoryUsage, counters: Counters, usage: int) -> None:
    """Set the memory of a cgroup, whose descendants cgroup v1 counts under names of their own."""
    table = counters.table("memory.stat")

    def counted(name: str) -> int | None:
        return table.get(f"total_{name}", table.get(name))

    memory.usage_bytes.value = usage
    working_set = max(0, usage - (counted("inactive_file") or 0))
    memory.working_set_bytes.value = working_set
    limit = counters.number("memory.max", "memory.limit_in_bytes")
    if limit is not None and limit < UNLIMITED:
        memory.available_bytes.value = max(0, limit - working_set)
    resident = table.get("anon", table.get("total_rss"))
    for field, value in (
        (memory.rss_bytes, resident),
        (memory.page_faults, counted("pgfault")),
        (memory.major_page_faults, counted("pgmajfault")),
    ):
        if value is not None:
            field.value = value


def _interfaces(sandbox: Sandbox) -> list[api.NetworkInterfaceUsage]:
    """Return the counters of the interfaces of the sandbox's own network namespace."""
    try:
        netns = sandbox.netns
        lines = netns.do(_device_lines) if netns else []
    except (ClosedNetNSError, NetNSError):  # it was removed meanwhile, or cannot be entered
        return []
    found = []
    for line in lines:
        name, _, numbers = line.partition(":")
        if name.strip() != LOOPBACK:
            counts = [api.UInt64Value(value=int(number)) for number in numbers.split()]
            usage = api.NetworkInterfaceUsage(
                name=name.strip(),
                rx_bytes=counts[0],
                rx_errors=counts[2],
                tx_bytes=counts[8],
                tx_errors=counts[10],
            )
            found.append(usage)
    return found


def _device_lines() -> list[str]:
    """Return the lines of /proc/net/dev of the calling thread, without the two of the heading."""
    path = "/proc/thread-self/net/dev"
    with suppress_os_errors(), open(path, encoding="utf-8", errors="replace") as file:
        return file.read().splitlines()[2:]
    return []  # no descriptor is left
