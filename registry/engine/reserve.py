"""Space that is kept for the day on which the disk is full.

A file beside the database, allocated while there is room. On a full disk it is given up, so that
SQLite can open the registry, and what is gone can still be marked and deleted; while it is missing
and cannot be had again, nothing is added.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from registry.engine import paths
from registry.errors import ResourceExhaustedError
from registry.interrupts import reraise_interrupt, suppress_os_errors

SIZE: Final = 256 * 1024
"""Bytes: SQLite's index of the log, and some tens of changes in the log."""
MARGIN: Final = 64 * 1024
"""Bytes that must be left beside it for an addition."""


class Reserve:
    """The space of one database, which the processes that have it open share."""

    def __init__(self, database: str) -> None:
        """Take nothing yet."""
        self._database: Final = database
        self._path: Final = f"{database}-reserve"
        self._directory: Final = os.path.dirname(database)
        self._full = False
        self.given_up = False
        """Whether it was given up here, and has not been had again."""

    def take(self) -> bool:
        """Allocate it unless it is there, and tell whether it is there now."""
        there = paths.size(self._path) == SIZE or self._allocate()
        if there:
            self.given_up = False
        return there

    def _allocate(self) -> bool:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(self._path, flags, 0o600)
            try:
                paths.give_to_owner(fd, self._database)
                os.posix_fallocate(fd, 0, SIZE)
            finally:
                os.close(fd)
        except OSError as error:
            reraise_interrupt(error)
            self._full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            if self._full:
                self._remove()  # a part of it is no use to us
            return False
        return True

    def give_up(self) -> bool:
        """Give the space back to the file system, and tell whether there was any."""
        removed = self._remove()
        self.given_up |= removed
        return removed

    def _remove(self) -> bool:
        with suppress_os_errors():
            os.unlink(self._path)
            return True
        return False

    def require_more(self, doing: str) -> None:
        """Raise unless there is room beside it; it is allocated first if it is missing.

        Where it cannot be had for another reason than room, there is room all the same.

        Raises:
            ResourceExhaustedError: the disk is full.
        """
        there = self.take() or not self._full
        if not (there and paths.free(self._directory) >= MARGIN):
            raise ResourceExhaustedError(
                f"{doing}: the disk is full, and what little is left of it at {self._database!r} "
                "is for marking sandboxes NOTREADY and deleting them; free some space",
                path=self._database,
            )

    def is_short(self) -> bool:
        """Whether less than its size is free beside it."""
        return paths.free(self._database) < SIZE

    def has_margin(self) -> bool:
        """Whether something small, a deletion, still finds room."""
        return paths.free(self._database) >= MARGIN
