"""Whether the database and the log that are open are still those at their paths.

SQLite goes on writing to a file that was removed or replaced: what it commits then goes into
nowhere, or, when the log is moved into the database at the close, over what others have written
since. Looked at before a transaction, before its commit and before that is acknowledged.
"""

from __future__ import annotations

from typing import Final

from registry.engine import driver
from registry.engine.paths import identity, size
from registry.errors import DataLossError

spoiled: Final[dict[str, object]] = {}
"""Which databases, by their paths, have connections that must not be closed.

Their log is not the one at its path: SQLite would write the one down and remove the other.
"""


class Tripwire:
    """The files of one database as this process has opened them."""

    def __init__(self, path: str) -> None:
        """Know of none yet."""
        self._path: Final = path
        self._log: Final = f"{path}-wal"
        self._files: tuple[object, object] = (None, None)

    def set(self, *, log: bool) -> None:
        """Remember what is open; *log*: the log too, which exists while somebody writes."""
        self._files = (identity(self._path), identity(self._log) if log else None)

    def database(self) -> object:
        """Return which database is open."""
        return self._files[0]

    def holds(self) -> bool:
        """Whether others find the database and the log that we have open."""
        return (identity(self._path), identity(self._log)) == self._files

    def require(self, doing: str) -> None:
        """Raise DataLossError unless it holds."""
        if not self.holds():
            raise self.replaced(doing)

    def require_database(self, doing: str) -> None:
        """Raise DataLossError unless the database, of which the log is not known, is the same."""
        if identity(self._path) != self._files[0]:
            raise self.replaced(doing)

    def log_size(self) -> int:
        """Return the bytes of the log."""
        return size(self._log)

    def replaced(self, doing: str) -> DataLossError:
        """Return the error of *doing* something with files that are no longer there."""
        return DataLossError(
            f"{doing}: {self._path!r} or its -wal was removed or replaced while it was open, so "
            "what is written goes nowhere; find out who did it, close all stores of it in this "
            "process and open it anew, in another process if need be",
            path=self._path,
        )

    def spoil(self) -> None:
        """Let no connection to these files be closed any more."""
        spoiled[self._path] = self._files[0]

    def spoil_if_replaced(self) -> None:
        """Do so if others find another database or log, which a close of ours would ruin.

        Where there is none at all, the close writes our log down, and nothing of it is lost.
        """
        now = (identity(self._path), identity(self._log))
        if any(there not in {None, ours} for there, ours in zip(now, self._files, strict=True)):
            self.spoil()

    def close(self, connection: driver.Connection) -> None:
        """Close *connection*, or leave it open for good where that would do harm."""
        if self._path in spoiled and spoiled[self._path] == self._files[0]:
            driver.leak(connection)
        else:
            driver.close(connection)
