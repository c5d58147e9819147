"""The loop: heartbeats, retries, and databases that do not fit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from registry import (
    FailedPreconditionError,
    InvalidArgumentError,
    RegistryError,
    SchemaVersionError,
    Store,
    UnavailableError,
)
from registry.fleet import postgres
from registry.fleet.figures import RETRY_MAX, Figures
from registry.fleet.follow import catch_up, follow
from registry.fleet.push import BATCH, Pushed, Pusher
from registry.fleet.source import Source
from registry.fleet.statements import LEVEL
from tests.fleet.cluster import OWNER, Cluster, missing
from tests.fleet.compare import assert_equal
from tests.fleet.conftest import Database, NewPusher, push
from tests.fleet.proxy import Proxy
from tests.tools import READY, execute, fill, sandbox, until

NODE = "SELECT status, problem FROM fleet_nodes"
END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'"
BACK = (
    "UPDATE fleet_registries SET cursor = 0, fingerprint = ''",
    "DELETE FROM fleet_transitions",
)
"""SQL after which PostgreSQL is as it was before the first batch."""


@pytest.fixture
def filled(path: str) -> str:
    """Return a registry of one sandbox."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("a"), READY)
    return path


@contextmanager
def following(pusher: Pusher, waits: list[float] | None = None) -> Iterator[Figures]:
    """Follow in another thread, and end at the end of the block; yield the figures."""
    over, shown, failed = threading.Event(), Figures(), list[BaseException]()

    def show(figures: Figures) -> None:
        for name in Figures.__slots__:
            setattr(shown, name, getattr(figures, name))

    def jitter(low: float, high: float) -> float:
        assert low == 0.0
        if waits is not None:
            waits.append(high)
        return min(high, 0.01)

    def run() -> None:
        try:
            follow(pusher, show, is_over=over.is_set, jitter=jitter)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield shown
    finally:
        over.set()
        thread.join()
    if failed:
        raise failed[0]


def reached(database: Database, pusher: Pusher, path: str) -> Callable[[], bool]:
    """Return a condition: everything that the registry at *path* has is in *database*."""

    def condition() -> bool:
        try:
            assert_equal(database, path)
        except AssertionError:
            return False
        return True

    return condition


def test_rule_7_heartbeat_says_that_an_idle_node_is_alive(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """By the clock of the server, without a commit of the registry."""
    pusher = new_pusher(every=0.05)
    with following(pusher):
        until(lambda: database.query(NODE) == [("alive", "")])
        database.query("UPDATE fleet_registries SET seen_at = seen_at - interval '1 day'")
        until(lambda: database.query(NODE) == [("alive", "")])
    database.query("UPDATE fleet_registries SET seen_at = seen_at - interval '1 s'")
    assert [("silent", "")] == database.query(NODE)


def test_rule_7_idle_node_finds_out_that_postgresql_has_gone_back(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """A failover or a restore lost its latest batches: the heartbeat changes no row then."""
    pusher = new_pusher(every=0.05)
    with following(pusher):
        until(reached(database, pusher, filled))
        with database.cluster.connect(database.name) as connection, connection.transaction():
            for statement in BACK:
                connection.execute(statement)
        until(reached(database, pusher, filled))


def test_rule_7_problem_tells_broken_from_silent(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """A registry that cannot be read is reported by heartbeats, and pushed once it can be."""
    pusher = new_pusher(every=0.05)
    push(pusher)
    pusher.close()
    with open(filled, "r+b") as file:
        header = file.read(16)
        file.seek(0)
        file.write(b"broken".ljust(16))
        file.flush()
        with following(pusher):
            until(lambda: database.query("SELECT status FROM fleet_nodes") == [("broken",)])
            assert "not an SQLite database" in database.one("SELECT problem FROM fleet_nodes")
            file.seek(0)
            file.write(header)
            file.flush()
            until(lambda: database.query(NODE) == [("alive", "")])


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("40001", UnavailableError),
        ("40P01", UnavailableError),
        ("57P01", UnavailableError),
        ("57014", UnavailableError),
        ("25P03", UnavailableError),
        ("55P03", UnavailableError),
        ("08006", UnavailableError),
        ("53300", UnavailableError),
        ("25006", UnavailableError),
        ("42501", FailedPreconditionError),
        ("28000", FailedPreconditionError),
        ("42P01", SchemaVersionError),
        ("23505", RegistryError),
        ("54000", RegistryError),
    ],
)
def test_rule_9_error_of_postgresql_is_retried_by_its_code(
    code: str, kind: type[RegistryError]
) -> None:
    """Never by its text; a constraint and a privilege stop the pusher with a message."""
    error = psycopg.errors.lookup(code)("it failed\nDETAIL: more")
    found = postgres.translate(error, "push", postgres.NODE)
    assert kind is type(found)
    assert code in str(found)
    assert "it failed" in str(found)


RULES = """
local all postgres trust
local all rejected reject
local all peer peer
local all user scram-sha-256
local all nologin,missing trust
"""


@pytest.mark.parametrize(
    ("role", "why"),
    [
        ("user:wrong", "password authentication failed"),
        ("user", "no password supplied"),
        ("peer", "Peer authentication failed"),
        ("rejected", "pg_hba.conf rejects"),
        ("other", "no pg_hba.conf entry"),
        ("nologin", "not permitted to log in"),
        ("missing", "does not exist"),
        ("user:right@/nowhere", 'database "nowhere" does not exist; see the name in the URL'),
    ],
)
def test_rule_9_role_that_the_server_refuses_ends_the_follower(
    guarded: Cluster, filled: str, role: str, why: str
) -> None:
    """A wrong password does not become right by a retry, which would lock the account."""
    name = role if "@" in role else f"{role}@/postgres"
    to = postgres.target(f"postgresql://{name}?host={guarded.folder}")
    pusher = Pusher(Source(filled), to, machine_id="m")
    with pytest.raises(FailedPreconditionError, match=why) as caught, following(pusher):
        pass
    assert "wrong" not in str(caught.value)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Cluster]:
    """Return a cluster that lets in the superuser, and one role by its password."""
    if reason := missing():
        pytest.skip(reason)
    with Cluster() as cluster:
        for role in ("peer LOGIN", "rejected LOGIN", "other LOGIN", "nologin"):
            cluster.query(f"CREATE ROLE {role}")
        cluster.query("CREATE ROLE \"user\" LOGIN PASSWORD 'right'")
        Path(cluster.data, "pg_hba.conf").write_text(RULES, encoding="utf-8")
        cluster.query("SELECT pg_reload_conf()")
        yield cluster


def test_rule_9_refusal_by_one_of_several_servers_is_retried(guarded: Cluster) -> None:
    """The other one may be the primary once it is back."""
    hosts = f"host={guarded.folder},/nowhere&port=5432,5432"
    with pytest.raises(UnavailableError, match="password authentication failed"):
        postgres.connect(postgres.target(f"postgresql://user:wrong@/postgres?{hosts}"))


def test_rule_9_certificate_that_the_server_does_not_know_ends_the_follower() -> None:
    """By the alert alone: whether it arrives before the connection is reset is not certain."""
    error = psycopg.OperationalError("connection failed: SSL error: tlsv1 alert unknown ca")
    found = postgres.translate(error, "connect", postgres.NODE)
    assert isinstance(found, FailedPreconditionError)
    assert str(found).endswith("; see sslcert of the URL, and whether ssl_ca_file of the server "
                               "has its authority")  # fmt: skip


def test_rule_9_wait_doubles_up_to_a_minute_and_is_drawn_at_random() -> None:
    """Full jitter: thousands of pushers do not come back at once."""
    figures = Figures()
    waits = [figures.retry("x") for _ in range(12)]
    assert [1.0, 2.0, 4.0, 8.0, 16.0, 32.0] + [RETRY_MAX] * 6 == waits
    figures.add(Pushed())
    assert 1.0 == figures.retry("x")


def test_rule_9_follower_goes_on_after_its_connection_was_ended(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """Again and again, by 57P01; nothing is lost or stored twice."""
    pusher, waits = new_pusher(every=0.05), list[float]()
    with following(pusher, waits):
        for _ in range(5):
            until(reached(database, pusher, filled))
            database.cluster.query(END.format(database.name))
            execute(filled, fill(10))
        until(reached(database, pusher, filled))
    assert waits


def test_rule_9_deadlock_is_retried(filled: str, database: Database, new_pusher: NewPusher) -> None:
    """40P01: a session of an operator locks in the other order; the batch is stored afterwards."""
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    database.query(f"ALTER DATABASE {database.name} SET deadlock_timeout = '10ms'")
    pusher = new_pusher()
    push(pusher)
    pusher.disconnect()
    execute(filled, fill(10))
    with (
        database.cluster.connect(database.name) as gate,
        database.cluster.connect(database.name) as connection,
        ThreadPoolExecutor(2) as pool,
        connection.transaction(),
    ):
        gate.execute("BEGIN; LOCK TABLE fleet_transitions IN SHARE MODE")
        connection.execute("SET LOCAL deadlock_timeout = '10min'")
        connection.execute("LOCK TABLE fleet_sandboxes IN SHARE MODE")
        round = pool.submit(pusher.round)
        until(lambda: database.one(waiting) == 1)
        other = pool.submit(connection.execute, "UPDATE fleet_registries SET problem = 'x'")
        until(lambda: database.one(waiting) == 2)
        # PostgreSQL looks for a deadlock once in a wait: the pusher, whose next wait closes the
        # circle, is the victim.
        gate.execute("ROLLBACK")
        with pytest.raises(UnavailableError, match="40P01"):
            round.result()
        other.result()
    push(pusher)
    assert_equal(database, filled)


@pytest.mark.parametrize("lose", ["before", "after"])
def test_rule_1_connection_lost_at_commit_is_a_question_that_the_cursor_answers(
    filled: str, database: Database, new_pusher: NewPusher, lose: str
) -> None:
    """Whether the server has committed or not: the batch is stored once."""
    execute(filled, fill(BATCH + 10))
    with Proxy(database.cluster.folder) as proxy:
        pusher = new_pusher(
            to=f"postgresql://{OWNER}@/{database.name}?host={proxy.folder}", node="n"
        )
        pusher.round()
        proxy.lose = lose
        with pytest.raises(UnavailableError):
            pusher.round()
        assert "" == proxy.lose
        stored = BATCH if lose == "before" else BATCH + 11
        assert stored == database.one("SELECT count(*) FROM fleet_transitions")
        assert BATCH + 11 - stored == push(pusher)
        pusher.close()
    assert_equal(database, filled)


def test_rule_9_connection_to_a_demoted_primary_is_not_used_again(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """25006: the session would stay read-only, and so would each later batch."""
    pusher = new_pusher()
    push(pusher)
    connection = pusher._connect()[0]
    connection.execute("SET default_transaction_read_only = on")
    with pytest.raises(UnavailableError, match="25006"):
        pusher.round()
    assert connection.closed
    push(pusher)
    database.query(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
    pusher.disconnect()
    with pytest.raises(UnavailableError, match="read-only"):
        pusher.round()


def test_rule_9_privilege_ends_the_follower(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """With a message, not a loop."""
    name = f"poor_{database.name}"
    database.query(f"CREATE ROLE {name} LOGIN")
    with (
        pytest.raises(FailedPreconditionError, match="42501"),
        following(new_pusher(to=database.url(name))),
    ):
        pass


def test_rule_10_nothing_is_lost_while_postgresql_is_down(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """The registry keeps 100,000 transitions; they are pushed in batches afterwards."""
    pusher = new_pusher(every=0.05)
    with following(pusher) as figures:
        until(reached(database, pusher, filled))
        database.cluster.query(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS false")
        database.cluster.query(END.format(database.name))
        execute(filled, fill(3000))
        until(lambda: figures.retries > 3 and figures.behind == 3000)
        assert "not currently accepting connections" in figures.problem
        assert figures.lag_seconds() > 0
        database.cluster.query(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS true")
        until(reached(database, pusher, filled))
        until(lambda: figures.problem == "")
    assert [] == database.query("SELECT * FROM fleet_breaks")


@pytest.mark.parametrize(
    ("meta", "advice"),
    [
        (f"min_writer = {LEVEL + 1}, level = {LEVEL + 1}", "upgrade this program"),
        (f"min_writer = 0, level = {LEVEL - 1}", "fleet migrate"),
    ],
)
def test_rule_11_pusher_that_does_not_fit_waits_and_says_so(
    filled: str, database: Database, new_pusher: NewPusher, meta: str, advice: str
) -> None:
    """Too old or too new, also while it runs; once the database fits, it goes on."""
    pusher = new_pusher(every=0.05)
    with following(pusher) as figures:
        until(reached(database, pusher, filled))
        database.query(f"UPDATE fleet_meta SET {meta}")
        execute(filled, fill(10))
        until(lambda: advice in figures.problem)
        assert database.one("SELECT cursor FROM fleet_registries") == 1
        database.query(f"UPDATE fleet_meta SET min_writer = 1, level = {LEVEL}")
        until(reached(database, pusher, filled))


def test_rule_11_old_pusher_writes_a_newer_database(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """A revision only adds columns and tables: statements name their columns."""
    pusher = new_pusher()
    push(pusher)
    for table in ("registries", "boots", "sandboxes", "transitions", "breaks"):
        database.query(f"ALTER TABLE fleet_{table} ADD COLUMN added text DEFAULT 'x' NOT NULL")
    database.query(f"UPDATE fleet_meta SET level = {LEVEL + 1}")
    execute(filled, fill(10))
    push(pusher)
    push(new_pusher())
    assert_equal(database, filled)


def test_rule_11_database_without_tables_is_waited_for(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """The database is migrated first; the message says how."""
    with pytest.raises(SchemaVersionError, match="fleet migrate"):
        new_pusher(to=database.cluster.url("postgres")).round()


def test_follower_logs_its_start_its_retries_and_its_recovery(
    filled: str, database: Database, new_pusher: NewPusher, caplog: pytest.LogCaptureFixture
) -> None:
    """One line each; a retry says how long it waits at most."""
    caplog.set_level("INFO", "registry")
    pusher = new_pusher(every=0.05)

    def logged(event: str) -> list[str]:
        found = (each for each in caplog.records if vars(each).get("event") == event)
        return [each.getMessage() for each in found]

    database.cluster.query(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS false")
    with following(pusher):
        until(lambda: len(logged("push_retried")) > 1)
        database.cluster.query(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS true")
        until(lambda: logged("push_resumed"))
    first, second = logged("push_retried")[:2]
    assert first.endswith("; retrying within 1 s")
    assert second.endswith("; retrying within 2 s")
    assert "--follow" not in first
    assert 1 == len(logged("push_resumed"))
    (begun,) = logged("push_begun")
    assert f"push registry {filled!r} to '{OWNER}@" in begun
    assert begun.endswith("with a heartbeat every 0.05 s")


def test_behind_is_unknown_without_a_cursor_or_a_registry(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """The number of the latest round stays then."""
    pusher = new_pusher()
    assert pusher.behind() is None
    push(pusher)
    pusher.disconnect()
    execute(filled, fill(3))
    assert 3 == pusher.behind()
    pusher.source.close()
    with open(filled, "r+b") as file:
        file.write(b"broken".ljust(16))
    assert pusher.behind() is None
    figures = Figures(behind=3)
    figures.retry("x", None)
    assert 3 == figures.behind


def test_catch_up_counts_what_it_has_pushed(
    filled: str, database: Database, new_pusher: NewPusher
) -> None:
    """And shows the progress after each batch."""
    execute(filled, fill(2 * BATCH + 499))
    shown = list[tuple[int, int]]()
    done = catch_up(new_pusher(), lambda each: shown.append((each.transitions, each.behind)))
    assert (2 * BATCH + 500, 0, "") == (done.transitions, done.behind, done.problem)
    assert [BATCH + 500, 500, 0] == [behind for _, behind in shown]
    assert [BATCH, 2 * BATCH, 2 * BATCH + 500] == [pushed for pushed, _ in shown]


def test_metrics_are_written_whole(tmp_path: object) -> None:
    """In the text format of Prometheus, replaced in one step."""
    figures = Figures()
    figures.add(Pushed(5, is_head=True))
    figures.retry("down")
    file = f"{tmp_path}/fleet.prom"
    figures.write(file)
    with open(file, encoding="utf-8") as written:
        lines = written.read().splitlines()
    assert "sandbox_registry_fleet_transitions_total 5" in lines
    assert "# TYPE sandbox_registry_fleet_problem gauge" in lines
    assert "sandbox_registry_fleet_problem 1" in lines


def test_url_that_cannot_be_read_says_why() -> None:
    """It is empty, or names an option that libpq does not have."""
    for url, why in (
        ("", "it is empty; give postgresql://"),
        ("postgresql://u@h/x?sslmode=require&bogus=1", "libpq has no option 'bogus'"),
        ("mysql://u@h/x", "it is not postgresql://"),
    ):
        with pytest.raises(InvalidArgumentError, match=why):
            postgres.target(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u:secret@/x?host=/nowhere",
        "postgresql://u:secret@localhost:1/x",
        "postgresql://u:secret@localhost:port/x",
        "postgresql://u@/x?password=secret&host=/nowhere",
        "postgresql://u:secret@h/x?bogus=1",
        "postgresql://u:a/b?secret=1@h/x",
        "mysql://u:secret@h/x",
        "secret",
    ],
)
def test_password_is_in_no_message(url: str, path: str) -> None:
    """Neither of an error, its causes and attributes, nor of the target."""
    try:
        to = postgres.target(url)
        assert "secret" not in f"{to!r} {to}"
        postgres.connect(to)
    except (InvalidArgumentError, UnavailableError) as error:
        seen: BaseException | None = error
        while seen is not None:
            assert "secret" not in f"{seen} {seen!r} {vars(seen)}"
            seen = seen.__cause__
    else:
        raise AssertionError("it is reached")
