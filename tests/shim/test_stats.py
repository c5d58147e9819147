"""Statistics and metrics of pods, from real cgroups and network namespaces."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import grpc
import pytest

from registry import Store
from registry.shim import cgroups, runtime_pb2, stats
from registry.shim.sandboxer import Sandboxer
from tests import needs
from tests.shim.client import Client, pod_config, refused
from tests.shim.conftest import NETWORK
from tests.shim.traces import whole_pod
from tests.tools import is_recent, line, say

pytestmark = [pytest.mark.netns, needs.namespaces]

LIMIT = 1 << 30
"""Bytes of memory that the cgroup of a pod may have."""
PROCESS = "read go; x=$(head --bytes 8M /dev/zero | tr '\\0' x); echo filled; read end"
"""Shell command that fills its memory once it is in the cgroup: the kernel charges it then."""


@contextmanager
def cgroup(path: str, points: list[str]) -> Iterator[list[Path]]:
    """Make a cgroup in the hierarchies that are mounted at *points*, with a process inside."""
    folders = [Path(point, path) for point in points]
    command = ["sh", "-c", PROCESS]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        for folder in folders:
            folder.mkdir()
            for name in ("cpuset.cpus", "cpuset.mems"):
                if (folder / name).exists():
                    (folder / name).write_text((folder.parent / name).read_text())
            (folder / "cgroup.procs").write_text(str(process.pid))
        try:
            say(process, "go")
            assert "filled" == line(process)
            yield folders
        finally:
            process.communicate()
            for folder in folders:
                folder.rmdir()


@pytest.fixture
def pod() -> Iterator[str]:
    """Return the path of a pod's cgroup as a kubelet makes it, with one process and a limit."""
    path = f"sr-test-{os.getpid()}"
    with cgroup(path, cgroups.hierarchies()) as folders:
        for folder in folders:
            for name in ("memory.max", "memory.limit_in_bytes"):
                if (folder / name).exists():
                    (folder / name).write_text(str(LIMIT))
        yield f"/{path}"


def add_devices(cri: Client, id: str, *names: str) -> None:
    """Make pairs of devices in the network namespace of a sandbox."""
    inside = ["nsenter", f"--net={cri.info(id)['netNamespacePath']}"]
    for name, peer in zip(names[::2], names[1::2], strict=True):
        veth = ["ip", "link", "add", name, "type", "veth", "peer", "name", peer]
        subprocess.run([*inside, *veth], check=True)


def read(path: str, name: str) -> str:
    """Return the content of a file of a cgroup, in the hierarchy that has it."""
    (file,) = (p for each in cgroups.hierarchies() if (p := Path(f"{each}{path}/{name}")).exists())
    return file.read_text()


def cpu_of(path: str) -> int:
    """Return the processor time of a cgroup in nanoseconds."""
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return int(read(path, "cpu.stat").split()[1]) * 1000
    return int(read(path, "cpuacct.usage"))


@needs.cgroups
def test_statistics_of_a_pod_are_those_of_its_cgroup(pod: str, cri: Client) -> None:
    """The cgroup of the pod counts all its processes, not only the pause process."""
    wanted = pod_config("web", app="shop")
    wanted.linux.cgroup_parent = pod
    id = cri.run(wanted)
    before = cpu_of(pod)
    found = cri.call("PodSandboxStats", pod_sandbox_id=id[:12]).stats
    assert before <= found.linux.cpu.usage_core_nano_seconds.value <= cpu_of(pod)
    assert (id, "web", {"app": "shop"}, {"made-by": "a test"}) == (
        found.attributes.id,
        found.attributes.metadata.name,
        dict(found.attributes.labels),
        dict(found.attributes.annotations),
    )
    memory = found.linux.memory
    assert memory.rss_bytes.value > 1 << 20
    assert 1 << 20 < memory.working_set_bytes.value <= memory.usage_bytes.value
    assert LIMIT == memory.available_bytes.value + memory.working_set_bytes.value
    assert memory.page_faults.value > 0
    assert memory.HasField("major_page_faults")
    assert int(read(pod, "pids.current")) == found.linux.process.process_count.value
    for part in (found.linux.cpu, memory, found.linux.process):
        assert is_recent(part.timestamp)


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("memory.current", "anon 100\ninactive_file 300\n"),
        (
            "memory.usage_in_bytes",
            "rss 1\ninactive_file 2\ntotal_rss 100\ntotal_inactive_file 300\n",
        ),
    ],
    ids=["v2", "v1"],
)
def test_working_set_is_the_usage_without_the_cache_that_can_be_dropped(
    tmp_path: Path, name: str, table: str
) -> None:
    """A kubelet evicts by it; cgroup v1 counts the descendants under names of their own."""
    (tmp_path / name).write_text("1000\n")
    (tmp_path / "memory.stat").write_text(table)
    linux = runtime_pb2.LinuxPodSandboxStats()
    stats._count(linux, cgroups.Counters([str(tmp_path)], ""))
    found = (linux.memory.usage_bytes, linux.memory.working_set_bytes, linux.memory.rss_bytes)
    assert [1000, 700, 100] == [each.value for each in found]


@needs.cgroups
def test_memory_without_a_limit_has_nothing_available(pod: str, cri: Client) -> None:
    """The largest number of cgroup v1, or "max", is no number of bytes."""
    for point in cgroups.hierarchies():
        for name, unlimited in (("memory.max", "max"), ("memory.limit_in_bytes", "-1")):
            if (file := Path(f"{point}{pod}/{name}")).exists():
                file.write_text(unlimited)
    wanted = pod_config("web")
    wanted.linux.cgroup_parent = pod
    memory = cri.call("PodSandboxStats", pod_sandbox_id=cri.run(wanted)).stats.linux.memory
    assert memory.HasField("working_set_bytes")
    assert not memory.HasField("available_bytes")


def test_pod_without_cgroup_and_devices_has_no_statistics(cri: Client) -> None:
    """Zeros would be a lie; a kubelet reads an absent message as "unknown"."""
    id = cri.run(pod_config("web", host_network=True))
    found = cri.call("PodSandboxStats", pod_sandbox_id=id).stats
    assert id == found.attributes.id
    assert [] == found.linux.ListFields()
    (metrics,) = cri.call("ListPodSandboxMetrics").pod_metrics
    assert (id, []) == (metrics.pod_sandbox_id, list(metrics.metrics))


@needs.veth
def test_interfaces_of_a_pod_are_counted_in_its_namespace(cri: Client) -> None:
    """A kubelet shows the default interface as the pod; the loopback device does not count."""
    id = cri.run(pod_config("web"))
    add_devices(cri, id, "first", "eth0", "last", "other")
    network = cri.call("PodSandboxStats", pod_sandbox_id=id).stats.linux.network
    assert is_recent(network.timestamp)
    assert "eth0" == network.default_interface.name
    assert {"first", "eth0", "last", "other"} == {each.name for each in network.interfaces}
    for each in network.interfaces:
        assert {"name", "rx_bytes", "rx_errors", "tx_bytes", "tx_errors"} == {
            field.name for field, _ in each.ListFields()
        }


@needs.veth
def test_pod_without_eth0_has_a_default_interface(cri: Client) -> None:
    """A kubelet reads it unchecked."""
    id = cri.run(pod_config("web"))
    add_devices(cri, id, "net1", "net2")
    network = cri.call("PodSandboxStats", pod_sandbox_id=id).stats.linux.network
    assert network.default_interface in network.interfaces
    assert {"net1", "net2"} == {each.name for each in network.interfaces}


def test_list_of_statistics_has_the_ready_sandboxes_that_match(cri: Client) -> None:
    """A kubelet asks for all of them every 10 seconds."""
    web = cri.run(pod_config("web", host_network=True, app="shop"))
    db = cri.run(pod_config("db", host_network=True, app="shop"))
    other = cri.run(pod_config("other", host_network=True))
    cri.stop(db)

    def found(**filters: Any) -> set[str]:
        listed = cri.call("ListPodSandboxStats", filter=filters).stats
        return {each.attributes.id for each in listed}

    assert {web, other} == found()
    assert {web} == found(label_selector={"app": "shop"})
    assert {other} == found(id=other[:12])
    assert set() == found(id=db)
    assert set() == found(id="no-such-sandbox")
    assert "is not ready" in refused(
        grpc.StatusCode.FAILED_PRECONDITION, cri, "PodSandboxStats", pod_sandbox_id=db
    )
    refused(grpc.StatusCode.NOT_FOUND, cri, "PodSandboxStats", pod_sandbox_id="no-such-sandbox")


@needs.cgroups
@needs.veth
def test_metrics_have_the_names_and_labels_of_their_descriptors(pod: str, cri: Client) -> None:
    """A kubelet drops a metric without a descriptor, or with another number of labels."""
    descriptors = {each.name: each for each in cri.call("ListMetricDescriptors").descriptors}
    wanted = pod_config("web")
    wanted.linux.cgroup_parent = pod
    id = cri.run(wanted)
    add_devices(cri, id, "eth0", "other")
    (found,) = cri.call("ListPodSandboxMetrics").pod_metrics
    assert id == found.pod_sandbox_id
    assert set(descriptors) == {each.name for each in found.metrics}
    for each in found.metrics:
        keys = list(descriptors[each.name].label_keys)
        labels = dict(zip(keys, each.label_values, strict=True))
        assert (id, "default", "web") == (labels["id"], labels["namespace"], labels["pod"])
        assert ("network" in each.name) == (labels.get("interface") in {"eth0", "other"})
        assert each.name.endswith("_total") == (each.metric_type == runtime_pb2.COUNTER)
        assert is_recent(each.timestamp)


@needs.cgroups
def test_pressure_is_read_from_cgroup_v2(db: str, tmp_path: Path) -> None:
    """A hierarchy without controllers counts processor time and pressure."""
    point = tmp_path / "cgroup2"
    point.mkdir()
    mounted = subprocess.run(["mount", "-t", "cgroup2", "none", point], check=False)
    if mounted.returncode:
        pytest.skip("the kernel mounts no cgroup v2")
    wanted = whole_pod(db, "web")
    try:
        with (
            cgroup(wanted.linux.cgroup_parent.strip("/"), [str(point)]) as (folder,),
            Store.open(db) as store,
            closing(Sandboxer(store, NETWORK)) as sandboxer,
        ):
            sandbox = store.get(sandboxer.run(wanted))
            item = runtime_pb2.PodSandbox(id=sandbox.id)
            linux = stats.stats_of(item, sandbox, [str(point)]).linux
            assert linux.cpu.HasField("usage_core_nano_seconds")
            assert linux.HasField("memory") == (folder / "memory.pressure").exists()
            for name, part in (("cpu", linux.cpu), ("memory", linux.memory), ("io", linux.io)):
                assert part.psi.HasField("Some") == (folder / f"{name}.pressure").exists()
    finally:
        subprocess.run(["umount", point], check=True)
