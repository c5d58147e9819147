"""Identity of the process that a pid names, and whether a recorded process still runs.

The kernel reuses pids. The identity of a process is therefore its pid namespace, the inode of its
pidfd (unique until the next boot, from Linux 6.9 on) and its start time. These numbers cannot be
compared from another pid or time namespace.

1. A process is GONE only if that is certain: no process has the pid, the process is a zombie, or
   another process has the pid.
2. pidfd_open may be refused (by seccomp, or for lack of descriptors or memory), or be missing in
   the kernel or in Python. The start time in /proc/PID/stat is compared then.
3. A process for which nothing can be compared is UNSEEN: it may still run.
4. The boot id decides nothing here. A container may show another boot id to a process that lives
   on, so the caller weighs it against the observation.
"""

from __future__ import annotations

import os
from enum import Enum
from typing import Final, NamedTuple

from registry.host import kernel, pidfd
from registry.host.context import HostContext
from registry.model.identity import ProcessIdentity
from registry.sync.interrupts import reraise_interrupt

INODE: Final = "pidfd inode"
START_TIME: Final = "start time"


class Liveness(Enum):
    """State of a recorded process, as far as it can be observed."""

    RUNNING = "runs"
    GONE = "is gone"
    UNSEEN = "cannot be seen"


class ProcessObservation(NamedTuple):
    """Observation of a recorded process.

    Attributes:
        liveness: state of the process.
        detail: text for messages.
        matched: parts of the identity (INODE, START_TIME) that agree with the recorded ones of a
            RUNNING process, under whatever boot id they were recorded.
    """

    liveness: Liveness
    detail: str
    matched: tuple[str, ...] = ()


def identify(pid: int, context: HostContext) -> ProcessIdentity | None:
    """Return the identity of the process that *pid* names now.

    An identity that cannot be determined has neither inode nor start time. The identity of the
    calling process is determined once and kept.

    Returns:
        None: certainly no such process runs.
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
    undetermined = ProcessIdentity(
        pid, context.boot_id, context.pid_ns, context.time_ns, None, None
    )
    try:
        fd = pidfd.open_pidfd(pid)
    except ProcessLookupError as error:
        reraise_interrupt(error)
        return None
    except OSError as error:
        reraise_interrupt(error)
        stat = pidfd.read_stat(pid)
        if stat is None:
            return None if kernel.is_absent(pid) else undetermined
        return None if stat.ended else undetermined._replace(start_time=stat.start_time)
    try:
        if pidfd.has_ended(fd):
            return None
        stat = pidfd.read_stat(pid)
        start_time = None if stat is None else stat.start_time
        identity = undetermined._replace(inode=pidfd.inode_of(fd), start_time=start_time)
        # A process that ended meanwhile may have left the pid, and the start time, to another one.
        return None if pidfd.has_ended(fd) else identity
    finally:
        os.close(fd)


def observe(identity: ProcessIdentity, context: HostContext) -> ProcessObservation:
    """Return whether the process still runs, without side effects and without raising.

    The boot ids are not compared: a process with the recorded pid and pidfd inode or start time is
    RUNNING, also if they were recorded under another boot id. That is evidence against a reboot.
    """
    if _runs_here(identity, context):
        return ProcessObservation(Liveness.RUNNING, f"process {identity.pid} runs", _BY_INODE)
    observed, fd, _ = find(identity, context)
    if fd is not None:
        os.close(fd)
    return observed


_BY_INODE: Final = (INODE,)


def _runs_here(identity: ProcessIdentity, context: HostContext) -> bool:
    """Return whether the recorded process certainly runs; a shortcut for most processes."""
    here = (context.boot_id, context.pid_ns, context.time_ns)
    if identity.inode is None or identity[1:4] != here:
        return False
    try:
        fd = pidfd.open_pidfd(identity.pid)
    except OSError as error:
        reraise_interrupt(error)
        return False
    try:
        return not pidfd.has_ended(fd) and pidfd.inode_of(fd) == identity.inode
    finally:
        os.close(fd)


def find(
    identity: ProcessIdentity, context: HostContext
) -> tuple[ProcessObservation, int | None, OSError | None]:
    """Return the observation, a pidfd of the process with the pid, and the refusal of a pidfd.

    The caller must close the pidfd.
    """
    observed, fd, refusal = _find_by_pid(identity, context)
    if observed.liveness is Liveness.GONE:
        observed = _check_gone(identity, observed, context)
    return observed, fd, refusal


def _check_gone(
    identity: ProcessIdentity, observed: ProcessObservation, context: HostContext
) -> ProcessObservation:
    """Return *observed*, which is GONE, or UNSEEN if the process may run under another number."""
    # A record that has a pid and nothing else does not say that the process lived elsewhere.
    is_of_unknown_ns = identity.pid_ns is None and any(identity[1:])
    if is_of_unknown_ns and context.pid_ns is not None:
        detail = f"{observed.detail} here, but the pid namespace of the record is unknown"
        return ProcessObservation(Liveness.UNSEEN, detail)
    if identity.inode is None or context.is_other_boot(identity.boot_id):
        return observed
    pid = kernel.pid_of_inode(identity.inode)
    if pid in {0, identity.pid}:
        return observed
    detail = f"{observed.detail}, but the recorded process runs with pid {pid}"
    return ProcessObservation(Liveness.UNSEEN, f"{detail}; the record is damaged")


def _find_by_pid(
    identity: ProcessIdentity, context: HostContext
) -> tuple[ProcessObservation, int | None, OSError | None]:
    """Return the same as `find`, of the process that has the recorded pid."""
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
        fd = pidfd.open_pidfd(pid)
    except ProcessLookupError as error:
        reraise_interrupt(error)
        return ProcessObservation(Liveness.GONE, f"process {pid} is gone"), None, None
    except OSError as error:
        reraise_interrupt(error)
        return _compare_by_proc(identity, error), None, error
    try:
        thoroughly = context.is_other_boot(identity.boot_id)
        return _compare(fd, identity, thoroughly=thoroughly), fd, None
    except BaseException:
        os.close(fd)
        raise


def _compare(fd: int, identity: ProcessIdentity, *, thoroughly: bool) -> ProcessObservation:
    """Compare the process of the pidfd *fd* by its inode, if both inodes are known.

    The start time is compared too if the inodes differ or one of them is unknown.

    Args:
        fd: pidfd of the process that has the pid.
        identity: identity as recorded.
        thoroughly: compare the start time in any case.
    """
    pid = identity.pid
    if pidfd.has_ended(fd):
        return ProcessObservation(Liveness.GONE, f"process {pid} has ended")
    inode = None if identity.inode is None else pidfd.inode_of(fd)
    same = {} if inode is None else {INODE: inode == identity.inode}
    enough = inode is not None and all(same.values()) and not thoroughly
    if not enough and identity.start_time is not None:
        stat = pidfd.read_stat(pid)
        if stat is not None:
            same[START_TIME] = stat.start_time == identity.start_time
    return _combine(identity, same)


def _compare_by_proc(identity: ProcessIdentity, refusal: OSError) -> ProcessObservation:
    """Compare the process that has the pid by its start time, since a pidfd was refused."""
    pid, stat = identity.pid, pidfd.read_stat(identity.pid)
    if stat is None:
        if kernel.is_absent(pid):
            return ProcessObservation(Liveness.GONE, f"process {pid} is gone")
        why = f"pidfd_open: {refusal.strerror}; /proc/{pid}/stat: not readable"
        return ProcessObservation(Liveness.UNSEEN, f"process {pid} cannot be seen ({why})")
    if stat.ended:
        return ProcessObservation(Liveness.GONE, f"process {pid} has ended")
    known = identity.start_time is not None
    return _combine(identity, {START_TIME: stat.start_time == identity.start_time} if known else {})


def _combine(identity: ProcessIdentity, same: dict[str, bool]) -> ProcessObservation:
    """Return the conclusion from the parts of the identity that could be compared."""
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


def net_namespace_of(pid: int) -> int | None:
    """Return the kernel id of the network namespace of *pid*; None if it cannot be read."""
    return kernel.namespace_number_at(f"/proc/{pid}/ns/net")


def net_inode_of(pid: int) -> int | None:
    """Return the inode of the network namespace of *pid*; None if it cannot be read."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError as error:
        reraise_interrupt(error)
        return None
