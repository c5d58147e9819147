"""Disk space and inodes reserved for use when the disk is full.

Two files beside the database, made while there is room. When the disk is full

1. a write transaction removes `-reserve`, so that what has ended can be marked NOTREADY;
2. a checkpoint that makes the database longer takes what that needs from `-spare`, and a deletion
   removes it: marking cannot use up what deleting needs, and deleting makes room in the database;
3. an open removes both, since SQLite cannot even read before it has made `-wal` and `-shm`, which
   take two inodes and 32 KiB.
"""

from __future__ import annotations

import os
from typing import Final

from registry.host import paths
from registry.sync.interrupts import reraise_interrupt, suppress_os_errors

SIZES: Final = {"-spare": 128 * 1024, "-reserve": 256 * 1024}
"""Bytes of the files: of some deletions, and of some tens of changes."""


class DiskReserve:
    """The disk reserve of one database, which all processes that have it open share."""

    def __init__(self, database: str) -> None:
        """Make nothing yet."""
        self._database: Final = database
        self.released = False
        """Whether a part of it was removed here, and has not been made again since."""

    def allocate(self) -> bool:
        """Make what is missing of it; return False if the file system has no room for that.

        Where it cannot be made for another reason, an unwritable directory say, return True.
        """
        try:
            for suffix, size in SIZES.items():
                if paths.size(f"{self._database}{suffix}") != size:
                    self._allocate(f"{self._database}{suffix}", size)
        except OSError as error:
            reraise_interrupt(error)
            return error.errno not in paths.NO_SPACE
        self.released = False
        return True

    def _allocate(self, path: str, size: int) -> None:
        """Make the file at *path* with *size* bytes, or leave it as it was if there is no room."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(path, flags, 0o600)
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
        return paths.size(f"{self._database}-spare")

    def shrink(self, bytes: int) -> int:
        """Give *bytes* of `-spare` back to the file system; return what is left of it.

        So no other program that writes to the full disk can take what is needed later.
        """
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with suppress_os_errors():
            fd = os.open(f"{self._database}-spare", flags)
            try:
                left = max(0, os.fstat(fd).st_size - bytes)
                os.ftruncate(fd, left)
            finally:
                os.close(fd)
            self.released = True
            return left
        return 0

    def release(self, *suffixes: str) -> bool:
        """Give the files with *suffixes* back to the file system; return whether there was one."""
        removed = [_remove(f"{self._database}{suffix}") for suffix in suffixes]
        self.released |= any(removed)
        return any(removed)


def _remove(path: str) -> bool:
    """Remove the file at *path*; return whether there was one."""
    with suppress_os_errors():
        os.unlink(path)
        return True
    return False
