"""The verb `sql`: queries, refused writes, and the shell that it opens."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from registry import Store
from registry.engine import usage
from tests import needs
from tests.cli.program import Call, clean, real
from tests.cli.terminals import terminal
from tests.tools import READY, contents, query, sandbox, tamper, until

NAMED = r"sql NOT NULL AND name NOT LIKE 'sqlite\_%' ESCAPE '\'"
ENDLESS = (
    "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n)"
    " SELECT count(*) FROM n, sandboxes"
)
WRITES = [
    "UPDATE registry SET level = 9",
    "DELETE FROM sandboxes",
    "INSERT INTO sandbox_labels VALUES ('3f2a', 'a', 'b')",
    "CREATE TABLE t (a)",
    "CREATE TEMP TABLE t (a)",
    "DROP VIEW why_not_ready",
    "ATTACH '/tmp/sandbox-registry-attached.db' AS other",
    "PRAGMA query_only = OFF",
    "PRAGMA user_version = 7",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA wal_checkpoint",
    "PRAGMA writable_schema = ON",
    "BEGIN",
    "SAVEPOINT s",
    "VACUUM",
    "ANALYZE",
    "REINDEX",
    "EXPLAIN DELETE FROM sandboxes",
]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a registry of one sandbox."""
    path = str(tmp_path / "registry.db")
    with Store.open(path) as store:
        store.add(sandbox("3f2a", ip="10.0.0.7"), READY)
    return path


def test_a_query_prints_a_table_or_objects(call: Call) -> None:
    """Columns keep their names; NULL is shown as `-`, and bytes as SQL has them."""
    text = "SELECT id, ip, NULL AS n, x'00ff' AS b, 1.5 FROM sandbox_overview"
    code, out, err = call("sql", text)
    assert (0, "") == (code, err)
    assert ["id", "ip", "n", "b", "1.5"] == out.splitlines()[0].split()
    assert ["3f2a", "10.0.0.7", "-", "x'00ff'", "1.5"] == out.splitlines()[1].split()
    (found,) = json.loads(call("sql", text, "--json").out)
    assert {"id": "3f2a", "ip": "10.0.0.7", "n": None, "b": "x'00ff'", "1.5": 1.5} == found


def test_columns_of_one_name_are_numbered(call: Call) -> None:
    """An object has each field once."""
    assert [{"a": 1, "a:2": 2, "a:3": 3}] == json.loads(
        call("sql", "SELECT 1 AS a, 2 AS a, 3 AS a", "--json").out
    )


def test_a_query_without_rows_prints_the_titles(call: Call) -> None:
    """As JSON it is an empty array."""
    text = "SELECT id FROM sandboxes WHERE 0"
    assert (0, "id\n", "") == call("sql", text)
    assert "[]\n" == call("sql", text, "--json").out


@pytest.mark.parametrize("text", WRITES)
def test_whatever_is_no_query_is_refused(call: Call, path: str, text: str) -> None:
    """The message says what to use instead; the database stays as it is, and no file is made."""
    before = contents(os.path.dirname(path))[os.path.basename(path)]
    code, out, err = call("sql", text)
    assert (2, "", 1) == (code, out, err.count("\n"))
    if not text.startswith("VACUUM"):
        assert "it is no query, and `sql` only reads" in err
        assert "`sandbox-registry delete` or `reconcile`" in err
    assert before == contents(os.path.dirname(path))[os.path.basename(path)]
    assert not os.path.exists("/tmp/sandbox-registry-attached.db")


@pytest.mark.parametrize(
    "text", ["SELEC 1", "SELECT * FROM nothing", "SELECT 1; SELECT 2", "", "/* nothing */"]
)
def test_a_query_that_sqlite_cannot_read_is_a_usage_error(call: Call, text: str) -> None:
    """It is one line, which says how to see the tables."""
    code, out, err = call("sql", text)
    assert (2, "", 1) == (code, out, err.count("\n"))
    assert "`sandbox-registry sql .schema` shows the tables and views" in err


def test_a_limit_ends_a_query_that_would_never_end(call: Call) -> None:
    """No row after the last one is computed; rows that are sorted are needed all."""
    query = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n) SELECT n FROM n"
    code, out, err = call("sql", query, "-n", "3", "-q")
    assert (0, "1\n2\n3\n", "") == (code, out, err)
    code, out, err = call("sql", query, "-n", "3", "--timeout", "0.1", "--sort", "n")
    assert (3, "") == (code, out)
    assert "stopped after 0.1 s" in err


def test_a_query_that_takes_too_long_is_stopped(call: Call) -> None:
    """It ends by the progress handler of SQLite."""
    code, out, err = call("sql", ENDLESS, "--timeout", "0.1")
    assert (3, "") == (code, out)
    assert "stopped after 0.1 s; give a longer --timeout, or a simpler query" in err


def test_ctrl_c_ends_a_query(path: str) -> None:
    """The exit code is 130; the signal arrives while SQLite runs."""
    with terminal(real("--db", path, "sql", ENDLESS), clean(TERM="dumb")) as shell:
        until(lambda: usage.read(path).keepers)  # the query has a snapshot
        shell.press("\x03")
        assert 130 == shell.wait()
        assert "error" not in shell.text


def test_the_program_keeps_no_snapshot_while_it_writes_its_output(path: str) -> None:
    """Its output is longer than a pipe takes; the WAL can be reset meanwhile."""
    long = (
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT 20000) SELECT n, id"
    )
    command = real("--db", path, "sql", f"{long} FROM n, sandboxes")
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=clean()) as process:
        assert process.stdout is not None
        assert b"n      id" == process.stdout.readline().rstrip()
        with Store.open(path, reconcile=False) as store:
            store.get("3f2a").status.update(lambda old: old)
        with closing(sqlite3.connect(path)) as shell:
            assert 0 == shell.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        process.stdout.read()
    assert 0 == process.returncode


def test_dot_commands_show_the_tables_without_the_shell(call: Call) -> None:
    """Views come first."""
    lines = call("sql", ".tables").out.splitlines()
    assert ["name", "type"] == lines[0].split()
    assert "view" == lines[1].split()[1]
    assert "CREATE VIEW why_not_ready AS" in call("sql", ".schema").out


def test_the_schema_is_printed_with_its_line_breaks_and_another_sqlite_can_run_it(
    path: str, tmp_path: Path
) -> None:
    """In a pipe, and on a terminal."""
    command = real("--db", path, "sql", ".schema")
    out = subprocess.run(command, env=clean(), capture_output=True, text=True, check=True).stdout
    assert out.startswith("CREATE TABLE registry (\n  one INTEGER NOT NULL,\n")
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.executescript(out)
    objects = f"SELECT name, sql FROM sqlite_schema WHERE {NAMED} ORDER BY name"
    assert query(path, objects) == query(str(tmp_path / "other.db"), objects)
    with terminal(command, clean(TERM="xterm", PAGER="cat")) as shown:
        assert 0 == shown.wait()
        shown.expect("\r\nCREATE TABLE sandboxes (\r\n  creation INTEGER")


def test_a_text_of_several_lines_keeps_its_line_breaks_alone(call: Call) -> None:
    """Other control characters are escapes; beside another column the line breaks are, too."""
    text = "'one' || char(10, 27) || 'two' AS text"
    assert "text\none\n\\x1btwo\n-\n" == call("sql", f"SELECT {text} UNION ALL SELECT NULL").out
    assert "text\none\n\\x1btwo\n" == call("sql", "-o", "wide", f"SELECT {text}").out
    assert "one\n\\x1btwo\n" == call("sql", "--no-headers", f"SELECT {text}").out
    assert r"one\n\x1btwo" in call("sql", f"SELECT 1, {text}").out
    assert r"one\n\x1btwo" in call("sql", "-q", f"SELECT {text}").out


def test_without_a_query_and_a_terminal_the_views_are_listed(path: str) -> None:
    """The output says what to type."""
    done = subprocess.run(
        real("--db", path, "sql"),
        env=clean(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "sandbox-registry sql 'SELECT * FROM why_not_ready'" in done.stdout
    assert "  view   sandbox_overview\n" in done.stdout


def test_without_the_shell_the_program_says_how_to_install_it(path: str, tmp_path: Path) -> None:
    """The PATH has no programs."""
    with terminal(real("--db", path, "sql"), clean(PATH=str(tmp_path), TERM="dumb")) as shell:
        shell.expect("the sqlite3 shell is not installed (package sqlite3)")
        assert 0 == shell.wait()


@needs.program("sqlite3")
def test_without_a_query_the_shell_is_opened_read_only(path: str) -> None:
    """It reads, and refuses to write and to run programs; its end is that of this program."""
    with terminal(real("--db", path, "sql"), clean(TERM="dumb")) as shell:
        shell.press("SELECT 'id is ' || id FROM sandbox_overview;\n")
        shell.expect("id is 3f2a")
        shell.press("DELETE FROM sandboxes;\n")
        shell.expect("attempt to write a readonly database")
        shell.press(".shell echo hello\n")
        shell.expect("safe mode")
        shell.press(".quit\n")
        shell.wait()
    assert [("3f2a",)] == query(path, "SELECT id FROM sandboxes")


def test_hostile_text_of_a_query_is_shown_with_escapes(call: Call) -> None:
    """No control character reaches the terminal, neither of a value nor of a name."""
    out = call("sql", "SELECT char(27) || '[31m' AS \"\x1b[0m\"").out
    assert "\x1b" not in out
    assert "\\x1b[31m" in out


def test_invalid_text_in_a_damaged_record_is_shown(call: Call, path: str) -> None:
    """A lone surrogate is written as an escape."""
    tamper(path, "UPDATE sandbox_statuses SET message = CAST(x'ff41' AS TEXT)")
    code, out, _ = call("sql", "SELECT message FROM sandbox_statuses")
    assert (0, True) == (code, "\\udcffA" in out)
    tamper(path, "UPDATE sandbox_statuses SET message = ''")
