"""File that is locked by one process at a time, and names the holder of the lock.

The lock is a flock. The holder is recorded by a record lock on the same file, from byte 0 to the
byte whose number is the time of locking in nanoseconds. F_GETLK tells other processes the pid of
the holder and the end of the range. Nothing is written to the file.

A forked child closes its descriptors, which would otherwise keep the lock after the parent's death.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from typing import Final, NamedTuple
from weakref import WeakSet

from registry.errors import FailedPreconditionError
from registry.host import paths
from registry.sync.interrupts import reraise_interrupt, suppress_os_errors

_RECORD_LOCK: Final = struct.Struct("@hhqqi0q")
"""struct flock of fcntl(2): type, whence, start, length, pid."""
_ANY: Final = _RECORD_LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


class Holder(NamedTuple):
    """Holder of a lock.

    Attributes:
        pid: of the process; 0 if it is in another pid namespace, and so not visible here.
        since: time of locking, in nanoseconds since the Unix epoch.
    """

    pid: int
    since: int


def holder_of(fd: int) -> Holder | None:
    """Return the other process that is recorded in the file *fd*; None if there is none."""
    try:
        found = fcntl.fcntl(fd, fcntl.F_GETLK, _ANY)
    except (OSError, ValueError) as error:  # the file is closed
        reraise_interrupt(error)
        return None
    kind, _, start, length, pid = _RECORD_LOCK.unpack(found)
    return None if kind == fcntl.F_UNLCK else Holder(pid, start + length)


class LockFile:
    """File beside a database that is locked by one process at a time."""

    def __init__(self, path: str, database: str) -> None:
        """Open *path*, never through a symlink, or create it for the owner of *database*."""
        self.path: Final = path
        self._database: Final = database
        self.created = False
        self.fd = -1
        self._identity: tuple[int, int] | None = None
        self._recorded = False
        _open.add(self)
        self.reopen()

    def reopen(self) -> None:
        """Open the file that is at the path now, then close the one that was open before.

        Raises:
            OSError, FailedPreconditionError: it cannot be opened, or is no file of a registry; the
                one that was open stays open.
        """
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        before = self.fd
        try:
            fd = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            self.created = True
            paths.give_to_owner(fd, self._database)
        except FileExistsError as error:
            reraise_interrupt(error)
            fd = os.open(self.path, flags)
        found = os.fstat(fd)
        why = paths.why_not_ours(self.path, found)
        if why:
            os.close(fd)
            raise FailedPreconditionError(f"lock {self.path!r}: it {why}; move it away")
        self.fd, self._identity = fd, (found.st_dev, found.st_ino)
        if before >= 0:
            os.close(before)

    def close(self) -> None:
        """Close the descriptor, which unlocks the file if no forked child has it too."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def acquire(self) -> None:
        """Lock the file; wait without a deadline."""
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def try_acquire(self) -> bool:
        """Lock the file if it is not locked; return whether it is locked now."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            reraise_interrupt(error)
            return False
        return True

    def record_holder(self) -> None:
        """Record this process and the time; if the system refuses, nothing is recorded."""
        self._recorded = True
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, time.time_ns())
        except OSError as error:
            reraise_interrupt(error)

    def holder(self) -> Holder | None:
        """Return the other process that is recorded; None if there is none."""
        return holder_of(self.fd)

    def release(self) -> None:
        """Unlock the file, or close it if the system refuses; idempotent."""
        if self.fd >= 0:
            try:
                if self._recorded:
                    fcntl.lockf(self.fd, fcntl.LOCK_UN)
                    self._recorded = False
                fcntl.flock(self.fd, fcntl.LOCK_UN)
            except OSError as error:
                self.close()  # no error: the commit that was made under the lock has succeeded
                reraise_interrupt(error)

    def mark(self) -> None:
        """Make the file one byte long for good; if the system refuses, it stays empty."""
        with suppress_os_errors():
            if os.fstat(self.fd).st_size == 0:
                os.ftruncate(self.fd, 1)

    def is_at_path(self) -> bool:
        """Return whether the open file is the one at the path; False if none is open."""
        if self.fd < 0:
            return False
        try:
            there = os.lstat(self.path)
        except FileNotFoundError as error:
            reraise_interrupt(error)
            return False
        return (there.st_dev, there.st_ino) == self._identity


_open: Final[WeakSet[LockFile]] = WeakSet()


def close_all() -> None:
    """Close every lock file, in a forked child: it would keep the parent's lock."""
    for file in _open:
        file.close()
