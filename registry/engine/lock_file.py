"""A file that exists to be locked, by one process at a time, who says so.

Who holds the lock is said by a record lock beside it, the sign, which ends at the nanosecond since
when: the kernel tells others its end, and whose it is. What is written into a file instead costs
half a commit, since the next sync of the log writes it down too.

Descriptors are closed in a forked child, where they would otherwise keep the lock alive after the
parent's death.
"""

from __future__ import annotations

import fcntl
import os
import stat
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
    """Who holds the lock: *since* in ns since the Unix epoch; *pid* 0 where it is not seen here."""

    pid: int
    since: int


class LockFile:
    """A file that exists to be locked."""

    def __init__(self, path: str, database: str) -> None:
        """Open *path*, which is created for the owner of *database*, never through a symlink."""
        self.path: Final = path
        self._database: Final = database
        self.created = False
        self.fd = -1
        self._identity: tuple[int, int] | None = None
        self._recorded = False
        _open.add(self)
        self.reopen()

    def reopen(self) -> None:
        """Open what is at the path now, and then let go of what was there before.

        Raises:
            OSError, FailedPreconditionError: it is no file to be locked; nothing has changed.
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
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise FailedPreconditionError(
                f"lock {self.path!r}: it is no regular file; move it away"
            )
        self.fd, self._identity = fd, (found.st_dev, found.st_ino)
        if before >= 0:
            os.close(before)

    def close(self) -> None:
        """Close the descriptor, and with it release the lock if no forked child has it too."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def acquire(self) -> None:
        """Wait for the lock, without end."""
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def try_acquire(self) -> bool:
        """Take the lock if nobody has it, and tell whether."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            reraise_interrupt(error)
            return False
        return True

    def record_holder(self) -> None:
        """Say who holds it and since when; where that is refused, nothing is said."""
        self._recorded = True
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, time.time_ns())
        except OSError as error:
            reraise_interrupt(error)

    def holder(self) -> Holder | None:
        """Return who else has signed; None when it is nobody, or this process."""
        try:
            found = fcntl.fcntl(self.fd, fcntl.F_GETLK, _ANY)
        except (OSError, ValueError) as error:  # it is closed
            reraise_interrupt(error)
            return None
        kind, _, start, length, pid = _RECORD_LOCK.unpack(found)
        return None if kind == fcntl.F_UNLCK else Holder(pid, start + length)

    def release(self) -> None:
        """Release the lock, whatever the system says; releasing twice is harmless."""
        if self.fd >= 0:
            try:
                if self._recorded:
                    fcntl.lockf(self.fd, fcntl.LOCK_UN)
                    self._recorded = False
                fcntl.flock(self.fd, fcntl.LOCK_UN)
            except OSError as error:
                self.close()  # a commit may have been made under it, which must not seem to fail
                reraise_interrupt(error)

    def mark(self) -> None:
        """Make the file one byte long, which it stays; where that is refused, it stays empty."""
        with suppress_os_errors():
            if os.fstat(self.fd).st_size == 0:
                os.ftruncate(self.fd, 1)

    def is_at_path(self) -> bool:
        """Whether the file that we have open, if we have, is still the one others find."""
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
