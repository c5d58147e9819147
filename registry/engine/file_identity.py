"""Whether the database and the log that are open are still those at their paths.

SQLite goes on writing to a file that was removed or replaced: what it commits then goes into
nowhere, or, when the log is moved into the database at the close, over what others have written
since. Looked at before a transaction, and after its commit before that is acknowledged.
"""

from __future__ import annotations

import os
from typing import Final

from registry.engine import driver
from registry.errors import DataLossError
from registry.host.kernel import file_at
from registry.host.paths import identity

replaced_files: Final[dict[str, object]] = {}
"""Which databases, by their paths, have connections that must not be closed.

Their log is not the one at its path: SQLite would write the one down and remove the other.
"""


class FileIdentity:
    """The files of one database as this process has opened them."""

    def __init__(self, path: str) -> None:
        """Know of none yet."""
        self._path: Final = path
        self._log: Final = os.fsencode(f"{path}-wal")
        self._files: tuple[object, object] = (None, None)
        self.log_size = 0
        """Bytes of the log, when it was last looked at: before a transaction, or after its commit.
        """

    def record(self, *, log: bool) -> None:
        """Remember what is open; *log*: the log too, which exists while somebody writes."""
        database, found = self._observe()
        self._files = (database, found if log else None)

    def is_log(self, found: os.stat_result) -> bool:
        """Whether *found* is the log that we have open."""
        return (found.st_dev, found.st_ino) == self._files[1]

    def _observe(self) -> tuple[object, object]:
        log, self.log_size = file_at(self._log)
        return (identity(self._path), log)

    def require(self, doing: str) -> None:
        """Raise DataLossError unless the files at the paths are those that are open."""
        if self._observe() != self._files:
            raise self.replaced_error(doing)

    def require_database(self, doing: str) -> None:
        """Raise DataLossError unless the database, of which the log is not known, is the same."""
        if identity(self._path) != self._files[0]:
            raise self.replaced_error(doing)

    def replaced_error(self, doing: str) -> DataLossError:
        """Return the error of *doing* something with files that are no longer there."""
        return DataLossError(
            f"{doing}: {self._path!r} or its -wal was removed or replaced while it was open, so "
            "what is written goes nowhere; find out who did it, close all stores of it in this "
            "process and open it anew, in another process if need be",
            path=self._path,
        )

    def mark_replaced(self) -> None:
        """Let no connection to these files be closed any more."""
        replaced_files[self._path] = self._files[0]

    def mark_if_replaced(self) -> None:
        """Do so if others find another database or log, which a close of ours would ruin.

        Where there is none at all, the close writes our log down, and nothing of it is lost.
        """
        pairs = zip(self._observe(), self._files, strict=True)
        if any(there not in {None, ours} for there, ours in pairs):
            self.mark_replaced()

    def close(self, connection: driver.Connection) -> None:
        """Close *connection*, or leave it open for good where that would do harm."""
        if self._path in replaced_files and replaced_files[self._path] == self._files[0]:
            driver.leak(connection)
        else:
            driver.close(connection)
