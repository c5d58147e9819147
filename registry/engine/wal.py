"""Growth of the write-ahead log: an upper bound, and preallocation.

A commit that makes the WAL longer also syncs the new length of the file: on ext4 that takes 1.4 to
1.7 times as long as a commit that overwrites frames. Therefore the writer lets SQLite append frames
that no commit contains, by a transaction that is rolled back: the next commits overwrite them. The
measurements are in docs/internals.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from typing import TYPE_CHECKING, Final

from registry.engine import driver
from registry.engine.long_wal import why_long
from registry.host import paths
from registry.sync.interrupts import call_then

if TYPE_CHECKING:
    from registry.engine.file_identity import FileIdentity

log = logging.getLogger("registry")

AHEAD: Final = 256 * 1024
"""Bytes that are preallocated at once, for about thirty small updates."""
RESET_WAIT: Final = 1.0
"""Seconds that a commit waits for readers, at most. If two readers overlap all the time, it must be
longer than each of them keeps its snapshot."""


class Wal:
    """Write-ahead log of one database file, as its writer lets it grow.

    A commit checkpoints the WAL if it has taken the WAL over a multiple of WAL_MAX, and may wait to
    restart it at WAL_MAX, twice that, four times, and so on. The process lock serialises commits,
    so of all processes only one meets each multiple.
    """

    def __init__(self, path: str, file_identity: FileIdentity) -> None:
        """Prepare for the database at *path*; *file_identity* measures the WAL."""
        self._path: Final = path
        self._file_identity: Final = file_identity
        self._size = 0
        """Bytes of the WAL when the latest transaction began, preallocation included."""
        self._multiple = 0
        """Multiple of WAL_MAX that the WAL had exceeded then, without the preallocation."""
        self._is_auto = True
        """Whether SQLite runs a checkpoint after each commit to a WAL of over WAL_PAGES pages."""

    def is_near_bound(self) -> bool:
        """Return whether the latest transaction may have taken the WAL over a bound."""
        return self._size > driver.WAL_MAX // 2

    def restart_if_outgrown(self, connection: driver.Connection, deadline: float) -> None:
        """Checkpoint and restart the WAL if the latest commit has taken it over a bound.

        Passive checkpoints starve while readers overlap; a restart waits for the readers. It does
        not wait for a reader that was there when the WAL had half of its length: that one stays.

        Args:
            connection: the writer's; the caller holds the process lock.
            deadline: monotonic time in seconds after which waiting stops.
        """
        multiple = _multiple_below(self._file_identity.log_size)
        if multiple > self._multiple:
            is_bound = multiple.bit_length() > self._multiple.bit_length()
            wait = min(RESET_WAIT, deadline - time.monotonic())
            with contextlib.suppress(sqlite3.Error):
                if _is_kept(connection, wait if is_bound else None) and is_bound:
                    log.warning(
                        "%s",
                        why_long(self._path),
                        extra={
                            "event": "wal_not_reset",
                            "path": self._path,
                            "wal_bytes": self._file_identity.log_size,
                        },
                    )
        self._multiple = multiple  # set last: an interrupted call is called again

    def preallocate(self, connection: driver.Connection) -> None:
        """Append frames that the next commits overwrite, if commits have made the WAL longer.

        Growth by half of AHEAD or more counts as a preallocation by another process. After one long
        commit, the next commit makes the WAL longer again, and the one after it preallocates.

        Args:
            connection: the writer's, in no transaction; the caller holds the process lock.
        """
        size = self._file_identity.log_size
        if size > driver.WAL_MAX // 2:  # another process may have committed since
            size = paths.estimated_size(f"{self._path}-wal")
        grown, self._size = size - self._size, size
        self._multiple = _multiple_below(size)
        self._set_auto_checkpoint(connection)
        # A WAL that is about to pass WAL_MAX is about to be restarted.
        if not (0 < grown < AHEAD // 2 and not 0 <= driver.WAL_MAX - size < AHEAD):
            return
        # The rest of the disk is for data.
        if paths.free(os.path.dirname(self._path)).bytes >= driver.WAL_MAX:
            _append_uncommitted(connection)
            self._size = paths.estimated_size(f"{self._path}-wal")

    def _set_auto_checkpoint(self, connection: driver.Connection) -> None:
        """Let SQLite run its own checkpoints only in a WAL of up to WAL_MAX bytes.

        Such a checkpoint sorts all frames of the WAL, even if a reader then lets it move none.
        """
        is_auto = self._multiple == 0
        if is_auto != self._is_auto:
            pages = driver.WAL_PAGES if is_auto else 0
            connection.execute(f"PRAGMA wal_autocheckpoint = {pages}")
            self._is_auto = is_auto


def _is_kept(connection: driver.Connection, wait: float | None) -> bool:
    """Checkpoint the WAL, and return whether readers keep the next commit from overwriting it.

    Args:
        connection: the writer's.
        wait: seconds to wait for readers, at most; None: without a restart.
    """
    frames: int
    moved: int
    _, frames, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    # A checkpoint goes as far as the snapshot of the oldest reader.
    if wait is None or 2 * moved < frames:
        return moved < frames
    try:
        connection.execute(f"PRAGMA busy_timeout = {max(0, int(wait * 1000))}")
        return bool(connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0])
    finally:
        connection.execute("PRAGMA busy_timeout = 0")


def _multiple_below(size: int) -> int:
    """Return the multiple of WAL_MAX that *size* bytes exceed; a WAL that was cut has WAL_MAX."""
    return max(0, size - 1) // driver.WAL_MAX


def _append_uncommitted(connection: driver.Connection) -> None:
    """Append about AHEAD bytes to the WAL by a transaction that is rolled back.

    SQLite writes the pages of a transaction to the WAL before its end when they exceed its cache.
    `sqlite_sequence` is the one ordinary table that exists in every schema with AUTOINCREMENT.
    """

    def append() -> None:
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO sqlite_sequence VALUES (zeroblob(?), 0)", (AHEAD,))

    def take_back() -> None:
        if connection.is_in_transaction():
            connection.execute("ROLLBACK")
        driver.large_cache(connection)

    with contextlib.suppress(sqlite3.Error):  # without preallocation the WAL grows with each commit
        call_then(append, take_back)
