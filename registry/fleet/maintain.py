"""Migrations, partitions and retention of the fleet's database, by its owner."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

from registry.errors import FailedPreconditionError, SchemaVersionError
from registry.fleet import postgres
from registry.fleet.postgres import Target
from registry.tables import migrations

AHEAD: Final = 2
"""Months for which partitions are made ahead."""
KEEP_DAYS: Final = 90
LOCK: Final = 0x53524442
"""Key of the advisory lock of migrations and maintenance."""
DEFAULT: Final = "fleet_transitions_default"
ALONE: Final = f"SET LOCAL lock_timeout = '10s'; SELECT pg_advisory_xact_lock({LOCK})"
"""Begins a migration or a maintenance: one at a time.

While it waits for a lock on a table, all pushers wait behind it. So it gives up where a session
holds a lock for long, by an idle transaction or on purpose.
"""


class Maintained(NamedTuple):
    """Report of a maintenance."""

    made: list[str]
    """Partitions that were made."""
    dropped: list[str]
    """Partitions that were dropped, being older than the retention."""
    moved: int
    """Rows that were moved out of the default partition."""
    deleted: int
    """Rows that were deleted from the default partition."""


def migrate(to: Target) -> str:
    """Create or upgrade the tables, views, roles and policies; return the revision.

    Raises:
        RegistryError: PostgreSQL refuses.
    """
    doing = f"migrate the fleet's database {to.shown!r}"
    migrations.require_revisions(doing, to.shown)
    from alembic import command  # noqa: PLC0415 - a pusher does without Alembic and SQLAlchemy
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415
    from sqlalchemy import create_engine  # noqa: PLC0415
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", f"{migrations.scripts()}/fleet".replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    settings = to.settings

    def connect() -> psycopg.Connection:
        return psycopg.connect("", prepare_threshold=None, **settings)  # type: ignore[arg-type]  # settings of libpq

    engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(ALONE)
            for owner, may in connection.exec_driver_sql(OWNED):
                _require_owner(doing, owner, may=may)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            _require_own_schema(connection.exec_driver_sql(SCHEMA).one(), doing)
    except CommandError as error:  # a revision that this program does not know
        raise SchemaVersionError(f"{doing}: {error}; upgrade this program") from error
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise postgres.translate(error.orig, doing, postgres.OWNER) from error
        raise
    return str(ScriptDirectory.from_config(config).get_current_head())


def maintain(to: Target, *, keep_days: int = KEEP_DAYS, now: datetime | None = None) -> Maintained:
    """Make the partitions of the coming months, and drop those older than *keep_days*.

    Rows in the default partition, whose clock was wrong or for whose month there was no partition,
    are moved to the partition of their month first: PostgreSQL would refuse to make it.

    Args:
        to: database, as its owner.
        keep_days: days for which transitions are kept at least.
        now: the present; default: the clock of this machine.
    Raises:
        RegistryError: PostgreSQL refuses.
    """
    doing = f"maintain the fleet's database {to.shown!r}"
    now = now or datetime.now(UTC)
    with postgres.errors(doing, postgres.OWNER):
        connection = postgres.connect(to, postgres.OWNER)
        with connection, connection.transaction():
            connection.execute(ALONE)
            _become_owner(connection, doing)
            oldest = now - timedelta(days=keep_days)
            # First, since it locks the table and then its partitions, as pushers do: no deadlock.
            dropped = _drop(connection, oldest)
            made, moved = _make(connection, _month(oldest), now)
            deleted = connection.execute(
                sql.SQL("DELETE FROM {} WHERE at < %s").format(sql.Identifier(DEFAULT)), [oldest]
            ).rowcount
    return Maintained(made, dropped, moved, deleted)


OWNED: Final = (
    "SELECT rolname, pg_has_role(relowner, 'MEMBER') FROM pg_class"
    " JOIN pg_roles ON pg_roles.oid = relowner"
    " WHERE pg_class.oid = to_regclass('fleet_transitions')"
)
"""The owner of the tables, and whether the role may act as the owner; no row before `migrate`."""
SCHEMA: Final = (
    "SELECT current_schema(), has_schema_privilege('fleet_node', current_schema(), 'CREATE')"
)


def _require_own_schema(found: Sequence[Any], doing: str) -> None:
    """Raise if a node may create functions and operators that the queries of others would call."""
    schema, is_open = found
    if is_open:
        raise FailedPreconditionError(
            f"{doing}: every node may create objects in its schema {schema!r}, as PostgreSQL 14 "
            f"permits; run REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC as a superuser"
        )


def _require_owner(doing: str, owner: str, *, may: bool) -> None:
    """Raise unless the role *may* act as the *owner* of the tables."""
    if not may:  # row level security would hide rows from it
        raise FailedPreconditionError(f"{doing}: the role does not own it; connect as {owner!r}")


def _become_owner(connection: psycopg.Connection, doing: str) -> None:
    """Take the role that owns the tables: it must own new partitions too, to drop them later."""
    for owner, may in connection.execute(OWNED):
        _require_owner(doing, owner, may=may)
        connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(owner)))


def _month(moment: datetime, months: int = 0) -> datetime:
    """Return the beginning of the month of *moment*, or of another one, so many *months* later."""
    year, month = divmod(moment.year * 12 + moment.month - 1 + months, 12)
    return datetime(year, month + 1, 1, tzinfo=UTC)


def _partitions(connection: psycopg.Connection) -> set[str]:
    query = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %s::regclass"
    return {name for (name,) in connection.execute(query, ["fleet_transitions"])}


def _name(month: datetime) -> str:
    return f"fleet_transitions_{month:%Y_%m}"


def _make(connection: psycopg.Connection, first: datetime, now: datetime) -> tuple[list[str], int]:
    """Make the partitions of the months to come, and of those that the default has rows of."""
    last, present = _month(now, AHEAD + 1), _partitions(connection)
    query = "SELECT DISTINCT date_trunc('month', at, 'UTC') FROM {} WHERE at >= %s AND at < %s"
    found = connection.execute(sql.SQL(query).format(sql.Identifier(DEFAULT)), [first, last])
    wanted = {moment.astimezone(UTC) for (moment,) in found}
    wanted |= {_month(now, months) for months in range(AHEAD + 1)}
    made, moved = [], 0
    for month in sorted(wanted):
        if _name(month) not in present:
            moved += _make_one(connection, month)
            made.append(_name(month))
    return made, moved


def _make_one(connection: psycopg.Connection, month: datetime) -> int:
    """Make the partition of *month*, and return how many rows were moved into it."""
    end = _month(month, 1)
    names = {"new": sql.Identifier(_name(month)), "rest": sql.Identifier(DEFAULT)}
    run = connection.execute
    run(sql.SQL("CREATE TABLE {new} (LIKE fleet_transitions INCLUDING ALL)").format(**names))
    move = (
        "WITH moved AS (DELETE FROM {rest} WHERE at >= %s AND at < %s RETURNING *)"
        " INSERT INTO {new} SELECT * FROM moved"
    )
    moved = run(sql.SQL(move).format(**names), [month, end]).rowcount
    attach = "ALTER TABLE fleet_transitions ATTACH PARTITION {new} FOR VALUES FROM ({0}) TO ({1})"
    bounds = (sql.Literal(month.isoformat()), sql.Literal(end.isoformat()))
    run(sql.SQL(attach).format(*bounds, **names))
    return moved


def _drop(connection: psycopg.Connection, oldest: datetime) -> list[str]:
    """Drop the partitions of which every row is older than *oldest*."""
    kept = _name(_month(oldest))
    names = _partitions(connection) - {DEFAULT}
    dropped = sorted(name for name in names if name < kept)
    for name in dropped:
        connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)))
    return dropped
