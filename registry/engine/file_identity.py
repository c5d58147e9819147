"""Check that the open database and WAL are still the files at their paths.

SQLite continues to write to a file that was removed or replaced. Its commits are then lost, or the
close moves the WAL into the database over the commits of other processes. The writer checks before
a transaction, and after its COMMIT before the commit is acknowledged.
"""

from __future__ import annotations

import os
from typing import Final

from registry.engine import driver
from registry.errors import CommitUnknownError, DataLossError, RegistryError
from registry.host.kernel import file_at
from registry.host.paths import identity, refused
from registry.sync.interrupts import reraise_interrupt

STAT_CHECKS: Final = 8
"""Checks that read the times of the WAL too. A process of a few commits does without ctypes, whose
import takes 2 ms; one of many commits loads it early, before its memory is measured."""

CONFIRMATIONS: Final = 3
"""Attempts to inspect the paths after a COMMIT: a failure may be transient."""

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
        self._unknown = False
        """Whether it was unknown at the close if the paths still refer to the open files."""
        self._checks = 0
        self.log_size = 0
        """Bytes of the WAL at the latest check: before a transaction, or after its commit."""

    def record(self, *, log: bool) -> None:
        """Record the files at the paths as those that are open.

        Args:
            log: include the WAL, which exists while the database is open for writing.
        """
        database, found = self._observe("open registry")
        self._files = (database, found if log else None)

    def _observe(self, doing: str) -> tuple[object, object]:
        """Return what the paths refer to now.

        Raises:
            RegistryError: that is unknown, for example for want of memory. It is no evidence that a
                file was removed.
        """
        self._checks += 1
        try:
            log, self.log_size = file_at(self._log, keep_times=self._checks > STAT_CHECKS)
        except OSError as error:
            reraise_interrupt(error)
            raise refused(doing, self._path, f"inspect '{self._path}-wal'", error) from error
        return (identity(self._path, doing), log)

    def require(self, doing: str) -> None:
        """Raise unless the paths refer to the open database and its WAL.

        Raises:
            DataLossError: a path refers to another file, or to none.
            RegistryError: a path cannot be inspected.
        """
        if self._observe(doing) != self._files:
            raise self.replaced_error(doing)

    def confirm(self, doing: str) -> None:
        """Raise unless the commit that was made is in the files at the paths.

        Raises:
            DataLossError: a path refers to another file, or to none.
            CommitUnknownError: that is unknown: a path cannot be inspected, also when it is tried
                again.
        """
        for _ in range(CONFIRMATIONS):
            try:
                return self.require(doing)
            except DataLossError:
                raise
            except RegistryError as error:
                unknown = error
        raise CommitUnknownError(
            f"{doing}: the commit was made, and it is unknown whether it is in the files at their "
            f"paths ({unknown}); close the store, open it again and read it",
            path=self._path,
        ) from unknown

    def require_database(self, doing: str) -> None:
        """Raise unless the path refers to the open database; see `require`."""
        if identity(self._path, doing) != self._files[0]:
            raise self.replaced_error(doing)

    def replaced_error(self, doing: str) -> DataLossError:
        """Return the error of an operation *doing* on replaced files."""
        return DataLossError(
            f"{doing}: {self._path!r} or its -wal was removed or replaced while this process had "
            "it open, so its commits would be lost; find the program that did it, if it was not "
            "`sandbox-registry restore`, close all stores of it in this process, and open it "
            "again, in a new process if this one is refused",
            path=self._path,
        )

    def mark_replaced(self) -> None:
        """Mark the open files as replaced: their connections are never closed."""
        replaced_files[self._path] = self._files[0]

    def mark_if_replaced(self) -> None:
        """Mark the open files as replaced if a path refers to another file.

        A close would damage that file. If a path has no file, the close moves the WAL into the open
        database, and nothing is lost. If that is unknown, the connections are left open.
        """
        try:
            there = self._observe("close registry")
        except RegistryError:
            self._unknown = True
            return
        pairs = zip(there, self._files, strict=True)
        if any(found not in {None, ours} for found, ours in pairs):
            self.mark_replaced()

    def close(self, connection: driver.Connection) -> None:
        """Close *connection*, or leak it if its files were, or may have been, replaced."""
        replaced = self._path in replaced_files and (replaced_files[self._path] == self._files[0])
        if replaced or self._unknown:
            driver.leak(connection)
        else:
            driver.close(connection)
