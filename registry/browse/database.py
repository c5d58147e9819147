"""Read-only connections to the registry, each for one query.

Datasette keeps a connection for each of its threads, opened by a path that it does not quote. Here
each query has a connection of its own, opened as the package's readers are and closed after it:

- No snapshot outlives its query: SQLite can move the whole WAL into the database, and reset it.
- A registry that was moved away and replaced is read at its path by the next query.

The queries of a page of ours share a transaction. All end after a second at most
(`sql_time_limit_ms`). There is no connection that writes.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any, Final

from datasette.database import Database
from datasette.utils import sqlite_timelimit

from registry.engine import driver
from registry.errors import ReadOnlyError

BUSY_TIMEOUT: Final = 1.0
"""Seconds that SQLite waits for a process that recovers the WAL."""


class RegistryDatabase(Database):  # type: ignore[misc] # Datasette has no types
    """The registry, as a database of Datasette."""

    def connect(self, write: bool = False) -> driver.Connection:  # noqa: FBT001, FBT002 - Datasette's
        """Return a connection that only reads.

        Raises:
            ReadOnlyError: Datasette wants to write.
            sqlite3.Error: the registry cannot be opened.
        """
        if write:
            raise ReadOnlyError(f"write to {self.path!r}: this page only reads", path=self.path)
        return driver.connect(self.path, "ro", driver.READER_SETUP, busy_timeout=BUSY_TIMEOUT)

    async def execute(self, *args: Any, **options: Any) -> Any:
        """Return the rows of a query; the page shows an error of its SQL, and stderr does not."""
        return await super().execute(*args, **{**options, "log_sql_errors": False})

    async def read(self, reading: Callable[..., Any], *args: Any) -> Any:
        """Return what *reading* returns for a connection in a transaction, and *args*."""

        def in_transaction(connection: sqlite3.Connection) -> Any:
            with sqlite_timelimit(connection, self.ds.sql_time_limit_ms):
                connection.execute("BEGIN")
                return reading(connection, *args)

        return await self.execute_fn(in_transaction)

    async def execute_fn(self, fn: Callable[[sqlite3.Connection], Any]) -> Any:
        """Return what *fn* returns, which a thread calls with a connection of its own."""

        def in_thread() -> Any:
            connection = self.connect()
            try:
                self.ds._prepare_connection(connection, self.name)  # noqa: SLF001 - as Datasette's
                return fn(connection)
            finally:
                driver.close(connection)

        return await asyncio.get_running_loop().run_in_executor(self.ds.executor, in_thread)
