"""Mounts on a file in other mount namespaces, as far as /proc shows their processes.

A file that is a mount point in another mount namespace looks like any other file from here.
Removing the file unmounts the object that is mounted on it there.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from registry.host import inventory
from registry.host.inventory import Scan
from registry.sync.interrupts import reraise_interrupt

_ESCAPE: Final = rb"\\([0-7]{3})"
"""A space, tab, newline or backslash, as mountinfo escapes it (proc_pid_mountinfo(5))."""

_NET: Final = rb"net:\[([0-9]+)\]"
"""Root of a mounted network namespace, with its inode."""

_UNSEEN: Final = {errno.ENOENT, errno.ESRCH, errno.EINVAL, errno.EACCES, errno.EPERM}


class _Mount(NamedTuple):
    """Fields of a line of mountinfo.

    Attributes:
        parent: id of the mount on which it is mounted.
        device: device of the file system.
        root: directory or file of the file system that is mounted.
        point: mount point, relative to the root directory of the process.
    """

    parent: int
    device: bytes
    root: bytes
    point: bytes

    def place(self, path: bytes) -> tuple[bytes, bytes]:
        """Return the device of *path*, below the mount point, and the path in its file system."""
        return self.device, os.path.join(self.root, path[len(self.point) :].lstrip(b"/"))


class Elsewhere(NamedTuple):
    """Mount on a file in another mount namespace.

    Attributes:
        path: path through the root directory of a process; another mount may cover it.
        net_inode: inode of the mounted network namespace; None if something else is mounted.
    """

    path: str
    net_inode: int | None


def elsewhere(fd: int) -> list[Elsewhere]:
    """Return the mounts on the file open as *fd* in other mount namespaces.

    A mount namespace without a visible process is left out, so an empty list proves nothing.

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
    for pid, mounts in _of_other_namespaces(inventory.scan_processes()):
        for each in mounts.values():
            parent = mounts.get(each.parent)
            if parent is not None and parent.place(each.point) == place:
                path = f"/proc/{pid}/root{each.point.decode(errors='surrogateescape')}"
                net = re.fullmatch(_NET, each.root)
                found.append(Elsewhere(path, int(net[1]) if net else None))
    return found


def _of_other_namespaces(scan: Scan) -> Iterator[tuple[int, dict[int, _Mount]]]:
    """Yield a process of each mount namespace except ours, with the mounts that it sees."""
    for error in scan.hidden.values():
        _require_unseen(error)
    ours = os.stat("/proc/thread-self/ns/mnt").st_ino
    for inode, pids in scan.pids["mnt"].items():
        for pid in pids if inode != ours else ():
            try:
                mounts = _mounts(str(pid))
            except OSError as error:  # the process has ended: another one shows the same mounts
                reraise_interrupt(error)
                _require_unseen(error)
            else:
                yield pid, mounts
                break


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
    return re.sub(_ESCAPE, lambda found: bytes([int(found[1], 8)]), path)
