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
READ_MARKS: Final = range(123, 128)
"""Bytes of `-shm` that SQLite locks to read a snapshot (wal.c, WAL_READ_LOCK). The first is for a
snapshot that needs no WAL: while it is locked, no checkpoint moves the WAL into the database."""


class FileLock(NamedTuple):
    """Lock that process *pid* holds on the bytes from *first* to *last*.

    *device* is that of the file system, as major:minor; `stat` may show another one (btrfs).
    """

    device: str
    kind: str
    access: str
    pid: int
    first: int
    last: float


def locks_on(path: str) -> Iterator[FileLock]:
    """Yield the locks of the visible processes on the file at *path*."""
    try:
        found = paths.identity(path)
    except RegistryError:  # the list serves only to name a process
        found = None
    if found is None:
        return
    try:
        with open("/proc/locks", encoding="ascii") as locks:
            for line in locks:
                if "->" in line:  # a process that waits for the lock of the line before
                    continue
                _, kind, _, access, pid, file, first, last, *_ = line.split()
                device, _, inode = file.rpartition(":")
                if int(inode) == found[1]:
                    end = math.inf if last == "EOF" else int(last)
                    yield FileLock(device, kind, access, int(pid), int(first), end)
    except (OSError, ValueError) as error:
        reraise_interrupt(error)


def write_locker(path: str, kind: str, start: int) -> int | None:
    """Return the pid that has locked the file at *path* for writing from byte *start*."""
    for lock in locks_on(path):
        if (lock.kind, lock.access, lock.first) == (kind, "WRITE", start):
            return lock.pid
    return None


def snapshot_holders(database: str, *, ours: int = 0) -> list[str]:
    """Return the processes whose snapshots keep the WAL of *database* from being reset.

    The snapshot of a write transaction does not count.

    Args:
        database: its path.
        ours: number of snapshots of this process to leave out.
    """
    marks: dict[int, int] = {os.getpid(): -ours}
    locks = [lock for lock in locks_on(f"{database}-shm") if lock.kind == "POSIX"]
    for lock in locks:
        if lock.access == "READ":
            count = sum(lock.first <= mark <= lock.last for mark in READ_MARKS)
            marks[lock.pid] = marks.get(lock.pid, 0) + count
    for pid in _lockers(locks, WRITE_LOCK) - _lockers(locks, CHECKPOINT_LOCK):
        marks[pid] = marks.get(pid, 0) - 1
    return [
        "this process" if pid == os.getpid() else f"process {pid}{process_name(pid)}"
        for pid, count in sorted(marks.items())
        if count > 0
    ]


def _lockers(locks: list[FileLock], byte: int) -> set[int]:
    return {lock.pid for lock in locks if lock.first <= byte <= lock.last}


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
