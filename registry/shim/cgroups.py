"""Cgroup of a pause process, and what the kernel counts in the cgroup of its pod.

A cgroup has the same path in each hierarchy: one with cgroup v2, one for each controller with v1.
On a hybrid host, whose controllers belong to v1, that of v2 is left alone, as kubelets do.

The path of a pause process follows from the config and the id. A crash therefore leaves no cgroup
that the next server does not find. The cgroup of the pod belongs to the client: it is created if it
is missing, and never removed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Final

from registry import FailedPreconditionError, RegistryError
from registry.cri import PodSandboxConfig
from registry.shim import limits
from registry.sync.interrupts import reraise_interrupt, suppress_os_errors

SLICE: Final = ".slice"
"""Suffix of the names that systemd gives to cgroups of services."""
SYSTEMD: Final = "/run/systemd/system"
"""Directory that exists while systemd runs (sd_booted(3))."""
MISSING: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
"""Errors of the removal of a cgroup that was never there; no path can be too long and exist."""


def is_driver_systemd() -> bool:
    """Return whether systemd manages the cgroups of this host."""
    return os.path.isdir(SYSTEMD)


def parent_of(config: PodSandboxConfig) -> str:
    """Return the path of the pod's cgroup in each hierarchy, without a leading slash.

    The name of a slice is expanded as systemd does: a-b.slice lies in a.slice. A path of slices is
    that of its last one.
    """
    parent = config.linux.cgroup_parent.rstrip("/")
    name = os.path.basename(parent)
    if not name.endswith(SLICE):
        return parent.lstrip("/")
    if name == f"-{SLICE}":  # the root, systemd.slice(5)
        return ""
    parts = name.removesuffix(SLICE).split("-")
    return "/".join("-".join(parts[:count]) + SLICE for count in range(1, len(parts) + 1))


def path_of(config: PodSandboxConfig, id: str) -> str:
    """Return the path of the pause process's cgroup; "" if it stays in that of the server.

    Args:
        config: config of the pod.
        id: id of the sandbox.
    """
    parent = config.linux.cgroup_parent
    if not parent:
        return ""
    scope = f"cri-{id}.scope" if parent.rstrip("/").endswith(SLICE) else id
    return os.path.join(parent_of(config), scope)


def enter(path: str, pid: int) -> None:
    """Create the cgroup *path* in each hierarchy, and move the process *pid* into it.

    Raises:
        FailedPreconditionError: no hierarchy is mounted.
        RegistryError: the kernel refuses a step; `remove` removes what was created.
    """
    doing = f"move pause process {pid} into cgroup {path!r}"
    mounted = hierarchies()
    if not mounted:
        raise FailedPreconditionError(f"{doing}: no cgroups are mounted; leave cgroup_parent empty")
    try:
        for point in mounted:
            parent = point
            for name in path.split("/"):
                place = os.path.join(parent, name)
                os.makedirs(place, exist_ok=True)
                _inherit_cpuset(parent, place)
                parent = place
            _write(f"{parent}/cgroup.procs", str(pid))
    except OSError as error:
        reraise_interrupt(error)
        raise limits.failed(doing, error) from error


def remove(path: str) -> None:
    """Remove the cgroup *path* from each hierarchy; a missing one is removed.

    Raises:
        RegistryError: a process is in it, or a cgroup below it.
    """
    for point in hierarchies() if path else ():
        place = os.path.join(point, path)
        try:
            os.rmdir(place)
        except OSError as error:
            reraise_interrupt(error)
            if error.errno in MISSING:
                continue
            pids = Counters([place], "").text("cgroup.procs").split()
            why = f"processes {', '.join(pids)} are in it; end them" if pids else error.strerror
            raise RegistryError(f"remove cgroup {place!r}: {why}") from error


def _inherit_cpuset(parent: str, place: str) -> None:
    """Give a new cgroup the processors of its parent: without any, cgroup v1 admits no process."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if Counters([place], "").text(name) == "\n":
            _write(f"{place}/{name}", Counters([parent], "").text(name))


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def hierarchies() -> list[str]:
    """Return the mount point of each hierarchy with controllers.

    Raises:
        RegistryError: the mounts cannot be read.
    """
    points: dict[str, dict[str, str]] = {"cgroup": {}, "cgroup2": {}}
    try:
        with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="replace") as file:
            lines = file.readlines()
    except OSError as error:
        reraise_interrupt(error)
        raise limits.failed("find the mounted cgroups", error) from error
    for line in lines:
        mount, _, system = line.partition(" - ")
        kind, _, options = system.split(" ", 2)
        if kind in points and "name=" not in options:
            _, _, device, _, point, *_ = mount.split(" ")
            points[kind].setdefault(device, point)
    return [*(points["cgroup"] or points["cgroup2"]).values()]


class Counters:
    """Files of one cgroup in all hierarchies. What the kernel does not count is absent."""

    def __init__(self, hierarchies: list[str], path: str) -> None:
        """Read the cgroup *path* of *hierarchies*."""
        self._directories: Final = [os.path.join(each, path) for each in hierarchies]

    def text(self, name: str) -> str:
        """Return the content of the file *name* in each hierarchy that has it."""
        found = []
        for directory in self._directories:
            with suppress_os_errors(), open(f"{directory}/{name}", encoding="ascii") as file:
                found.append(file.read())
        return "".join(found)

    def number(self, *names: str) -> int | None:
        """Return the number in the first file of *names* that exists; None if that says "max"."""
        text = next(filter(None, map(self.text, names)), "").strip()
        return int(text) if text.isdigit() else None

    def table(self, name: str) -> Mapping[str, int]:
        """Return the numbers of a file whose lines are a name and a number."""
        lines = (line.split() for line in self.text(name).splitlines())
        return {line[0]: int(line[1]) for line in lines}

    def pressure(self, name: str) -> Mapping[str, Mapping[str, float]]:
        """Return the values of the lines `some` and `full` of a file of PSI, by their names."""
        found = {}
        for line in self.text(f"{name}.pressure").splitlines():
            kind, *values = line.split()
            found[kind] = {key: float(value) for key, value in (each.split("=") for each in values)}
        return found
