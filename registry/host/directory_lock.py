"""Lock by which `ip netns` and this package change a directory of network namespaces.

The lock is a flock(2) of the directory. Any process that can open the directory may hold it, so
every wait has a deadline.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from registry.host import file_locks
from registry.host.file_locks import process_name
from registry.sync.interrupts import reraise_interrupt

TIMEOUT: Final = 10.0
"""Seconds to wait for the lock."""
POLL: Final = (0.001, 0.05)
"""Shortest and longest pause between two attempts, in seconds; flock(2) itself has no timeout."""


@contextmanager
def locked(directory: bytes) -> Iterator[int]:
    """Lend a descriptor of *directory*, which is locked.

    Raises:
        OSError: the directory cannot be opened; ETIMEDOUT: the lock is held by another process for
            more than TIMEOUT seconds.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(fd, directory, time.monotonic() + TIMEOUT)
        yield fd
    finally:
        os.close(fd)


def _lock(fd: int, directory: bytes, deadline: float) -> None:
    pause, longest = POLL
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            reraise_interrupt(error)
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise OSError(errno.ETIMEDOUT, _contention(fd, directory)) from error
            time.sleep(min(pause, remaining))
            pause = min(2 * pause, longest)
        else:
            return


def _contention(fd: int, directory: bytes) -> str:
    path = os.fsdecode(directory)
    waited = f"timed out after {TIMEOUT:g} s waiting for the flock on {path!r}"
    pid = holder_of(fd)
    if pid is None:
        return f"{waited}, held by an unknown process; retry, or find it by `lsof {path}`"
    return f"{waited}, held by process {pid}{process_name(pid)}; retry, or stop that process"


def holder_of(fd: int) -> int | None:
    """Return the pid of the process that holds the flock on the file *fd*; None if unknown."""
    locks = file_locks.locks_on(f"/proc/thread-self/fd/{fd}")
    pids = [each.pid for each in locks if each.kind == "FLOCK"]
    return next((pid for pid in pids if pid > 0), None)
