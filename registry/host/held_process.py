"""Process: a process held by a pidfd."""

from __future__ import annotations

import errno
import math
import os
import signal
import time
from types import TracebackType
from typing import Final, Self

from registry.errors import FailedPreconditionError, RegistryError, ResourceExhaustedError
from registry.host import kernel, pidfd, process
from registry.host.context import HostContext
from registry.host.descriptor import Descriptor
from registry.model.identity import ProcessIdentity
from registry.model.status import PID_MAX
from registry.model.validation import check_integer
from registry.sync.interrupts import reraise_interrupt

EXIT_STATUS_TIMEOUT: Final = 0.05
"""Seconds to wait until the parent of a process that has ended has reaped it, by default."""
REAP_POLL: Final = 0.001
"""Seconds between two checks whether the parent has reaped it."""
POLL_MAX: Final = 86400.0
"""Seconds of one poll(2), which counts milliseconds in an int."""
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Process:
    """Process held by a pidfd, so that a reused pid never refers to another process.

    Pass it to `select` and the like as a file: it becomes readable once the process has ended. Any
    thread may use it. Every use after `close` raises `FailedPreconditionError`; every use in a
    forked child raises `StoreClosedError`.
    """

    def __init__(self, pid: int, fd: int) -> None:
        """Take over the pidfd *fd* of *pid*; use `of_pid` or `Sandbox.open_process` instead."""
        self.pid: Final = pid
        self._pidfd: Final = Descriptor(fd, f"process {pid}")

    @classmethod
    def of_pid(cls, pid: int) -> Self:
        """Open the process that *pid* names now, such as a child that is not reaped yet.

        Raises:
            InvalidArgumentError: *pid* is not a positive number.
            FailedPreconditionError: there is no such process, or pidfd_open is refused or missing.
            ResourceExhaustedError: no descriptor or no memory is left.
        """
        doing = f"open process {pid!r}"
        check_integer(doing, "pid", pid, 1, PID_MAX)
        try:
            return cls(pid, pidfd.open_pidfd(pid))
        except OSError as error:
            reraise_interrupt(error)
            raise _refused(doing, error) from error

    @classmethod
    def of_identity(cls, identity: ProcessIdentity) -> Self | None:
        """Open the recorded process *identity*; return None if it has ended.

        A process that was recorded under another boot id is opened if both its pidfd inode and its
        start time agree with the record: one of them alone may agree by chance after a reboot.

        Raises:
            FailedPreconditionError: the process cannot be observed from here, its identity is not
                recorded, or no pidfd of it can be opened.
            ResourceExhaustedError: no descriptor or no memory is left.
        """
        context = HostContext.current()
        observed, fd, refusal = process.find(identity, context)
        by_chance = context.is_other_boot(identity.boot_id) and len(observed.matched) == 1
        certain = observed.liveness is process.Liveness.RUNNING and not by_chance
        if fd is not None and certain:
            return cls(identity.pid, fd)
        if fd is not None:
            os.close(fd)
        if observed.liveness is process.Liveness.GONE:
            return None
        doing, why = f"open process {identity.pid}", observed.detail
        if refusal is not None:
            raise _refused(doing, refusal) from refusal
        if observed.matched:
            why = (
                f"it was recorded under boot {identity.boot_id!r} and this is boot "
                f"{context.boot_id!r}, and a process with the recorded {observed.matched[0]} runs"
            )
        raise FailedPreconditionError(f"{doing}: {why}; find out which process it is")

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
        """Return the pidfd."""
        return self._pidfd.fileno(f"poll process {self.pid}")

    def close(self) -> None:
        """Close the pidfd; the process continues. Idempotent; a forked child closes its copy."""
        self._pidfd.close()

    @property
    def ended(self) -> bool:
        """True once the process has ended; a zombie has."""
        with self._pidfd.use(f"inspect process {self.pid}") as fd:
            return pidfd.has_ended(fd)

    def kill(self, number: int = signal.SIGKILL) -> bool:
        """Send the signal *number*; return False if the process no longer exists.

        Raises:
            InvalidArgumentError: there is no such signal.
            FailedPreconditionError: the kernel does not permit it.
        """
        doing = f"send signal {number!r} to process {self.pid}"
        check_integer(doing, "number", number, 0, signal.NSIG - 1)
        send = getattr(signal, "pidfd_send_signal", None)
        if send is None:
            raise FailedPreconditionError(f"{doing}: this Python has no signal.pidfd_send_signal")
        with self._pidfd.use(doing) as fd:
            try:
                send(fd, number)
            except ProcessLookupError as error:
                reraise_interrupt(error)
                return False
            except OSError as error:
                reraise_interrupt(error)
                why = f"{error.strerror}; does this user own it, and no seccomp filter refuse it?"
                raise FailedPreconditionError(f"{doing}: {why}") from error
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the process has ended; return False after *timeout* seconds (None: no limit).

        The process is not reaped: reaping is left to its parent.
        """
        deadline = math.inf if timeout is None else time.monotonic() + max(0.0, timeout)
        with self._pidfd.use(f"wait for process {self.pid}") as fd:
            while not pidfd.has_ended(fd, min(POLL_MAX, max(0.0, deadline - time.monotonic()))):
                if time.monotonic() >= deadline:
                    return False
        return True

    def exit_status(self, timeout: float = EXIT_STATUS_TIMEOUT) -> int | None:
        """Return the exit code of the ended process; 128 plus the signal, as a shell does.

        The process is not reaped: its parent still gets the status, by `Popen.wait` for example.
        The status of a child of this process is known until it is reaped. Afterwards, and for
        children of other processes, only Linux 6.15 and later report it.

        Args:
            timeout: seconds to wait until the parent has reaped it; an init does so at once.
        Returns:
            None: the process runs, or its status is not known.
        """
        with self._pidfd.use(f"read exit status of process {self.pid}") as fd:
            try:
                found = os.waitid(kernel.P_PIDFD, fd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except OSError as error:  # not our child, or no longer
                reraise_interrupt(error)
                return _status_once_reaped(fd, time.monotonic() + timeout)
        if found is None:
            return None
        exited = found.si_code == os.CLD_EXITED
        return found.si_status if exited else 128 + found.si_status


def _status_once_reaped(fd: int, deadline: float) -> int | None:
    """Wait until the parent has reaped the process; return its exit code, None if unknown."""
    while (status := kernel.wait_status(fd)) is None:
        if not pidfd.has_ended(fd) or time.monotonic() >= deadline:
            return None
        time.sleep(REAP_POLL)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _refused(doing: str, error: OSError) -> RegistryError:
    """Return the error to raise for a refused pidfd."""
    if isinstance(error, ProcessLookupError):
        return FailedPreconditionError(f"{doing}: there is no such process")
    if error.errno in _EXHAUSTED:
        return ResourceExhaustedError(f"{doing}: {error.strerror}; raise the limit, or retry later")
    return FailedPreconditionError(
        f"{doing}: pidfd_open: {error.strerror}; it needs Linux 5.3, a Python that has "
        "os.pidfd_open, and no seccomp filter that refuses it"
    )
