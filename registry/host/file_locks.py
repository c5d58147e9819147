"""Locks that processes hold on the files of a database, as the kernel lists them in /proc/locks."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from registry.errors import RegistryError
from registry.host import paths
from registry.sync.interrupts import reraise_interrupt

if TYPE_CHECKING:
    from collections.abc import Iterator

WRITE_LOCK: Final = 120
"""Byte of `-shm` that SQLite locks to write (wal.c, WAL_WRITE_LOCK)."""
CHECKPOINT_LOCK: Final = 121
"""Byte of `-shm` that SQLite locks for a checkpoint, which may wait for readers."""
RECOVERY_LOCK: Final = 122
"""Byte of `-shm` that SQLite locks while it rebuilds the WAL index (wal.c, WAL_RECOVER_LOCK)."""
OPEN_LOCK: Final = 128
"""Byte of `-shm` that each process with the file open has locked to read, and the first one to
write, while it empties the file (os_unix.c, UNIX_SHM_DMS)."""
EXCLUSIVE_LOCKS: Final = (0x40000000, 0x40000002)
"""Bytes of the database that SQLite locks to have the database for itself, at the last close and
when it changes the journal mode (os_unix.c, PENDING_BYTE and SHARED_FIRST)."""
READ_MARKS: Final = range(123, 128)
"""Bytes of `-shm` that SQLite locks to read a snapshot (wal.c, WAL_READ_LOCK). The first is for a
snapshot that needs no WAL: while it is locked, no checkpoint moves the WAL into the database."""


class FileLock(NamedTuple):
    """Lock that process *pid* holds on the bytes from *first* to *last*."""

    kind: str
    access: str
    pid: int
    first: int
    last: float


def locks_on(path: str, *, waiting: bool = False) -> Iterator[FileLock]:
    """Yield the locks of the visible processes on the file at *path*.

    Args:
        path: of the file.
        waiting: yield the locks that processes wait for instead of those that they hold.
    """
    try:
        found = paths.identity(path)
    except RegistryError:  # the list serves only to name a process
        found = None
    if found is None:
        return
    shown = f"{os.major(found[0]):02x}:{os.minor(found[0]):02x}"
    mounted = None
    try:
        with open("/proc/locks", encoding="ascii") as locks:
            for line in locks:
                _, *fields = line.split()
                if ("->" in fields) is not waiting:  # it waits for a lock of a line before
                    continue
                kind, _, access, pid, file, first, last, *_ = fields[waiting:]
                device, _, inode = file.rpartition(":")
                if int(inode) != found[1]:
                    continue
                if device != shown:  # another file system, or one of which `stat` differs (btrfs)
                    mounted = _device_of_mount(path) if mounted is None else mounted
                    if mounted not in {device, ""}:
                        continue
                end = math.inf if last == "EOF" else int(last)
                yield FileLock(kind, access, int(pid), int(first), end)
    except (OSError, ValueError) as error:
        reraise_interrupt(error)


def _device_of_mount(path: str) -> str:
    """Return the device of the mount on which the file at *path* lies; "" if it is unknown."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)  # the close of such a descriptor drops no lock
        try:
            with open(f"/proc/thread-self/fdinfo/{fd}", encoding="ascii") as file:
                fields = dict(line.split(":", 1) for line in file)
        finally:
            os.close(fd)
        with open("/proc/thread-self/mountinfo", "rb") as mounts:
            for mount, _, device, _ in (line.split(b" ", 3) for line in mounts):
                if int(mount) == int(fields["mnt_id"]):
                    major, minor = map(int, device.split(b":"))
                    return f"{major:02x}:{minor:02x}"
    except (OSError, ValueError, KeyError) as error:
        reraise_interrupt(error)
    return ""


def write_locker(path: str, kind: str, start: int) -> int | None:
    """Return the pid that has locked the file at *path* for writing from byte *start*."""
    for lock in locks_on(path):
        if (lock.kind, lock.access, lock.first) == (kind, "WRITE", start):
            return lock.pid
    return None


def reader_blocker(database: str) -> int | None:
    """Return the pid of the other process that keeps readers out of *database*; None without one.

    It creates or recovers the WAL index, changes the journal mode, or is the last to close.
    """
    index = [lock for lock in locks_on(f"{database}-shm") if lock.kind == "POSIX"]
    file = [lock for lock in locks_on(database) if lock.kind == "POSIX"]
    blockers = _holders(index, RECOVERY_LOCK, "WRITE") | _holders(index, OPEN_LOCK, "WRITE")
    for byte in EXCLUSIVE_LOCKS:
        blockers |= _holders(file, byte, "WRITE")
    # A transaction has a snapshot. A process that writes without one recovers the index; or it is
    # about to restart the WAL. An index that several processes have open is valid.
    if len(_holders(index, OPEN_LOCK, "READ")) == 1:
        reading = {lock.pid for lock in index if lock.first in READ_MARKS}
        checkpointing = _holders(index, CHECKPOINT_LOCK, "WRITE")
        blockers |= _holders(index, WRITE_LOCK, "WRITE") - checkpointing - reading
    return min(blockers - {os.getpid()}, default=None)


def waiters(path: str) -> list[int]:
    """Return the pids of the processes that wait for the flock of the file at *path*, in order."""
    return [lock.pid for lock in locks_on(path, waiting=True) if lock.kind == "FLOCK"]


def snapshot_holders(database: str, *, ours: int = 0) -> list[str]:
    """Return the processes of `snapshot_pids` as messages name them."""
    return [
        "this process" if pid == os.getpid() else named(pid)
        for pid in snapshot_pids(database, ours=ours)
    ]


def snapshot_pids(database: str, *, ours: int = 0) -> list[int]:
    """Return the processes whose snapshots keep the WAL of *database* from being reset.

    The snapshot of a write transaction does not count. The list of locks is read twice: the kernel
    lists them page by page, and may leave out one while others come and go.

    Args:
        database: its path.
        ours: number of snapshots of this process to leave out.
    """
    marks: dict[int, int] = {os.getpid(): -ours}
    index = f"{database}-shm"
    seen = dict.fromkeys((*locks_on(index), *locks_on(index)))
    locks = [lock for lock in seen if lock.kind == "POSIX"]
    for lock in locks:
        if lock.access == "READ":
            count = sum(lock.first <= mark <= lock.last for mark in READ_MARKS)
            marks[lock.pid] = marks.get(lock.pid, 0) + count
    for pid in _holders(locks, WRITE_LOCK, "WRITE") - _holders(locks, CHECKPOINT_LOCK, "WRITE"):
        marks[pid] = marks.get(pid, 0) - 1
    return [pid for pid, count in sorted(marks.items()) if count > 0]


def _holders(locks: list[FileLock], byte: int, access: str) -> set[int]:
    """Return the processes that have locked *byte* for *access*."""
    return {lock.pid for lock in locks if lock.access == access and lock.first <= byte <= lock.last}


def named(pid: int) -> str:
    """Return process *pid* as messages name it."""
    return f"process {pid}{process_name(pid)}"


def process_name(pid: int) -> str:
    """Return the name of process *pid* in parentheses after a space, and whether it is stopped.

    Return "" where /proc does not show the process.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            name, _, rest = file.read().partition("(")[2].rpartition(")")
    except OSError as error:
        reraise_interrupt(error)
        return ""
    return f" ({name}, stopped)" if rest.split()[0] in {"T", "t"} else f" ({name})"
