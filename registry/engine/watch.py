"""Whether anybody has committed since the last look: `PRAGMA data_version` on an idle connection.

The number is another one after a commit of whatever connection, of this process, of another or of
the `sqlite3` shell. It costs a few microseconds; what was read before and is asked for again need
not be read again while it stands still.
"""

from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING, Final

from registry.engine import driver

if TYPE_CHECKING:
    from collections.abc import Callable

    from registry.engine.readers import Readers


class DataVersion:
    """The watch over one database file in this process."""

    def __init__(self, path: str, readers: Readers) -> None:
        """Begin with no connection; *readers* lends it."""
        self._path: Final = path
        self._readers: Final = readers
        self._mutex = threading.Lock()
        self._reading_thread = 0
        self._connection: driver.Connection | None = None
        self._close: Callable[[driver.Connection], None] | None = None

    def read(self, doing: str) -> int | None:
        """Return the number of the commit that is the latest now.

        None when an answer has to be read instead: once it is closed, and in a signal handler, or a
        finalizer, that runs in the middle of another look of the same thread.

        Raises:
            RegistryError: it cannot be read, or may not any more: see `Readers`.
        """
        me = threading.get_ident()
        if self._reading_thread == me:
            return None
        with self._mutex:
            if self._readers.closed:  # since the caller has looked: what it reads says so
                return None
            self._reading_thread = me
            try:
                connection = self._connection or self._connect(doing)
                # Each row is taken: behind a cursor that is left open the number stands still.
                (number,) = connection.execute("PRAGMA data_version").fetchone()
                self._readers.require_unchanged(doing)
            except sqlite3.Error as error:
                raise driver.translate(error, doing, self._path) from error
            finally:
                self._reading_thread = 0
                if self._close is not None:
                    self._close_now(self._close)
        return int(number)

    def _connect(self, doing: str) -> driver.Connection:
        self._connection = self._readers.take(doing)
        return self._connection

    def close(self, close: Callable[[driver.Connection], None]) -> None:
        """Have *close* close the connection, when nobody looks.

        A signal handler that interrupts a look of its thread leaves it to that look.
        """
        if self._reading_thread == threading.get_ident():
            self._close = close
            return
        with self._mutex:
            self._close_now(close)

    def _close_now(self, close: Callable[[driver.Connection], None]) -> None:
        if self._connection is not None:
            close(self._connection)
            self._connection = None  # afterwards: an interrupted close is called again
