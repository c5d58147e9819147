"""Schema of a registry file: verified, created from the newest schema, or upgraded by Alembic.

`registry.level` is the newest revision as a number. It is enough for an up-to-date file, so opening
one does not import Alembic. The revisions are in `migrations/`, beside this package in a checkout
and inside it when installed.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from registry.engine import Connection, Transaction
from registry.engine.continuity import give_number, next_number
from registry.engine.driver import Fetch
from registry.engine.sqlite_errors import RESTORE
from registry.errors import (
    DataLossError,
    FailedPreconditionError,
    NotFoundError,
    SchemaVersionError,
)
from registry.sync.imports import late_import
from registry.sync.locks import Mutex
from registry.tables import sql
from registry.tables.version import APPLICATION_ID, LEVEL, REVISION

if TYPE_CHECKING:
    import sqlalchemy

log = logging.getLogger("registry")


class Version(NamedTuple):
    """Level of a registry, and the oldest levels of code that may read and write it."""

    level: int
    min_reader: int
    min_writer: int


def prepare(
    connection: Connection, path: str, *, create: bool, upgrade: bool, read_only: bool
) -> None:
    """Create or upgrade the registry that *connection* has open, if it is necessary.

    The caller holds the write lock, outside a transaction, unless *read_only*. An empty file
    becomes a registry if *create*. An older registry is upgraded if *upgrade*, after a backup
    beside it. A copy becomes a registry of its own. Each is one transaction.

    Raises:
        DataLossError, NotFoundError, SchemaVersionError: as `verify`.
        ResourceExhaustedError: there is no space for the backup, or no descriptor is left.
    """
    if verify(connection, path, create=create, upgrade=upgrade):
        doing = f"open registry {path!r}"
        before = None if _is_empty(connection) else int(connection.fetch(sql.VERSION)[0][0])
        if before is not None:
            with late_import("registry.tables.upgrade_backup"):
                from registry.tables.upgrade_backup import back_up  # noqa: PLC0415 - as Alembic

            back_up(connection, path)
        _upgrade(connection, doing, path)
        admit(connection.fetch, doing, path)
        _log_upgrade(path, before)
    is_copy = not read_only and connection.fetch(sql.INCARNATION)[0][2] is not None
    if is_copy and admit(connection.fetch, f"open registry {path!r}", path):
        _begin_own_incarnation(connection, path)


def _log_upgrade(path: str, before: int | None) -> None:
    """Log that the registry at *path* was upgraded from level *before*; None: created."""
    if before is None:
        log.info(
            "created registry %r",
            path,
            extra={"event": "registry_created", "path": path, "schema_level": LEVEL},
        )
    else:
        log.info(
            "upgraded registry %r from level %d to %d",
            path,
            before,
            LEVEL,
            extra={
                "event": "schema_upgraded",
                "path": path,
                "from_schema_level": before,
                "schema_level": LEVEL,
            },
        )


def verify(connection: Connection, path: str, *, create: bool, upgrade: bool) -> bool:
    """Return whether the file must be created or upgraded before use, without writing.

    Args:
        connection: connection to the database.
        path: path of its file.
        create: an empty file may become a registry.
        upgrade: an older registry may be upgraded.
    Raises:
        DataLossError: the database is not a registry.
        NotFoundError: it is empty, and may not be upgraded.
        SchemaVersionError: its schema is too new, or too old and may not be upgraded.
        FailedPreconditionError: it must be upgraded, and the revisions cannot be read.
    """
    doing = f"open registry {path!r}"
    if _is_empty(connection):
        if not create:
            raise NotFoundError(f"{doing}: the database file is empty", path=path)
        return True
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise not_a_registry(connection, doing, path)
    require_tables(connection, doing, path)
    old = _version(connection.fetch, doing, path).level < LEVEL
    if old and not upgrade:
        advice = "open it for writing with upgrade=True"
        raise _refused(connection.fetch, doing, path, advice)
    if old:
        require_revisions(doing, path)
    else:
        admit(connection.fetch, doing, path)
    return old


def not_a_registry(connection: Connection, doing: str, path: str) -> DataLossError:
    """Return the error for an SQLite database that has another application_id than a registry."""
    advice = "is the path right?"
    with suppress(sqlite3.Error):
        tables = connection.fetch("SELECT name FROM sqlite_master WHERE type = 'table'")
        if {(name,) for name in sql.TABLES} <= set(tables):
            advice = (
                "it has the tables of one: if it was made from a .dump, which leaves the id out, "
                f"run PRAGMA application_id = {APPLICATION_ID} in it, and check it then"
            )
    return DataLossError(
        f"{doing}: it is an SQLite database but no registry (application_id); {advice}", path=path
    )


def admit(fetch: Fetch, doing: str, path: str) -> bool:
    """Return whether code of this level may write the registry; require that it may read it.

    Raises:
        SchemaVersionError: code of this level may not read it.
        DataLossError: the file is not a registry.
    """
    version = _version(fetch, doing, path)
    if version.min_reader > LEVEL:
        raise _refused(fetch, doing, path, "upgrade this program")
    return version.min_writer <= LEVEL


def guard(transaction: Transaction) -> None:
    """Refuse to write if another process has upgraded the registry past this code.

    Raises:
        SchemaVersionError: with both revisions.
    """
    fetch, doing, path = transaction.fetch, transaction.doing, transaction.path
    if not admit(fetch, doing, path):
        raise _refused(fetch, doing, path, "upgrade this program")


def require_tables(connection: Connection, doing: str, path: str) -> None:
    """Raise DataLossError if a view, or a virtual table, has the name of a table of a registry.

    Reading it would run SQL of the file, which may never end.
    """
    query = "SELECT lower(name), type, sql FROM sqlite_master WHERE rootpage = 0 AND sql NOT NULL"
    for name, kind, text in connection.fetch(query):
        if kind in {"table", "view"} and name in sql.TABLES:
            raise _damaged(doing, path, f"{name} is a {kind} made by {text!r:.80}")


def _version(fetch: Fetch, doing: str, path: str) -> Version:
    try:
        found = fetch(sql.VERSION, {})
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise  # it may be a registry, but cannot be read now
        raise _damaged(doing, path, str(error)) from error
    if len(found) != 1:
        raise _damaged(doing, path, f"table registry has {len(found)} rows")
    version = Version(*found[0])
    if not all(isinstance(number, int) for number in version):
        raise _damaged(doing, path, f"table registry has {version}")
    return version


def _damaged(doing: str, path: str, why: str) -> DataLossError:
    return DataLossError(
        f"{doing}: it says that it is a registry (application_id), but not of which schema: {why}; "
        f"{RESTORE}",
        path=path,
    )


def _is_empty(connection: sqlite3.Connection) -> bool:
    """Return whether the database holds nothing; an interrupted creation leaves nothing in it."""
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    return (tables, application_id) == (0, 0)


def _refused(fetch: Fetch, doing: str, path: str, advice: str) -> SchemaVersionError:
    revisions = fetch("SELECT version_num FROM alembic_version", {})
    found = ", ".join(str(revision) for (revision,) in revisions) or "none"
    return SchemaVersionError(
        f"{doing}: its schema is at revision {found!r}, this program's at {REVISION!r}; {advice}",
        path=path,
        found=found,
        supported=REVISION,
    )


def upgrade_copy(connection: Connection, path: str) -> None:
    """Upgrade the copy of a registry that *connection* has open, if it is of an older revision.

    Raises:
        DataLossError: the revisions do not fit its schema.
        FailedPreconditionError: the revisions cannot be read.
    """
    if verify(connection, path, create=False, upgrade=True):
        _upgrade(connection, f"upgrade {path!r}", path)


def _upgrade(connection: Connection, doing: str, path: str) -> None:
    """Create the schema, or apply the missing revisions, in one transaction with their record.

    Raises:
        DataLossError: the revisions do not fit the schema of the file.
        RegistryError: for a driver error, by its code.
    """
    # Off: rebuilding a table would delete the rows that refer to it. It cannot change inside a
    # transaction.
    connection.execute("PRAGMA foreign_keys = OFF")
    try:
        if _is_empty(connection):
            _numbered(connection, _create)
        else:
            # The WAL must begin with the schema of the file, which distinguishes a backup from it.
            _numbered(connection, lambda _: None)
            _numbered(connection, _run_alembic)
    except BaseException as error:
        _roll_back(connection)
        if type(error).__module__.partition(".")[0] not in {"alembic", "sqlalchemy"}:
            raise
        raise _not_upgraded(error, doing, path) from error
    finally:
        connection.execute("PRAGMA foreign_keys = ON")


def _begin_own_incarnation(connection: Connection, path: str) -> None:
    """Make the copy at *path*, which *connection* has open, a registry of its own."""
    with late_import("registry.tables.incarnation"):
        from registry.tables import incarnation  # noqa: PLC0415 - rare

    def begin(connection: sqlite3.Connection) -> None:
        incarnation.begin(connection, now, registry_id=incarnation.new_id(), number=now.number + 1)

    now = incarnation.Incarnation.read(connection.fetch)
    try:
        _numbered(connection, begin)
    except BaseException:
        _roll_back(connection)
        raise
    log.info(
        "copy %r has become a registry of its own",
        path,
        extra={"event": "incarnation_begun", "path": path, "incarnation": now.number + 1},
    )


def _not_upgraded(error: BaseException, doing: str, path: str) -> sqlite3.Error | DataLossError:
    """Return the driver error behind *error* of Alembic, or that the revisions do not fit."""
    cause = getattr(error, "orig", None)
    if isinstance(cause, sqlite3.Error) and cause.sqlite_errorcode != sqlite3.SQLITE_ERROR:
        return cause
    return DataLossError(
        f"{doing}: bringing its schema up to date failed, and it is as it was: {cause or error}; "
        "if another tool has added a table or view of that name, rename that; if its schema was "
        f"changed by hand, {RESTORE}",
        path=path,
    )


def _numbered(connection: sqlite3.Connection, change: Callable[[sqlite3.Connection], None]) -> None:
    """Run *change* in a transaction and commit it under the next number."""
    connection.execute("BEGIN IMMEDIATE")
    number = next_number(connection)
    change(connection)
    give_number(connection, number)
    connection.execute("COMMIT")


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _create(connection: sqlite3.Connection) -> None:
    """Create the newest schema; a test proves that the chain of revisions builds the same."""
    for statement in (*sql.SCHEMA, *sql.INITIAL):
        connection.execute(statement)


def _run_alembic(connection: sqlite3.Connection) -> None:
    caller = object()
    try:
        _alembic.acquire(caller, None)
        with late_import("alembic and the migrations"):
            _run_alembic_alone(connection)
    finally:
        _alembic.release(caller)


# `alembic.op`, which revisions call, is one object for the whole process.
_alembic: Final = Mutex()
os.register_at_fork(after_in_child=_alembic.__init__)  # type: ignore[misc]


def _run_alembic_alone(connection: sqlite3.Connection) -> None:
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
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    inside = os.path.join(package, "migrations")
    return inside if os.path.isdir(inside) else os.path.join(os.path.dirname(package), "migrations")


def require_revisions(doing: str, path: str) -> None:
    """Raise unless Alembic can read the revisions, which it reads as files.

    Raises:
        FailedPreconditionError: it cannot, since the package is in a zip file for example.
    """
    folder = scripts()
    if not os.access(os.path.join(folder, "versions"), os.R_OK | os.X_OK):
        raise FailedPreconditionError(
            f"{doing}: the migrations, which upgrade it, cannot be read as files in "
            f"{folder!r}; install the package unpacked",
            path=path,
        )


@contextmanager
def alchemy(connection: sqlite3.Connection) -> Iterator[sqlalchemy.Connection]:
    """Lend *connection* to SQLAlchemy inside the open transaction.

    SQLAlchemy's commits and rollbacks do nothing: the caller, which began the transaction, ends it.
    """
    from sqlalchemy import StaticPool, create_engine  # noqa: PLC0415

    engine = create_engine("sqlite://", creator=lambda: _Lent(connection), poolclass=StaticPool)
    with engine.connect() as lent:
        yield lent


class _Lent:
    """Driver connection whose transaction is begun and ended outside SQLAlchemy."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def commit(self) -> None:
        """Leave the transaction as it is."""

    rollback = close = commit
