"""Rule 12: roles and row level security, tried by attacks with the role of a node."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import psycopg
import pytest
from jsonschema import Draft202012Validator

from registry import FailedPreconditionError, Store
from registry.cli import program as cli
from tests.cli.test_schema import schema_of
from tests.fleet.compare import assert_equal
from tests.fleet.conftest import Database, NewPusher, push, registry_id
from tests.fleet.test_docs import QUERIES
from tests.tools import READY, sandbox

TABLES = ("registries", "boots", "sandboxes", "transitions", "breaks")
REGISTER = (
    "INSERT INTO fleet_registries (registry_id, incarnation, source_incarnation, node, path,"
    " machine_id, boot_id, kernel, cursor, fingerprint, newest, every, skew_ms)"
    " VALUES ('{}', 1, 1, '{}', '/p', 'm', 'b', 'k', 0, '', 0, 30, 0)"
)


class Nodes:
    """Two nodes, each with a registry that was pushed by its own role."""

    def __init__(self, database: Database, ids: tuple[str, str]) -> None:
        self.database = database
        self.own, self.other = ids

    def attack(self, sql: str) -> int:
        """Run *sql* as node-a, and return how many rows it has returned or changed."""
        with self.database.cluster.connect(self.database.name, "node-a") as connection:
            return connection.execute(sql).rowcount

    def refused(self, sql: str) -> None:
        """Assert that node-a is refused to run *sql*, by a privilege or a policy."""
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            self.attack(sql)


@pytest.fixture
def nodes(path: str, database: Database, new_pusher: NewPusher) -> Nodes:
    """Return two nodes, of which node-a is the attacker."""
    ids = []
    for name in ("node-a", "node-b"):
        file = f"{path}.{name}"
        with Store.open(file, reconcile=False) as store:
            store.add(sandbox("a"), READY)
        push(new_pusher(file, to=database.node(name), machine_id=name))
        assert_equal(database, file)
        database.query(
            "INSERT INTO fleet_breaks (registry_id, incarnation, after, before, kind)"
            f" VALUES ('{registry_id(file)}', 1, 0, 0, 'gap')"
        )
        ids.append(registry_id(file))
    return Nodes(database, (ids[0], ids[1]))


@pytest.mark.parametrize("table", TABLES)
def test_rule_12_node_reads_its_own_rows_alone(nodes: Nodes, table: str) -> None:
    """One row of each table is its own, another one is that of the other node."""
    assert 2 == nodes.database.one(f"SELECT count(*) FROM fleet_{table}")
    assert 1 == nodes.attack(f"SELECT * FROM fleet_{table}")
    assert 0 == nodes.attack(f"SELECT * FROM fleet_{table} WHERE registry_id = '{nodes.other}'")


@pytest.mark.parametrize("view", ["nodes", "silent", "overview", "not_ready", "history"])
def test_rule_12_node_reads_no_view(nodes: Nodes, view: str) -> None:
    """Views run with the rights of the owner."""
    nodes.refused(f"SELECT * FROM fleet_{view}")


def test_rule_12_node_changes_no_row_of_another_node(nodes: Nodes) -> None:
    """It sees none to change."""
    where = f"WHERE registry_id = '{nodes.other}'"
    assert 0 == nodes.attack(f"UPDATE fleet_registries SET cursor = 0 {where}")
    assert 0 == nodes.attack(f"UPDATE fleet_sandboxes SET state = 'x' {where}")
    assert 0 == nodes.attack(f"DELETE FROM fleet_sandboxes {where}")
    assert 1 == nodes.attack("UPDATE fleet_sandboxes SET state = 'x'")


def test_rule_12_node_inserts_no_row_of_another_node(nodes: Nodes) -> None:
    """Into any table, under the id of the other registry or an unknown one."""
    for id in (nodes.other, uuid.uuid4()):
        nodes.refused(
            "INSERT INTO fleet_sandboxes SELECT (jsonb_populate_record(s, jsonb_build_object("
            f"'registry_id', '{id}'))).* FROM fleet_sandboxes AS s"
        )
        nodes.refused(
            "INSERT INTO fleet_transitions SELECT (jsonb_populate_record(t, jsonb_build_object("
            f"'registry_id', '{id}', 'seq', 2))).* FROM fleet_transitions AS t"
        )
        nodes.refused(
            f"INSERT INTO fleet_boots (registry_id, boot_id, kernel) VALUES ('{id}', 'b', 'k')"
        )
        nodes.refused(
            "INSERT INTO fleet_breaks (registry_id, incarnation, after, before, kind)"
            f" VALUES ('{id}', 9, 0, 0, 'restored')"
        )


def test_rule_12_node_moves_no_row_to_another_node(nodes: Nodes) -> None:
    """Neither its registry nor its sandboxes get the id, the role or the node of the other one."""
    id = nodes.other
    nodes.refused(f"UPDATE fleet_sandboxes SET registry_id = '{id}'")
    nodes.refused(f"UPDATE fleet_registries SET registry_id = '{id}'")
    nodes.refused("UPDATE fleet_registries SET role = 'node-b'")
    nodes.refused("UPDATE fleet_registries SET node = 'node-b'")


def test_rule_12_node_registers_under_no_other_name(nodes: Nodes) -> None:
    """A stolen certificate forges that node only; a registry of another role is not taken."""
    nodes.refused(REGISTER.format(uuid.uuid4(), "node-b"))
    with pytest.raises(psycopg.errors.UniqueViolation):
        nodes.attack(REGISTER.format(nodes.other, "node-a"))
    assert 1 == nodes.attack(REGISTER.format(uuid.uuid4(), "node-a"))


def test_rule_12_node_only_appends_to_the_history(nodes: Nodes) -> None:
    """Not even its own transitions can be changed or deleted: they happened."""
    for statement in (
        "UPDATE fleet_transitions SET reason = 'x'",
        "DELETE FROM fleet_transitions",
        "TRUNCATE fleet_transitions",
        "DELETE FROM fleet_breaks",
        "UPDATE fleet_breaks SET after = 0",
        "DELETE FROM fleet_registries",
        "DELETE FROM fleet_boots",
    ):
        nodes.refused(statement)


def test_rule_12_node_does_not_reach_partitions_or_settings(nodes: Nodes) -> None:
    """A partition has no policy: it has no privileges either."""
    for statement in (
        "SELECT * FROM fleet_transitions_default",
        "INSERT INTO fleet_transitions_default SELECT * FROM fleet_transitions",
        "UPDATE fleet_meta SET min_writer = 99",
        "UPDATE fleet_version SET version_num = 'x'",
        "SELECT * FROM fleet_version",
        "ALTER TABLE fleet_registries DISABLE ROW LEVEL SECURITY",
        "SET ROLE fleet_owner",
        "SET SESSION AUTHORIZATION fleet_owner",
        "CREATE TABLE trap (x int)",
        "CREATE SCHEMA trap",
        "COPY fleet_meta TO PROGRAM 'true'",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
        'SET ROLE "node-b"',
    ):
        nodes.refused(statement)


def test_rule_12_node_learns_no_value_of_another_node(nodes: Nodes) -> None:
    """By a function that sees rows before the policy, by statistics, or by a conflict."""
    nodes.database.query("ANALYZE")
    with nodes.database.cluster.connect(nodes.database.name, "node-a") as connection:
        connection.execute(
            "CREATE FUNCTION pg_temp.leak(uuid) RETURNS boolean LANGUAGE plpgsql COST 0.0001"
            " AS $$ BEGIN PERFORM set_config('leak.seen', current_setting('leak.seen', true) || $1,"
            " false); RETURN true; END $$"
        )
        for table in TABLES:
            connection.execute(f"SELECT FROM fleet_{table} WHERE pg_temp.leak(registry_id)")
        seen = str(connection.execute("SHOW leak.seen").fetchone())
        # Names in the schema of temporary objects come first, but policies do not look them up.
        connection.execute("CREATE TEMP TABLE fleet_registries (registry_id uuid, role text)")
        connection.execute(f"INSERT INTO fleet_registries VALUES ('{nodes.other}', 'node-a')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(
                "INSERT INTO fleet_boots (registry_id, boot_id, kernel)"
                f" VALUES ('{nodes.other}', 'b', 'k')"
            )
    assert str(uuid.UUID(nodes.own)) in seen
    assert str(uuid.UUID(nodes.other)) not in seen
    assert 0 == nodes.attack(
        "SELECT FROM pg_stats WHERE tablename LIKE 'fleet_%' AND tablename <> 'fleet_meta'"
    )
    register = REGISTER.format(nodes.other, "node-a") + " ON CONFLICT (registry_id) DO"
    assert 0 == nodes.attack(f"{register} NOTHING")
    nodes.refused(f"{register} UPDATE SET every = 1")


@pytest.fixture
def reading(nodes: Nodes) -> Iterator[None]:
    """Make node-a a reader too."""
    nodes.database.query('GRANT fleet_reader TO "node-a"')
    yield
    nodes.database.query('REVOKE fleet_reader FROM "node-a"')


def test_rule_12_role_that_is_a_reader_too_writes_its_own_rows_alone(
    nodes: Nodes, reading: None
) -> None:
    """The policy of readers shows it the registries of all nodes."""
    assert 2 == nodes.attack("SELECT * FROM fleet_registries")
    where = f"WHERE registry_id = '{nodes.other}'"
    nodes.refused(
        f"INSERT INTO fleet_boots (registry_id, boot_id, kernel) VALUES ('{nodes.other}', 'b', 'k')"
    )
    assert 0 == nodes.attack(f"UPDATE fleet_registries SET cursor = 0 {where}")
    assert 0 == nodes.attack(f"UPDATE fleet_sandboxes SET state = 'x' {where}")
    assert 0 == nodes.attack(f"DELETE FROM fleet_sandboxes {where}")


def test_rule_12_server_alone_sets_the_times_of_boots_and_breaks(nodes: Nodes) -> None:
    """A node has no privilege on these columns."""
    nodes.refused(
        "INSERT INTO fleet_boots (registry_id, boot_id, kernel, seen_at)"
        f" VALUES ('{nodes.own}', 'b', 'k', 'infinity')"
    )
    nodes.refused(
        "INSERT INTO fleet_breaks (registry_id, incarnation, after, before, kind, found_at)"
        f" VALUES ('{nodes.own}', 1, 0, 9, 'gap', 'infinity')"
    )


POISON = [
    *(f"UPDATE fleet_registries SET every = {each}" for each in ("'inf'", "'nan'", "1e300", "-1")),
    *(
        f"UPDATE fleet_registries SET {name} = '{each}'"
        for name in ("seen_at", "ended_at")
        for each in ("infinity", "-infinity", "290000-01-01", "4713-01-01 BC")
    ),
    "UPDATE fleet_registries SET newest = 9223372036854775807, cursor = -9223372036854775807",
    "UPDATE fleet_registries SET skew_ms = -9223372036854775808",
    *(f"UPDATE fleet_sandboxes SET labels = '{each}'" for each in ("[]", "null", "7", '"app"')),
    *(
        "INSERT INTO fleet_transitions SELECT (jsonb_populate_record(t, jsonb_build_object("
        f"'seq', 2, 'at', '{at}', 'at_rest', {rest}))).* FROM fleet_transitions AS t"
        for at, rest in (
            ("infinity", 0),
            ("-infinity", 0),
            ("9999-12-31Z", 0),
            ("0001-01-01Z", 0),
            ("1677-09-21 00:12:43.145224Z", 191),
            ("2262-04-11 23:47:16.854775Z", 808),
            ("2026-01-01Z", -1),
            ("2026-01-01Z", 1000),
        )
    ),
]
"""SQL by which one node would have views, or questions of the command line, fail for all."""


def test_rule_12_node_stores_nothing_that_stops_a_query_of_all_nodes(nodes: Nodes) -> None:
    """Each value is refused by a constraint."""
    for sql in POISON:
        with pytest.raises(psycopg.errors.CheckViolation):
            assert nodes.attack(sql), sql


EXTREME = [
    (
        "UPDATE fleet_registries SET every = 1e-300, skew_ms = -1e16, newest = 9223372036854775807,"
        " seen_at = '2000-01-01Z', problem = E'\\x1b[2J\n' || repeat('x', 100000)"
    ),
    (
        "UPDATE fleet_registries SET every = 999999999, incarnation = -9223372036854775808,"
        " ended_at = '2999-12-31Z', seen_at = '2999-12-31Z'"
    ),
    (
        "UPDATE fleet_sandboxes SET created_at = -9223372036854775808, since = 9223372036854775807,"
        " changed_at = 9223372036854775807, exited_at = 0, exit_status = -9223372036854775808,"
        " pid = -9223372036854775808, host_network = 9223372036854775807, state = E'\\x1b]0;\\x07',"
        """ labels = '{"app": {"x": [null]}, "n": "9223372036854775808", "\u202e": null}'"""
    ),
    *(
        "INSERT INTO fleet_transitions SELECT (jsonb_populate_record(t, jsonb_build_object("
        f"'seq', '{seq}', 'at', '{at}', 'at_rest', {rest}, 'event', E'\\x1b[2J', 'pid', '{seq}',"
        " 'incarnation', 0))).* FROM fleet_transitions AS t WHERE seq = 1"
        for seq, at, rest in (
            (-(2**63), "1677-09-21 00:12:43.145224Z", 192),
            (2**63 - 1, "2262-04-11 23:47:16.854775Z", 807),
        )
    ),
]
"""SQL by which a node stores what constraints accept, at their edges."""


def test_rule_12_every_question_has_an_answer_beside_extreme_values(
    nodes: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the command line, in each format, and of the documents; nothing reaches a terminal raw."""
    for sql in EXTREME:
        assert 1 == nodes.attack(sql), sql
        for verb in ("nodes", "silent", "list", "history"):
            for form in ("table", "wide", "json", "yaml", "jsonl", "name"):
                url = nodes.database.url()
                args = ("fleet", verb, "--to", url, "-o", form)
                assert cli.main(args) in {0, 1}
                out, err = capsys.readouterr()
                assert err in {"", "no sandbox matches\n", "no node is silent\n"}
                assert "\x1b" not in out
                if form == "json":
                    errors = Draft202012Validator(schema_of(f"fleet {verb}")).iter_errors(
                        json.loads(out)
                    )
                    assert [] == [each.message for each in errors]
        for query in QUERIES:
            nodes.database.query(query)


def test_rule_12_group_of_all_nodes_is_no_node(nodes: Nodes) -> None:
    """SET ROLE to it shows nothing, and makes no row that other nodes would share."""
    assert -1 == nodes.attack("SET ROLE fleet_node")
    with nodes.database.cluster.connect(nodes.database.name, "node-a") as connection:
        connection.execute("SET ROLE fleet_node")
        assert 0 == connection.execute("SELECT * FROM fleet_registries").rowcount
        with pytest.raises(psycopg.errors.CheckViolation):
            connection.execute(REGISTER.format(uuid.uuid4(), "fleet_node"))


def test_rule_12_reader_reads_everything_and_writes_nothing(nodes: Nodes) -> None:
    """The views, and the tables beneath them."""
    name = f"reader_{nodes.database.name}"
    nodes.database.query(f"CREATE ROLE {name} LOGIN IN ROLE fleet_reader")
    for table in (*TABLES, "nodes", "overview", "history"):
        assert 2 == len(nodes.database.query(f"SELECT * FROM fleet_{table}", name))
    for statement in ("DELETE FROM fleet_sandboxes", "UPDATE fleet_registries SET cursor = 0"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            nodes.database.query(statement, name)


def test_rule_12_policy_uses_the_index_on_role(nodes: Nodes) -> None:
    """A name is compared with a text in collation C: in another one, each row would be read."""
    plan = "EXPLAIN SELECT registry_id FROM fleet_registries"
    with nodes.database.cluster.connect(nodes.database.name, "node-a") as connection:
        connection.execute("SET enable_seqscan = off")
        text = " ".join(str(line) for (line,) in connection.execute(plan))
    assert "fleet_registries_by_role" in text
    assert "Index Cond: (role = CURRENT_USER" in text


def test_registry_of_another_role_is_refused_with_the_reason(
    nodes: Nodes, path: str, new_pusher: NewPusher
) -> None:
    """A registry that was moved to a node with another role: that role cannot see its row."""
    other = new_pusher(f"{path}.node-a", to=nodes.database.node("node-c"))
    with pytest.raises(FailedPreconditionError, match="another role"):
        push(other)


def test_role_without_the_group_is_refused_with_what_to_grant(
    nodes: Nodes, path: str, new_pusher: NewPusher
) -> None:
    """42501 is not retried."""
    name = f"stranger_{nodes.database.name}"
    nodes.database.query(f"CREATE ROLE {name} LOGIN")
    with pytest.raises(FailedPreconditionError, match="grant fleet_node"):
        push(new_pusher(f"{path}.node-a", to=nodes.database.url(name)))
