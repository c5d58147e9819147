"""Migrations, partitions and retention."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from registry import FailedPreconditionError, SchemaVersionError, Store, UnavailableError
from registry.fleet import maintain, postgres, tables
from registry.fleet.statements import LEVEL, SANDBOX, TRANSITION
from tests.fleet.cluster import OWNER
from tests.fleet.conftest import Database, NewPusher, push
from tests.tools import READY, sandbox, tamper

DAY = timedelta(days=1)


def test_revisions_build_the_tables_of_core(database: Database) -> None:
    """Alembic finds no difference, and the level is that of the newest revision."""
    engine = sqlalchemy.create_engine(database.url())
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        ours = [
            each
            for each in compare_metadata(context, tables.metadata)
            if "fleet_version" not in str(each) and "fleet_transitions_default" not in str(each)
        ]
    engine.dispose()
    assert [] == ours
    assert f"{LEVEL:04}" == maintain.migrate(postgres.target(database.url()))
    assert [(LEVEL, 1)] == database.query("SELECT level, min_writer FROM fleet_meta")
    assert {*TRANSITION, "at_rest", "registry_id", "incarnation"} == set(
        tables.transitions.c.keys()
    )
    assert {*SANDBOX, "registry_id"} == set(tables.sandboxes.c.keys())


def test_migration_without_the_rights_says_so(database: Database) -> None:
    """42501, without a traceback."""
    database.query(f"CREATE ROLE other_{database.name} LOGIN")
    with pytest.raises(FailedPreconditionError, match=f"connect as '{OWNER}'"):
        maintain.maintain(postgres.target(database.node("node-m")))
    other = postgres.target(database.url(f"other_{database.name}"))
    with pytest.raises(FailedPreconditionError, match=f"connect as '{OWNER}'"):
        maintain.migrate(other)
    tables = "fleet_meta, fleet_registries, fleet_boots, fleet_sandboxes, fleet_transitions"
    database.query(f"DROP TABLE fleet_version, fleet_breaks, {tables} CASCADE")
    with pytest.raises(FailedPreconditionError, match="42501"):
        maintain.migrate(other)


def test_database_of_a_newer_program_is_not_migrated(database: Database) -> None:
    """Its revision is unknown here."""
    database.query("UPDATE fleet_version SET version_num = '0999'")
    with pytest.raises(SchemaVersionError, match="0999"):
        maintain.migrate(postgres.target(database.url()))


def test_database_in_which_nodes_may_create_objects_is_not_migrated(database: Database) -> None:
    """Their functions would run with the rights of the readers: in 14, it is the default."""
    database.query("GRANT CREATE ON SCHEMA public TO PUBLIC")
    with pytest.raises(FailedPreconditionError, match="REVOKE CREATE ON SCHEMA public FROM PUBLIC"):
        maintain.migrate(postgres.target(database.url()))
    database.query("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    maintain.migrate(postgres.target(database.url()))


@pytest.mark.parametrize(
    "held",
    [
        f"SELECT pg_advisory_lock({maintain.LOCK})",
        "SELECT FROM fleet_transitions",
    ],
)
def test_node_that_holds_a_lock_does_not_stop_the_fleet(
    path: str, database: Database, new_pusher: NewPusher, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    """Behind a maintenance that waits for it, all pushers would wait too."""
    monkeypatch.setattr(maintain, "ALONE", maintain.ALONE.replace("'10s'", "'10ms'"))
    to, url = postgres.target(database.url()), database.node("node-l")
    maintain.maintain(to, now=datetime.now(UTC) - 400 * DAY)
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("a"), READY)
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute(held)
        with pytest.raises(UnavailableError, match=r"lock timeout.*pg_stat_activity"):
            maintain.maintain(to)
        push(new_pusher(to=database.node("node-m")))
    assert maintain.maintain(to).dropped


def at_days(path: str, moments: list[datetime]) -> None:
    """Make a registry of one transition at each of *moments*."""
    with Store.open(path, reconcile=False) as store:
        for number in range(len(moments)):
            store.add(sandbox(f"s{number}"), READY)
    for number, moment in enumerate(moments):
        ns = int(moment.timestamp()) * 10**9
        tamper(path, f"UPDATE sandbox_transitions SET at = {ns} WHERE seq = {number + 1}")


def count(database: Database, name: str) -> Any:
    """Return the number of rows in the partition *name*."""
    return database.one(f"SELECT count(*) FROM {name}")


def test_maintain_moves_rows_out_of_the_default_partition(
    path: str, database: Database, new_pusher: NewPusher
) -> None:
    """They would block the partition of their month; a skewed clock's rows stay where they are."""
    now = datetime(2026, 11, 27, 12, tzinfo=UTC)
    moments = [now, now - 40 * DAY, now - 200 * DAY, now + 300 * DAY, now + 31 * DAY]
    at_days(path, moments)
    push(new_pusher())
    assert 5 == count(database, maintain.DEFAULT)
    done = maintain.maintain(postgres.target(database.url()), keep_days=90, now=now)
    assert done.made == [f"fleet_transitions_{month}" for month in (
        "2026_10", "2026_11", "2026_12", "2027_01"
    )]  # fmt: skip
    assert (3, 1, []) == (done.moved, done.deleted, done.dropped)
    assert 1 == count(database, maintain.DEFAULT)
    assert 1 == count(database, "fleet_transitions_2026_10")
    assert 4 == database.one("SELECT count(*) FROM fleet_history")
    again = maintain.maintain(postgres.target(database.url()), keep_days=90, now=now)
    assert ([], [], 0, 0) == tuple(again)


def test_retention_drops_whole_partitions(
    path: str, database: Database, new_pusher: NewPusher
) -> None:
    """A partition goes when its youngest row may be too old; the pusher is not disturbed."""
    now = datetime(2026, 11, 27, tzinfo=UTC)
    at_days(path, [now - 40 * DAY, now])
    pusher = new_pusher()
    push(pusher)
    maintain.maintain(postgres.target(database.url()), keep_days=90, now=now)
    kept = maintain.maintain(postgres.target(database.url()), keep_days=40, now=now)
    assert [] == kept.dropped
    done = maintain.maintain(postgres.target(database.url()), keep_days=20, now=now)
    assert ["fleet_transitions_2026_10"] == done.dropped
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("new"), READY)
    assert 1 == push(pusher)
    assert 2 == database.one("SELECT count(*) FROM fleet_history")


def test_partition_that_a_superuser_makes_is_the_owners(database: Database) -> None:
    """In PostgreSQL 14, the owner does not own the schema, and could not drop it otherwise."""
    assert maintain.maintain(postgres.target(database.url("postgres"))).made
    owners = "SELECT DISTINCT tableowner FROM pg_tables WHERE tablename LIKE 'fleet_transitions%'"
    assert [(OWNER,)] == database.query(owners)


def test_new_partition_has_every_index_and_no_privileges(database: Database) -> None:
    """Row level security guards the parent alone."""
    maintain.maintain(postgres.target(database.url()))
    names = "SELECT inhrelid FROM pg_inherits WHERE inhparent = 'fleet_transitions'::regclass"
    assert 4 == database.one(f"SELECT count(*) FROM ({names}) AS n")
    assert [(3,)] == database.query(
        f"SELECT DISTINCT count(*) FROM pg_index WHERE indrelid IN ({names}) GROUP BY indrelid"
    )
    for role in ("fleet_node", "fleet_reader"):
        granted = f"has_table_privilege('{role}', inhrelid, 'SELECT, INSERT, UPDATE, DELETE')"
        assert [(False,)] == database.query(f"SELECT DISTINCT {granted} FROM ({names}) AS n")


def test_heartbeats_stay_heap_only_updates(
    path: str, database: Database, new_pusher: NewPusher
) -> None:
    """They touch no indexed column, and the page has space for the next version."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("a"), READY)
    pusher = new_pusher()
    push(pusher)
    indexed = (
        "SELECT pg_get_indexdef(indexrelid) FROM pg_index"
        " WHERE indrelid = 'fleet_registries'::regclass"
    )
    text = str(database.query(indexed))
    changed = ("seen_at", "cursor", "newest", "problem", "skew_ms", "every", "fingerprint")
    assert not [name for name in changed if name in text]
    options = "SELECT reloptions FROM pg_class WHERE relname = 'fleet_registries'"
    assert ["fillfactor=50"] == database.one(options)
