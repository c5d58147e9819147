"""Mounts on a file in other mount namespaces, as far as /proc shows their processes.

A file that is a mount point in another mount namespace looks like any other from here, and removing
it unmounts there whatever is mounted on it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from registry.sync.interrupts import reraise_interrupt

_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
"""A space, tab, newline or backslash, as mountinfo has it (proc_pid_mountinfo(5))."""

_NET: Final = re.compile(rb"net:\[([0-9]+)\]")
"""A network namespace that is mounted, by its inode."""

_UNSEEN: Final = {errno.ENOENT, errno.ESRCH, errno.EINVAL, errno.EACCES, errno.EPERM}


class _Mount(NamedTuple):
    """A line of mountinfo, as far as it is needed."""

    parent: int
    device: bytes
    root: bytes
    """What of the file system is mounted."""
    point: bytes
    """Where, as its processes see it."""

    def place(self, path: bytes) -> tuple[bytes, bytes]:
        """Return which file of which device *path* is, which lies below the mount point."""
        return self.device, os.path.join(self.root, path[len(self.point) :].lstrip(b"/"))


class Elsewhere(NamedTuple):
    """A mount on a file in another mount namespace."""

    path: str
    """Leads there through the root of a process; a mount on a directory above may cover it."""
    net_inode: int | None
    """Inode of the network namespace that is mounted; None if something else is."""


def elsewhere(fd: int) -> list[Elsewhere]:
    """Return the mounts on the file open as *fd* in other mount namespaces.

    A mount namespace of which no process is visible is left out: an empty list does not prove that
    there is none.

    Raises:
        OSError: /proc is not mounted, no descriptor is left, or /proc does not show the mount in
            which the file lies.
    """
    with open(f"/proc/thread-self/fdinfo/{fd}", "rb") as file:
        fields = dict(line.split(b":", 1) for line in file.read().splitlines())
    mount = _mounts("thread-self").get(int(fields[b"mnt_id"]))
    if mount is None:
        raise OSError(errno.ENODEV, "its mount is not in mountinfo; is this a chroot?")
    place = mount.place(os.readlink(f"/proc/thread-self/fd/{fd}".encode()))
    found: list[Elsewhere] = []
    for pid in _one_of_each_other_namespace():
        try:
            mounts = _mounts(pid)
        except OSError as error:
            reraise_interrupt(error)
            _require_unseen(error)
            continue
        for each in mounts.values():
            parent = mounts.get(each.parent)
            if parent is not None and parent.place(each.point) == place:
                path = f"/proc/{pid}/root{each.point.decode(errors='surrogateescape')}"
                net = _NET.fullmatch(each.root)
                found.append(Elsewhere(path, int(net[1]) if net else None))
    return found


def _one_of_each_other_namespace() -> Iterator[str]:
    """Yield a pid of each mount namespace but ours."""
    seen = {os.readlink("/proc/thread-self/ns/mnt")}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
        except OSError as error:
            reraise_interrupt(error)
            _require_unseen(error)
            continue
        if namespace not in seen:
            seen.add(namespace)
            yield pid


def _require_unseen(error: OSError) -> None:
    """Raise *error* unless it says that the process has ended or may not be inspected."""
    if error.errno not in _UNSEEN:
        raise error


def _mounts(process: str) -> dict[int, _Mount]:
    """Return the mounts that *process* sees, by their ids."""
    with open(f"/proc/{process}/mountinfo", "rb") as file:
        lines = [line.split(b" ", 5) for line in file.read().splitlines()]
    return {
        int(id): _Mount(int(parent), device, _unescaped(root), _unescaped(point))
        for id, parent, device, root, point, _ in lines
    }


def _unescaped(path: bytes) -> bytes:
    return _ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), path)
