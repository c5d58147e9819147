"""The CRI's sandbox calls, as crictl and critest make them."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from registry import Metadata, State, Status, Store
from registry.cri import LinuxContainerResources, PodSandboxConfig
from registry.shim import images
from tests import needs
from tests.shim.client import DEADLINE, NOTREADY, READY, Client, pod_config, refused, upstream
from tests.shim.conftest import NOTHING, Server, left_of
from tests.tools import is_recent

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
]

RESOURCES = "type.googleapis.com/sandbox_registry.cri.v1.LinuxContainerResources"
"""Type URL of the extensions of a sandbox that `sandbox-registry inspect` decodes."""


# Calls that clients make on every connect.


def test_version_and_status_satisfy_crictl(cri: Client) -> None:
    """Crictl refuses a runtime that leaves one of four fields of Version empty."""
    version = cri.call("Version", version="v1")
    assert ("0.1.0", "sandbox-registry", "v1") == (
        version.version,
        version.runtime_name,
        version.runtime_api_version,
    )
    assert version.runtime_version


def test_version_image_fs_and_status_satisfy_critest(cri: Client) -> None:
    """Critest asks for the version, the file system of images, and the conditions."""
    version = cri.call("Version")
    assert "" not in {
        version.version,
        version.runtime_name,
        version.runtime_version,
        version.runtime_api_version,
    }
    conditions = cri.call("Status", verbose=True).status.conditions
    assert {"RuntimeReady": True, "NetworkReady": True} == {
        condition.type: condition.status for condition in conditions
    }


def test_status_tells_what_pods_may_ask_for(cri: Client) -> None:
    """A kubelet refuses pods with user namespaces, and admits a policy of groups."""
    status = cri.call("Status")
    (handler,) = status.runtime_handlers
    assert ("", False, False) == (
        handler.name,
        handler.features.recursive_read_only_mounts,
        handler.features.user_namespaces,
    )
    assert status.features.supplemental_groups_policy


def test_runtime_config_names_the_driver_of_the_host(cri: Client) -> None:
    """A kubelet that is told no driver takes that of its own configuration, and warns."""
    systemd, cgroupfs = 0, 1
    expected = systemd if os.path.isdir("/run/systemd/system") else cgroupfs
    assert expected == cri.call("RuntimeConfig").linux.cgroup_driver


def test_addresses_of_pods_are_accepted_and_logged(server: Server, cri: Client) -> None:
    """A kubelet repeats a call that is refused; CNI has the addresses in its configuration."""
    network = {"pod_cidr": "10.244.1.0/24"}
    cri.call("UpdateRuntimeConfig", runtime_config={"network_config": network})
    assert "addresses of the pods: '10.244.1.0/24'\n" in server.log.read_text()


def test_containers_and_images_are_empty_lists(cri: Client) -> None:
    """A filter in the request changes nothing."""
    wanted = {"pod_sandbox_id": "4a33"}
    assert [] == list(cri.call("ListContainers", filter=wanted).containers)
    assert [] == list(cri.call("ListContainerStats", filter=wanted).stats)
    assert [] == list(cri.call("ListImages", filter={"image": {"image": "web"}}).images)
    assert not cri.call("ImageStatus", image={"image": "web"}, verbose=True).HasField("image")


def test_missing_containers_and_images_are_stopped_and_removed(cri: Client) -> None:
    """They have no status; the other calls are idempotent, as the CRI wants."""
    assert "container 'web'" in refused(
        grpc.StatusCode.NOT_FOUND, cri, "ContainerStatus", container_id="web"
    )
    cri.call("StopContainer", container_id="web", timeout=3)
    cri.call("RemoveContainer", container_id="web")
    cri.call("RemoveImage", image={"image": "web"})


def test_file_system_of_images_is_that_of_the_registry(server: Server, cri: Client) -> None:
    """A kubelet needs one to evict pods; nothing else can be measured without images."""
    info = cri.call("ImageFsInfo")
    (usage,) = info.image_filesystems
    assert [usage] == list(info.container_filesystems)
    assert is_recent(usage.timestamp)
    point = usage.fs_id.mountpoint
    assert os.path.ismount(point)
    assert os.stat(server.db).st_dev == os.stat(point).st_dev
    space = os.statvfs(server.db)
    assert 0 < usage.used_bytes.value <= space.f_blocks * space.f_frsize
    assert 0 <= usage.inodes_used.value <= space.f_files


def test_used_bytes_and_inodes_are_those_that_are_not_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Blocks that are kept for root are not in use."""
    space = {"f_blocks": 10, "f_bfree": 4, "f_bavail": 3, "f_bsize": 8192, "f_frsize": 4096}
    numbers = SimpleNamespace(**space, f_files=9, f_ffree=2)
    monkeypatch.setattr(os, "statvfs", lambda _: numbers)
    (usage,) = images.file_system(str(tmp_path)).image_filesystems
    assert (6 * 4096, 7) == (usage.used_bytes.value, usage.inodes_used.value)


@pytest.mark.parametrize("method", [
    (service, method) for service, methods in upstream()["services"].items() for method in methods
    if method in {
        "CreateContainer", "StartContainer", "UpdateContainerResources", "ReopenContainerLog",
        "ExecSync", "Exec", "Attach", "PortForward", "ContainerStats", "CheckpointContainer",
        "PullImage",
    }
], ids=lambda pair: pair[1])  # fmt: skip
def test_other_methods_are_unimplemented(server: Server, method: tuple[str, str]) -> None:
    """The message names the method; streaming methods are refused in the same way."""
    with grpc.insecure_channel(f"unix://{server.socket}") as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/runtime.v1." + "/".join(method)
        )
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=DEADLINE)
    assert grpc.StatusCode.UNIMPLEMENTED is caught.value.code()
    expected = f"{method[1]}: sandbox-registry runs no containers and has no images"
    assert expected == caught.value.details()


# Refusals.


def test_taken_name_is_refused_and_names_its_holder(cri: Client) -> None:
    """A NOTREADY sandbox keeps its name until it is removed; the message is containerd's."""
    config = pod_config("web")
    id = cri.run(config)
    name = "web_default_uid-web_1"
    expected = f'failed to reserve sandbox name "{name}": name "{name}" is reserved for "{id}"'
    assert expected == refused(grpc.StatusCode.ALREADY_EXISTS, cri, "RunPodSandbox", config=config)
    cri.stop(id)
    assert expected == refused(grpc.StatusCode.ALREADY_EXISTS, cri, "RunPodSandbox", config=config)
    cri.remove(id)
    assert id != cri.run(config)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("metadata", None, "metadata.name"),
        ("hostname", "h" * 65, "longer than 64 bytes"),
        ("hostname", "host\0name", "control characters"),
        ("hostname", "host\nname", "control characters"),
        ("log_directory", "x" * (4 << 20), "config"),
    ],
)
def test_unsupported_config_is_refused(
    server: Server, cri: Client, field: str, value: str | None, why: str
) -> None:
    """The message gives the reason, and no record is left."""
    config = pod_config("web")
    if value is None:
        config.ClearField(field)
    else:
        setattr(config, field, value)
    with pytest.raises(grpc.RpcError) as caught:
        cri.run(config)
    assert caught.value.code() in {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
    assert why in str(caught.value.details())
    assert NOTHING == left_of(server.db)
    assert [] == cri.list()


def test_hostname_is_ignored_on_host_network(cri: Client) -> None:
    """A kubelet sends the name of the node, which may be too long for a sandbox."""
    config = pod_config("web", host_network=True)
    config.hostname = "h" * 65
    assert READY == cri.status(cri.run(config)).state


def test_long_error_keeps_its_beginning_and_end(cri: Client) -> None:
    """The end names the holder of a name; gRPC would drop the whole message."""
    for letter in ("x", "\U0001f600"):
        config = pod_config(letter * 4000)
        config.metadata.uid, config.hostname = "", "web"
        id = cri.run(config)
        message = refused(grpc.StatusCode.ALREADY_EXISTS, cri, "RunPodSandbox", config=config)
        assert message.startswith(f'failed to reserve sandbox name "{letter}')
        assert message.endswith(f'is reserved for "{id}"')


def test_failed_step_undoes_earlier_steps(server: Server, cri: Client) -> None:
    """The kernel refuses the sysctl after record and namespace were made."""
    config = pod_config("web")
    config.linux.sysctls["net.ipv4.no_such_thing"] = "1"
    message = refused(grpc.StatusCode.INVALID_ARGUMENT, cri, "RunPodSandbox", config=config)
    assert "no_such_thing" in message
    assert "No such file" in message
    assert NOTHING == left_of(server.db)
    with Store.open(server.db, read_only=True) as store:
        assert [] == store.list(include_unknown=True)
        assert ["created", "deleted"] == [change.event for change in store.history()[-2:]]
    config.linux.sysctls.clear()
    cri.run(config)


# Ids and filters.


def test_calls_accept_unique_prefixes_of_ids(cri: Client) -> None:
    """Each call that takes an id takes a prefix."""
    id = cri.run(pod_config("web", host_network=True))
    assert id == cri.status(id[:12]).id
    assert [id] == [item.id for item in cri.list(id=id[:12])]
    cri.stop(id[:12])
    cri.remove(id[:12])
    assert [] == cri.list()


def test_ambiguous_prefix_fails_status_and_matches_nothing_in_list(cri: Client) -> None:
    """Two of 17 ids begin with the same character."""
    found = [cri.run(pod_config(f"web-{n}", host_network=True)) for n in range(17)]
    first = [id[0] for id in found]
    prefix = next(letter for letter in first if first.count(letter) > 1)
    fields = {"pod_sandbox_id": prefix}
    refused(grpc.StatusCode.INVALID_ARGUMENT, cri, "PodSandboxStatus", **fields)
    assert [] == cri.list(id=prefix)
    refused(grpc.StatusCode.INVALID_ARGUMENT, cri, "StopPodSandbox", **fields)
    assert 17 == len(cri.list(state=READY))


def test_missing_sandbox_has_no_status_and_is_stopped_and_removed(cri: Client) -> None:
    """It is NOT_FOUND in status, absent in list, and no error in stop and remove."""
    assert "no such sandbox" in refused(
        grpc.StatusCode.NOT_FOUND, cri, "PodSandboxStatus", pod_sandbox_id="4a33"
    )
    assert [] == cri.list(id="4a33")
    cri.stop("4a33")
    cri.remove("4a33")


@pytest.mark.parametrize("method", ["PodSandboxStatus", "StopPodSandbox", "RemovePodSandbox"])
def test_empty_id_is_refused(cri: Client, method: str) -> None:
    """An empty prefix would match every id."""
    refused(grpc.StatusCode.INVALID_ARGUMENT, cri, method)


def test_list_filters_by_state_labels_and_id(cri: Client) -> None:
    """Several filters are combined by AND."""
    web = cri.run(pod_config("web", host_network=True, app="shop", tier="front"))
    db = cri.run(pod_config("db", host_network=True, app="shop", tier="back"))
    cri.stop(db)

    def found(**filters: Any) -> list[str]:
        return [item.id for item in cri.list(**filters)]

    assert [web, db] == found()
    assert [web] == found(state=READY)
    assert [db] == found(state=NOTREADY)
    assert [web, db] == found(label_selector={"app": "shop"})
    assert [db] == found(label_selector={"app": "shop", "tier": "back"})
    assert [] == found(label_selector={"app": "shop", "tier": "back"}, state=READY)
    assert [] == found(label_selector={"app": ""})
    assert [db] == found(id=db, state=NOTREADY)
    assert [] == found(id=db, state=READY)


@pytest.mark.parametrize(("labels", "fits"), [(256, True), (257, False), (2000, False)])
def test_label_selector_accepts_256_labels(cri: Client, labels: int, fits: bool) -> None:
    """More labels are refused, and the message gives their number."""
    wanted = {f"key{n}": f"value{n}" for n in range(labels)}
    if fits:
        id = cri.run(pod_config("web", host_network=True, **wanted))
        cri.run(pod_config("db", host_network=True, key0="value0"))
        assert [id] == [item.id for item in cri.list(label_selector=wanted)]
    else:
        fields = {"filter": {"label_selector": wanted}}
        assert f"{labels} requirements, over the limit of 256" in refused(
            grpc.StatusCode.INVALID_ARGUMENT, cri, "ListPodSandbox", **fields
        )


def test_sandbox_that_never_ran_has_time_of_its_record(server: Server, cri: Client) -> None:
    """Clients show 0 as 1970; addresses are listed too."""
    with Store.open(server.db, reconcile=False) as store:
        config = PodSandboxConfig(metadata={"name": "web"})
        ips = {"ip": "10.88.0.7", "additional_ips": ("fd00::7", "10.88.0.8")}
        store.add(Metadata("4a33", "web", config, **ips), Status(State.NOTREADY))  # type: ignore[arg-type]
    status, (item,) = cri.status("4a33"), cri.list()
    assert status.created_at == item.created_at
    assert is_recent(status.created_at)
    assert "10.88.0.7" == status.network.ip
    assert ["fd00::7", "10.88.0.8"] == [each.ip for each in status.network.additional_ips]


def test_runtime_handler_is_refused(server: Server, cri: Client) -> None:
    """A client that asks for another handler must not get the default one."""
    assert 'failed to get sandbox runtime: no runtime for "gvisor" is configured' == refused(
        grpc.StatusCode.INVALID_ARGUMENT,
        cri,
        "RunPodSandbox",
        config=pod_config("web"),
        runtime_handler="gvisor",
    )
    assert [] == cri.list()
    assert NOTHING == left_of(server.db)


# Resources.


def test_resources_of_the_config_and_of_updates_are_extensions(server: Server, cri: Client) -> None:
    """An update keeps what it lacks; a kubelet sends it after it has changed the pod's cgroup."""
    config = pod_config("web", host_network=True)
    config.linux.overhead.SetInParent()
    config.linux.resources.cpu_shares = 2
    id = cri.run(config)

    def stored() -> dict[str, LinuxContainerResources]:
        with Store.open(server.db, read_only=True) as store:
            found = store.get(id).extensions
            assert {RESOURCES} == {each.type_url for each in found.values()}
            return {
                name: LinuxContainerResources.FromString(each.value) for name, each in found.items()
            }

    overhead, two, many = (LinuxContainerResources(cpu_shares=shares) for shares in (0, 2, 512))
    assert {"overhead": overhead, "resources": two} == stored()
    cri.call("UpdatePodSandboxResources", pod_sandbox_id=id[:12], resources={"cpu_shares": 512})
    assert {"overhead": overhead, "resources": many} == stored()
    assert f"resources of sandbox '{id}' were updated" in server.log.read_text()
    cri.call("UpdatePodSandboxResources", pod_sandbox_id=id)
    assert {"overhead": overhead, "resources": many} == stored()
    refused(grpc.StatusCode.NOT_FOUND, cri, "UpdatePodSandboxResources", pod_sandbox_id="4a33")


def test_resources_that_cannot_be_stored_leave_no_sandbox(cri: Client) -> None:
    """An extension has at most 256 KiB; record and extensions are one commit."""
    config = pod_config("web")
    config.linux.resources.unified["memory.high"] = "1" * (256 << 10)
    refused(grpc.StatusCode.RESOURCE_EXHAUSTED, cri, "RunPodSandbox", config=config)
    assert [] == cri.list()
    config.linux.resources.Clear()
    cri.run(config)
