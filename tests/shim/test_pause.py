"""Namespaces, mounts and privileges of the pause process, as the kernel shows them in /proc."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from registry import Store
from registry.cri import DNSConfig
from registry.shim import mounts, seccomp
from registry.shim.sandboxer import Sandboxer
from tests import needs
from tests.shim.client import NODE, Client, config, pod_config
from tests.shim.conftest import NETWORK, Server
from tests.tools import environment, python, run, until

pytestmark = [pytest.mark.netns, needs.namespaces]

POD, CONTAINER = 0, 1
"""Numbers of NamespaceMode."""


def status_of(pid: int) -> dict[str, list[str]]:
    """Return the values of /proc/PID/status by their names."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: values.split() for name, values in (line.split(":", 1) for line in lines)}


def namespace(pid: int, kind: str) -> str:
    """Return the namespace of a process."""
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def points(pid: int) -> set[str]:
    """Return the mount points that a process sees."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return {line.split()[4] for line in lines}


def config_of(**modes: int) -> Any:
    """Return the config of a pod with these modes of namespaces."""
    wanted = pod_config("web")
    for kind, mode in modes.items():
        setattr(wanted.linux.security_context.namespace_options, kind, mode)
    return wanted


@pytest.mark.parametrize("mode", [POD, CONTAINER, NODE], ids=["pod", "container", "node"])
def test_pid_namespace_is_that_of_the_pod_or_of_the_node(
    server: Server, cri: Client, mode: int
) -> None:
    """In one of its own the process has pid 1, so that its end ends all others there."""
    assert server.process is not None
    pid = cri.info(cri.run(config_of(pid=mode)))["pid"]
    own = namespace(pid, "pid") != namespace(server.process.pid, "pid")
    assert own == (mode == POD)
    assert own == (status_of(pid)["NSpid"][-1] == "1")


def test_process_and_its_programs_gain_no_privileges(cri: Client) -> None:
    """No program with the set-user-ID bit changes that, as in containerd's pause containers."""
    pid = cri.info(cri.run(pod_config("web")))["pid"]
    assert ["1"] == status_of(pid)["NoNewPrivs"]


def test_mounts_of_the_host_are_not_kept(server: Server, cri: Client, tmp_path: Path) -> None:
    """Namespaces and volumes are dropped; what the programs of the process lie on stays."""
    assert server.process is not None
    volume = tmp_path / "volume"
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", volume], check=True)
    try:
        first = cri.info(cri.run(pod_config("web")))
        second = cri.info(cri.run(pod_config("db")))
    finally:
        subprocess.run(["umount", volume], check=True)
    for info in (first, second):
        pid = info["pid"]
        assert namespace(pid, "mnt") != namespace(server.process.pid, "mnt")
        assert {"/", "/proc", "/dev"} <= points(pid)
        assert not {str(volume), first["netNamespacePath"], "/run/netns"} & points(pid)
        assert not Path(f"/proc/{pid}/root", str(volume).lstrip("/"), "any").exists()


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ("/", True),
        ("/dev/shm", True),
        ("/run", True),
        ("/run/netns", False),
        ("/run/systemd/resolve", True),
        ("/runner", False),
        ("/devices", False),
        ("/var/lib/kubelet/pods/1/volumes/token", False),
    ],
)
def test_mounts_on_the_way_to_resolv_conf_are_needed(point: str, expected: bool) -> None:
    """On many hosts /etc/resolv.conf is a symlink into a tmpfs."""
    assert expected == mounts.is_needed(point, "/run/systemd/resolve/stub-resolv.conf")


SHARED = """
import os, re, subprocess, sys
from contextlib import closing
from registry import Store
from registry.cri import DNSConfig
from registry.shim.sandboxer import Sandboxer
from tests.shim.conftest import NETWORK
from tests.tools import pod

def mounts(pid):
    with open(f"/proc/{pid}/mountinfo") as file:
        return file.read()

db, volume = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", volume], check=True)
with Store.open(db) as store, closing(Sandboxer(store, NETWORK)) as sandboxer:
    sandbox = store.get(sandboxer.run(pod()))
    pid, ours = sandbox.status_as_read.pid, mounts("self")
    assert re.search(" shared:", ours)
    assert f" {volume} " in ours
    assert f" {sandbox.netns_path} " in ours
    assert not re.search(r" (shared|master):", mounts(pid))
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/usr/share"], check=True)
    assert " /usr/share " not in mounts(pid)
    sandboxer.remove(sandbox.id)
"""


def test_mounts_do_not_propagate_between_host_and_pause_process(db: str, tmp_path: Path) -> None:
    """On a host with shared mounts, as under systemd, what a run drops stays on the host."""
    volume = tmp_path / "volume"
    volume.mkdir()
    inside = ["unshare", "--mount", "--propagation", "shared", *python(SHARED, db, volume)]
    done = subprocess.run(inside, env=environment(), capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr


def test_resolv_conf_is_readable_under_any_umask(tmp_path: Path) -> None:
    """A process that runs as another user reads it; the directory is for root."""
    path = str(tmp_path / "registry.db-resolv" / "4a33")
    before = os.umask(0o077)
    try:
        mounts.write_resolv(path, DNSConfig(servers=["10.96.0.10"]))
    finally:
        os.umask(before)
    assert 0o644 == os.stat(path).st_mode & 0o777
    assert 0o700 == os.stat(os.path.dirname(path)).st_mode & 0o777
    mounts.remove_resolv(path)
    mounts.remove_resolv(path)


def test_resolv_conf_is_that_of_the_config(server: Server, cri: Client) -> None:
    """It is mounted on the node's, and removed when the sandbox is stopped."""
    wanted = pod_config("web")
    wanted.dns_config.servers.extend(["10.96.0.10", "fd00::10"])
    wanted.dns_config.searches.extend(["default.svc.cluster.local", "cluster.local"])
    wanted.dns_config.options.extend(["ndots:5", "edns0"])
    expected = (
        "search default.svc.cluster.local cluster.local\n"
        "nameserver 10.96.0.10\n"
        "nameserver fd00::10\n"
        "options ndots:5 edns0\n"
    )
    id = cri.run(wanted)
    info = cri.info(id)
    path = Path(info["resolvConfPath"])
    assert Path(f"{os.path.realpath(server.db)}-resolv", id) == path
    assert expected == path.read_text()
    node = Path("/etc/resolv.conf")
    if node.exists():
        assert expected == Path(f"/proc/{info['pid']}/root/etc/resolv.conf").read_text()
        assert expected != node.read_text()
    cri.stop(id)
    assert not path.exists()


def test_resolv_conf_is_that_of_the_node_without_dns_config(cri: Client) -> None:
    """An empty message is none, as for containerd."""
    wanted = pod_config("web")
    wanted.dns_config.SetInParent()
    info = cri.info(cri.run(wanted))
    assert "" == info["resolvConfPath"]
    node = Path("/etc/resolv.conf")
    inside = Path(f"/proc/{info['pid']}/root/etc/resolv.conf")
    assert node.exists() == inside.exists()
    assert not node.exists() or node.read_text() == inside.read_text()


def test_end_of_a_pid_namespace_is_noticed(cri: Client) -> None:
    """The kernel reports it as for every other process."""
    id = cri.run(config_of(pid=POD))
    os.kill(cri.info(id)["pid"], 9)
    until(lambda: cri.info(id)["pid"] == 0)
    assert ("ProcessExited", 137) == (cri.info(id)["reason"], cri.info(id)["exitStatus"])


PROFILES: dict[str, tuple[Callable[[Any], object], str]] = {
    "no seccomp": (lambda _: None, "0"),
    "RuntimeDefault": (lambda context: context.seccomp.SetInParent(), "2"),
    "Unconfined": (lambda context: setattr(context.seccomp, "profile_type", 1), "0"),
    "runtime/default": (
        lambda context: setattr(context, "seccomp_profile_path", "runtime/default"),
        "2",
    ),
    "unconfined": (lambda context: setattr(context, "seccomp_profile_path", "unconfined"), "0"),
}


@needs.libseccomp
@pytest.mark.parametrize("privileged", [False, True], ids=["", "privileged"])
@pytest.mark.parametrize("profile", PROFILES)
def test_runtime_default_is_a_filter(cri: Client, profile: str, privileged: bool) -> None:
    """A kubelet asks for it; the process of a privileged pod has none, as for containerd."""
    change, expected = PROFILES[profile]
    wanted = pod_config("web")
    change(wanted.linux.security_context)
    wanted.linux.security_context.privileged = privileged
    wanted.linux.security_context.run_as_user.value = 1000
    pid = cri.info(cri.run(wanted))["pid"]
    assert ["0" if privileged else expected] == status_of(pid)["Seccomp"]
    until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")


FILTERED = """
import ctypes, errno, os
from registry.host import kernel
from registry.shim import mounts, seccomp

libc = ctypes.CDLL(None, use_errno=True)
kernel.set_no_new_privs()
seccomp.load_default()
for call in (lambda: libc.unshare(0), lambda: libc.mount(None, None, None, 0, None),
             lambda: libc.ptrace(0, 0, 0, 0), lambda: libc.setns(-1, 0)):
    assert call() == -1
    assert ctypes.get_errno() == errno.EPERM
if os.uname().machine == "x86_64":
    clone, clone3, signal = 56, 435, 17
    for flag in seccomp.NAMESPACES:
        assert libc.syscall(clone, flag | signal, 0, 0, 0, 0) == -1
        assert ctypes.get_errno() == errno.EPERM
    assert libc.syscall(clone3, 0, 0) == -1
    assert ctypes.get_errno() == errno.ENOSYS
child = os.fork()
if not child:
    os._exit(0)
os.waitpid(child, 0)
"""


@needs.libseccomp
def test_filter_refuses_what_docker_documents() -> None:
    """Processes can still be forked: libc falls back from clone3 to clone."""
    run(FILTERED)


def test_missing_libseccomp_is_logged_once(
    db: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The pods run as they did without a filter; docs/shim.md says so."""
    monkeypatch.setattr(seccomp, "LIBRARY", "libseccomp-of-no-system.so.2")
    seccomp._library.cache_clear()
    try:
        with Store.open(db) as store, closing(Sandboxer(store, NETWORK)) as sandboxer:
            for name in ("web", "db"):
                wanted = config(name)
                wanted.linux.security_context.seccomp.SetInParent()
                pid = store.get(sandboxer.run(wanted)).status_as_read.pid
                assert ["0"] == status_of(pid)["Seccomp"]
    finally:
        seccomp._library.cache_clear()
    assert 1 == caplog.text.count("libseccomp-of-no-system.so.2 is not installed")
