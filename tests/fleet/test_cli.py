"""The verbs of `fleet`: as an operator runs them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from registry import Store
from registry.cli import program as cli
from registry.cli.verbs import fleet as verbs
from registry.fleet.figures import Figures
from tests.cli.program import Done
from tests.cli.test_schema import schema_of
from tests.fleet.cluster import OWNER
from tests.fleet.conftest import Database
from tests.fleet.processes import program
from tests.tools import NOTREADY, READY, UNKNOWN, execute, pod, sandbox, until
from tests.tools import run as python

STALE = "UPDATE fleet_registries SET seen_at = seen_at - interval '91 seconds' WHERE node = '{}'"


class Fleet:
    """Two nodes, and the program on their database."""

    def __init__(
        self, database: Database, paths: dict[str, str], output: pytest.CaptureFixture[str]
    ) -> None:
        self.database = database
        self.paths = paths
        self.output = output

    def main(self, *args: str) -> Done:
        """Run the program with *args* in this process."""
        code = cli.main(args)
        return Done(code, *self.output.readouterr())

    def run(self, *args: str, user: str = OWNER) -> Done:
        """Run `fleet` with *args* as the role *user*."""
        verb, *more = args
        return self.main("fleet", verb, "--to", self.database.url(user), *more)

    def found(self, *args: str) -> list[dict[str, Any]]:
        """Return what `fleet` prints with *args* as JSON."""
        done = self.run(*args, "--json")
        assert (0, "") == (done.code, done.err)
        found: list[dict[str, Any]] = json.loads(done.out)
        return found

    def ids(self, *args: str) -> list[str]:
        """Return the ids that `fleet list` prints with *args*."""
        return [each["id"] for each in self.found("list", *args)]

    def push(self, node: str) -> Done:
        """Push the registry of *node* once, as the role of the node."""
        self.database.node(node)
        args = ("push", "--db", self.paths[node], "--machine", node)
        return self.run(*args, user=node)


@pytest.fixture
def fleet(
    path: str,
    database: Database,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Fleet:
    """Return a fleet of two nodes that were pushed."""
    monkeypatch.delenv("SANDBOX_REGISTRY_FLEET", raising=False)
    found = Fleet(database, {name: f"{path}.{name}" for name in ("node-1", "node-2")}, capsys)
    for node, file in found.paths.items():
        with Store.open(file, reconcile=False, clock=lambda: 7) as store:
            store.add(sandbox(f"{node}-a", config=pod("web", "shop", app="web", n="12")), READY)
            store.add(sandbox(f"{node}-b", config=pod("db", "shop", app="db")), NOTREADY)
            store.add(sandbox(f"{node}-c"), UNKNOWN)
            store.delete(f"{node}-c")
        assert found.push(node) == (0, f"pushed 4 transitions to {node}@{_at(database)}\n", "")
    return found


def _at(database: Database) -> str:
    return f"{database.cluster.folder}/{database.name}"


def test_migrate_and_maintain_are_idempotent(fleet: Fleet) -> None:
    """They say what they have done; partitions are made at the first time."""
    done = fleet.run("migrate")
    *made, last = done.out.splitlines()
    assert (0, "") == (done.code, done.err)
    assert 3 == len([each for each in made if each.startswith("made fleet_transitions_")])
    assert f"{OWNER}@{_at(fleet.database)} is at revision 0001" == last
    assert f"{last}\n" == fleet.run("migrate").out
    done = fleet.run("maintain")
    moved = "moved 0 and deleted 0 rows of the default partition"
    assert (0, f"made and dropped no partition\n{moved}\n", "") == done


def test_output_is_valid(fleet: Fleet) -> None:
    """No field is missing in the schema, and no other one is there; YAML and lines agree."""
    fleet.database.query(STALE.format("node-2"))
    for verb in ("nodes", "silent", "list", "history"):
        found = json.loads(fleet.run(verb, "-o", "json").out)
        assert found
        errors = list(Draft202012Validator(schema_of(f"fleet {verb}")).iter_errors(found))
        assert not errors, (verb, errors)


def test_list_filters_as_that_of_a_node(fleet: Fleet) -> None:
    """The same filters with the same results, and the node beside them."""
    assert ["node-2-b", "node-1-b"] == fleet.ids("--state", "notready")
    for args in (
        ("-l", "app=web"),
        ("-l", "app!=web"),
        ("-l", "app in (web,db),n"),
        ("-l", "!n"),
        ("-l", "n>11"),
        ("-l", "n<11"),
        ("-l", "app notin (web)"),
        ("--pod", "web"),
        ("--namespace", "shop", "--oldest-first"),
        ("--name", "name-node-1-a"),
        ("--id", "node-1"),
        ("--all",),
        ("--limit", "2"),
    ):
        of_node = fleet.main("--db", fleet.paths["node-1"], "list", *args, "--json")
        expected = [each["id"] for each in json.loads(of_node.out)]
        assert expected == fleet.ids("--node", "node-1", *args), args
    assert 4 == len(fleet.ids("--node", "node-1", "--node", "node-2"))


def test_list_has_the_fields_of_a_node(fleet: Fleet) -> None:
    """With the same values, except the handler, which is not copied."""
    of_node = json.loads(fleet.main("--db", fleet.paths["node-1"], "list", "--json").out)
    for theirs, ours in zip(of_node, fleet.found("list", "--node", "node-1"), strict=True):
        assert ours["labels"]["app"] == ours["pod"] or ours["labels"]["app"] == "web"
        for name in (
            "id",
            "name",
            "namespace",
            "pod",
            "state",
            "pid",
            "ip",
            "created_at_ns",
            "since_ns",
        ):
            assert theirs[name] == ours[name]
    done = fleet.run("list")
    assert re.match(r"NODE +ID +STATE +SINCE +AGE +NAMESPACE +POD", done.out)
    assert 5 == len(done.out.splitlines())
    assert "name-node-1-a\n" in fleet.run("list", "-o", "name").out
    assert "node-1" in fleet.run("list", "-o", "custom-columns=N:node,A:labels.app").out


def test_list_of_more_than_the_limit_says_so(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1: what is shown is not all."""
    monkeypatch.setattr(verbs, "LIMIT", 3)
    assert 0 == fleet.run("list", "--limit", "2").code
    done = fleet.run("list")
    assert (1, 4) == (done.code, len(done.out.splitlines()))
    assert "more than 3" in done.err


def test_history_shows_all_nodes_or_one_sandbox(fleet: Fleet) -> None:
    """Deleted sandboxes too; by node, seq, time and reason."""
    assert 8 == len(fleet.found("history"))
    assert {"7", "8"} == {each["at_ns"] for each in fleet.found("history")}
    assert ["deleted", "created"] == [each["event"] for each in fleet.found("history", "node-1-c")]
    assert [4] == [each["seq"] for each in fleet.found("history", "--node=node-2", "--after=3")]
    assert [] == fleet.found("history", "--since", "2020-01-01")
    assert 8 == len(fleet.found("history", "--since", "1969-12-31T23:00:00+00:00"))
    assert [] == fleet.found("history", "--reason", "NetNSReplaced")
    ended = replace(NOTREADY, reason="OOMKilled")
    for node in ("node-1", "node-2"):
        with Store.open(fleet.paths[node], reconcile=False, clock=lambda: 10**18 + 1000) as store:
            store.get(f"{node}-a").status.update(lambda _: ended)
        fleet.push(node)
    assert 2 == len(fleet.found("history", "--reason", "oomkilled"))
    assert 2 == len(fleet.found("list", "--reason", "oomkilled"))
    time = "2001-09-09T01:46:40.00000"
    assert 8 == len(fleet.found("history", "--until", f"{time}1Z"))
    assert 10 == len(fleet.found("history", "--until", f"{time}2Z"))
    assert 2 == len(fleet.found("history", "--since", f"{time}1Z", "--until", f"{time}2Z"))
    assert [] == fleet.found("history", "--since", f"{time}2Z")
    assert "nor a time such as" in fleet.run("history", "--since", "yesterday").err


def test_history_finds_sandboxes_as_that_of_a_node(fleet: Fleet) -> None:
    """By a full id alone if there is one, else by all that begin with it, names and pods."""
    of_a = {"node-1-a", "node-2-a"}
    for text, expected in {
        "node-1-a": {"node-1-a"},
        "node-1": {"node-1-a", "node-1-b", "node-1-c"},
        "name-node-2-c": {"node-2-c"},
        "shop/web": of_a,
        "web": {*of_a, "node-1-c", "node-2-c"},
        "other/web": set(),
        "%": set(),
    }.items():
        assert expected == {each["sandbox_id"] for each in fleet.found("history", text)}
    assert {"node-2-a"} == {
        each["sandbox_id"] for each in fleet.found("history", "shop/web", "--node", "node-2")
    }
    assert 2 == fleet.run("history", "").code


def test_nodes_and_silent_tell_who_is_alive(fleet: Fleet) -> None:
    """Silent nodes are an exit code of 1, for monitoring."""
    done = fleet.run("silent")
    assert (0, 1, "no node is silent\n") == (done.code, len(done.out.splitlines()), done.err)
    fleet.database.query(STALE.format("node-2"))
    found = {each["node"]: each for each in fleet.found("nodes")}
    assert ["alive", "silent"] == [found[name]["status"] for name in ("node-1", "node-2")]
    assert (1, 1, 0) == tuple(found["node-1"][name] for name in ("ready", "not_ready", "breaks"))
    done = fleet.run("silent")
    assert 1 == done.code
    assert re.search(r"node-2 +silent", done.out)


def test_nodes_show_units_what_is_behind_and_the_registry(fleet: Fleet) -> None:
    """A first copy that goes on is not mistaken for a node without sandboxes."""
    fleet.database.query(
        "UPDATE fleet_registries SET skew_ms = -1500, newest = cursor + 7,"
        " seen_at = now() - interval '3 days 1 hour' WHERE node = 'node-2'"
    )
    titles, _, row = fleet.run("nodes").out.splitlines()
    assert "NODE STATUS READY NOTREADY BEHIND SEEN SKEW KERNEL" == " ".join(titles.split()[:8])
    assert "node-2 silent 1 1 7 3d -1500ms" == " ".join(row.split()[:7])
    assert [0, 7] == [each["behind"] for each in fleet.found("nodes")]
    with Store.open(fleet.paths["node-2"], read_only=True) as store:
        id = store._registry_id
    wide = fleet.run("nodes", "--node", "node-2", "-o", "wide").out
    assert "PATH" in wide
    assert "REGISTRY_ID" in wide
    assert fleet.paths["node-2"] in wide
    assert id in wide.replace("-", "")


@pytest.mark.parametrize("verb", ["nodes", "silent", "list", "history"])
def test_node_that_no_registry_has_is_an_exit_code_of_1(fleet: Fleet, verb: str) -> None:
    """An alert on a misspelt node must not look healthy; an ended one is known."""
    done = fleet.run(verb, "--node", "node-1", "--node", "node-3", "--json")
    assert (1, "") == (done.code, done.out)
    assert "no registry has the node 'node-3'; `sandbox-registry fleet nodes`" in done.err
    fleet.database.query("UPDATE fleet_registries SET ended_at = now() WHERE node = 'node-2'")
    assert 0 == fleet.run(verb, "--node", "node-2").code


def test_follow_writes_metrics_and_ends_by_sigterm(fleet: Fleet, tmp_path: object) -> None:
    """A unit of systemd stops it at any moment: there is nothing to clean up."""
    file, path = f"{tmp_path}/fleet.prom", fleet.paths["node-1"]
    args = ("push", "--follow", "--db", path, "--machine", "node-1", "--metrics", file)
    with program(*args, SANDBOX_REGISTRY_FLEET=fleet.database.url("node-1")) as process:
        until(lambda: os.path.exists(file))
        execute(path, "UPDATE sandbox_statuses SET message = 'm'")
        count = "SELECT count(*) FROM fleet_overview WHERE message = 'm'"
        until(lambda: fleet.database.one(count) == 2)
        process.terminate()
        assert -15 == process.wait()
    with open(file, encoding="utf-8") as written:
        assert "sandbox_registry_fleet_lag_transitions 0" in written.read()


def test_metrics_show_a_change_of_state_at_once(tmp_path: Path) -> None:
    """The head that follows a batch within seconds is not left to the next heartbeat."""
    file = tmp_path / "fleet.prom"
    show = verbs._shows(str(file))
    for behind in (500, 400, 0):
        show(Figures(batches=1, behind=behind))
    assert "lag_transitions 0\n" in file.read_text()
    for retries in (1, 2):
        show(Figures(batches=1, problem="down", retries=retries, head_at=0))
        assert "problem 1\n" in file.read_text()
        assert f"retries_total {retries}\n" in file.read_text()


def test_metrics_that_cannot_be_written_are_told(
    fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start by an exit code of 2; later by a warning, and the push goes on."""
    path = fleet.paths["node-1"]
    done = fleet.run("push", "--db", path, "--metrics", f"{tmp_path}/missing/fleet.prom")
    assert 2 == done.code
    assert "No such file or directory; name a file" in done.err
    folder = tmp_path / "folder"
    folder.mkdir()
    show = verbs._shows(str(folder / "fleet.prom"))
    (folder / "fleet.prom").unlink()
    folder.rmdir()
    show(Figures())
    assert "No such file or directory" in caplog.text


def test_push_once_names_the_option_that_retries(fleet: Fleet) -> None:
    """A follower says how long it waits instead."""
    args = ("--db", fleet.paths["node-1"], "--to", "postgresql://node-1@/x?host=/nowhere")
    done = fleet.main("fleet", "push", *args)
    assert 3 == done.code
    assert done.err.endswith("; it is retried with --follow\n")
    with program("push", "--follow", *args) as process:
        assert process.stderr is not None
        begun, retried = process.stderr.readline(), process.stderr.readline()
    assert begun.startswith("registry: push registry ")
    assert retried.endswith("; retrying within 1 s\n")


def test_pusher_imports_no_sqlalchemy(fleet: Fleet) -> None:
    """It would take 15 MB in each pusher."""
    out = python(
        """
        import sys
        from registry.cli import program
        assert program.main(sys.argv[1:]) == 0
        print(sorted({"sqlalchemy", "alembic"} & sys.modules.keys()))
        """,
        *("fleet", "push", "--db", fleet.paths["node-1"], "--machine", "node-1"),
        *("--to", fleet.database.url("node-1")),
    )
    assert "[]" == out.splitlines()[-1]


def test_program_without_psycopg_names_the_extra() -> None:
    """The help of the verb needs none."""
    code = """
        import sys
        sys.modules["psycopg"] = None
        from registry.__main__ import main
        sys.argv = ["sandbox-registry", "fleet", *sys.argv[1:]]
        sys.exit(main())
        """
    assert "push" in python(code, "--help")
    assert "" == python(code, "nodes", "--to", "postgresql://a@b/c", expected=2)


def test_message_of_an_error_has_no_password(fleet: Fleet) -> None:
    """Nor has a traceback: there is none."""
    for url in (
        "postgresql://u:secret@/x?host=/nowhere",
        "postgresql://u:secret@h:port/x",
        "nonsense:secret",
    ):
        for args in (("nodes",), ("migrate",), ("push", "--db", fleet.paths["node-1"])):
            done = fleet.main("fleet", *args, "--to", url)
            assert done.code in {2, 3}
            assert done.out == ""
            assert done.err.startswith("sandbox-registry: error: ")
            assert "secret" not in done.err
            assert 1 == done.err.count("\n"), done.err


def test_push_refusals_are_exit_codes(fleet: Fleet, path: str) -> None:
    """3: PostgreSQL or the registry is unavailable; 2: usage."""
    assert 3 == fleet.run("push", "--db", f"{path}.missing").code
    assert 2 == fleet.run("push", "--db", path, "--every", "0").code
    assert 2 == fleet.main("fleet", "nodes").code
    name = f"stranger_{fleet.database.name}"
    fleet.database.query(f"CREATE ROLE {name} LOGIN")
    done = fleet.run("nodes", user=name)
    assert 3 == done.code
    assert "42501" in done.err
