"""Inventory of the namespaces in which the processes of this host live, read from /proc.

/proc is scanned once per inventory. A process whose namespaces cannot be read is counted as hidden,
never as absent.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Final, NamedTuple

from registry.host import kernel, namespaces
from registry.host.context import HostContext
from registry.model.identity import NetNSIdentity
from registry.sync.interrupts import reraise_interrupt

KINDS: Final = ("pid", "mnt", "net")
INIT: Final = 1
"""Pid of the first process of a pid namespace."""
_ENDED: Final = {errno.ENOENT, errno.ESRCH}


class Scan(NamedTuple):
    """Result of one scan of /proc.

    Attributes:
        pids: visible processes by kind of namespace and inode of the namespace.
        hidden: visible processes whose namespaces cannot be read, with the error.
    """

    pids: Mapping[str, Mapping[int, list[int]]]
    hidden: Mapping[int, OSError]


class HostInventory:
    """Namespaces in which processes live; /proc is scanned once, at the first use."""

    def __init__(self, context: HostContext) -> None:
        """Observe from *context*."""
        self.context: Final = context

    @cached_property
    def scan(self) -> Scan:
        """The scan of /proc.

        Raises:
            OSError: /proc cannot be listed.
        """
        return scan_processes()

    @cached_property
    def processes_may_be_hidden(self) -> bool:
        """True if a process of this pid namespace, except its init, may be hidden from this one.

        Init is older than every namespace that a process of the pid namespace has made. Some
        sandboxes hide it from all other processes.
        """
        return bool(self.scan.hidden.keys() - {INIT}) or proc_hides_processes()

    def has(self, kind: str, number: int | None) -> bool:
        """Return whether the namespace of *kind* (`pid` or `mnt`) with that kernel id exists.

        Initial namespaces and inodes never count: they recur on every boot.
        """
        if number is None or kernel.recurs(number):
            return False
        return number in self._numbers[kind]

    def has_netns(self, recorded: NetNSIdentity) -> bool:
        """Return whether the network namespace *recorded*, of whatever boot, exists anywhere."""
        if recorded.number is None or recorded.inode in kernel.INITIAL_INODES:
            return False
        exists = kernel.namespace_exists(recorded.number, kernel.CLONE_NEWNET, recorded.inode)
        if exists is not None:
            return exists
        pids = self._visible("net").get(recorded.inode)
        if not pids:
            return False
        found = namespaces.observe(f"/proc/{pids[0]}/ns/net", self.context).identity
        return found is not None and found.number == recorded.number

    def living_in(self, netns_inode: int) -> list[int]:
        """Return the visible processes that live in the network namespace with that inode.

        Raises:
            OSError: /proc cannot be listed.
        """
        return self.scan.pids["net"].get(netns_inode, [])

    @cached_property
    def _numbers(self) -> dict[str, set[int]]:
        """Kernel ids of the namespaces in which processes live, by kind."""
        return {kind: set(_numbers_of(kind, self._visible(kind))) for kind in ("pid", "mnt")}

    def _visible(self, kind: str) -> Mapping[int, list[int]]:
        """Return the processes by inode of their namespace; none where /proc cannot be listed."""
        try:
            return self.scan.pids[kind]
        except OSError as error:
            reraise_interrupt(error)
            return {}


def scan_processes() -> Scan:
    """Return the namespaces of the visible processes.

    Raises:
        OSError: /proc cannot be listed.
    """
    pids: dict[str, dict[int, list[int]]] = {kind: {} for kind in KINDS}
    hidden: dict[int, OSError] = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        for kind, found in pids.items():
            try:
                inode = _inode_of(pid, kind)
            except OSError as error:
                reraise_interrupt(error)
                if error.errno not in _ENDED:
                    hidden[pid] = error
            else:
                found.setdefault(inode, []).append(pid)
    return Scan(pids, hidden)


def _inode_of(pid: int, kind: str) -> int:
    """Return the inode of the namespace of *kind* in which the process lives.

    If the main thread has ended, the namespace of another thread is returned.

    Raises:
        OSError: ENOENT or ESRCH: the process has ended.
    """
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    except FileNotFoundError as error:
        reraise_interrupt(error)
        threads = os.listdir(f"/proc/{pid}/task")
        for thread in threads:
            if thread != str(pid):
                return os.stat(f"/proc/{pid}/task/{thread}/ns/{kind}").st_ino
        raise


def _numbers_of(kind: str, pids: Mapping[int, Iterable[int]]) -> Iterator[int]:
    """Yield the kernel ids of the namespaces of *pids*, by inode, except the initial ones."""
    for inode, (pid, *_) in pids.items():
        if inode not in kernel.INITIAL_INODES:
            number = kernel.namespace_number_at(f"/proc/{pid}/ns/{kind}")
            if number is not None:
                yield number


def proc_hides_processes() -> bool:
    """Return whether the mount options of /proc hide processes from this one; True if unknown.

    hidepid= (ProtectProc= of systemd) hides the processes of other users. It does not apply with
    CAP_SYS_PTRACE, nor, except for hidepid=ptraceable, to members of the group of gid= (default:
    0).
    """
    try:
        with open("/proc/thread-self/mountinfo", "rb") as file:
            mounts = [line.split(b" ") for line in file.read().splitlines()]
    except OSError as error:
        reraise_interrupt(error)
        return True
    options = next((each[-1] for each in reversed(mounts) if each[4] == b"/proc"), b"").split(b",")
    hidepid = next((each for each in options if each.startswith(b"hidepid=")), None)
    if hidepid is None or kernel.has_capability(kernel.CAP_SYS_PTRACE):
        return False
    gid = next((int(each[4:]) for each in options if each.startswith(b"gid=")), 0)
    is_exempt = gid in {os.getegid(), *os.getgroups()}
    return not is_exempt or hidepid in {b"hidepid=ptraceable", b"hidepid=4"}
