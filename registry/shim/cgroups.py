"""Cgroup of a pause process, and what the kernel counts in the cgroup of its pod.

A cgroup has the same path in each hierarchy: one with cgroup v2, one for each controller with v1.
On a hybrid host, whose controllers belong to v1, that of v2 is left alone, as kubelets do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from registry.cri import PodSandboxConfig
from registry.sync.interrupts import suppress_os_errors

SLICE: Final = ".slice"
"""Suffix of the names that systemd gives to cgroups of services."""
SYSTEMD: Final = "/run/systemd/system"
"""Directory that exists while systemd runs (sd_booted(3))."""


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


def hierarchies() -> list[str]:
    """Return the mount point of each hierarchy with controllers; [] without /proc."""
    points: dict[str, dict[str, str]] = {"cgroup": {}, "cgroup2": {}}
    with (
        suppress_os_errors(),
        open("/proc/thread-self/mountinfo", encoding="utf-8", errors="replace") as file,
    ):
        for line in file:
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
        """Return the number in the first file of *names* that exists and has no limit of "max"."""
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
