"""SQLite connections with the settings that a registry needs."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final
from weakref import WeakSet

from registry.errors import FailedPreconditionError
from registry.sync import threads

Fetch = Callable[[str, Mapping[str, object]], list[tuple[Any, ...]]]
"""Runs a query and returns all its rows: those of a transaction, or those of the latest commit."""
WAL_PAGES: Final = 1000
"""Pages of WAL after which a commit moves the WAL into the database, as far as readers allow."""
WAL_MAX: Final = 16 * 1024 * 1024
"""Bytes of WAL past which it is restarted. The commit that passes them, twice as many, four times
as many and so on waits for readers for a moment: see `registry.engine.wal`."""
VALUE_MAX: Final = 64 * 1024 * 1024
"""Bytes of a value or a row: a config of 4 MiB takes some 40 MiB as JSON at most."""
SAFE_JSON: Final = (3, 45, 0)
"""The first version in whose untrusted schemas our CHECKs are known to work: 3.40 takes json_valid
for an unsafe function."""
OLDEST_SQLITE: Final = (3, 37, 0)
"""The first version with STRICT tables."""


def wal(connection: sqlite3.Connection) -> None:
    """Use the write-ahead log, in which readers and the writer never wait for each other."""
    # SQLite reports a refusal by the name of the mode that it keeps.
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        path = connection.execute("PRAGMA database_list").fetchone()[2]
        raise FailedPreconditionError(
            f"open registry {path!r}: SQLite keeps journal mode {mode!r} instead of 'wal'; "
            "move the file to a local file system",
            path=path,
        )


def synchronous_full(connection: sqlite3.Connection) -> None:
    """Sync each commit; with NORMAL, a power cut loses the last ones."""
    connection.execute("PRAGMA synchronous = FULL")


def foreign_keys_on(connection: sqlite3.Connection) -> None:
    """Enforce foreign keys, which SQLite ignores unless each connection asks for them."""
    connection.execute("PRAGMA foreign_keys = ON")


def bounded_wal(connection: sqlite3.Connection) -> None:
    """Bound the WAL; one that has grown is cut when it is restarted."""
    connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_MAX}")


def large_cache(connection: sqlite3.Connection) -> None:
    """Cache 16 MiB of pages: a transaction that marks a thousand sandboxes changes over 2 MB."""
    connection.execute("PRAGMA cache_size = -16384")


def fast_deletes(connection: sqlite3.Connection) -> None:
    """Leave freed pages unwritten: a full disk has no space for them in the WAL.

    Debian's SQLite overwrites them, so that deleting a sandbox would write all its long values.
    """
    connection.execute("PRAGMA secure_delete = FAST")


def distrust(connection: sqlite3.Connection) -> None:
    """Bound what a damaged file, or a schema that was edited, can make SQLite do.

    A length that a damaged record states is not allocated past the limit. Views and triggers of the
    file call no functions with effects outside it, and no SQL writes to the schema by hand.
    """
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_MAX)
    connection.execute("PRAGMA cell_size_check = ON")
    if sqlite3.sqlite_version_info >= SAFE_JSON:
        connection.execute("PRAGMA trusted_schema = OFF")
    if sys.version_info >= (3, 12):
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE)


SETUP: Final = (
    *(distrust, wal, synchronous_full, foreign_keys_on),
    *(bounded_wal, large_cache, fast_deletes),
)
"""Settings of the writer, in order."""


def query_only(connection: sqlite3.Connection) -> None:
    """Refuse every write on a connection that only reads."""
    connection.execute("PRAGMA query_only = ON")


def accept_any_length(connection: sqlite3.Connection) -> None:
    """Accept a file that is shorter than its first page says, after a partial checkpoint."""
    connection.execute("PRAGMA writable_schema = ON")


READER_SETUP: Final = (distrust, query_only)
"""Settings of a reader."""


class Connection(sqlite3.Connection):
    """Connection to a database, which a forked child and the exit of Python can find."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Open the connection; arguments as `sqlite3.Connection`."""
        super().__init__(*args, **options)
        self.reported_changes = 0
        """Of `total_changes`, the rows that transactions have reported: see `OwnCommits`."""
        self.busy_timeout: Final[float] = options.get("timeout", 0.0)
        """Seconds that SQLite waits for a lock of another connection, unless `wait_at_most` says
        less."""
        self._waits = self.busy_timeout
        _open.add(self)
        if threads.is_exiting():
            leak(self)  # or Python closes the connection without the process lock

    def is_in_transaction(self) -> bool:
        """Return whether a transaction is open; on a closed connection none is."""
        try:
            return self.in_transaction
        except sqlite3.ProgrammingError:
            return False

    def wait_at_most(self, seconds: float) -> None:
        """Have SQLite wait at most *seconds* for a lock of another connection, until told again."""
        if seconds != self._waits:
            self.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
            self._waits = seconds

    def fetch(self, sql: str, params: Mapping[str, object] = {}) -> list[tuple[Any, ...]]:
        """Return all rows of a query.

        Bytes that are not UTF-8 are returned as lone surrogates: one such value, written by another
        client, must not hide the other rows.
        """
        try:
            return self.execute(sql, params).fetchall()
        except sqlite3.OperationalError as error:
            if hasattr(error, "sqlite_errorcode"):
                raise
        # Not at first: decoding in Python takes ten times as long.
        self.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        try:
            return self.execute(sql, params).fetchall()
        finally:
            self.text_factory = str

    def fetch_readable(
        self, sql: str, params: Mapping[str, object] = {}
    ) -> tuple[list[tuple[Any, ...]], bool]:
        """Return the rows of a query before the first damage, and whether these are all.

        Bytes that are not UTF-8 are returned as lone surrogates.
        """
        rows: list[tuple[Any, ...]] = []
        self.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        try:
            rows.extend(self.execute(sql, params))  # keeps the rows before an error
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_CORRUPT:
                raise
            return rows, False
        finally:
            self.text_factory = str
        return rows, True

    def damage(self, check: str) -> tuple[list[str], bool]:
        """Return the lines of what SQLite's *check* finds, and whether it has read all.

        Python drops the row before an error. A check that ends by one runs again with limits: it
        returns what it has found so far when its findings have reached the limit.

        Args:
            check: `integrity_check` or `quick_check`.
        """
        rows, whole = self.fetch_readable(f"PRAGMA {check}")
        for limit in () if whole else _CHECK_LIMITS:
            found, ended = self.fetch_readable(f"PRAGMA {check}({limit})")
            if ended:
                rows = found
                break
        lines = [line for (text,) in rows for line in str(text).splitlines()]
        return [line for line in lines if line != "ok" and not line.startswith("***")], whole


_CHECK_LIMITS: Final = (64, 16, 4, 1)
"""Limits with which a check of a damaged database runs again."""
_open: Final[WeakSet[Connection]] = WeakSet()


def leak_all() -> None:
    """Leak every open connection, in a forked child and when Python exits.

    Garbage collection in the child, or its exit, would close the parent's connections. The parent's
    open transaction is then "committed" with rows missing.
    """
    for connection in tuple(_open):
        leak(connection)


def _before_fork() -> None:
    """Import what `leak` needs: in the child an import could wait for a lock that nothing frees."""
    if _open:
        import ctypes  # noqa: F401, PLC0415


os.register_at_fork(before=_before_fork)


def close(connection: Connection) -> None:
    """Close *connection*, and ignore an error of SQLite in it."""
    with suppress(sqlite3.Error):
        connection.close()


def leak(connection: Connection) -> None:
    """Keep *connection* open until the process ends, by a reference that is never released."""
    import ctypes  # noqa: PLC0415 - 4 ms that only a fork, or an exit with an open store, needs

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def connect(
    path: str,
    mode: str,
    setup: tuple[Callable[[sqlite3.Connection], None], ...],
    *,
    busy_timeout: float,
    immutable: bool = False,
) -> Connection:
    """Return a connection that begins no transaction implicitly.

    Args:
        path: absolute path of an existing file.
        mode: `rw` or `ro`.
        setup: settings, which are applied in order.
        busy_timeout: seconds that SQLite waits for a lock.
        immutable: read the database file alone, without locks and without its WAL.
    Raises:
        sqlite3.Error: untranslated, since the caller knows the operation.
    """
    uri = f"file:{quoted(path)}?mode={mode}"
    connection = sqlite3.connect(
        uri + ("&immutable=1" if immutable else ""),
        uri=True,
        timeout=busy_timeout,
        isolation_level=None,
        check_same_thread=False,
        factory=Connection,
    )
    try:
        for step in setup:
            step(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def roll_back_journal(path: str, busy_timeout: float) -> None:
    """Have SQLite roll back the journal of the database at *path*, by a read that may write.

    Args:
        path: absolute path of an existing file.
        busy_timeout: seconds that SQLite waits for a lock.
    """
    connection = connect(path, "rw", (distrust,), busy_timeout=busy_timeout)
    try:
        connection.fetch("PRAGMA schema_version")
    finally:
        close(connection)


_UNRESERVED: Final = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/"
)


def quoted(path: str) -> str:
    """Return *path* as a part of a URI (RFC 3986); importing `urllib.parse` takes 4 ms."""
    return "".join(
        chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in os.fsencode(path)
    )
