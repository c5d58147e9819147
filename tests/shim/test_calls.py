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
    """Make a call that must fail with *code*, and return what it says."""
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


# What clients do on every connect.


def test_crictl_connects(cri: Client) -> None:
    """It asks for the version, and refuses a runtime that leaves one of four fields empty."""
    version = cri.call("Version", version="v1")
    assert ("v1", "sandbox-registry", "v1") == (
        version.version,
        version.runtime_name,
        version.runtime_api_version,
    )
    assert version.runtime_version


def test_critest_connects(cri: Client) -> None:
    """It asks for the version and for the file system of images, then whether all is ready."""
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


def test_there_are_no_containers_and_no_images(cri: Client) -> None:
    """Whatever is asked for."""
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
def test_everything_else_is_unimplemented(server: Server, method: tuple[str, str]) -> None:
    """Streams too."""
    with grpc.insecure_channel(f"unix://{server.socket}") as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/runtime.v1." + "/".join(method)
        )
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=DEADLINE)
    assert grpc.StatusCode.UNIMPLEMENTED is caught.value.code()


# The life of a sandbox.


def test_crictl_runs_stops_and_removes_a_pod(cri: Client) -> None:
    """`runp`, `pods`, `inspectp`, `stopp` and `rmp`, in the order of their calls."""
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
def test_a_sandbox_has_namespaces_of_its_own(cri: Client) -> None:
    """Its network with the loopback up and nothing else, its host name, its IPC."""
    pid = cri.info(cri.run(pod_config("web")))["pid"]
    for kind in ("net", "uts", "ipc"):
        assert namespace_of(pid, kind) != namespace_of(os.getpid(), kind)
    assert "host-of-web\n" == in_network_of(pid, "hostname")
    links = in_network_of(pid, "ip", "-oneline", "link").splitlines()
    assert 1 == len(links)
    assert "lo: <LOOPBACK,UP," in links[0]
    assert socket.gethostname() != "host-of-web"


def test_a_sandbox_on_the_host_network_has_none(server: Server, cri: Client) -> None:
    """Neither a network nor a host name of its own, and no path."""
    before = namespaces(server.db)
    id = cri.run(pod_config("web", host_network=True))
    info = cri.info(id)
    for kind in ("net", "uts"):
        assert namespace_of(info["pid"], kind) == namespace_of(os.getpid(), kind)
    assert namespace_of(info["pid"], "ipc") != namespace_of(os.getpid(), "ipc")
    assert ("", False) == (info["netNamespacePath"], info["netNamespaceClosed"])
    assert before == namespaces(server.db)
    assert NODE == cri.status(id).linux.namespaces.options.network


def test_a_sandbox_may_share_the_ipc_of_the_host(cri: Client) -> None:
    """If its config says so."""
    config = pod_config("web")
    config.linux.security_context.namespace_options.ipc = NODE
    pid = cri.info(cri.run(config))["pid"]
    assert namespace_of(pid, "ipc") == namespace_of(os.getpid(), "ipc")
    assert namespace_of(pid, "net") != namespace_of(os.getpid(), "net")


def test_sysctls_are_set_in_the_sandbox_alone(cri: Client) -> None:
    """Of the network and of IPC, with dots or slashes; to values that the host does not have."""
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
def test_a_sysctl_of_the_host_is_refused(cri: Client, name: str) -> None:
    """Before anything is made."""
    config = pod_config("web")
    config.linux.sysctls[name] = "1"
    message = refused(grpc.StatusCode.INVALID_ARGUMENT, cri, "RunPodSandbox", config=config)
    assert f"{name!r} would change the host" in message
    assert [] == cri.list()


@pytest.mark.parametrize("name", ["net.ipv4.ip_forward", "kernel.shmmni", "kernel.domainname"])
def test_a_sysctl_is_of_the_host_where_the_namespace_is(cri: Client, name: str) -> None:
    """On the host network, or with its IPC."""
    config = pod_config("web", host_network=True)
    config.linux.security_context.namespace_options.ipc = NODE
    config.linux.sysctls[name] = "1"
    refused(grpc.StatusCode.INVALID_ARGUMENT, cri, "RunPodSandbox", config=config)


def test_a_pause_process_has_nothing_of_the_server(server: Server, cri: Client) -> None:
    """No descriptor, session, directory, environment or ignored signal."""
    id = cri.run(pod_config("web"))
    pid = cri.info(id)["pid"]

    def files() -> dict[str, str]:
        opened = f"/proc/{pid}/fd"
        return {fd: os.readlink(f"{opened}/{fd}") for fd in os.listdir(opened)}

    # It is let go by its input, which it then changes for /dev/null.
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


def test_a_pause_process_ignores_no_signal_that_its_server_was_started_with() -> None:
    """As by nohup, or in the background of a script."""
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


def test_a_taken_name_is_refused_naming_its_holder(cri: Client) -> None:
    """In containerd's words; also while it is NOTREADY, and not any more once it is removed."""
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
def test_a_config_that_cannot_be_had_is_refused(
    server: Server, cri: Client, field: str, value: str | None, why: str
) -> None:
    """Saying why, and nothing is left of it."""
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


def test_a_host_name_means_nothing_on_the_host_network(cri: Client) -> None:
    """So any goes: a kubelet sends that of the node."""
    config = pod_config("web", host_network=True)
    config.hostname = "h" * 65
    assert READY == cri.status(cri.run(config)).state


def test_a_long_error_keeps_its_beginning_and_its_end(cri: Client) -> None:
    """Where the holder of a name is, however long that is; gRPC would send none of it."""
    for letter in ("x", "\U0001f600"):
        config = pod_config(letter * 4000)
        config.metadata.uid, config.hostname = "", "web"
        id = cri.run(config)
        message = refused(grpc.StatusCode.ALREADY_EXISTS, cri, "RunPodSandbox", config=config)
        assert message.startswith(f'failed to reserve sandbox name "{letter}')
        assert message.endswith(f'is reserved for "{id}"')


def test_a_step_that_fails_undoes_those_before_it(server: Server, cri: Client) -> None:
    """The sysctl is refused by the kernel, when record and namespace are there already."""
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


# Looking up.


def test_ids_may_be_prefixes(cri: Client) -> None:
    """In every call that takes one."""
    id = cri.run(pod_config("web", host_network=True))
    assert id == cri.status(id[:12]).id
    assert [id] == [item.id for item in cri.list(id=id[:12])]
    cri.stop(id[:12])
    cri.remove(id[:12])
    assert [] == cri.list()


def test_an_ambiguous_prefix_is_an_error_in_status_and_nothing_in_list(cri: Client) -> None:
    """Of 17 ids two begin alike."""
    found = [cri.run(pod_config(f"web-{n}", host_network=True)) for n in range(17)]
    first = [id[0] for id in found]
    prefix = next(letter for letter in first if first.count(letter) > 1)
    fields = {"pod_sandbox_id": prefix}
    refused(grpc.StatusCode.INVALID_ARGUMENT, cri, "PodSandboxStatus", **fields)
    assert [] == cri.list(id=prefix)
    refused(grpc.StatusCode.INVALID_ARGUMENT, cri, "StopPodSandbox", **fields)
    assert 17 == len(cri.list(state=READY))


def test_what_is_missing(cri: Client) -> None:
    """Has no status, is not listed, and is stopped and removed."""
    assert "no such sandbox" in refused(
        grpc.StatusCode.NOT_FOUND, cri, "PodSandboxStatus", pod_sandbox_id="4a33"
    )
    assert [] == cri.list(id="4a33")
    cri.stop("4a33")
    cri.remove("4a33")


@pytest.mark.parametrize("method", ["PodSandboxStatus", "StopPodSandbox", "RemovePodSandbox"])
def test_an_empty_id_is_no_id(cri: Client, method: str) -> None:
    """It would be a prefix of all."""
    refused(grpc.StatusCode.INVALID_ARGUMENT, cri, method)


def test_list_filters(cri: Client) -> None:
    """By state, labels and id, all of them together."""
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
def test_a_label_selector_may_have_256_labels(cri: Client, labels: int, fits: bool) -> None:
    """All of which a sandbox must have; more are refused, and the message says how many."""
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


def test_a_sandbox_that_never_ran_has_a_time_too(server: Server, cri: Client) -> None:
    """That of its record, since clients take 0 for 1970; and the addresses it was given."""
    with Store.open(server.db, reconcile=False) as store:
        config = PodSandboxConfig(metadata={"name": "web"})
        ips = {"ip": "10.88.0.7", "additional_ips": ("fd00::7", "10.88.0.8")}
        store.add(Metadata("4a33", "web", config, **ips), Status(State.NOTREADY))  # type: ignore[arg-type]
    status, (item,) = cri.status("4a33"), cri.list()
    assert status.created_at == item.created_at
    assert is_recent(status.created_at)
    assert "10.88.0.7" == status.network.ip
    assert ["fd00::7", "10.88.0.8"] == [each.ip for each in status.network.additional_ips]


def test_a_runtime_handler_is_refused(server: Server, cri: Client) -> None:
    """There is one way to run a sandbox, and who asks for another must not get this one."""
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
    """The first one ends process and namespace; why and when is told from then on."""
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


def test_stop_succeeds_when_the_namespace_is_gone(cri: Client) -> None:
    """Somebody has removed it."""
    id = cri.run(pod_config("web"))
    path = cri.info(id)["netNamespacePath"]
    kernel.umount(path, kernel.MNT_DETACH)
    os.unlink(path)
    assert cri.info(id)["netNamespaceClosed"]
    cri.stop(id)
    assert NOTREADY == cri.status(id).state


def test_remove_stops_what_runs(server: Server, cri: Client) -> None:
    """And then it is gone, for good, whole."""
    id = cri.run(pod_config("web"))
    cri.remove(id)
    assert NOTHING == left_of(server.db)
    cri.remove(id)
    assert [] == cri.list()


# Exits.


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, 137), (signal.SIGTERM, 143)], ids=["kill", "term"]
)
def test_the_end_of_a_pause_process_is_noted(cri: Client, number: int, status: int) -> None:
    """With exit status, time and reason; no call has to ask for it."""
    id = cri.run(pod_config("web"))
    pid = cri.info(id)["pid"]
    os.kill(pid, number)
    until_stopped(cri, id)
    info = cri.info(id)
    assert (0, status, "ProcessExited") == (info["pid"], info["exitStatus"], info["reason"])
    assert f"pause process {pid} has ended with exit status {status}" == info["message"]
    assert is_recent(info["exitedAt"])
    assert not info["netNamespaceClosed"]


def test_a_stop_after_an_exit_removes_the_namespace_and_keeps_the_reason(cri: Client) -> None:
    """Why it ended is not that somebody stopped it later."""
    id = cri.run(pod_config("web"))
    os.kill(cri.info(id)["pid"], signal.SIGKILL)
    until_stopped(cri, id)
    cri.stop(id)
    info = cri.info(id)
    assert ("ProcessExited", True) == (info["reason"], info["netNamespaceClosed"])
    assert info["message"].endswith("; then it was stopped")
    cri.stop(id)
    assert info == cri.info(id)


def test_the_end_of_a_pause_process_fires_stopch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A waiting thread of this process is woken by the end itself, and by no timer."""
    for timer in ("RETRY", "LOOK"):
        monkeypatch.setattr(f"registry.handles.exit_watcher.{timer}", 3600.0)
    config = PodSandboxConfig.FromString(pod_config("web").SerializeToString())
    with Store.open(tmp_path / "registry.db") as store, closing(Sandboxer(store)) as sandboxer:
        sandbox = store.get(sandboxer.run(config))
        assert not sandbox.stopped.wait(0.05)
        os.kill(sandbox.status_as_read.pid, signal.SIGKILL)
        assert sandbox.stopped.wait(60)
        sandboxer.remove(sandbox.id)
