"""The server of `browse`: who gets in, what it reads and holds, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from registry import Metadata, Store
from registry.browse import drawing, questions, readings, timeline
from registry.tables.version import LEVEL
from tests import node
from tests.browser import Visitor, of_page, page
from tests.documents import all_blocks
from tests.tools import READY, contents, execute, pod, query, sandbox, until

EVIL = '<script>hacked = 1</script><img src=/x onerror="hacked=1">\'\u202egnp'
ENDLESS = "with recursive n(a) as (select 1 union all select a + 1 from n) select"
"""Begin of a query that never ends, or returns rows without end."""
PAGES = [
    *("/", "/registry", "/registry/sandbox_overview", "/registry/running", "/-/node"),
    *("/-/sandbox/ba5eba11", "/registry.json?sql=select+1", "/registry/sandbox_overview.csv"),
    *("/registry/sandboxes", "/-/databases.json", "/-/metadata.json", "/registry.db", "/_internal"),
]


@pytest.fixture
def path(path: str) -> str:
    """Return the registry of the documents."""
    node.build(path)
    return path


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a page that tests share, which change nothing."""
    path = str(tmp_path_factory.mktemp("shared") / "registry.db")
    node.build(path)
    with page(path) as (_, address):
        yield address


@pytest.fixture(scope="module")
def visitor(address: str) -> Visitor:
    """Return a visitor who has opened the address."""
    return Visitor(address)


def browse(path: str, *options: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run a `browse` that is expected to end by itself, after the statements *before*."""
    code = f"import sys; {before}\nfrom registry.__main__ import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, "--db", path, "browse", *options],
        env=of_page(),
        capture_output=True,
        text=True,
        check=False,
    )


# Who gets in.


@pytest.mark.parametrize("where", PAGES)
def test_a_page_is_refused_without_the_token(address: str, where: str) -> None:
    """The registry has mode 0600, and any user of the host can connect to the port."""
    status, text = Visitor(address, enter=False).get(where)
    assert (403, True) == (status, "has printed" in text)


def test_the_address_works_once(address: str, visitor: Visitor) -> None:
    """A program that reads it later, in a history or a log, stays outside."""
    assert 200 == visitor.get("/")[0]
    late = Visitor(address, enter=False)
    assert 403 == late.get(f"/-/{address.partition('/-/')[2]}")[0] == late.get("/")[0]


def test_the_server_listens_at_127_0_0_1_alone(address: str) -> None:
    """And not at another address of the host."""
    port = int(address.partition("/-/")[0].rpartition(":")[2])
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", port))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("attacker.example", 403), ("127.0.0.1.attacker.example:8001", 403), ("", 403)),
        *(("localhost:9000", 200), ("127.0.0.1", 200)),
    ],
)
def test_a_request_to_another_host_is_refused(visitor: Visitor, host: str, status: int) -> None:
    """A page of another site cannot read this one by a name that leads to 127.0.0.1."""
    assert status == visitor.get("/", Host=host)[0]


def test_no_script_can_read_the_cookie(path: str) -> None:
    """Nor does another site send it with a form."""
    with page(path) as (_, own):
        visitor = Visitor(own)
        assert 200 == visitor.get("/registry/sandboxes")[0]
        found = {each.name: each for each in visitor.cookies.cookiejar}
        assert "ds_actor" in found
        for cookie in found.values():
            assert cookie.has_nonstandard_attr("HttpOnly")
        assert "lax" == found["ds_actor"].get_nonstandard_attr("SameSite")


@pytest.mark.parametrize(
    "where",
    [
        *("sandbox_overview?_next=x", f"sandbox_overview?_next={10**20}"),
        *("sandboxes?_through=x", "sandboxes?_timelimit=x", "sandboxes?id__in=["),
    ],
)
def test_a_parameter_that_cannot_be_read_is_told_in_a_sentence(
    visitor: Visitor, where: str
) -> None:
    """By the page and by the JSON; it is no fault of the page."""
    status, text = visitor.get(f"/registry/{where}")
    assert (400, True) == (status, text.startswith("400: a parameter of the address cannot be "))
    status, text = visitor.get(f"/registry/{where.replace('?', '.json?')}")
    assert (400, True) == (status, "a parameter of the address cannot be read" in text)


# What it shows.


@pytest.mark.parametrize("question", questions.load(), ids=lambda each: each.name)
def test_a_question_is_a_page(visitor: Visitor, question: questions.Question) -> None:
    """With its title and its answer."""
    params = "&".join(f"{name}={value}" for name, value in question.example.items())
    status, text = visitor.get(f"/registry/{question.name}?{params}")
    assert 200 == status
    assert question.title in text.replace("&#39;", "'")
    assert "message-error" not in text
    assert "<tbody>" in text


def test_views_have_facets_and_descriptions_and_tables_are_hidden(visitor: Visitor) -> None:
    """The descriptions are those of docs/schema.md."""
    _, text = visitor.get("/registry/sandbox_overview")
    for facet in ("state", "namespace", "reason"):
        assert f'id="facet-{facet}"' in text
    assert "Time at which the present state began." in text
    _, text = visitor.get("/registry")
    assert [] == re.findall(r'<h3><a href="/registry/(\w+)"', text)
    assert re.search(r'href="/registry\?_show_hidden=1">\d hidden tables', text)


def test_labels_and_configs_are_readable(visitor: Visitor) -> None:
    """Labels as a list, the config indented."""
    _, text = visitor.get("/-/sandbox/ba5eba11")
    assert "<li><code>tier</code>=data</li>" in text
    assert "&#34;log_directory&#34;: &#34;/var/log/pods/shop_db&#34;" in text


def test_a_deleted_sandbox_has_its_history(visitor: Visitor) -> None:
    """And one that never was is not found."""
    status, text = visitor.get("/-/sandbox/facade000000")
    assert (200, True) == (status, "It is deleted" in text)
    assert 404 == visitor.get("/-/sandbox/nosuch")[0]


def test_the_node_is_shown_as_it_was_at_a_time(visitor: Visitor) -> None:
    """Sandboxes that are deleted since, or have changed since, in the state of that time."""
    _, text = visitor.get("/-/node?until=2026-03-01T12:00Z&hours=0.5")
    assert 6 == len(re.findall('<rect class="ready"', text))
    assert 1 == len(re.findall('<rect class="notready"', text))
    assert "/-/sandbox/0a1b2c3d4e5f" in text
    assert "/-/sandbox/0a1b2c3d4e60" not in text


def test_the_node_is_shown_by_namespace(visitor: Visitor) -> None:
    """Also sandboxes that have not changed, and at any time."""
    for end in ("", "2026-03-01T12:00Z", "2026-03-01T18:00Z"):
        _, text = visitor.get(f"/-/node?until={end}&hours=5&namespace=kube-system")
        assert {"kube-system/coredns", "kube-system/kube-proxy"} == set(
            re.findall(r"<text x=\"0\" y=\"\d+\">([^<\n]+)", text)
        )


def test_a_node_with_many_changes_is_shown_from_a_later_time(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All sandboxes of that time are there, with the states that they had."""
    monkeypatch.setattr(readings, "CHANGES_MAX", 6)
    begin, end = (timeline.seconds(f"2026-03-01T{hour}:00Z") for hour in ("08", "14"))
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        found = readings.node(connection, begin, end, "", past=True)
    lines = timeline.lines(found.changes, found.standing, found.begin, end)
    assert (6, "2026-03-01T13:07:00") == (len(found.changes), timeline.iso(found.begin)[:19])
    states = {line.id: line.spans[0].state for line in lines}
    assert "SANDBOX_NOTREADY" == states["0a1b2c3d4e5f"]  # deleted at 13:10
    assert "SANDBOX_READY" == states["5ca1ab1e0002"]  # NOTREADY since 16:10
    assert "facade000000" not in states  # deleted before
    assert 12 == len(states)


@pytest.mark.parametrize(
    ("where", "status"),
    [
        ("/-/node?until=yesterday", 400),
        ("/-/node?hours=many", 400),
        ("/-/node?until=0001-01-01&hours=999999999", 200),
        ("/-/node?until=9999-12-31", 200),
        ("/-/sandbox/ba5eba11?until=x", 400),
        ("/registry?sql=select+*+from+nosuch", 400),
        ("/registry?sql=delete+from+sandboxes", 400),
        ("/registry/sandbox_overview?_sort=nosuch", 400),
        ("/registry/nosuch", 404),
        ("/nosuch", 404),
    ],
)
def test_a_wrong_request_is_answered_in_a_sentence(path: str, where: str, status: int) -> None:
    """Nothing is printed; Datasette itself would print a traceback."""
    with page(path) as (process, address):
        assert status == Visitor(address).get(where)[0]
        process.send_signal(signal.SIGTERM)
        assert ("", 0) == (process.communicate()[1], process.returncode)


def test_text_of_the_registry_is_escaped_in_each_page(path: str) -> None:
    """For HTML, and so that each character is seen; its id is a part of addresses."""
    id = "a'<b>\"&\u202e%2F ~"
    config = pod(EVIL, EVIL, **{EVIL: EVIL})
    with Store.open(path, reconcile=False) as store:
        metadata = Metadata(id, EVIL, config, runtime_handler=EVIL)
        store.add(metadata, replace(READY, message=f"{EVIL}\x1b[2J"))
    with page(path) as (_, address):
        visitor = Visitor(address)
        own = drawing.address(id)
        found = ["/", "/-/node", own, "/registry/sandbox_overview", "/registry/running"]
        found += ["/registry/sandboxes", "/registry/labels", "/registry/last-changes"]
        for where in found:
            status, text = visitor.get(where)
            assert (200, where) == (status, where)
            assert "hacked" in text or where == "/", where
            assert "<script>hacked" not in text
            assert "<img src=/x" not in text
            assert not set(text) & {"\u202e", "\x1b"}, where


def test_a_time_before_1970_hides_no_sandbox(path: str) -> None:
    """Plain SQL may write one; the pages show the other sandboxes, and this one."""
    execute(
        path,
        "UPDATE sandbox_statuses SET state = 'SANDBOX_NOTREADY', changed_at = -1, actor = 'sql'"
        " WHERE sandbox_id = 'feedface0002'",
    )
    with page(path) as (_, address):
        visitor = Visitor(address)
        for where in ("/", "/-/node", "/-/node?until=2026-03-01T18:00Z", "/-/sandbox/feedface0002"):
            assert 200 == visitor.get(where)[0], where


# What it holds.


def test_the_page_never_keeps_the_wal_from_being_reset(path: str) -> None:
    """Beside a writer that is open all the time, also after an answer that was cut."""
    with Store.open(path, reconcile=False) as store, page(path) as (_, address):
        visitor = Visitor(address)
        many = "select a.id from sandboxes a, sandboxes b, sandboxes c, sandboxes d"
        for n, where in enumerate(("/", f"/registry?{urlencode({'sql': many})}")):
            store.add(sandbox(f"s{n}"), READY)
            assert 200 == visitor.get(where)[0]
            with closing(sqlite3.connect(path, isolation_level=None)) as shell:
                ((busy, _, _),) = shell.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            assert 0 == busy
            assert 0 == os.path.getsize(f"{path}-wal")
        assert visitor.query(many)["truncated"]
        assert [] == store.check()


def test_a_writer_goes_on_during_a_query(path: str) -> None:
    """A query that never ends is ended after a second."""
    answers: list[Any] = []
    with page(path) as (_, address):
        visitor = Visitor(address)
        asking = threading.Thread(
            target=lambda: answers.append(visitor.query(f"{ENDLESS} count(*) from n"))
        )
        asking.start()
        with Store.open(path, reconcile=False) as store:
            store.add(sandbox("beside"), READY)
        asking.join()
        found = visitor.query("select 1 from sandbox_overview where id = 'beside'")
    assert "longer than a second" in answers[0]["error"]
    assert [[1]] == found["rows"]


def test_the_page_changes_no_file(path: str) -> None:
    """Not even by SQL that begins as a query."""
    folder, name = os.path.dirname(path), os.path.basename(path)
    before = contents(folder)
    with page(path) as (_, address):
        visitor = Visitor(address)
        for where in PAGES:
            visitor.get(where)
        for sql in ("with x as (select 1) delete from sandboxes", "attach 'x.db' as x", "vacuum"):
            assert not visitor.query(sql)["ok"]
    after = contents(folder)
    assert before.keys() | {f"{name}-wal", f"{name}-shm"} >= after.keys()
    assert before[name] == after[name]


def test_a_registry_that_is_replaced_is_shown_by_the_next_answer(path: str) -> None:
    """Another file at its path is what the next query reads."""
    other = f"{path}.other"
    with Store.open(other, reconcile=False) as store:
        store.add(sandbox("elsewhere"), READY)
    with page(path) as (_, address):
        visitor = Visitor(address)
        visitor.get("/")
        for suffix in ("-wal", "-shm"):
            Path(path + suffix).unlink(missing_ok=True)
        os.replace(other, path)
        found = visitor.query("select id from sandbox_overview")
    assert [["elsewhere"]] == found["rows"]


# How it begins and ends.


def test_the_command_of_the_document_serves_the_page(path: str) -> None:
    """With another registry, at a port that is free."""
    (block,) = [each for each in all_blocks() if each[:2] == ("docs/browse.md", "sh")]
    program, _, command = block.text.partition(" ")
    command, _, of_document = command.rstrip().rpartition(" ")
    assert ("sandbox-registry", "/var/lib/shim/registry.db") == (program, of_document)
    with page(path, command) as (_, address):
        assert 200 == Visitor(address).get("/")[0]


def test_a_browser_opens_the_address(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in the terminal may stay: the page is served meanwhile."""
    opened = f"{path}.opened"
    Path(f"{path}.browser").write_text(
        f'#!/bin/sh\necho "$1" >{opened}.part\nmv {opened}.part {opened}\ncat\n'
    )
    os.chmod(f"{path}.browser", 0o700)
    monkeypatch.setenv("BROWSER", f"{path}.browser %s")
    with page(path, "browse --open --db") as (process, address):
        until(lambda: os.path.exists(opened))
        assert f"{address}\n" == Path(opened).read_text()
        assert 200 == Visitor(address).get("/")[0]
        process.send_signal(signal.SIGTERM)
        assert 0 == process.wait()


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_page(path: str, sig: signal.Signals) -> None:
    """With exit code 0, and without a word; a browser that keeps its connection delays nothing."""
    with page(path) as (process, address), socket.socket() as kept:
        kept.connect(("127.0.0.1", int(address.partition("/-/")[0].rpartition(":")[2])))
        assert 200 == Visitor(address).get("/")[0]
        process.send_signal(sig)
        assert ("", 0) == (process.communicate()[1], process.returncode)
    assert [(1,)] == query(path, "SELECT count(*) FROM registry")


def test_a_port_in_use_is_said_in_a_line(path: str) -> None:
    """With what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = browse(path, "--port", str(port))
    assert (3, "") == (done.returncode, done.stdout)
    assert 1 == done.stderr.count("\n")
    assert f"listen at 127.0.0.1:{port}: Address already in use; choose another port" in done.stderr


@pytest.mark.parametrize("missing", ["datasette", "uvicorn"])
def test_a_missing_extra_is_said_in_a_line(path: str, missing: str) -> None:
    """The name of the extra is that of the command."""
    done = browse(path, before=f"sys.modules[{missing!r}] = None")
    expected = f"sandbox-registry: error: this needs {missing}: install sandbox-registry[browse]\n"
    assert (2, "", expected) == (done.returncode, done.stdout, done.stderr)


def test_a_registry_that_is_missing_old_or_damaged_is_said_in_a_line(path: str) -> None:
    """Before the page is served."""
    done = browse(f"{path}.none")
    assert (3, "", 1) == (done.returncode, done.stdout, done.stderr.count("\n"))
    execute(path, "UPDATE registry SET level = 3")
    done = browse(path)
    assert (3, "", 1) == (done.returncode, done.stdout, done.stderr.count("\n"))
    assert "`sandbox-registry upgrade` brings it up to date" in done.stderr
    execute(path, f"UPDATE registry SET level = {LEVEL}")
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)
    done = browse(path)
    assert (3, "", 1) == (done.returncode, done.stdout, done.stderr.count("\n"))
    assert "sandbox-registry salvage" in done.stderr


def test_a_registry_that_is_damaged_later_is_an_error_of_the_answer(path: str) -> None:
    """And a line on stderr; the page goes on."""
    with page(path) as (process, address):
        visitor = Visitor(address)
        execute(path, "PRAGMA wal_checkpoint(TRUNCATE)")
        with open(path, "r+b") as file:
            file.seek(100)
            file.write(b"\xff" * 30_000)
        status, text = visitor.get("/-/node")
        assert (503, True) == (status, "cannot be read" in text)
        process.send_signal(signal.SIGTERM)
        told = process.communicate()[1]
    assert "cannot be read" in told
    assert "Traceback" not in told
