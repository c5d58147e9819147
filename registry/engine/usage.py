"""Use of one database file by the processes of the host, by /proc and `stat` alone.

The database is not opened: the answer is there beside a stopped writer, and for a damaged file. The
processes are read one after the other, so what is shown together need not have been true at one
moment.
"""

from __future__ import annotations

import math
import os
from typing import Final, Literal, NamedTuple

from registry.engine import driver
from registry.engine.disk_reserve import SIZES
from registry.engine.lock_file import holder_of
from registry.host import file_locks, file_users, paths
from registry.host.file_users import Program
from registry.sync.interrupts import suppress_os_errors

BESIDE: Final = ("-wal", "-shm", "-lock", "-queue")
"""Suffixes of the files that are open beside the database, by SQLite's readers too for writing."""


class Writer(NamedTuple):
    """Holder of the write lock.

    Attributes:
        program: the process; its pid is 0 if it is in another pid namespace.
        since: time of locking, in ns since the Unix epoch; 0: unknown.
        queues: it has locked by way of the queue, as this package does; a `sqlite3` shell does not.
    """

    program: Program
    since: int
    queues: bool


class User(NamedTuple):
    """Process that has a file of the registry open."""

    program: Program
    access: Literal["read", "write"]


class Usage(NamedTuple):
    """Use of one registry.

    Attributes:
        writer: holder of the write lock; None: no process writes.
        queue: processes that wait for the write lock, the first in the queue first.
        opener: process that opens, recovers or closes the file and keeps readers out meanwhile.
        users: processes that have a file of the registry open, except the caller.
        hidden: pids of the processes whose open files the caller may not see, in order.
        keepers: processes whose snapshots keep the WAL from being reset.
        wal_bytes: length of the WAL.
        reserve: bytes of each file of the disk reserve, and the bytes that it has when allocated.
    """

    writer: Writer | None
    queue: tuple[Program, ...]
    opener: Program | None
    users: tuple[User, ...]
    hidden: tuple[int, ...]
    keepers: tuple[Program, ...]
    wal_bytes: int
    reserve: dict[str, tuple[int, int]]

    @property
    def wal_is_long(self) -> bool:
        """True if the WAL is longer than the bound at which a commit resets it."""
        return self.wal_bytes > driver.WAL_MAX


def read(path: str) -> Usage:
    """Return the use of the registry at *path*, its real path.

    Not in a process that may have the registry open for writing: this opens and closes a lock file,
    which would drop the record of that process.
    """
    writer = _writer(path)
    opener = file_locks.reader_blocker(path)
    found = file_users.uses_of([path, *(path + suffix for suffix in BESIDE)])
    users = tuple(
        User(file_users.program(use.pid), "write" if path in use.writable else "read")
        for use in found.uses
    )
    return Usage(
        writer=writer,
        queue=_queue(path, writer),
        opener=None if opener is None else file_users.program(opener),
        users=users,
        hidden=found.hidden,
        keepers=tuple(map(file_users.program, file_locks.snapshot_pids(path))),
        wal_bytes=paths.estimated_size(f"{path}-wal"),
        reserve={
            suffix: (paths.estimated_size(f"{path}{suffix}"), size)
            for suffix, size in SIZES.items()
        },
    )


def _writer(path: str) -> Writer | None:
    """Return the holder of the write lock.

    The holder of the process lock has locked `-lock` twice: by flock, and by a record lock whose
    end is the time. A client that bypasses the process lock has locked a byte of `-shm` alone.
    """
    locks = list(file_locks.locks_on(f"{path}-lock"))
    flocks = [lock.pid for lock in locks if lock.kind == "FLOCK"]
    recorded = [lock for lock in locks if lock.kind == "POSIX" and math.isfinite(lock.last)]
    since = {lock.pid: int(lock.last) + 1 for lock in recorded}
    if flocks:
        return Writer(file_users.program(flocks[0]), since.get(flocks[0], 0), queues=True)
    pid = file_locks.write_locker(f"{path}-shm", "POSIX", file_locks.WRITE_LOCK)
    if pid is not None:
        return Writer(file_users.program(pid), 0, queues=False)
    return _hidden_writer(f"{path}-lock")


def _hidden_writer(path: str) -> Writer | None:
    """Return the holder of the lock file at *path* in a pid namespace that is not visible here."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with suppress_os_errors():
        fd = os.open(path, flags)
        try:
            holder = holder_of(fd)
        finally:
            os.close(fd)
        if holder is not None:
            return Writer(Program(holder.pid), holder.since, queues=True)
    return None


def _queue(path: str, writer: Writer | None) -> tuple[Program, ...]:
    """Return the processes that wait for the write lock: the holder of `-queue`, then the others.

    The writer holds `-queue` too, until its COMMIT.
    """
    queue = f"{path}-queue"
    first = [lock.pid for lock in file_locks.locks_on(queue) if lock.kind == "FLOCK"]
    waiting = dict.fromkeys((*first, *file_locks.waiters(queue)))
    writing = None if writer is None else writer.program.pid
    return tuple(file_users.program(pid) for pid in waiting if pid != writing)
