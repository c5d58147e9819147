"""Identities of network namespaces and processes, as they are recorded and compared.

Paths and pids are reused. An identity distinguishes one namespace or process from all others, as
far as the kernel provides unique numbers.
"""

from __future__ import annotations

from typing import NamedTuple


class NetNSIdentity(NamedTuple):
    """Identity of a network namespace on one host, across boots.

    Attributes:
        boot_id: boot id that the observer was shown; "" if it could not be read.
        number: kernel id (NS_GET_ID or SO_NETNS_COOKIE, which agree); None: the kernel gives none.
        inode: inode of the namespace's file.
        mount_ns: mount namespace in which the namespace was observed; None: unknown.
    """

    boot_id: str
    number: int | None
    inode: int
    mount_ns: int | None

    def same_as(self, other: NetNSIdentity) -> bool:
        """Return whether both are the same namespace, as far as known (see `by_inode_only`).

        A different boot id alone proves nothing: containers of LXC and nspawn show their own.
        Number and inode outweigh it if both agree. The inode alone does not outweigh it, since
        every boot assigns the same inodes.
        """
        if self.by_inode_only(other):
            return self.inode == other.inode and not self.is_of_other_boot(other.boot_id)
        if self.number != other.number:
            return False
        return self.inode == other.inode or not self.is_of_other_boot(other.boot_id)

    def by_inode_only(self, other: NetNSIdentity) -> bool:
        """Return whether only the inode, which the kernel may reuse, can be compared."""
        return self.number is None or other.number is None

    def is_of_other_boot(self, boot_id: str) -> bool:
        """Return whether the identity has another boot id; False if either is unknown."""
        return bool(self.boot_id and boot_id) and self.boot_id != boot_id


class ProcessIdentity(NamedTuple):
    """Identity of a process, as observed from one pid namespace and one time namespace.

    Attributes:
        pid: pid in the pid namespace *pid_ns*.
        boot_id: boot id that the observer was shown; "" if it could not be read.
        pid_ns: pid namespace of the observer; None: unknown.
        time_ns: time namespace of the observer; None: unknown.
        inode: inode of the pidfd; None where pidfds have no inodes, or none could be opened.
        start_time: clock ticks since the boot, in *time_ns*; None where /proc hides the process.
    """

    pid: int
    boot_id: str
    pid_ns: int | None
    time_ns: int | None
    inode: int | None
    start_time: int | None

    @property
    def is_determined(self) -> bool:
        """True if the identity can be compared with a process: inode or start time is known."""
        return self.inode is not None or self.start_time is not None
