"""Whether this code may use a file, and bringing an older one up to date.

The number in `registry.level` answers for an up-to-date file, so that opening one imports no
Alembic. The revisions themselves are in `migrations/`, beside this package in a checkout and inside
it when installed.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import select

from registry.engine import Transaction
from registry.errors import DataLossError, NotFoundError, SchemaVersionError
from registry.schema import APPLICATION_ID, LEVEL, REVISION
from registry.schema import registry as registry_table
from registry.sql import Fetch, Statement

if TYPE_CHECKING:
    import sqlalchemy


class Version(NamedTuple):
    """What a registry says of itself: its level, and the oldest that may read and write it."""

    level: int
    min_reader: int
    min_writer: int


_VERSION: Final = Statement(lambda: select(*(registry_table.c[name] for name in Version._fields)))
REGISTRY_ID: Final = Statement(lambda: select(registry_table.c.registry_id))


def prepare(
    connection: sqlite3.Connection, path: str, *, create: bool, upgrade: bool, read_only: bool
) -> None:
    """Make sure that *connection* leads to a registry which this code may read.

    Called under the write lock, outside a transaction. An empty file is made a registry if
    *create*, an older one brought up to date if *upgrade*, each in one transaction.

    Raises:
        DataLossError: the database is no registry.
        NotFoundError: the file is empty, and stays so.
        SchemaVersionError: its schema is too new, or too old and stays so.
    """
    doing = f"open registry {path!r}"
    if _is_empty(connection):
        if not create or read_only:
            raise NotFoundError(
                f"{doing}: the file is empty; open it with create=True to begin one", path=path
            )
        _upgrade(connection)
        return
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise DataLossError(
            f"{doing}: it is an SQLite database but no registry (application_id); "
            "is the path right?",
            path=path,
        )
    version = _version(connection)
    if version.level < LEVEL:
        if not upgrade or read_only:
            raise _refused(connection, doing, path, "open it for writing with upgrade=True")
        _upgrade(connection)
    elif version.min_reader > LEVEL:
        raise _refused(connection, doing, path, "upgrade this program")


def may_write(fetch: Fetch) -> bool:
    """Whether the registry lets code of this level write."""
    return _read(fetch(_VERSION.sql, {})).min_writer <= LEVEL


def guard(transaction: Transaction) -> None:
    """Refuse to write where another process has upgraded the registry past what we know.

    Raises:
        SchemaVersionError: with both revisions.
    """
    if not may_write(transaction.fetch):
        raise _refused(
            transaction.connection, transaction.doing, transaction.path, "upgrade this program"
        )


def _version(connection: sqlite3.Connection) -> Version:
    return _read(connection.execute(_VERSION.sql).fetchall())


def _read(found: list[tuple[Any, ...]]) -> Version:
    level, min_reader, min_writer = found[0]
    return Version(int(level), int(min_reader), int(min_writer))


def _is_empty(connection: sqlite3.Connection) -> bool:
    """Whether nobody has put anything in; a creation that was interrupted has not either."""
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    return (tables, application_id) == (0, 0)


def _refused(
    connection: sqlite3.Connection, doing: str, path: str, advice: str
) -> SchemaVersionError:
    found = str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])
    return SchemaVersionError(
        f"{doing}: its schema is at revision {found!r}, this program's at {REVISION!r}; {advice}",
        path=path,
        found=found,
        supported=REVISION,
    )


def _upgrade(connection: sqlite3.Connection) -> None:
    """Apply all revisions that are missing, in one transaction with the record of them."""
    # Off, or rebuilding a table deletes the rows that refer to it; and not to be changed inside.
    connection.execute("PRAGMA foreign_keys = OFF")
    try:
        connection.execute("BEGIN IMMEDIATE")
        _run_alembic(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    finally:
        connection.execute("PRAGMA foreign_keys = ON")


def _run_alembic(connection: sqlite3.Connection) -> None:
    from alembic import command  # noqa: PLC0415 - 322 ms that an up-to-date registry is spared
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", scripts().replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with alchemy(connection) as joined:
        config.attributes["connection"] = joined
        command.upgrade(config, "head")


def scripts() -> str:
    """Return the directory of the revisions: inside the package, or beside it in a checkout."""
    package = os.path.dirname(os.path.abspath(__file__))
    inside = os.path.join(package, "migrations")
    return inside if os.path.isdir(inside) else os.path.join(os.path.dirname(package), "migrations")


@contextmanager
def alchemy(connection: sqlite3.Connection) -> Iterator[sqlalchemy.Connection]:
    """Lend *connection* to SQLAlchemy inside the transaction that it is in.

    Whatever SQLAlchemy thinks it commits or rolls back, who began the transaction ends it.
    """
    from sqlalchemy import StaticPool, create_engine  # noqa: PLC0415

    engine = create_engine("sqlite://", creator=lambda: _Lent(connection), poolclass=StaticPool)
    with engine.connect() as lent:
        yield lent


class _Lent:
    """A driver connection whose transaction is somebody else's."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def commit(self) -> None:
        """Leave the transaction as it is."""

    rollback = close = commit
