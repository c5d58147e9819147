"""The CRI's sandbox calls, as crictl and critest make them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from registry import Metadata, State, Status, Store
from registry.cri import PodSandboxConfig
from registry.host import kernel
from registry.shim.sandboxer import Sandboxer
from tests import needs
from tests.shim.client import DEADLINE, NODE, NOTREADY, READY, Client, pod_config, upstream
from tests.shim.conftest import NOTHING, Server, left_of, namespaces, pauses
from tests.tools import is_recent, run, until

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
]


GLIBC_INTERNAL = 0b11 << 31
"""Signals that glibc keeps for itself, as a mask."""


def refused(code: grpc.StatusCode, cri: Client, method: str, **fields: Any) -> str:
    """Make a call that must fail with *code*, and return its message."""
    with pytest.raises(grpc.RpcError) as caught:
        cri.call(method, **fields)
    assert code is caught.value.code()
    return str(caught.value.details())


def until_stopped(cri: Client, id: str) -> None:
    """Wait until a sandbox is NOTREADY."""
    until(lambda: cri.status(id).state == NOTREADY)


def namespace_of(pid: int, kind: str) -> int:
    """Return the inode of a namespace of a process."""
    return os.stat(f"/proc/{pid}/ns/{kind}").st_ino


def in_network_of(pid: int, *command: str) -> str:
    """Return what *command* prints in the network, IPC and UTS namespaces of a process."""
    enter = ["nsenter", f"--target={pid}", "--net", "--ipc", "--uts"]
    return subprocess.check_output([*enter, *command], text=True)


# Calls that clients make on every connect.


def test_version_and_status_satisfy_crictl(cri: Client) -> None:
    """Crictl refuses a runtime that leaves one of four fields of Version empty."""
    version = cri.call("Version", version="v1")
    assert ("v1", "sandbox-registry", "v1") == (
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
    assert [] == list(cri.call("ImageFsInfo").image_filesystems)
    conditions = cri.call("Status", verbose=True).status.conditions
    assert {"RuntimeReady": True, "NetworkReady": True} == {
        condition.type: condition.status for condition in conditions
    }


def test_containers_and_images_are_empty_lists(cri: Client) -> None:
    """A filter in the request changes nothing."""
    wanted = {"pod_sandbox_id": "4a33"}
    assert [] == list(cri.call("ListContainers", filter=wanted).containers)
    assert [] == list(cri.call("ListImages").images)


@pytest.mark.parametrize("method", [
    (service, method) for service, methods in upstream()["services"].items() for method in methods
    if method not in {
        "Version", "Status", "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox",
        "PodSandboxStatus", "ListPodSandbox", "ListContainers", "ListImages", "ImageFsInfo",
    }
], ids=lambda pair: pair[1])  # fmt: skip
def test_other_methods_are_unimplemented(server: Server, method: tuple[str, str]) -> None:
    """Streaming methods are refused in the same way."""
    with grpc.insecure_channel(f"unix://{server.socket}") as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/runtime.v1." + "/".join(method)
        )
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=DEADLINE)
    assert grpc.StatusCode.UNIMPLEMENTED is caught.value.code()


# The life of a sandbox.


def test_pod_is_run_listed_stopped_and_removed(cri: Client) -> None:
    """The calls are those of `runp`, `pods`, `inspectp`, `stopp` and `rmp`, in this order."""
    cri.call("Version")
    id = cri.run(pod_config("web", app="shop"))
    cri.call("Version")
    (item,) = cri.list()
    assert (id, READY, {"app": "shop"}) == (item.id, item.state, dict(item.labels))
    assert ("web", "default", "uid-web", 1) == (
        item.metadata.name,
        item.metadata.namespace,
        item.metadata.uid,
        item.metadata.attempt,
    )
    assert {"made-by": "a test"} == dict(item.annotations)
    cri.call("Version")
    status = cri.status(id)
    assert (id, item.metadata, READY) == (status.id, status.metadata, status.state)
    assert status.created_at == item.created_at
    assert is_recent(status.created_at)
    assert status.HasField("network")
    assert status.linux.namespaces.HasField("options")
    cri.call("Version")
    cri.stop(id)
    cri.call("Version")
    assert NOTREADY == cri.status(id).state
    cri.remove(id)
    refused(grpc.StatusCode.NOT_FOUND, cri, "PodSandboxStatus", pod_sandbox_id=id)
    assert [] == cri.list()


@needs.program("ip")
def test_sandbox_has_its_own_network_uts_and_ipc_namespaces(cri: Client) -> None:
    """The network has only a loopback device, which is up."""
    pid = cri.info(cri.run(pod_config("web")))["pid"]
    for kind in ("net", "uts", "ipc"):
        assert namespace_of(pid, kind) != namespace_of(os.getpid(), kind)
    assert "host-of-web\n" == in_network_of(pid, "hostname")
    links = in_network_of(pid, "ip", "-oneline", "link").splitlines()
    assert 1 == len(links)
    assert "lo: <LOOPBACK,UP," in links[0]
    assert socket.gethostname() != "host-of-web"


def test_sandbox_on_host_network_has_no_network_and_uts_namespace(
    server: Server, cri: Client
) -> None:
    """The record has no path of a namespace."""
    before = namespaces(server.db)
    id = cri.run(pod_config("web", host_network=True))
    info = cri.info(id)
    for kind in ("net", "uts"):
        assert namespace_of(info["pid"], kind) == namespace_of(os.getpid(), kind)
    assert namespace_of(info["pid"], "ipc") != namespace_of(os.getpid(), "ipc")
    assert ("", False) == (info["netNamespacePath"], info["netNamespaceClosed"])
    assert before == namespaces(server.db)
    assert NODE == cri.status(id).linux.namespaces.options.network


def test_sandbox_shares_host_ipc_when_config_says_node(cri: Client) -> None:
    """The network is its own nevertheless."""
    config = pod_config("web")
    config.linux.security_context.namespace_options.ipc = NODE
    pid = cri.info(cri.run(config))["pid"]
    assert namespace_of(pid, "ipc") == namespace_of(os.getpid(), "ipc")
    assert namespace_of(pid, "net") != namespace_of(os.getpid(), "net")


def test_sysctls_are_set_in_sandbox_and_not_on_host(cri: Client) -> None:
    """Names have dots or slashes; the values differ from the host's."""
    config = pod_config("web")
    before = {}
    for name in (
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ip_forward",
        "net/ipv4/conf/lo/forwarding",
        "kernel.shmmni",
    ):
        path = f"/proc/sys/{name.replace('.', '/')}"
        before[path] = Path(path).read_text(encoding="ascii")
        config.linux.sysctls[name] = "1" if before[path] == "0\n" else "0"
    pid = cri.info(cri.run(config))["pid"]
    for path, ours in before.items():
        assert {"0\n": "1\n"}.get(ours, "0\n") == in_network_of(pid, "cat", path)
        assert ours == Path(path).read_text(encoding="ascii")


@pytest.mark.parametrize("name", [
    "kernel.panic", "vm.swappiness", "net/../kernel/panic", "net..ipv4", "/net", "kernel.sem.",
])  # fmt: skip
def test_sysctl_of_the_host_is_refused(cri: Client, name: str) -> None:
    """The call fails before a record or a namespace is made."""
    config = pod_config("web")
    config.linux.sysctls[name] = "1"
    message = refused(grpc.StatusCode.INVALID_ARGUMENT, cri, "RunPodSandbox", config=config)
    assert f"{name!r} would change the host" in message
    assert [] == cri.list()


@pytest.mark.parametrize("name", ["net.ipv4.ip_forward", "kernel.shmmni", "kernel.domainname"])
def test_sysctl_is_refused_when_namespace_is_shared_with_host(cri: Client, name: str) -> None:
    """The sandbox is on the host network and shares its IPC."""
    config = pod_config("web", host_network=True)
    config.linux.security_context.namespace_options.ipc = NODE
    config.linux.sysctls[name] = "1"
    refused(grpc.StatusCode.INVALID_ARGUMENT, cri, "RunPodSandbox", config=config)


def test_pause_process_inherits_nothing_from_server(server: Server, cri: Client) -> None:
    """Descriptors, session, directory, environment and ignored signals are its own."""
    id = cri.run(pod_config("web"))
    pid = cri.info(id)["pid"]

    def files() -> dict[str, str]:
        opened = f"/proc/{pid}/fd"
        return {fd: os.readlink(f"{opened}/{fd}") for fd in os.listdir(opened)}

    # A line on its input releases it; then it replaces the input by /dev/null.
    until(lambda: dict.fromkeys("012", os.devnull) == files(), files)
    assert (pid, "/") == (os.getsid(pid), os.readlink(f"/proc/{pid}/cwd"))
    with open(f"/proc/{pid}/environ", encoding="ascii") as environ:
        variables = dict(entry.partition("=")[::2] for entry in environ.read().split("\0"))
    assert {"", "PATH", "SANDBOX_ID", "PWD", "OLDPWD", "_"} >= variables.keys()
    assert id == variables["SANDBOX_ID"]
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        masks = dict(
            line.split(":\t", 1) for line in status if line.startswith(("SigBlk", "SigIgn"))
        )
    assert 0 == int(masks["SigBlk"], 16)
    assert 0 == int(masks["SigIgn"], 16) & ~GLIBC_INTERNAL


def test_pause_process_resets_signals_that_server_ignores() -> None:
    """Nohup and scripts start a server with ignored signals."""
    out = run(
        """
        import signal
        from registry.cri import PodSandboxConfig
        from registry.shim import pause
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
            signal.signal(number, signal.SIG_IGN)
        spawned = pause.spawn("a", None, PodSandboxConfig())
        with open(f"/proc/{spawned.process.pid}/status", encoding="ascii") as status:
            print(*(line.split()[1] for line in status if line.startswith("SigIgn")))
        spawned.close()
        """
    )
    assert 0 == int(out, 16) & ~GLIBC_INTERNAL


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
        assert f"are {labels}, over 256" in refused(
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


# Stopping.


def test_stop_is_idempotent(server: Server, cri: Client) -> None:
    """The first call ends process and namespace; reason and time stay."""
    id = cri.run(pod_config("web"))
    before = cri.info(id)
    assert not before["netNamespaceClosed"]
    for _ in range(3):
        cri.stop(id)
        assert NOTREADY == cri.status(id).state
        assert not os.path.exists(before["netNamespacePath"])
    info = cri.info(id)
    assert before["exitedAt"] == 0
    assert is_recent(info["exitedAt"])
    assert (0, True, "SandboxStopped", 128 + signal.SIGKILL) == (
        info["pid"],
        info["netNamespaceClosed"],
        info["reason"],
        info["exitStatus"],
    )
    assert before["pid"] not in pauses(server.db)


def test_stop_succeeds_when_namespace_is_gone(cri: Client) -> None:
    """Another program has removed the namespace."""
    id = cri.run(pod_config("web"))
    path = cri.info(id)["netNamespacePath"]
    kernel.umount(path, kernel.MNT_DETACH)
    os.unlink(path)
    assert cri.info(id)["netNamespaceClosed"]
    cri.stop(id)
    assert NOTREADY == cri.status(id).state


def test_remove_stops_a_running_sandbox(server: Server, cri: Client) -> None:
    """Process, namespace and record are gone afterwards."""
    id = cri.run(pod_config("web"))
    cri.remove(id)
    assert NOTHING == left_of(server.db)
    cri.remove(id)
    assert [] == cri.list()


# Exits.


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, 137), (signal.SIGTERM, 143)], ids=["kill", "term"]
)
def test_exit_of_pause_process_is_recorded(cri: Client, number: int, status: int) -> None:
    """Exit status, time and reason are recorded without a call."""
    id = cri.run(pod_config("web"))
    pid = cri.info(id)["pid"]
    os.kill(pid, number)
    until_stopped(cri, id)
    info = cri.info(id)
    assert (0, status, "ProcessExited") == (info["pid"], info["exitStatus"], info["reason"])
    assert f"pause process {pid} has ended with exit status {status}" == info["message"]
    assert is_recent(info["exitedAt"])
    assert not info["netNamespaceClosed"]


def test_stop_after_exit_removes_namespace_and_keeps_reason(cri: Client) -> None:
    """The reason remains ProcessExited."""
    id = cri.run(pod_config("web"))
    os.kill(cri.info(id)["pid"], signal.SIGKILL)
    until_stopped(cri, id)
    cri.stop(id)
    info = cri.info(id)
    assert ("ProcessExited", True) == (info["reason"], info["netNamespaceClosed"])
    assert info["message"].endswith("; then it was stopped")
    cri.stop(id)
    assert info == cri.info(id)


def test_exit_of_pause_process_sets_stopch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit wakes a waiting thread of this process; no timer is involved."""
    for timer in ("RETRY", "LOOK"):
        monkeypatch.setattr(f"registry.handles.exit_watcher.{timer}", 3600.0)
    config = PodSandboxConfig.FromString(pod_config("web").SerializeToString())
    with Store.open(tmp_path / "registry.db") as store, closing(Sandboxer(store)) as sandboxer:
        sandbox = store.get(sandboxer.run(config))
        assert not sandbox.stopped.wait(0.05)
        os.kill(sandbox.status_as_read.pid, signal.SIGKILL)
        assert sandbox.stopped.wait(60)
        sandboxer.remove(sandbox.id)
