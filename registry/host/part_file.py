"""New content of a file, which replaces the file at its path when it is whole and synced.

The content is written to PATH.part, locked by flock: a second writer of the same path is refused,
and what a killed one has left is removed.
"""

from __future__ import annotations

import fcntl
import os
from typing import Final

from registry.errors import UnavailableError
from registry.host import paths
from registry.sync.interrupts import reraise_interrupt, suppress_os_errors

SUFFIX: Final = ".part"
"""Added to the path of a file that is being written."""
_BESIDE: Final = ("-journal", "-wal", "-shm")
"""Files that SQLite may keep beside a part while it writes it."""


class PartFile:
    """Locked file PATH.part; the caller fills it and calls `commit`, or `discard` in any case."""

    def __init__(self, path: str) -> None:
        """Create nothing yet; *path* is that of the file which it replaces in the end."""
        self.path: Final = f"{path}{SUFFIX}"
        self._target: Final = path
        self._fd = -1

    def create(self, owner: str, doing: str) -> None:
        """Create the file, empty and locked.

        Args:
            owner: path of a file whose owner it gets.
            doing: operation and object, for messages.
        Raises:
            OSError: it cannot be created.
            UnavailableError: another process is writing it.
        """
        while not self._create(doing):
            pass
        for suffix in _BESIDE:  # SQLite would apply what a kill has left
            _remove(f"{self.path}{suffix}")
        paths.give_to_owner(self._fd, owner)

    def _create(self, doing: str) -> bool:
        """Create and lock the file; False if another process has interfered, or left one."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self._fd = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            is_new = True
        except FileExistsError as error:
            reraise_interrupt(error)
            self._fd = os.open(self.path, flags)
            is_new = False
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._close()
            reraise_interrupt(error)
            raise UnavailableError(
                f"{doing}: another process is writing {self.path!r}; wait until it has ended"
            ) from error
        if is_new and self._is_at_path():
            return True
        if self._is_at_path():
            os.unlink(self.path)
        self._close()
        return False

    def _is_at_path(self) -> bool:
        found = os.fstat(self._fd)
        return paths.identity(self.path) == (found.st_dev, found.st_ino)

    def commit(self, *, replace: bool = True) -> None:
        """Sync the file, and give it its name in one step.

        No connection of SQLite may have the file open: the close would drop its locks.

        Args:
            replace: another file may have the name; else that is FileExistsError.
        Raises:
            OSError: it cannot be synced or renamed.
        """
        os.fsync(self._fd)
        if replace:
            os.rename(self.path, self._target)
        else:
            os.link(self.path, self._target)
            os.unlink(self.path)
        paths.sync_directory(os.path.dirname(self._target))
        self._close()

    def discard(self) -> None:
        """Remove the file, unless it has its name; idempotent."""
        if self._fd < 0:
            return
        with suppress_os_errors():
            if self._is_at_path():
                for suffix in ("", *_BESIDE):
                    _remove(f"{self.path}{suffix}")
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError as error:
        reraise_interrupt(error)
