"""Check that the open database and WAL are still the files at their paths.

SQLite continues to write to a file that was removed or replaced. Its commits are then lost, or the
close moves the WAL into the database over the commits of other processes. The writer checks before
a transaction, and after its COMMIT before the commit is acknowledged.
"""

from __future__ import annotations

import os
from typing import Final

from registry.engine import driver
from registry.errors import DataLossError
from registry.host.kernel import file_at
from registry.host.paths import identity

STAT_CHECKS: Final = 32
"""Checks that read the times of the WAL too: half as many commits are slower, by less in all than
the import of ctypes takes."""

replaced_files: Final[dict[str, object]] = {}
"""Device and inode, by path, of the databases whose connections must not be closed.

Their WAL is not the one at its path: a close would move the open WAL into the database, and remove
the WAL at the path.
"""


class FileIdentity:
    """Identity of the files of one database that this process has open."""

    def __init__(self, path: str) -> None:
        """Prepare for the database at *path*; `record` is called once it is open."""
        self._path: Final = path
        self._log: Final = os.fsencode(f"{path}-wal")
        self._files: tuple[object, object] = (None, None)
        self._checks = 0
        self.log_size = 0
        """Bytes of the WAL at the latest check: before a transaction, or after its commit."""

    def record(self, *, log: bool) -> None:
        """Record the files at the paths as those that are open.

        Args:
            log: include the WAL, which exists while the database is open for writing.
        """
        database, found = self._observe()
        self._files = (database, found if log else None)

    def _observe(self) -> tuple[object, object]:
        self._checks += 1
        log, self.log_size = file_at(self._log, keep_times=self._checks > STAT_CHECKS)
        return (identity(self._path), log)

    def require(self, doing: str) -> None:
        """Raise DataLossError unless the paths refer to the open database and its WAL."""
        if self._observe() != self._files:
            raise self.replaced_error(doing)

    def require_database(self, doing: str) -> None:
        """Raise DataLossError unless the path refers to the open database."""
        if identity(self._path) != self._files[0]:
            raise self.replaced_error(doing)

    def replaced_error(self, doing: str) -> DataLossError:
        """Return the error of an operation *doing* on replaced files."""
        return DataLossError(
            f"{doing}: {self._path!r} or its -wal was removed or replaced while this process had "
            "it open, so its commits would be lost; find the program that did it, close all stores "
            "of it in this process, and open it again, in a new process if this one is refused",
            path=self._path,
        )

    def mark_replaced(self) -> None:
        """Mark the open files as replaced: their connections are never closed."""
        replaced_files[self._path] = self._files[0]

    def mark_if_replaced(self) -> None:
        """Mark the open files as replaced if a path refers to another file.

        A close would damage that file. If a path has no file, the close moves the WAL into the open
        database, and nothing is lost.
        """
        pairs = zip(self._observe(), self._files, strict=True)
        if any(there not in {None, ours} for there, ours in pairs):
            self.mark_replaced()

    def close(self, connection: driver.Connection) -> None:
        """Close *connection*, or leak it if its files were replaced."""
        if self._path in replaced_files and replaced_files[self._path] == self._files[0]:
            driver.leak(connection)
        else:
            driver.close(connection)
