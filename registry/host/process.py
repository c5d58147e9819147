"""Processes: which process a pid names, whether it still runs, and holding it.

A pid is used again, so the identity of a process is its pid namespace, the inode of its pidfd
(unique until the next boot, from Linux 6.9 on) and its start time. From another pid or time
namespace these numbers cannot be compared.

1. A process is GONE only where that is certain: no process has the pid, it is a zombie, or the
   process that has the pid is another one.
2. pidfd_open may be refused (by seccomp, or for want of descriptors or memory), and be missing in
   the kernel or in Python. Then the start time in /proc/PID/stat is compared.
3. Where nothing can be compared, the process is UNSEEN: it may live.
4. The boot id decides nothing here. A container may show another one for a process that lives on;
   the caller weighs it against what was seen.
"""

from __future__ import annotations

import errno
import math
import os
import select
import signal
import time
from enum import Enum
from types import TracebackType
from typing import Final, NamedTuple, Self

from registry.errors import FailedPreconditionError, RegistryError, ResourceExhaustedError
from registry.host import kernel
from registry.host.context import HostContext
from registry.host.descriptor import Descriptor
from registry.model.identity import ProcessIdentity
from registry.model.status import PID_MAX
from registry.model.validation import check_integer
from registry.sync.interrupts import reraise_interrupt


class Liveness(Enum):
    """Whether a process still runs."""

    RUNNING = "runs"
    GONE = "is gone"
    UNSEEN = "cannot be seen"


class ProcessObservation(NamedTuple):
    """Observation of a process."""

    liveness: Liveness
    detail: str
    matched: tuple[str, ...] = ()
    """What shows that a RUNNING process is the recorded one, whatever boot id was recorded:
    "pidfd inode", "start time", or both."""


REAPED_WITHIN: Final = 0.05
"""Seconds in which the parent of a process that has ended should have reaped it."""
POLL_MAX: Final = 86400.0
"""Seconds of one poll(2), which counts milliseconds in an int."""
INODE: Final = "pidfd inode"
START_TIME: Final = "start time"
_ABSENT: Final = frozenset({errno.ESRCH, errno.EINVAL, errno.ENOENT})
"""Of pidfd_open: no such process; the last two: a thread of another process has the number."""
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def identify(pid: int, context: HostContext) -> ProcessIdentity | None:
    """Return the identity of the process that *pid* names now.

    None: certainly no such process runs. Where it cannot be determined, the identity has neither
    inode nor start time. That of the calling process is determined once and kept.
    """
    own = pid == os.getpid()
    if own and _own and _own[0].pid == pid and context.time_ns in {_own[0].time_ns, None}:
        return _own[0]
    identity = _identify(pid, context)
    if own and identity is not None and identity.is_determined:
        _own[:] = [identity]
    return identity


_own: Final[list[ProcessIdentity]] = []
os.register_at_fork(after_in_child=_own.clear)


def _identify(pid: int, context: HostContext) -> ProcessIdentity | None:
    known = ProcessIdentity(pid, context.boot_id, context.pid_ns, context.time_ns, None, None)
    try:
        fd = _open_pidfd(pid)
    except ProcessLookupError as error:
        reraise_interrupt(error)
        return None
    except OSError as error:
        reraise_interrupt(error)
        found = _read_stat(pid)
        if found is None:
            return None if kernel.is_absent(pid) else known
        return None if found.ended else known._replace(start_time=found.start_time)
    try:
        if _ended(fd):
            return None
        found = _read_stat(pid)
        start_time = None if found is None else found.start_time
        identity = known._replace(inode=_inode(fd), start_time=start_time)
        # If it ended meanwhile the start time may be of the next process of that pid.
        return None if _ended(fd) else identity
    finally:
        os.close(fd)


def observe(identity: ProcessIdentity, context: HostContext) -> ProcessObservation:
    """Return whether the process still runs, without side effects and without raising.

    The boot ids are not compared: the same pid, pidfd inode or start time of another boot is
    RUNNING, and evidence that the host was not booted since.
    """
    observed, fd, _ = _find(identity, context)
    if fd is not None:
        os.close(fd)
    return observed


def _find(
    identity: ProcessIdentity, context: HostContext
) -> tuple[ProcessObservation, int | None, OSError | None]:
    """Return what was seen, the pidfd of what has the pid, and what refused a pidfd.

    The caller closes the pidfd.
    """
    observed, fd, refusal = _find_by_pid(identity, context)
    # Of a process of which nothing is recorded but its pid, nothing says that it lived elsewhere.
    nowhere = identity.pid_ns is None and any(identity[1:])
    if observed.liveness is Liveness.GONE and nowhere and context.pid_ns is not None:
        detail = (
            f"{observed.detail} here, but it is not known in which pid namespace it was recorded"
        )
        observed = ProcessObservation(Liveness.UNSEEN, detail)
    elif observed.liveness is Liveness.GONE and not context.is_other_boot(identity.boot_id):
        other = kernel.pid_of_inode(identity.inode) if identity.inode is not None else 0
        if other not in {0, identity.pid}:
            detail = f"{observed.detail}, but the recorded process runs with pid {other}"
            observed = ProcessObservation(Liveness.UNSEEN, f"{detail}; the record is damaged")
    return observed, fd, refusal


def _find_by_pid(
    identity: ProcessIdentity, context: HostContext
) -> tuple[ProcessObservation, int | None, OSError | None]:
    """Return the same, of the process that has the recorded pid."""
    pid = identity.pid
    for kind, recorded, ours in (
        ("pid", identity.pid_ns, context.pid_ns),
        ("time", identity.time_ns, context.time_ns),
    ):
        if recorded is not None and recorded != ours:
            detail = (
                f"process {pid} was recorded in {kind} namespace {recorded}, and ours is {ours}"
            )
            return ProcessObservation(Liveness.UNSEEN, detail), None, None
    try:
        fd = _open_pidfd(pid)
    except ProcessLookupError as error:
        reraise_interrupt(error)
        return ProcessObservation(Liveness.GONE, f"process {pid} is gone"), None, None
    except OSError as error:
        reraise_interrupt(error)
        return _compare_by_proc(identity, error), None, error
    try:
        return _compare(fd, identity, thoroughly=_is_of_other_boot(identity, context)), fd, None
    except BaseException:
        os.close(fd)
        raise


def _is_of_other_boot(identity: ProcessIdentity, context: HostContext) -> bool:
    return context.is_other_boot(identity.boot_id)


def _compare(fd: int, identity: ProcessIdentity, *, thoroughly: bool) -> ProcessObservation:
    """Compare the process of the pidfd *fd*, by its inode where that is known.

    The start time is compared where the inode is another or not known, too.

    Args:
        fd: of the process that has the pid.
        identity: as it was recorded.
        thoroughly: compare the start time in any case.
    """
    pid = identity.pid
    if _ended(fd):
        return ProcessObservation(Liveness.GONE, f"process {pid} has ended")
    inode = None if identity.inode is None else _inode(fd)
    same = {} if inode is None else {INODE: inode == identity.inode}
    enough = inode is not None and all(same.values()) and not thoroughly
    if not enough and identity.start_time is not None:
        found = _read_stat(pid)
        if found is not None:
            same[START_TIME] = found.start_time == identity.start_time
    return _weigh(identity, same)


def _compare_by_proc(identity: ProcessIdentity, refusal: OSError) -> ProcessObservation:
    """Compare the process that has the pid by its start time, since a pidfd was refused."""
    pid, found = identity.pid, _read_stat(identity.pid)
    if found is None:
        if kernel.is_absent(pid):
            return ProcessObservation(Liveness.GONE, f"process {pid} is gone")
        why = f"pidfd_open: {refusal.strerror}; /proc/{pid}/stat: not readable"
        return ProcessObservation(Liveness.UNSEEN, f"process {pid} cannot be seen ({why})")
    if found.ended:
        return ProcessObservation(Liveness.GONE, f"process {pid} has ended")
    known = identity.start_time is not None
    return _weigh(identity, {START_TIME: found.start_time == identity.start_time} if known else {})


def _weigh(identity: ProcessIdentity, same: dict[str, bool]) -> ProcessObservation:
    """Return what the parts of the identity that could be compared say together."""
    pid = identity.pid
    if not identity.is_determined:
        detail = f"a process {pid} runs, but the identity of the recorded one is not known"
        return ProcessObservation(Liveness.UNSEEN, detail)
    if not same:
        detail = f"a process {pid} runs, but its identity cannot be read here"
        return ProcessObservation(Liveness.UNSEEN, detail)
    if all(same.values()):
        return ProcessObservation(Liveness.RUNNING, f"process {pid} runs", tuple(same))
    if same.get(START_TIME):
        detail = f"process {pid} started when the recorded one did, but has another pidfd inode"
        return ProcessObservation(Liveness.UNSEEN, detail)
    return ProcessObservation(Liveness.GONE, f"process {pid} is gone, another one has its pid")


class Process:
    """A process held by a pidfd, which no other process can take the place of.

    `select` and the like take it as they take a file; it is readable once the process has ended.
    Any thread may use it. Once it is closed, every use raises `FailedPreconditionError`; in a
    forked child `StoreClosedError`.
    """

    def __init__(self, pid: int, fd: int) -> None:
        """Hold what is open as the pidfd *fd*; use `of_pid` or `Sandbox.open_process`."""
        self.pid: Final = pid
        self._pidfd: Final = Descriptor(fd, f"process {pid}")

    @classmethod
    def of_pid(cls, pid: int) -> Self:
        """Hold the process that *pid* names now, such as a child that is not waited for yet.

        Raises:
            InvalidArgumentError: *pid* is not a positive number.
            FailedPreconditionError: there is no such process, or pidfd_open is refused or missing.
            ResourceExhaustedError: no descriptor or no memory is left.
        """
        doing = f"open process {pid!r}"
        check_integer(doing, "pid", pid, 1, PID_MAX)
        try:
            return cls(pid, _open_pidfd(pid))
        except OSError as error:
            reraise_interrupt(error)
            raise _refused(doing, error) from error

    @classmethod
    def of_identity(cls, identity: ProcessIdentity) -> Self | None:
        """Hold the process that *identity* was recorded of; None when it has ended.

        A process that was recorded under another boot id is held if both its pidfd inode and its
        start time are the recorded ones: one of them alone may be so by chance after a reboot.

        Raises:
            FailedPreconditionError: it cannot be seen from here, its identity is not recorded, or
                no pidfd of it can be opened.
            ResourceExhaustedError: no descriptor or no memory is left.
        """
        context = HostContext.current()
        observed, fd, refusal = _find(identity, context)
        other_boot = _is_of_other_boot(identity, context)
        certain = observed.liveness is Liveness.RUNNING and not (
            other_boot and len(observed.matched) == 1
        )
        if fd is not None and certain:
            return cls(identity.pid, fd)
        if fd is not None:
            os.close(fd)
        if observed.liveness is Liveness.GONE:
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
        """Release the process, which goes on. Idempotent; in a forked child it closes a copy."""
        self._pidfd.close()

    @property
    def ended(self) -> bool:
        """Whether it has exited; a zombie has."""
        with self._pidfd.use(f"inspect process {self.pid}") as fd:
            return _ended(fd)

    def kill(self, number: int = signal.SIGKILL) -> bool:
        """Send the signal *number*, and return whether the process was still there.

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
        """Wait until it has ended, at most *timeout* seconds, and return whether it has.

        It is not reaped: that is left to its parent.
        """
        deadline = math.inf if timeout is None else time.monotonic() + max(0.0, timeout)
        with self._pidfd.use(f"wait for process {self.pid}") as fd:
            while not _ended(fd, min(POLL_MAX, max(0.0, deadline - time.monotonic()))):
                if time.monotonic() >= deadline:
                    return False
        return True

    def exit_status(self, timeout: float = REAPED_WITHIN) -> int | None:
        """Return its exit code, or 128 and the signal as a shell does, once it has ended.

        The process is not reaped: its parent still gets the status, by `Popen.wait` say. Of a child
        of this process the status is known until it is reaped; afterwards, and of another's child,
        only Linux 6.15 and later tell it.

        Args:
            timeout: seconds to wait for the parent to reap it; an init does so at once.
        Returns:
            None: it runs, or its status is not known.
        """
        with self._pidfd.use(f"read exit status of process {self.pid}") as fd:
            try:
                found = os.waitid(kernel.P_PIDFD, fd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except OSError as error:  # it is not, or no longer, our child
                reraise_interrupt(error)
                return _status_once_reaped(fd, time.monotonic() + timeout)
        if found is None:
            return None
        exited = found.si_code == os.CLD_EXITED
        return found.si_status if exited else 128 + found.si_status


def _status_once_reaped(fd: int, deadline: float) -> int | None:
    """Return how another's child ended, as soon as its parent has reaped it; None: not known."""
    while (status := kernel.wait_status(fd)) is None:
        if not _ended(fd) or time.monotonic() >= deadline:
            return None
        time.sleep(REAPED_WITHIN / 50)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def net_namespace_of(pid: int) -> int | None:
    """Return the kernel id of the network namespace *pid* lives in; None if it cannot be seen."""
    return kernel.namespace_number_at(f"/proc/{pid}/ns/net")


def net_inode_of(pid: int) -> int | None:
    """Return the inode of the network namespace *pid* lives in; None if it cannot be seen."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError as error:
        reraise_interrupt(error)
        return None


def living_in(inode: int) -> list[int]:
    """Return the visible processes that live in the network namespace with that inode.

    Raises:
        OSError: /proc cannot be read.
    """
    pids = map(int, filter(str.isdigit, os.listdir("/proc")))
    return [pid for pid in pids if net_inode_of(pid) == inode]


def _open_pidfd(pid: int) -> int:
    """Return a pidfd of the process *pid*.

    Raises:
        ProcessLookupError: there is no such process.
        OSError: none can be opened; ENOSYS where the kernel or this Python has no such call.
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


def _refused(doing: str, error: OSError) -> RegistryError:
    """Return what the refusal of a pidfd is called here."""
    if isinstance(error, ProcessLookupError):
        return FailedPreconditionError(f"{doing}: there is no such process")
    if error.errno in _EXHAUSTED:
        return ResourceExhaustedError(f"{doing}: {error.strerror}; raise the limit, or try later")
    return FailedPreconditionError(
        f"{doing}: pidfd_open: {error.strerror}; it needs Linux 5.3, a Python that has "
        "os.pidfd_open, and no seccomp filter that refuses it"
    )


def _ended(fd: int, timeout: float = 0.0) -> bool:
    """Return whether the process of a pidfd exits within *timeout* seconds; a zombie has."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


class _Stat(NamedTuple):
    """Fields of /proc/PID/stat."""

    ended: bool
    start_time: int


def _read_stat(pid: int) -> _Stat | None:
    """Return what /proc tells of the process; None where it hides it, or is of other processes."""
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
    # The main thread may end before the others: it is a zombie then, and the process lives.
    return _Stat(state in {b"Z", b"X", b"x"} and threads <= 1, start_time)


def _inode(fd: int) -> int | None:
    """Return the inode of a pidfd; None where it has none of its own, or that is unknown."""
    found, shared = os.fstat(fd), _device_of_shared_inode()
    return None if shared in {None, found.st_dev} else found.st_ino


def _device_of_shared_inode() -> int | None:
    """Return the device of the inode that descriptors without a file share, pidfds too at first.

    None: unknown, since no descriptor is left.
    """
    if not _shared_inode:
        try:
            other = os.eventfd(0)  # gevent, where it has patched `select`, leaves no epoll there
            try:
                _shared_inode.append(os.fstat(other).st_dev)
            finally:
                os.close(other)
        except OSError as error:
            reraise_interrupt(error)
            return None
    return _shared_inode[0]


_shared_inode: Final[list[int]] = []
