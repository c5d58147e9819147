"""Pods whose sandboxes have more than a process and a namespace, and what is left of them.

The paths follow from that of the registry, so that several processes agree on them.
"""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from typing import Any, TypeVar

from registry.cri import PodSandboxConfig
from registry.shim.cgroups import hierarchies
from tests import needs
from tests.tools import pod

T = TypeVar("T")


def cgroup_of(db: str) -> str:
    """Return the cgroup of the pods of a registry; "" where no cgroup can be created."""
    return f"/sr-test-{zlib.crc32(db.encode()):08x}" if needs.MAY_MAKE_CGROUPS else ""


def whole_pod(db: str, name: str) -> PodSandboxConfig:
    """Return a config whose sandbox has all that a sandbox can have."""
    return with_traces(db, pod(name))


def with_traces(db: str, config: T) -> T:
    """Return *config*, a message of ours or of upstream's, with a cgroup and a resolv.conf."""
    wanted: Any = config
    wanted.linux.cgroup_parent = cgroup_of(db)
    wanted.dns_config.servers.append("10.96.0.10")
    return config


def traces(db: str) -> set[str]:
    """Return the names of the cgroups and files of the sandboxes of a registry."""
    found = set()
    for point in hierarchies() if cgroup_of(db) else ():
        with suppress(FileNotFoundError), os.scandir(point + cgroup_of(db)) as entries:
            found |= {entry.name for entry in entries if entry.is_dir()}
    with suppress(FileNotFoundError):
        found |= set(os.listdir(f"{os.path.realpath(db)}-resolv"))
    return found


def remove_cgroup(db: str) -> None:
    """Remove the cgroup of the pods of a registry, which must have no cgroups below it."""
    for point in hierarchies() if cgroup_of(db) else ():
        with suppress(FileNotFoundError):
            os.rmdir(point + cgroup_of(db))
