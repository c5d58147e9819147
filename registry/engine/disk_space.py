"""Limits of a write transaction, by the space that is free on the disk when it begins.

An addition needs free space and an allocated disk reserve. Marking a sandbox NOTREADY may use
`-reserve`; deleting a sandbox may use all of the disk reserve.

On a full disk a checkpoint runs before the transaction, so that SQLite overwrites the WAL in place,
which takes no space. A checkpoint makes the database longer by the pages that are only in the log.
Checkpoints keep those few while the disk has space: otherwise one checkpoint would use up the disk
reserve before it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from typing import TYPE_CHECKING, Final

from registry.engine.disk_reserve import SIZES, DiskReserve
from registry.engine.long_wal import long_wal
from registry.errors import ResourceExhaustedError
from registry.host import paths

if TYPE_CHECKING:
    from registry.engine.driver import Connection

MARGIN: Final = 64 * 1024
"""Bytes that must be free for an addition."""
DELETIONS: Final = 64 * 1024
"""Bytes of `-spare` that only deletions may use."""
GROWTH_MAX: Final = 128 * 1024
"""Bytes by which a checkpoint may make the database longer: half of `-reserve`."""


class DiskSpace:
    """Limits of the writes to one database, by the free space of its disk."""

    def __init__(self, path: str) -> None:
        """Prepare for the database at *path*; before `begin` every write is allowed."""
        self.reserve: Final = DiskReserve(path)
        self._path: Final = path
        self._directory: Final = os.path.dirname(path)
        self._full = False
        """Whether the open transaction began on a full disk."""
        self._last = False
        """Whether only deletions may use the rest; until a deletion has, or the disk has space."""
        self._has_reserve = self._grows = False
        """Of the open transaction: whether the reserve is allocated; whether it makes the database
        longer. Set by `require`."""

    def begin(self, connection: Connection) -> None:
        """Measure the free space for a transaction that *connection* is about to begin.

        This decides whether the disk is full; `require` also finds out that the reserve cannot be
        allocated.
        """
        free = paths.free(self._directory)
        short = free.bytes < MARGIN or (self.reserve.released and not self.reserve.allocate())
        self._full = short or free.inodes < 1
        self._has_reserve = self._grows = False
        if short:
            self._make_space(connection)
        else:
            self._last = False

    def is_low(self) -> bool:
        """Return whether the space may suffice for some tens of changes only."""
        return self.reserve.released or paths.free(self._directory).bytes < MARGIN

    def require(self, doing: str, *, grows: bool = False) -> None:
        """Refuse an addition if the open transaction began on a full disk.

        The disk reserve is allocated first; without space for it, the addition is refused as well.

        Args:
            doing: the operation and its object, for messages.
            grows: the addition makes the database longer.
        Raises:
            ResourceExhaustedError: the disk is full.
        """
        self._grows |= grows
        if not (self._full or self._has_reserve):
            self._has_reserve = self.reserve.allocate()
            self._full = not self._has_reserve
        if self._full:
            raise self._exhausted(doing, "marking sandboxes NOTREADY and deleting them")

    def require_to_mark(self, doing: str) -> None:
        """Refuse to mark a sandbox if the rest of a full disk is kept for deletions.

        Raises:
            ResourceExhaustedError: the disk is full.
        """
        if self._last:
            raise self._exhausted(doing, "deleting sandboxes")

    def use_last(self) -> None:
        """Let the open transaction, which deletes, use all of the disk reserve on a full disk."""
        if self._full:
            self.reserve.release(*SIZES)
            self._last = False  # marking can use the pages that the deletion frees

    def needs_maintenance(self, connection: Connection) -> bool:
        """Return whether `maintain` has something to do after a commit."""
        return self.reserve.released or (self._grows and self._growth(connection) > GROWTH_MAX)

    def maintain(self, connection: Connection) -> None:
        """Prepare for a full disk, after a commit and before another process may write."""
        if self._grows and self._growth(connection) > GROWTH_MAX:
            _checkpoint(connection)
        if self.reserve.released:
            self.reserve.allocate()

    def _make_space(self, connection: Connection) -> None:
        """Release disk reserve for the WAL, and run a checkpoint, on a full disk."""
        self.reserve.release("-reserve")
        lacking = self._growth(connection) - paths.free(self._directory).bytes
        if lacking > self.reserve.spare_size():
            return  # without a checkpoint, commits extend the WAL into the released space
        if lacking > 0 and self.reserve.shrink(int(lacking)) < DELETIONS:
            self._last = True
        _checkpoint(connection)

    def _growth(self, connection: Connection) -> int:
        """Return the bytes by which a checkpoint would make the database longer."""
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (page,) = connection.execute("PRAGMA page_size").fetchone()
        return int(pages * page - paths.estimated_size(self._path))

    def _exhausted(self, doing: str, reserved_for: str) -> ResourceExhaustedError:
        return ResourceExhaustedError(
            f"{doing}: the disk of {self._path!r} is full, and the disk reserve is kept for "
            f"{reserved_for}; {paths.how_to_free(self._path)}{long_wal(self._path)}",
            path=self._path,
            errno=errno.ENOSPC,
        )


def _checkpoint(connection: Connection) -> None:
    """Move the WAL into the database, as far as readers and the disk allow."""
    with contextlib.suppress(sqlite3.Error):  # commits then extend the WAL
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
