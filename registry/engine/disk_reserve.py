"""Disk space and inodes reserved for use when the disk is full.

The reserve is two files beside the database. When the disk is full:

1. A write transaction removes `-reserve`, so that sandboxes can be marked NOTREADY.
2. A checkpoint that makes the database longer takes the bytes from `-spare`, and a deletion removes
   it. Marking thus cannot use the space that deletions need, and deletions free pages.
3. An open removes both: SQLite cannot read before it has created `-wal` and `-shm`, which take two
   inodes and 32 KiB.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import Final

from registry.host import paths
from registry.sync.interrupts import reraise_interrupt, suppress_os_errors

log = logging.getLogger("registry")

SIZES: Final = {"-spare": 128 * 1024, "-reserve": 256 * 1024}
"""Bytes of the files, by suffix: for some deletions, and for some tens of changes."""


class DiskReserve:
    """Disk reserve of one database, shared by all processes that have it open."""

    def __init__(self, database: str) -> None:
        """Prepare for *database*, a path, without allocating anything."""
        self._database: Final = database
        self.released = False
        """Whether this process has removed a part of it, and has not allocated it again since."""

    def allocate(self) -> bool:
        """Allocate the missing files; return False if the file system has no space for them.

        Return True if they cannot be created for another reason, such as a read-only directory.
        """
        try:
            for suffix, size in SIZES.items():
                if paths.estimated_size(f"{self._database}{suffix}") != size:
                    self._allocate(f"{self._database}{suffix}", size)
        except OSError as error:
            reraise_interrupt(error)
            return error.errno not in paths.NO_SPACE
        if self.released:
            log.info(
                "allocated disk reserve of %r again",
                self._database,
                extra={"event": "disk_reserve_allocated", "path": self._database},
            )
        self.released = False
        return True

    def _allocate(self, path: str, size: int) -> None:
        """Allocate *size* bytes for the file at *path*, or leave it as it was without space."""
        fd = _open(path, os.O_CREAT)
        try:
            before = os.fstat(fd).st_size
            paths.give_to_owner(fd, self._database)
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno in paths.NO_SPACE and before:
                os.ftruncate(fd, before)
            elif error.errno in paths.NO_SPACE:
                _remove(path)
            raise
        finally:
            os.close(fd)

    def spare_size(self) -> int:
        """Return the bytes of `-spare`."""
        return paths.estimated_size(f"{self._database}-spare")

    def shrink(self, bytes: int) -> int:
        """Release *bytes* of `-spare`; return the bytes that are left of it.

        Only the bytes that are needed now are released: another program on the full disk could take
        the rest.
        """
        with suppress_os_errors():
            fd = _open(f"{self._database}-spare")
            try:
                left = max(0, os.fstat(fd).st_size - bytes)
                os.ftruncate(fd, left)
            finally:
                os.close(fd)
            self.released = True
            return left
        return 0

    def release(self, *suffixes: str) -> bool:
        """Remove the files with *suffixes*; return whether there was one."""
        removed = [_remove(f"{self._database}{suffix}") for suffix in suffixes]
        self.released |= any(removed)
        if any(removed):
            log.warning(
                "released disk reserve of %r: its disk is full; free some space or some inodes",
                self._database,
                extra={"event": "disk_reserve_released", "path": self._database},
            )
        return any(removed)


def _open(path: str, create: int = 0) -> int:
    """Return a descriptor of a part of the reserve; *create* is O_CREAT or 0.

    Raises:
        OSError: it cannot be opened, or, EINVAL, it is not a file of a registry.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, flags | create, 0o600)
    if why := paths.why_not_ours(path, os.fstat(fd)):
        os.close(fd)
        raise OSError(errno.EINVAL, why, path)
    return fd


def _remove(path: str) -> bool:
    """Remove the file at *path*; return whether there was one."""
    with suppress_os_errors():
        os.unlink(path)
        return True
    return False
