"""Scale of a fleet by simulation: 10,000 registries in a PostgreSQL of its own.

    python -m benchmarks.fleet [REGISTRIES]

Each registry has 100 present sandboxes and 1,000 transitions over 90 days, which SQL generates. The
figures are printed; docs/performance.md, "The fleet", has those of one run. 10,000 registries take
about five minutes and 8 GB in the folder for temporary files.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import psycopg

from registry import Store
from registry.fleet import maintain, postgres
from registry.fleet.follow import catch_up
from registry.fleet.push import Pusher
from registry.fleet.source import Source
from registry.fleet.statements import TRANSITION
from tests.fleet.cluster import Cluster
from tests.fleet.conftest import Database, prepare
from tests.tools import READY, execute, fill, pod, sandbox

SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "work_mem": "64MB",
    "maintenance_work_mem": "256MB",
    "jit": "off",
}
GENERATED = (
    """
INSERT INTO fleet_registries (registry_id, incarnation, source_incarnation, node, path, machine_id,
  boot_id, kernel, cursor, fingerprint, newest, every, skew_ms, role, seen_at)
SELECT md5('r' || n)::uuid, 1, 1, 'node-' || n, '/var/lib/shim/registry.db', md5('m' || n),
  md5('new' || n), '6.12.' || n % 3, 1000, md5('f' || n), 1000, 30, n % 7, 'node-' || n,
  now() - CASE WHEN n % 500 = 0 THEN 1 ELSE -1 END * interval '1 day'
FROM generate_series(1, {registries}) AS n""",
    """
INSERT INTO fleet_boots (registry_id, boot_id, kernel)
SELECT md5('r' || n)::uuid, md5(b || n), CASE b WHEN 'new' THEN '6.12.' || n % 3 ELSE '6.1.9' END
FROM generate_series(1, {registries}) AS n, (VALUES ('new'), ('old')) AS x (b)""",
    """
INSERT INTO fleet_sandboxes (registry_id, sandbox_id, name, namespace, pod, uid, state, pid, ip,
  netns_path, reason, message, created_at, changed_at, since,
  attempt, host_network, runtime_handler, labels)
SELECT md5('r' || n)::uuid, md5(n || '-' || s), 'web_ns_' || s, 'ns-' || s % 50, 'web-' || n % 997,
  md5('u' || s), CASE WHEN s % 20 = 0 THEN 'SANDBOX_NOTREADY' ELSE 'SANDBOX_READY' END, s,
  '10.0.0.1', '/run/netns/sr-' || s, CASE WHEN s % 20 = 0 THEN 'ProcessExited' ELSE '' END, '',
  1700000000000000000 + s, 1700000000000000000 + s, 1700000000000000000 + s, 0, 0, 'runc',
  jsonb_build_object('app', 'app-' || s % 100, 'tier', 't' || s % 3, 'node', n)
FROM generate_series(1, {registries}) AS n, generate_series(1, 100) AS s""",
    """
INSERT INTO fleet_transitions (registry_id, incarnation, seq, at, at_rest, sandbox_id, name, pod,
  namespace, uid, event, from_state, to_state, pid, reason, message, actor, boot_id)
SELECT md5('r' || n)::uuid, 1, s, now() - (1000 - s) * interval '7776 s' + n * interval '0.1 s', 7,
  md5(n || '-' || s / 4), 'web_ns_' || s, 'web-' || n % 997, 'ns-' || s % 50, md5('u' || s),
  (ARRAY['created', 'changed', 'changed', 'deleted'])[s % 4 + 1],
  (ARRAY[NULL, 'SANDBOX_UNKNOWN', 'SANDBOX_READY', 'SANDBOX_NOTREADY'])[s % 4 + 1],
  (ARRAY['SANDBOX_UNKNOWN', 'SANDBOX_READY', 'SANDBOX_NOTREADY', NULL])[s % 4 + 1], s,
  CASE WHEN s % 4 < 2 THEN '' WHEN s % 80 = 2 THEN 'NetNSReplaced' ELSE 'ProcessExited' END, '',
  'shim[812]', md5(CASE WHEN s > 500 THEN 'new' ELSE 'old' END || n)
FROM generate_series({first}, {last}) AS n, generate_series(1, 1000) AS s""",
    "VACUUM ANALYZE",
)
NOT_READY = "to_state = 'SANDBOX_NOTREADY' AND reason = 'NetNSReplaced'"
QUERIES = {
    "NOTREADY with NetNSReplaced of 30 days, with nodes": (
        "SELECT node, sandbox_id, pod, at FROM fleet_history"
        f" WHERE {NOT_READY} AND at > now() - interval '30 days'"
    ),
    "the same by hand, on the tables": (
        "SELECT r.node, t.sandbox_id, t.pod, t.at FROM fleet_transitions AS t"
        f" JOIN fleet_registries AS r USING (registry_id) WHERE {NOT_READY}"
        " AND t.at > now() - interval '30 days'"
    ),
    "the same since a kernel, by boot": (
        f"SELECT node, count(*) FROM fleet_history WHERE {NOT_READY} AND kernel = '6.12.1'"
        " GROUP BY node"
    ),
    "sandboxes by state and reason": (
        "SELECT state, reason, count(*) FROM fleet_overview GROUP BY state, reason"
    ),
    "sandboxes of a label": (
        'SELECT node, id, state FROM fleet_overview WHERE labels @> \'{"app": "app-7"}\''
    ),
    "a pod": "SELECT node, id FROM fleet_overview WHERE namespace = 'ns-7' AND pod = 'web-7'",
    "silent nodes": "SELECT node, silent_for FROM fleet_silent",
    "all nodes, with their counts": "SELECT node, status, ready, not_ready FROM fleet_nodes",
    "history of one sandbox": (
        "SELECT * FROM fleet_history WHERE sandbox_id = md5('7-7') ORDER BY incarnation, seq"
    ),
}


def seconds(run: Callable[[], object], times: int = 1) -> float:
    """Return the median time of *run*."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def generate(database: Database, registries: int) -> None:
    """Fill the tables by SQL, with a partition for each month of the history."""
    with database.cluster.connect(database.name) as connection, connection.transaction():
        for months in range(-3, 0):
            maintain._make_one(connection, maintain._month(datetime.now(UTC), months))  # noqa: SLF001
    for statement in GENERATED:
        began = time.perf_counter()
        for first in range(1, registries + 1, 500) if "{first}" in statement else [1]:
            last = min(registries, first + 499)
            database.query(statement.format(registries=registries, first=first, last=last))
        print(
            f"  {statement.split('(')[0].strip()}: {time.perf_counter() - began:.0f} s", flush=True
        )


def _fetch(connection: psycopg.Connection, query: str) -> list[tuple[object, ...]]:
    return connection.execute(query).fetchall()


def ask(database: Database) -> None:
    """Print the time of each query, warm."""
    with database.cluster.connect(database.name) as connection:
        for name, query in QUERIES.items():
            rows = len(connection.execute(query).fetchall())
            took = seconds(partial(_fetch, connection, query), 5)
            print(f"  {name}: {took * 1000:.1f} ms, {rows} rows", flush=True)


def push(database: Database, path: str) -> None:
    """Print how fast a registry is pushed, beside COPY of the same rows into the same table."""
    with Store.open(path, reconcile=False) as store:
        for number in range(100):
            store.add(sandbox(f"s{number}", config=pod("web", "shop", app="web")), READY)
    execute(path, fill(60_000))
    rates = []
    for _ in range(3):
        pusher = Pusher(Source(path), postgres.target(database.url()), node="n", machine_id="m")
        took = seconds(partial(catch_up, pusher))
        rates.append(60_100 / took)
        rates.append(copy(database))
        pusher.close()
    ours, theirs = statistics.median(rates[::2]), statistics.median(rates[1::2])
    print(f"  push {ours:,.0f} rows/s, COPY {theirs:,.0f}, ratio {ours / theirs:.2f}", flush=True)
    pusher = Pusher(Source(path), postgres.target(database.url()), node="n", machine_id="m")
    catch_up(pusher)
    beats = seconds(lambda: [pusher.round() for _ in range(500)]) / 500
    print(f"  a heartbeat of 100 sandboxes: {beats * 1000:.2f} ms", flush=True)
    pusher.close()
    forget(database)


def copy(database: Database) -> float:
    """Copy the rows of the pushed registry by COPY, delete all of them, and return rows/s."""
    columns = ", ".join(name for name in TRANSITION if name != "at")
    columns = f"registry_id, incarnation, {columns}, at, at_rest"
    with database.cluster.connect(database.name) as connection:
        rows = _fetch(connection, f"SELECT {columns} FROM fleet_transitions WHERE {MINE}")
        rows = [(row[0], 2, *row[2:]) for row in rows]

        def run() -> None:
            for first in range(0, len(rows), 1000):
                _copy(connection, columns, rows[first : first + 1000])

        took = seconds(run)
    forget(database)
    return len(rows) / took


MINE = "registry_id = (SELECT registry_id FROM fleet_registries WHERE node = 'n')"


def forget(database: Database) -> None:
    """Delete the rows of the pushed registry."""
    for table in ("transitions", "sandboxes", "breaks", "boots", "registries"):
        database.query(f"DELETE FROM fleet_{table} WHERE {MINE}")
    database.query("VACUUM fleet_transitions")


def _copy(connection: psycopg.Connection, columns: str, rows: list[tuple[object, ...]]) -> None:
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL synchronous_commit = off")
        with cursor.copy(f"COPY fleet_transitions ({columns}) FROM STDIN") as target:
            for row in rows:
                target.write_row(row)


def main() -> None:
    """Generate, ask and push; print all figures."""
    registries = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with Cluster(safe=True) as cluster, tempfile.TemporaryDirectory() as folder:
        cluster.configure(SETTINGS)
        cluster.stop()
        cluster.start()
        database = prepare(cluster, "fleet")
        print("push into an empty database")
        push(database, f"{folder}/first.db")
        print(f"{registries} registries are generated")
        generate(database, registries)
        size = (
            "SELECT pg_total_relation_size(inhrelid), pg_relation_size(inhrelid) FROM pg_inherits"
        )
        sizes = database.query(f"{size} WHERE inhparent = 'fleet_transitions'::regclass")
        rows = registries * 1000
        total, heap = (sum(each[n] for each in sizes) / rows for n in (0, 1))
        print(f"  a transition takes {heap:.0f} bytes, and {total - heap:.0f} of indexes")
        print("queries, warm, with all rows fetched")
        ask(database)
        print("push into the full database")
        push(database, f"{folder}/second.db")


if __name__ == "__main__":
    main()
