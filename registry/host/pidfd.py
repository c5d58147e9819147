"""Pidfds, and the entry of a process in /proc."""

from __future__ import annotations

import errno
import os
import select
from typing import Final, NamedTuple

from registry.sync.interrupts import reraise_interrupt

_ABSENT: Final = frozenset({errno.ESRCH, errno.EINVAL, errno.ENOENT})
"""Errors of pidfd_open for "no such process". The last two: a thread that is not the leader of its
process has the number."""


def open_pidfd(pid: int) -> int:
    """Return a pidfd of the process *pid*.

    Raises:
        ProcessLookupError: there is no such process.
        OSError: no pidfd can be opened; ENOSYS where the kernel or this Python lacks the call.
    """
    pidfd_open = getattr(os, "pidfd_open", None)
    if pidfd_open is None:
        raise OSError(errno.ENOSYS, "this Python has no os.pidfd_open")
    try:
        fd: int = pidfd_open(pid)
    except OverflowError as error:
        reraise_interrupt(error)
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from error
    except OSError as error:
        reraise_interrupt(error)
        if error.errno in _ABSENT:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from error
        raise
    return fd


def has_ended(fd: int, timeout: float = 0.0) -> bool:
    """Return whether the process of *fd* ends within *timeout* seconds; a zombie has ended."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def inode_of(fd: int) -> int | None:
    """Return the inode of the pidfd *fd*; None if pidfds share one inode, or that is unknown."""
    found, shared = os.fstat(fd), _device_of_shared_inode()
    return None if shared in {None, found.st_dev} else found.st_ino


def _device_of_shared_inode() -> int | None:
    """Return the device of the anonymous inode, which pidfds used before Linux 6.9.

    None: unknown, since no descriptor is left.
    """
    if not _shared_inode:
        try:
            # An eventfd, not an epoll descriptor: gevent removes epoll where it patches `select`.
            other = os.eventfd(0)
            try:
                _shared_inode.append(os.fstat(other).st_dev)
            finally:
                os.close(other)
        except OSError as error:
            reraise_interrupt(error)
            return None
    return _shared_inode[0]


_shared_inode: Final[list[int]] = []


class Stat(NamedTuple):
    """Fields of /proc/PID/stat.

    Attributes:
        ended: the process is a zombie, or is being removed.
        start_time: clock ticks since the boot, in the time namespace of the reader.
    """

    ended: bool
    start_time: int


def read_stat(pid: int) -> Stat | None:
    """Return the fields of /proc/PID/stat.

    None: /proc hides the process, or belongs to another pid namespace.
    """
    try:
        # A mount of another pid namespace has other processes under these numbers.
        if os.readlink("/proc/self") != str(os.getpid()):
            return None
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may hold spaces and parentheses.
            fields = file.read().rpartition(b")")[2].split()
        state, threads, start_time = fields[0], int(fields[17]), int(fields[19])
    except (OSError, IndexError, ValueError) as error:
        reraise_interrupt(error)
        return None
    # A main thread that ends before the other threads is a zombie, and the process still runs.
    return Stat(state in {b"Z", b"X", b"x"} and threads <= 1, start_time)
