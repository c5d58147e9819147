"""Processes: which one it is that a pid names, and whether it still runs.

A pid is used again, so a process is known by boot, pid namespace, and the inode of its pidfd
(unique on Linux >= 6.9) or else its start time. Whoever looks from another pid or time namespace
sees other numbers, and must not judge.
"""

from __future__ import annotations

import errno
import os
import select
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Final

from registry import kernel
from registry.kernel import Vantage


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """Which process it is, as seen from one pid namespace and one time namespace."""

    pid: int
    boot_id: str
    pid_ns: int | None
    time_ns: int | None
    inode: int | None
    """Inode of its pidfd; None where pidfds have none of their own."""
    start_time: int | None
    """Clock ticks from the boot, as the time namespace counts them."""


class Life(Enum):
    """Whether a process still runs."""

    RUNNING = "runs"
    GONE = "is gone"
    UNSEEN = "cannot be seen"


@dataclass(frozen=True, slots=True)
class ProcessSight:
    """What a look at a process saw."""

    life: Life
    detail: str


_GONE: Final = frozenset({errno.ESRCH, errno.EINVAL, errno.ENOENT})
"""Of pidfd_open: no such process; the last two: a thread of another process has the number."""


def identify(pid: int, vantage: Vantage) -> ProcessIdentity | None:
    """Return which process *pid* names now; None when none runs or it cannot be seen."""
    try:
        fd = os.pidfd_open(pid)
    except (OSError, OverflowError):
        return None
    try:
        if _ended(fd):
            return None
        identity = ProcessIdentity(
            pid=pid,
            boot_id=vantage.boot_id,
            pid_ns=vantage.pid_ns,
            time_ns=vantage.time_ns,
            inode=os.fstat(fd).st_ino if _has_pidfs() else None,
            start_time=_start_time(pid),
        )
        # If it ended meanwhile the start time may be of the next process of that pid.
        return None if _ended(fd) else identity
    finally:
        os.close(fd)


def look(identity: ProcessIdentity, vantage: Vantage) -> ProcessSight:
    """Return whether the process still runs, without side effects and without raising."""
    pid = identity.pid
    if identity.boot_id and vantage.boot_id and identity.boot_id != vantage.boot_id:
        return ProcessSight(Life.GONE, f"process {pid} ran before the host was booted")
    for kind, theirs, ours in (
        ("pid", identity.pid_ns, vantage.pid_ns),
        ("time", identity.time_ns, vantage.time_ns),
    ):
        if theirs is not None and theirs != ours:
            detail = f"process {pid} was recorded in {kind} namespace {theirs}, not in ours"
            return ProcessSight(Life.UNSEEN, detail)
    try:
        fd = os.pidfd_open(pid)
    except (OSError, OverflowError) as error:
        code = getattr(error, "errno", errno.ESRCH)
        if code in _GONE:
            return ProcessSight(Life.GONE, f"process {pid} is gone")
        return ProcessSight(Life.UNSEEN, f"process {pid} cannot be seen: {os.strerror(code)}")
    try:
        return _compare(fd, identity)
    finally:
        os.close(fd)


def _compare(fd: int, identity: ProcessIdentity) -> ProcessSight:
    pid = identity.pid
    if _ended(fd):
        return ProcessSight(Life.GONE, f"process {pid} has ended")
    if identity.inode is not None and _has_pidfs():
        same = os.fstat(fd).st_ino == identity.inode
    elif identity.start_time is not None:
        start_time = _start_time(pid)
        if start_time is None:
            return ProcessSight(Life.UNSEEN, f"process {pid} is hidden from us")
        same = start_time == identity.start_time
    else:
        return ProcessSight(Life.RUNNING, f"a process {pid} runs; nobody noted which it should be")
    if same:
        return ProcessSight(Life.RUNNING, f"process {pid} runs")
    return ProcessSight(Life.GONE, f"process {pid} is gone, another one has its pid")


def net_namespace_of(pid: int) -> int | None:
    """Return the kernel number of the network namespace *pid* lives in; None if not to be seen."""
    try:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return kernel.namespace_number(fd)
    finally:
        os.close(fd)


def living_in(path: str) -> list[int]:
    """Return the processes, as far as we see them, whose network namespace is mounted at *path*."""
    wanted, found = os.stat(path), []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            theirs = os.stat(f"/proc/{pid}/ns/net")
        except OSError:
            continue
        if (theirs.st_dev, theirs.st_ino) == (wanted.st_dev, wanted.st_ino):
            found.append(int(pid))
    return found


def _ended(fd: int) -> bool:
    """Whether the process has exited; a zombie has."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _start_time(pid: int) -> int | None:
    """Return field 22 of /proc/PID/stat; the name before it may hold spaces and parentheses."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


@cache
def _has_pidfs() -> bool:
    """Whether pidfds have inodes of their own; without pidfs they share one with other files."""
    pidfd, other = os.pidfd_open(os.getpid()), os.eventfd(0)
    try:
        return os.fstat(pidfd).st_dev != os.fstat(other).st_dev
    finally:
        os.close(pidfd)
        os.close(other)
