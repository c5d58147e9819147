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
from registry.host import paths
from registry.host.file_locks import snapshot_holders
from registry.sync.interrupts import call_then

if TYPE_CHECKING:
    from registry.engine.file_identity import FileIdentity

log = logging.getLogger("registry")

AHEAD: Final = 256 * 1024
"""Bytes that are preallocated at once, for about thirty small updates."""
RESET_WAIT: Final = 1.0
"""Seconds that a commit waits for readers when the WAL is longer than its bound. If two readers
overlap all the time, it must be longer than each of them keeps its snapshot."""


class Wal:
    """Write-ahead log of one database file, as its writer lets it grow."""

    def __init__(self, path: str, file_identity: FileIdentity) -> None:
        """Prepare for the database at *path*; *file_identity* measures the WAL."""
        self._path: Final = path
        self._file_identity: Final = file_identity
        self._bound = driver.WAL_MAX
        self._size = 0
        """Bytes of the WAL when the latest transaction began."""

    def is_long(self) -> bool:
        """Return whether the WAL is longer than its bound."""
        return self._file_identity.log_size > self._bound

    def restart(self, connection: driver.Connection, deadline: float) -> None:
        """Let the next commit overwrite the WAL from its start.

        Passive checkpoints starve while readers overlap; this one waits for the readers.

        Args:
            connection: the writer's; the caller holds the process lock.
            deadline: monotonic time in seconds after which waiting stops.
        """
        wait = max(0.0, min(RESET_WAIT, deadline - time.monotonic()))
        with contextlib.suppress(sqlite3.Error):
            try:
                connection.execute(f"PRAGMA busy_timeout = {int(wait * 1000)}")
                busy = connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0]
            finally:
                connection.execute("PRAGMA busy_timeout = 0")
            # While a reader stays, each commit would wait: try again after the same growth.
            self._bound = driver.WAL_MAX + (self._file_identity.log_size if busy else 0)
            if busy:
                self._warn()

    def _warn(self) -> None:
        """Log which processes keep the write-ahead log from being reset."""
        log.warning(
            "the write-ahead log of %r has %d bytes and cannot be reset: %s; end the read "
            "transaction there",
            self._path,
            self._file_identity.log_size,
            f"{', '.join(snapshot_holders(self._path)) or 'an unknown process'} keeps a snapshot",
        )

    def preallocate(self, connection: driver.Connection) -> None:
        """Append frames that the next commits overwrite, if commits have made the WAL longer.

        Growth by half of AHEAD or more counts as a preallocation by another process. After one long
        commit, the next commit makes the WAL longer again, and the one after it preallocates.

        Args:
            connection: the writer's, in no transaction; the caller holds the process lock.
        """
        size, grown = self._file_identity.log_size, self._file_identity.log_size - self._size
        self._size = size
        if not (0 < grown < AHEAD // 2 and size + AHEAD <= driver.WAL_MAX):
            return
        # The rest of the disk is for data.
        if paths.free(os.path.dirname(self._path)).bytes >= driver.WAL_MAX:
            _append_uncommitted(connection)
            self._size = paths.size(f"{self._path}-wal")


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
