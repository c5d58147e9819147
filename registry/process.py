"""Processes: which one it is that a pid names, whether it still runs, and holding it.

A pid is used again, so a process is known by boot, pid namespace, and the inode of its pidfd
(unique on Linux >= 6.9) or else its start time. Whoever looks from another pid or time namespace
sees other numbers, and must not judge.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from enum import Enum
from functools import cache
from types import TracebackType
from typing import Final, NamedTuple, Self

from registry import kernel
from registry.errors import FailedPreconditionError
from registry.interrupts import reraise_interrupt
from registry.kernel import Vantage


class ProcessIdentity(NamedTuple):
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


class ProcessSight(NamedTuple):
    """What a look at a process saw."""

    life: Life
    detail: str


REAPED_WITHIN: Final = 0.05
"""Seconds in which the parent of a process that has ended should have reaped it."""
_GONE: Final = frozenset({errno.ESRCH, errno.EINVAL, errno.ENOENT})
"""Of pidfd_open: no such process; the last two: a thread of another process has the number."""


def identify(pid: int, vantage: Vantage) -> ProcessIdentity | None:
    """Return which process *pid* names now; None when none runs or it cannot be seen."""
    try:
        fd = os.pidfd_open(pid)
    except (OSError, OverflowError) as error:
        reraise_interrupt(error)
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
    sight, fd = _find(identity, vantage)
    if fd is not None:
        os.close(fd)
    return sight


def _find(identity: ProcessIdentity, vantage: Vantage) -> tuple[ProcessSight, int | None]:
    """Return what was seen, and the pidfd of what was looked at, for the caller to close."""
    pid = identity.pid
    if identity.boot_id and vantage.boot_id and identity.boot_id != vantage.boot_id:
        return ProcessSight(Life.GONE, f"process {pid} ran before the host was booted"), None
    if identity.pid_ns is not None and identity.pid_ns != vantage.pid_ns:
        return _elsewhere(pid, "pid", identity.pid_ns), None
    if identity.time_ns is not None and identity.time_ns != vantage.time_ns:
        return _elsewhere(pid, "time", identity.time_ns), None
    try:
        fd = os.pidfd_open(pid)
    except (OSError, OverflowError) as error:
        reraise_interrupt(error)
        code = getattr(error, "errno", errno.ESRCH)
        if code in _GONE:
            return ProcessSight(Life.GONE, f"process {pid} is gone"), None
        detail = f"process {pid} cannot be seen: {os.strerror(code)}"
        return ProcessSight(Life.UNSEEN, detail), None
    try:
        return _compare(fd, identity), fd
    except BaseException:
        os.close(fd)
        raise


def _elsewhere(pid: int, kind: str, namespace: int | None) -> ProcessSight:
    detail = f"process {pid} was recorded in {kind} namespace {namespace}, not in ours"
    return ProcessSight(Life.UNSEEN, detail)


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


class Process:
    """A process that is held by a pidfd: whatever becomes of its pid, no other takes its place.

    `select` and the like take it as they take a file; it is readable once the process has ended.
    """

    def __init__(self, pid: int, fd: int) -> None:
        """Hold what is open as the pidfd *fd*; use `of_pid` or `Sandbox.open_process`."""
        self.pid: Final = pid
        self._fd = fd

    @classmethod
    def of_pid(cls, pid: int) -> Self:
        """Hold the process that *pid* names now, such as a child that nobody has waited for.

        Raises:
            OSError: there is none.
        """
        return cls(pid, os.pidfd_open(pid))

    @classmethod
    def of_identity(cls, identity: ProcessIdentity) -> Self | None:
        """Hold the process that *identity* was noted of; None when it has ended.

        Raises:
            FailedPreconditionError: it cannot be seen from here, or told from another.
        """
        sight, fd = _find(identity, Vantage.here())
        known = identity.inode is not None or identity.start_time is not None
        if fd is not None and sight.life is Life.RUNNING and known:
            return cls(identity.pid, fd)
        if fd is not None:
            os.close(fd)
        if sight.life is Life.GONE:
            return None
        raise FailedPreconditionError(f"open process {identity.pid}: {sight.detail}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        """Show the pid."""
        return f"Process({self.pid})"

    def fileno(self) -> int:
        """Return the pidfd; -1 when it is closed."""
        return self._fd

    def close(self) -> None:
        """Let go of it; the process goes on. A second time does nothing."""
        fd, self._fd = self._fd, -1
        if fd != -1:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    @property
    def ended(self) -> bool:
        """Whether it has exited; a zombie has."""
        return _ended(self._fd)

    def kill(self, number: int = signal.SIGKILL) -> bool:
        """Send it a signal, and tell whether it still was there.

        Raises:
            PermissionError: it is not ours to kill.
        """
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError as error:
            reraise_interrupt(error)
            return False
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, at most *timeout* seconds, and tell whether it has."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(None if timeout is None else max(0.0, timeout) * 1000))

    def exit_status(self, timeout: float = REAPED_WITHIN) -> int | None:
        """Return its exit code, or 128 and the signal as a shell does, once it has ended.

        A child of ours is reaped, once. Of another process only Linux 6.15 and later tell, when its
        parent has reaped it, which an init does at once: *timeout* seconds it may take. None: not
        known.
        """
        try:
            found = os.waitid(os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG)
        except ChildProcessError as error:
            reraise_interrupt(error)
            return self._exit_status_of_stranger(timeout)
        if found is None:
            return None
        exited = found.si_code == os.CLD_EXITED
        return found.si_status if exited else 128 + found.si_status

    def _exit_status_of_stranger(self, timeout: float) -> int | None:
        deadline = time.monotonic() + timeout
        while (status := kernel.wait_status(self._fd)) is None:
            if not self.ended or time.monotonic() >= deadline:
                return None
            time.sleep(REAPED_WITHIN / 50)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code


def net_namespace_of(pid: int) -> int | None:
    """Return the kernel number of the network namespace *pid* lives in; None if not to be seen."""
    try:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        reraise_interrupt(error)
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
        except OSError as error:
            reraise_interrupt(error)
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
    except (OSError, IndexError, ValueError) as error:
        reraise_interrupt(error)
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
