"""Cgroup of the pause process: its path, its creation and its removal, in real hierarchies."""

from __future__ import annotations

import os
import subprocess
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from registry import RegistryError, Store
from registry.shim import cgroups
from registry.shim.sandboxer import Sandboxer
from tests import needs
from tests.shim.client import Client, config, pod_config, refused
from tests.shim.conftest import NETWORK, Server
from tests.shim.traces import cgroup_of, whole_pod
from tests.tools import environment, python

pytestmark = [pytest.mark.netns, needs.namespaces]

ID = "4a33"


@pytest.mark.parametrize(
    ("parent", "expected"),
    [
        ("", ""),
        ("/", ID),
        ("/kubepods/burstable/pod1", f"kubepods/burstable/pod1/{ID}"),
        ("kubepods/pod1/", f"kubepods/pod1/{ID}"),
        ("system.slice", f"system.slice/cri-{ID}.scope"),
        ("-.slice", f"cri-{ID}.scope"),
        (
            "kubepods-burstable-pod_1.slice",
            f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod_1.slice/cri-{ID}.scope",
        ),
        (
            "/kubepods.slice/kubepods-pod1.slice",
            f"kubepods.slice/kubepods-pod1.slice/cri-{ID}.scope",
        ),
    ],
)
def test_path_follows_from_parent_and_id(parent: str, expected: str) -> None:
    """Names of slices are expanded as systemd does; a kubelet sends either form."""
    wanted = config()
    wanted.linux.cgroup_parent = parent
    assert expected == cgroups.path_of(wanted, ID)


def cgroups_of(pid: int) -> dict[str, str]:
    """Return the cgroups of a process by the mount points of their hierarchies."""
    found = {}
    for point in cgroups.hierarchies():
        version_2 = Path(point, "cgroup.controllers").exists()
        for text in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = text.split(":", 2)
            here = set(controllers.split(",")) == set(os.path.basename(point).split(","))
            if here or (version_2 and not controllers):
                found[point] = path
    return found


@needs.cgroups
@pytest.mark.parametrize("slices", [False, True], ids=["cgroupfs", "systemd"])
def test_pause_process_is_in_the_cgroup_of_its_pod(
    server: Server, cri: Client, slices: bool
) -> None:
    """It is there in each hierarchy, also with cpusets, and a stop removes the cgroup."""
    parent = cgroup_of(server.db).strip("/").replace("-", "_")
    parent = f"{parent}.slice" if slices else parent
    wanted = pod_config("web")
    wanted.linux.cgroup_parent = parent
    id = cri.run(wanted)
    info = cri.info(id)
    own = f"cri-{id}.scope" if slices else id
    assert f"/{parent}/{own}" == info["cgroupPath"]
    assert {info["cgroupPath"]} == set(cgroups_of(info["pid"]).values())
    assert set(cgroups.hierarchies()) == set(cgroups_of(info["pid"]))
    cri.stop(id)
    for point in cgroups.hierarchies():
        assert not os.path.exists(f"{point}/{parent}/{own}")
        os.rmdir(f"{point}/{parent}")


def test_pause_process_without_parent_stays_in_the_cgroup_of_the_server(
    server: Server, cri: Client
) -> None:
    """The config names none, so none is made."""
    assert server.process is not None
    info = cri.info(cri.run(pod_config("web")))
    assert "" == info["cgroupPath"]
    assert cgroups_of(server.process.pid) == cgroups_of(info["pid"])


@needs.cgroups
def test_cgroup_with_another_process_is_removed_once_that_has_ended(db: str) -> None:
    """The refusal names the process; the shim ends only what it has started."""
    wanted = whole_pod(db, "web")
    with Store.open(db) as store, closing(Sandboxer(store, NETWORK)) as sandboxer:
        id = sandboxer.run(wanted)
        point = cgroups.hierarchies()[-1]
        place = Path(point, cgroups.path_of(wanted, id))
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
            (place / "cgroup.procs").write_text(str(other.pid))
            with pytest.raises(Exception, match=rf"processes {other.pid} are in it; end them"):
                sandboxer.stop(id)
            other.communicate()
        sandboxer.stop(id)
        assert not place.exists()


@needs.cgroups
def test_pid_is_recorded_before_the_process_moves(db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that finds the cgroup after a crash then waits for the end of the process."""
    recorded, moved, enter = [], [], cgroups.enter

    def observed(path: str, pid: int) -> None:
        with Store.open(db, read_only=True) as reader:
            (sandbox,) = reader.list(include_unknown=True)
            recorded.append(sandbox.status_as_read.pid)
        moved.append(pid)
        enter(path, pid)

    monkeypatch.setattr(cgroups, "enter", observed)
    with Store.open(db) as store, closing(Sandboxer(store, NETWORK)) as sandboxer:
        sandboxer.run(whole_pod(db, "web"))
    assert moved == recorded
    assert len(moved) == 1


@needs.cgroups
def test_cgroup_that_cannot_be_made_fails_the_run(server: Server, cri: Client) -> None:
    """Nothing is left of it; a file of the kernel has the name of the parent."""
    wanted = pod_config("web")
    wanted.linux.cgroup_parent = "/cgroup.procs"
    assert "cgroup.procs" in refused(grpc.StatusCode.INTERNAL, cri, "RunPodSandbox", config=wanted)
    assert [] == cri.list()


WITHOUT_PROC = """
import subprocess, sys
from registry import RegistryError
from registry.shim import cgroups

subprocess.run(["umount", "--lazy", "/proc"], check=True)
for call in (cgroups.hierarchies, lambda: cgroups.remove("pod/4a33"),
             lambda: cgroups.enter("pod/4a33", 1)):
    try:
        call()
    except RegistryError as error:
        assert "find the mounted cgroups: '/proc/thread-self/mountinfo': No such file" in str(error)
    else:
        raise AssertionError
"""


def test_removal_fails_when_the_mounted_cgroups_cannot_be_read() -> None:
    """The cgroup would be left over otherwise; a later stop removes it."""
    command = ["unshare", "--mount", *python(WITHOUT_PROC)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr


@needs.cgroups
def test_process_that_has_ended_enters_no_cgroup(tmp_path: Path) -> None:
    """The message has the cause and no operand that is missing."""
    path = cgroup_of(str(tmp_path)).strip("/")
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    with pytest.raises(RegistryError, match=rf"into cgroup '{path}': No such process$"):
        cgroups.enter(path, ended.pid)
    cgroups.remove(path)


@needs.cgroups
def test_cgroup_whose_path_is_too_long_fails_the_run(server: Server, cri: Client) -> None:
    """The name is free again; the kernel can neither make nor remove it."""
    parent, wanted = cgroup_of(server.db), pod_config("web")
    wanted.linux.cgroup_parent = "/".join((parent, *["x" * 255] * 16))
    for _ in range(2):
        assert "too long" in refused(grpc.StatusCode.INTERNAL, cri, "RunPodSandbox", config=wanted)
    assert [] == cri.list()
    for path, _, _ in [*os.walk(cgroups.hierarchies()[0] + parent, topdown=False)]:
        os.rmdir(path)


WITHOUT_V1 = """
import os, subprocess, sys
from contextlib import closing
from registry import FailedPreconditionError, Store
from registry.shim import cgroups
from registry.shim.sandboxer import Sandboxer
from tests.shim.conftest import NETWORK
from tests.tools import pod

for point in cgroups.hierarchies():
    subprocess.run(["umount", point], check=True)
while cgroups.hierarchies():
    subprocess.run(["umount", "--lazy", cgroups.hierarchies()[0]], check=True)
config = pod()
config.linux.cgroup_parent = "/" + sys.argv[2]
with Store.open(sys.argv[1]) as store, closing(Sandboxer(store, NETWORK)) as sandboxer:
    try:
        sandboxer.run(config)
    except FailedPreconditionError as error:
        assert "no cgroups are mounted; leave cgroup_parent empty" in str(error)
    else:
        raise AssertionError
    assert not store.list(include_unknown=True)
    point = sys.argv[3]
    if subprocess.run(["mount", "-t", "cgroup2", "none", point]).returncode:
        print("no v2")
        sys.exit()
    assert [point] == cgroups.hierarchies()
    id = sandboxer.run(config)
    place = f"{point}/{sys.argv[2]}/{id}"
    pids = open(f"{place}/cgroup.procs").read().split()
    assert [str(store.get(id).status_as_read.pid)] == pids
    sandboxer.remove(id)
    assert not os.path.exists(place)
    os.rmdir(os.path.dirname(place))
print("done")
"""


@needs.cgroups
def test_cgroup_v2_and_no_cgroups_at_all(db: str, tmp_path: Path) -> None:
    """A run is refused without cgroups; with v2 the process is in the one hierarchy."""
    point = tmp_path / "cgroup2"
    point.mkdir()
    command = ["unshare", "--mount", *python(WITHOUT_V1, db, cgroup_of(db).strip("/"), point)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    if "no v2" in done.stdout:
        pytest.skip("the kernel mounts no cgroup v2")
