"""Exactly once, whatever is killed, stopped or demoted, compared column by column.

The long form, by FLEET=long, kills and stops four times as often, and before each line.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from registry import Store
from registry.fleet import postgres
from registry.fleet.follow import catch_up
from registry.fleet.push import Pusher
from registry.fleet.source import Source
from tests import needs
from tests.fleet.cluster import Cluster, missing
from tests.fleet.compare import assert_equal
from tests.fleet.conftest import LONG, Database, prepare
from tests.fleet.processes import DYING, FORKED, program, writing
from tests.tools import READY, run, sandbox, until

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")

Note = Callable[[str, object], None]
KILLS = 200 if LONG else 50
STOPS = 50 if LONG else 12
STEP = 1 if LONG else 3


@pytest.fixture
def registry(path: str) -> str:
    """Return a registry of one sandbox."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("a"), READY)
    return path


@contextmanager
def pushed(url: str, path: str, node: str = "node-1", every: str = "1") -> Iterator[None]:
    """Follow the registry at *path* by a process of its own during the block."""
    args = ("push", "--db", path, "--follow", "--every", every, "--node", node, "--machine", "m1")
    with program(*args, SANDBOX_REGISTRY_FLEET=url):
        yield


def assert_pushed(database: Database, path: str, url: str = "", node: str = "node-1") -> int:
    """Push the rest, and assert that both sides are equal; return the number of transitions."""
    to = postgres.target(url or database.url())
    pusher = Pusher(Source(path), to, node=node, machine_id="m1")
    try:
        catch_up(pusher)
        return assert_equal(database, path)
    finally:
        pusher.close()


def test_rule_1_pusher_that_is_killed_again_and_again_stores_each_row_once(
    registry: str, database: Database, record_property: Note
) -> None:
    """By SIGKILL, at any moment, under load; there is no gap and no other line."""
    with writing(registry):
        out = run(FORKED, registry, database.url(), KILLS)
    assert f"killed {KILLS}" in out
    stored = database.one("SELECT count(*) FROM fleet_transitions")
    assert 0 < stored
    total = assert_pushed(database, registry)
    assert [] == database.query("SELECT * FROM fleet_breaks")
    record_property("figures", f"{KILLS} kills, {total} transitions, {stored} before the last push")


@pytest.mark.parametrize("scenario", ["restored", "replaced"])
def test_rule_1_pusher_that_is_killed_before_each_line_stores_each_row_once(
    registry: str, database: Database, record_property: Note, scenario: str
) -> None:
    """Of a batch and of the beginning of a line, or of a registration that ends another one.

    The short form takes each third line.
    """
    shutil.copy(registry, f"{registry}.raw")
    out = run(DYING, registry, database.url(), scenario, STEP)
    killed = int(out.removeprefix("killed "))
    assert killed > 20
    total = assert_pushed(database, registry)
    record_property("figures", f"{scenario}: {killed} lines, {total} transitions")


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """Return a cluster of the test's own, which survives a stop by force."""
    with Cluster(safe=True) as cluster:
        yield cluster


def test_rule_8_commits_that_the_server_has_lost_are_sent_again(
    registry: str, own_cluster: Cluster, record_property: Note
) -> None:
    """Stopped by `immediate` again and again: batches are not synced, and nothing is missing."""
    database = prepare(own_cluster, "fleet")
    with writing(registry), pushed(database.url(), registry):
        for _ in range(STOPS):
            before = newest(database)
            until(lambda: newest(database) > before)  # noqa: B023 - called in this turn
            own_cluster.stop("immediate")
            own_cluster.start()
    total = assert_pushed(database, registry)
    assert [] == database.query("SELECT * FROM fleet_breaks")
    record_property("figures", f"{STOPS} stops, {total} transitions")


def newest(database: Database) -> int:
    """Return the greatest cursor of the registries in *database*, -1 if there is none."""
    return int(database.one("SELECT coalesce(max(cursor), -1) FROM fleet_registries"))


def test_rule_9_failover_to_a_standby_with_the_old_primary_demoted(
    registry: str, own_cluster: Cluster
) -> None:
    """The follower finds the new primary among the hosts of its URL; the old one is read-only."""
    database = prepare(own_cluster, "fleet")
    with Cluster(base=own_cluster.folder) as standby:
        hosts = f"host={own_cluster.folder},{standby.folder}&port=5432,5432"
        url = f"postgresql+psycopg://fleet_owner@/fleet?{hosts}"
        promoted = Database(standby, "fleet")
        with writing(registry, 0.01), pushed(url, registry):
            until(lambda: newest(database) > 0)
            until(lambda: newest(promoted) > 0)
            standby.run("pg_ctl", "promote", "-w", "-D", standby.data)
            own_cluster.stop("fast")
            Path(f"{own_cluster.data}/standby.signal").touch()
            own_cluster.start()
            before = newest(promoted)
            until(lambda: newest(promoted) > before + 20)
        assert_pushed(promoted, registry, url)
        assert [] == promoted.query("SELECT * FROM fleet_breaks")
        assert ["on"] == [row[0] for row in database.query("SHOW transaction_read_only")]


def test_follower_opens_the_registry_that_has_replaced_its_own(
    registry: str, database: Database, tmp_path: Path
) -> None:
    """Its WAL is gone, which is a disk I/O error; after three heartbeats the old one is ended."""
    other = str(tmp_path / "other.db")
    run(
        """
        import sys
        from registry import Store
        from tests.tools import READY, sandbox
        with Store.open(sys.argv[1], reconcile=False) as store:
            store.add(sandbox("other"), READY)
        """,
        other,
    )
    with pushed(database.url(), registry, every="0.2"):
        until(lambda: newest(database) == 1)
        for suffix in ("-wal", "-shm"):
            Path(registry + suffix).unlink(missing_ok=True)
        Path(other).replace(registry)
        until(lambda: database.query("SELECT id FROM fleet_overview") == [("other",)])
    assert [("replaced",)] == database.query("SELECT kind FROM fleet_breaks")


@needs.program("pgbouncer")
def test_pushers_work_through_pgbouncer_in_transaction_mode(
    registry: str, database: Database
) -> None:
    """Three pushers of two nodes share one connection of the server, each under its own role."""
    folder = database.cluster.folder
    registries = {registry: "node-p", f"{registry}.p": "node-p", f"{registry}.q": "node-q"}
    for path, node in registries.items():
        with Store.open(path, reconcile=False) as store:
            store.add(sandbox("b"), READY)
        database.node(node)
    settings, socket = Path(folder, "pgbouncer.ini"), Path(folder, ".s.PGSQL.6432")
    Path(folder, "users").write_text('"node-p" ""\n"node-q" ""\n')
    settings.write_text(
        f"[databases]\n* = host={folder}\n[pgbouncer]\npool_mode = transaction\n"
        f"unix_socket_dir = {folder}\nlisten_port = 6432\nlisten_addr =\nauth_type = trust\n"
        f"auth_file = {folder}/users\nmax_db_connections = 1\n"
    )
    command = [*database.cluster.as_user, "pgbouncer", "-q", str(settings)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as bouncer:
        try:
            until(lambda: socket.exists() or bouncer.poll() is not None)
            assert bouncer.poll() is None, bouncer.stderr and bouncer.stderr.read()
            url = f"postgresql://{{}}@/{database.name}?host={folder}&port=6432"
            with contextlib.ExitStack() as stack:
                for path, node in registries.items():
                    stack.enter_context(writing(path))
                    stack.enter_context(pushed(url.format(node), path, node=node))
                least = "SELECT count(*) FROM fleet_registries WHERE cursor > 1000 AND node = role"
                until(lambda: database.one(least) == 3)
        finally:
            bouncer.terminate()
            bouncer.wait()
    for path, node in registries.items():
        assert_pushed(database, path, database.url(node), node=node)


def test_commit_is_visible_in_postgresql_within_a_moment(
    registry: str, database: Database, record_property: Note
) -> None:
    """A commit wakes the follower: nothing waits for its next heartbeat."""
    with (
        pushed(database.url(), registry),
        Store.open(registry, reconcile=False) as store,
        database.cluster.connect(database.name) as connection,
    ):
        until(lambda: newest(database) == 1)
        waits = []
        for number in range(15):
            store.add(sandbox(f"n{number}"), READY)
            began = time.monotonic()
            query = f"SELECT FROM fleet_sandboxes WHERE sandbox_id = 'n{number}'"
            until(lambda: connection.execute(query).rowcount)  # noqa: B023 - called in this turn
            waits.append(time.monotonic() - began)
    record_property("figures", f"visible after {sorted(waits)[7] * 1000:.0f} ms (median)")
