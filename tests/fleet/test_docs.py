"""docs/fleet.md and the examples: each command, query, option and promise is tried."""

from __future__ import annotations

import json
import os
import pwd
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest

from registry import FailedPreconditionError, Store, UnavailableError, restore
from registry.cli.verbs import fleet as verbs
from registry.fleet.figures import Figures
from tests import needs
from tests.fleet.cluster import OWNER, Cluster, missing, programs
from tests.fleet.compare import assert_equal
from tests.fleet.conftest import Database, NewPusher, prepare, push, registry_id
from tests.tools import NOTREADY, READY, ROOT, environment, execute, pod, sandbox

DOCS = Path(ROOT, "docs", "fleet.md").read_text(encoding="utf-8")
SHELL = re.findall(r"^```sh\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE)
TEXTS = re.findall(r"^```text\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE)
QUERIES = re.findall(r"^```sql\n(SELECT.*?)^```", DOCS, re.DOTALL | re.MULTILINE)
CHANGES = re.findall(r"^```sql\n((?:UPDATE|WITH).*?)^```", DOCS, re.DOTALL | re.MULTILINE)
DASHBOARD = Path(ROOT, "examples", "grafana-fleet.json")


@pytest.fixture
def fleet(path: str, database: Database, new_pusher: NewPusher) -> Database:
    """Return a fleet that has an answer to each question."""
    for node in ("node-17", "node-18", "node-19"):
        file = f"{path}.{node}"
        with Store.open(file, reconcile=False) as store:
            web = pod("web", "shop", app="web")
            store.add(sandbox(f"{node}-w", config=web, ip="10.88.0.7"), READY)
            store.add(sandbox(f"{node}-v", config=web, ip="10.88.0.7"), READY)
            store.add(sandbox(f"{node}-x", config=pod("db", "shop")), NOTREADY)
            if node == "node-17":
                store.add(sandbox("3f2a9c41d07e", config=web, ip="10.88.0.7"), READY)
            ended = replace(NOTREADY, reason="NetNSReplaced", exit_status=137)
            store.get(f"{node}-w").status.update(lambda _: ended)  # noqa: B023 - called at once
        push(new_pusher(file, to=database.node(node), machine_id=node))
    back, restored = f"{path}.backup", f"{path}.node-17"
    with Store.open(restored, reconcile=False) as store:
        store.backup(back)
        store.delete("node-17-w")
        push(new_pusher(restored, to=database.node("node-17"), machine_id="node-17"))
    restore(back, restored, force=True)
    push(new_pusher(restored, to=database.node("node-17"), machine_id="node-17"))
    execute(restored, "UPDATE sandbox_statuses SET exit_status = 1 WHERE sandbox_id LIKE '%-x'")
    push(new_pusher(restored, to=database.node("node-17"), machine_id="node-17"))
    for statement in (
        "UPDATE fleet_boots SET kernel = '6.12.57'",
        "UPDATE fleet_registries SET skew_ms = 5000, newest = cursor + 7 WHERE node = 'node-18'",
        "UPDATE fleet_registries SET problem = 'broken' WHERE node = 'node-18'",
        "UPDATE fleet_registries SET seen_at = seen_at - interval '1 hour' WHERE node = 'node-19'",
        "CREATE ROLE dashboard LOGIN IN ROLE fleet_reader",
    ):
        database.query(statement)
    return database


@pytest.fixture
def dashboard(cluster: Cluster) -> Iterator[None]:
    """Drop the role of the dashboard at the end."""
    yield
    cluster.query("DROP ROLE IF EXISTS dashboard")


def test_twenty_questions_have_answers(dashboard: None, fleet: Database) -> None:
    """Each query runs as a reader, and the fixture has a row for it."""
    assert (20, 23) == (len(QUERIES), DOCS.count("```sql\n"))
    for query in QUERIES:
        assert fleet.query(query, "dashboard"), query


def test_registry_is_moved_retired_and_forgotten(
    path: str, database: Database, new_pusher: NewPusher
) -> None:
    """By the owner, whose pusher ends with the advice to do so."""
    move, retire, forget = (each.replace("/var/lib/shim/registry.db", path) for each in CHANGES)
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("a"), READY)
    old = new_pusher(to=database.node("node-17"), machine_id="17")
    new = new_pusher(to=database.node("node-20"), machine_id="20")
    push(old)
    with pytest.raises(FailedPreconditionError, match=registry_id(path)):
        push(new)
    database.query(move, OWNER)
    with pytest.raises(UnavailableError, match="a copy must not be pushed"):
        push(new)
    database.query("UPDATE fleet_registries SET seen_at = seen_at - interval '91 s'")
    push(new)
    assert_equal(database, path)
    assert [("node-20", "alive")] == database.query("SELECT node, status FROM fleet_nodes")
    with pytest.raises(UnavailableError, match="row is not as"):
        push(old)
    with pytest.raises(FailedPreconditionError, match=r"another role.*; or stop this pusher if"):
        push(old)

    database.query(retire.replace("node-17", "node-20"), OWNER)
    assert [("ended", 0)] == database.query("SELECT status, ready FROM fleet_nodes")
    push(new_pusher(to=database.node("node-20"), machine_id="20"))
    assert [("alive", 1)] == database.query("SELECT status, ready FROM fleet_nodes")

    id = "4b3ad3cf-9ac5-4c2a-9df4-bc79c15f4d04"
    assert id in forget
    database.query(forget.replace(id, registry_id(path)), OWNER)
    tables = ("registries", "boots", "sandboxes", "transitions", "breaks")
    assert [0] * 5 == [database.one(f"SELECT count(*) FROM fleet_{name}") for name in tables]
    push(new_pusher(to=database.node("node-17"), machine_id="17"))
    assert_equal(database, path)


def test_dashboard_shows_what_its_queries_find(dashboard: None, fleet: Database) -> None:
    """Grafana replaces the macro of the time range."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    assert 7 == len(panels)
    for panel in panels:
        sql = panel["targets"][0]["rawSql"].replace("$__timeFilter(at)", "at < now()")
        assert fleet.query(sql, "dashboard"), panel["title"]


def shell(script: str, folder: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run *script* by bash in *folder*, with the real program under its name."""
    bin = Path(folder, "bin")
    bin.mkdir(exist_ok=True)
    name = bin / "sandbox-registry"
    name.write_text(f'#!/bin/sh\nexec {sys.executable} -m registry "$@"\n')
    name.chmod(0o755)
    path = f"{bin}:{programs()}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**environment(), "PATH": path, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def empty() -> Iterator[Cluster]:
    """Return a cluster without roles and databases."""
    if reason := missing():
        pytest.skip(reason)
    with Cluster() as cluster:
        yield cluster


def test_setup_runs_as_it_stands(empty: Cluster, path: str, tmp_path: Path) -> None:
    """In order, with the rules of Debian below those of the document."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("a"), READY)
        store.add(sandbox("b"), NOTREADY)
    me = pwd.getpwuid(os.geteuid()).pw_name
    rule, users = TEXTS[:2]
    users = re.sub(r"^fleet \w+", f"fleet {me}", users, flags=re.MULTILINE)
    rules = f"local all postgres trust\n{rule}local all all peer\n"
    Path(empty.data, "pg_hba.conf").write_text(rules, encoding="utf-8")
    Path(empty.data, "pg_ident.conf").write_text(users, encoding="utf-8")
    script = "".join(SHELL[:2]).replace("/var/lib/shim/registry.db", path)
    done = shell(script, str(tmp_path), PGHOST=empty.folder, PGUSER="postgres")
    assert (0, "") == (done.returncode, done.stderr)
    lines = done.stdout.splitlines()
    assert "pushed 2 transitions to node-17@/fleet" in lines
    assert re.search(r"^node-17 +alive +1 +1", done.stdout, re.MULTILINE)
    assert re.search(r"^node-17 +b +NOTREADY", done.stdout, re.MULTILINE)


@needs.program("openssl")
def test_rule_12_certificate_is_the_identity_of_a_node(
    empty: Cluster, path: str, tmp_path: Path
) -> None:
    """The commands make working ones; that of node-17 opens no session as node-18."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("a"), READY)
    done = shell(SHELL[2].replace("db.example", "localhost"), str(tmp_path))
    assert 0 == done.returncode, done.stderr
    port = _start_with_tls(empty, tmp_path)
    database = prepare(empty, "fleet")
    database.node("node-17")
    database.node("node-18")
    url = re.findall(r"^(postgresql://node-17@.*)$", DOCS, re.MULTILINE)[-1]
    url = url.replace("db.example", f"localhost:{port}").replace("=ca", f"={tmp_path}/ca")
    url = url.replace("=node-17", f"={tmp_path}/node-17")
    push_it = f"sandbox-registry --db {path} fleet push --machine m --to"
    done = shell(f"{push_it} '{url}'", str(tmp_path))
    assert (0, "") == (done.returncode, done.stderr)
    assert "node-17" == database.one("SELECT node FROM fleet_nodes")
    key, open_key = tmp_path / "node-17.key", tmp_path / "open.key"
    open_key.write_bytes(key.read_bytes())
    open_key.chmod(0o660)
    other = SHELL[2].partition("\nfor ")[0].replace("ca.", "other.")
    done = shell(other, str(tmp_path))
    assert 0 == done.returncode, done.stderr
    for forged, why in (
        (url.replace("/ca.crt", "/gone.crt"), r'root certificate file ".*" does not exist; see'),
        (url.replace("/node-17.key", "/gone.key"), r'not private key file ".*"; see the file'),
        (url.replace("/node-17.key", "/open.key"), "has group or world access.*; see the file"),
        (url.replace("/ca.crt", "/other.crt"), "certificate verify failed; see the certificate"),
        (url.replace("node-17@", "node-18@"), "certificate authentication failed"),
        (url.replace("localhost", "127.0.0.1"), "does not match host name"),
        (url.replace("verify-full", "disable"), "no pg_hba.conf entry"),
        (re.sub("&sslcert=.*", "&sslcert=none", url), "requires a valid client certificate"),
    ):
        done = shell(f"{push_it} '{forged}'", str(tmp_path))
        assert 3 == done.returncode
        assert re.search(why, done.stderr), done.stderr
        assert "--follow" not in done.stderr


def _start_with_tls(cluster: Cluster, folder: Path) -> str:
    """Have *cluster* accept nodes by their certificates in *folder*; return its TCP port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name in ("ca.crt", "localhost.crt", "localhost.key"):
        target = Path(cluster.folder, name)
        target.write_bytes((folder / name).read_bytes())
        if os.geteuid() == 0:
            stat = os.stat(cluster.folder)
            os.chown(target, stat.st_uid, stat.st_gid)
        target.chmod(0o600)
    hba = Path(cluster.data, "pg_hba.conf")
    line = re.findall(r"^hostssl .*$", DOCS, re.MULTILINE)[0]
    hba.write_text(f"local all all trust\n{line}\n")
    cluster.configure(
        {
            "listen_addresses": "'localhost'",
            "port": port,
            "ssl": "on",
            "ssl_ca_file": f"'{cluster.folder}/ca.crt'",
            "ssl_cert_file": f"'{cluster.folder}/localhost.crt'",
            "ssl_key_file": f"'{cluster.folder}/localhost.key'",
        }
    )
    cluster.port = port
    cluster.stop()
    cluster.start()
    return port


def test_every_option_is_documented_with_its_verb() -> None:
    """As the help of the verbs has them."""
    documented = set()
    for options, of in re.findall(r"^\| (`-.*?) \| (.*?) \|", DOCS, re.MULTILINE):
        for option in re.findall(r"`(--?[a-z-]+)", options):
            names = re.findall(r"`(\w+)`", of) or list(verbs.fleet.commands)
            documented |= {(name, option) for name in names}
    found = set()
    for name, command in verbs.fleet.commands.items():
        assert command.help
        for each in command.params:
            assert getattr(each, "help", None)
            if isinstance(each, click.Option):
                found |= {(name, option) for option in (*each.opts, *each.secondary_opts)}
    assert found == documented
    assert list(verbs.fleet.commands) == re.findall(r"^\| `(\w+)` \| (?:owner|node|reader)", DOCS,
                                                    re.MULTILINE)  # fmt: skip


def test_every_metric_is_documented(tmp_path: Path) -> None:
    """By its whole name, or by its end."""
    file = str(tmp_path / "f.prom")
    Figures().write(file)
    for name in re.findall(r"^sandbox_registry_fleet(_\w+) ", Path(file).read_text(), re.MULTILINE):
        assert f"{name}`" in DOCS


@needs.program("systemd-analyze")
def test_unit_is_accepted_by_systemd(tmp_path: Path) -> None:
    """With the program where it is on this machine."""
    text = Path(ROOT, "examples", "sandbox-registry-fleet.service").read_text(encoding="utf-8")
    unit = tmp_path / "sandbox-registry-fleet.service"
    unit.write_text(text.replace("/usr/local/bin/sandbox-registry", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert [] == [line for line in done.stderr.splitlines() if unit.name in line]
    assert "fleet push --follow" in text
