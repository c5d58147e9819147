"""The write-ahead log: neither without end nor without room.

A commit that makes a file longer syncs its new length too, which takes a journaling file system
1.4 to 2.3 times as long as the data alone (195 to 310 us and 137, ext4). SQLite writes over what
is in the log already once it has begun it anew, which a registry of few writes never does. So
zeros are written after the end of a log that has just grown: to SQLite they are what is left of an
older one. It has no setting for that: SQLITE_FCNTL_CHUNK_SIZE is for the database file alone.

The log is opened here beside SQLite, which the database must never be: no lock is on the log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from typing import TYPE_CHECKING, Final

from registry.engine import driver
from registry.host.file_locks import snapshot_holders
from registry.host.paths import free
from registry.sync.interrupts import reraise_interrupt

if TYPE_CHECKING:
    from registry.engine.file_identity import FileIdentity

log = logging.getLogger("registry")

AHEAD: Final = 256 * 1024
"""Bytes of zeros: some thirty small updates, and less to write than what a sync takes."""
RESET_WAIT: Final = 1.0
"""Seconds that a commit waits for readers when the log has grown past its bound: where two overlap
all the time, longer than each of them keeps its snapshot, or it grows without end."""


class Wal:
    """The write-ahead log of one database file, for its writer."""

    def __init__(self, path: str, file_identity: FileIdentity) -> None:
        """Know of nothing yet; *file_identity* has looked at the log before any other call."""
        self._path: Final = path
        self._file_identity: Final = file_identity
        self._bound = driver.WAL_MAX
        self._size = 0
        """Bytes, when a transaction last began."""

    def is_long(self) -> bool:
        """Whether it has grown past its bound."""
        return self._file_identity.log_size > self._bound

    def restart(self, connection: driver.Connection, deadline: float) -> None:
        """Write over it from its beginning on: passive checkpoints may starve.

        Waits for readers, but not past *deadline* (monotonic seconds).
        """
        wait = max(0.0, min(RESET_WAIT, deadline - time.monotonic()))
        with contextlib.suppress(sqlite3.Error):
            try:
                connection.execute(f"PRAGMA busy_timeout = {int(wait * 1000)}")
                busy = connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0]
            finally:
                connection.execute("PRAGMA busy_timeout = 0")
            # A reader that stays would cost every commit the wait: try again when it has grown.
            self._bound = driver.WAL_MAX + (self._file_identity.log_size if busy else 0)
            if busy:
                self._warn()

    def _warn(self) -> None:
        """Say in the log of the program which processes keep this one from being reset."""
        log.warning(
            "the write-ahead log of %r has %d bytes and cannot be reset: %s; end the read "
            "transaction there",
            self._path,
            self._file_identity.log_size,
            f"{', '.join(snapshot_holders(self._path)) or 'an unknown process'} keeps a snapshot",
        )

    def extend(self) -> None:
        """Give it room ahead, if it has none left; nobody else may write meanwhile.

        It has none where commits alone have made it longer since the last time; more than that is
        taken for room that another process has given it. Where it was one long commit, the next
        commit makes the log longer once more, and then it gets room.
        """
        size, grown = self._file_identity.log_size, self._file_identity.log_size - self._size
        self._size = size
        if 0 < grown < AHEAD and size + AHEAD <= driver.WAL_MAX:
            try:
                self._write_zeros(size)
            except OSError as error:
                reraise_interrupt(error)

    def _write_zeros(self, size: int) -> None:
        """Write them, unless somebody has since we saw it *size* bytes long: that was in line."""
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(f"{self._path}-wal", flags)
        try:
            found = os.fstat(fd)
            wanting = size <= found.st_size < size + AHEAD and self._file_identity.is_log(found)
            # The last of the space is for what is written, and not for what may be.
            if wanting and free(os.path.dirname(self._path)).bytes >= driver.WAL_MAX:
                os.pwrite(fd, bytes(AHEAD), found.st_size)
        finally:
            os.close(fd)
