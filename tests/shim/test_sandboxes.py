"""Sandboxes that the shim runs: namespaces, sysctls, pause processes, stops and exits."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from registry import Store
from registry.cri import PodSandboxConfig
from registry.host import kernel
from registry.shim.sandboxer import Sandboxer
from tests import needs
from tests.shim.client import NODE, NOTREADY, READY, Client, nanoseconds, pod_config, refused
from tests.shim.conftest import NETWORK, NOTHING, Server, left_of, namespaces, pauses
from tests.tools import is_recent, run, until

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
]


GLIBC_INTERNAL = 0b11 << 31
"""Signals that glibc keeps for itself, as a mask."""


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
    assert "" == before["exitedAt"]
    assert is_recent(nanoseconds(info["exitedAt"]))
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
    """Exit status, time and reason are recorded without a call.

    A process with pid 1 in a pid namespace of its own would ignore SIGTERM.
    """
    config = pod_config("web")
    config.linux.security_context.namespace_options.pid = NODE
    id = cri.run(config)
    pid = cri.info(id)["pid"]
    os.kill(pid, number)
    until_stopped(cri, id)
    info = cri.info(id)
    assert (0, status, "ProcessExited") == (info["pid"], info["exitStatus"], info["reason"])
    assert f"pause process {pid} has ended with exit status {status}" == info["message"]
    assert is_recent(nanoseconds(info["exitedAt"]))
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
    with (
        Store.open(tmp_path / "registry.db") as store,
        closing(Sandboxer(store, NETWORK)) as sandboxer,
    ):
        sandbox = store.get(sandboxer.run(config))
        assert not sandbox.stopped.wait(0.05)
        os.kill(sandbox.status_as_read.pid, signal.SIGKILL)
        assert sandbox.stopped.wait(60)
        sandboxer.remove(sandbox.id)
