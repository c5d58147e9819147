"""Output of the command line: escapes, terminals, pipes and streams."""

from __future__ import annotations

import json
import os
import pty
import re
import sqlite3
import subprocess
import sys
import termios
from contextlib import closing, suppress
from pathlib import Path

import pytest

from registry import Store
from registry.cli import program
from tests.cli.program import (
    HOSTILE,
    LONG,
    MARKUP,
    SHOWN,
    Call,
    Done,
    clean,
    run,
    shell,
)
from tests.tools import NOTREADY, environment, pod, python, sandbox

# Hostile text.


@pytest.mark.parametrize("verb", ["list", f"inspect {LONG}", "history", "reconcile", "check"])
def test_text_of_the_registry_is_escaped(path: str, call: Call, verb: str) -> None:
    """It is neither markup nor control sequence, also in a violation."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP VIEW why_not_ready")
        connection.execute(
            "INSERT INTO sandbox_labels (sandbox_id, key, value) VALUES (?, ?, ?)",
            ("5abc", HOSTILE, MARKUP),
        )
    out = call(*verb.split()).out
    assert "" == "".join(char for char in out if not char.isprintable() and char != "\n")
    if "inspect" in verb:
        assert [f"message          {SHOWN}", f"name             {MARKUP}"] == sorted(
            line for line in out.splitlines() if line.startswith(("message ", "name  "))
        )
    if verb in {"list", "history"}:
        assert SHOWN in out


def test_json_is_ascii_and_keeps_the_text(call: Call) -> None:
    """The encoding of the terminal does not matter."""
    out = call("inspect", LONG, "--json").out
    assert out.isascii()
    assert (MARKUP, HOSTILE) == (json.loads(out)["name"], json.loads(out)["message"])


def test_every_error_is_one_printable_line(call: Call) -> None:
    """Control characters of an argument are escaped."""
    for args in (["inspect", HOSTILE], ["list", f"--state={HOSTILE}"], [HOSTILE], [f"--{HOSTILE}"]):
        code, out, err = call(*args)
        assert (True, "") == (code in {1, 2}, out)
        assert err.startswith("sandbox-registry: error: ")
        assert err.endswith("\n")
        assert err[:-1].isprintable()


def test_output_escapes_characters_that_the_encoding_lacks(path: str) -> None:
    """There is no error."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("8", config=pod("web-ü")), NOTREADY)
    done = run("--db", path, "list", PYTHONIOENCODING="ascii")
    assert (0, "") == (done.code, done.err)
    assert r"web-\xfc" in done.out


def test_on_a_terminal_only_the_last_column_is_folded(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids stay whole, and only titles and states are coloured."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = call("history").out
    assert f"  {LONG}  " in out
    assert "\x1b[33mSANDBOX_NOTREADY" in out
    assert "\x1b[31m" not in out
    assert r"one\ntwo \x1b[31mred" not in out
    assert r"\x1b[31mred" in out


TERMINALS = {
    "xterm": {"TERM": "xterm"},
    "no color": {"TERM": "xterm-256color", "NO_COLOR": "1"},
    "dumb": {"TERM": "dumb"},
    "no TERM": {"TERM": ""},
}


@pytest.mark.parametrize("terminal", ["", "xterm"], ids=["pipe", "terminal"])
def test_one_wide_cell_does_not_widen_every_line(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], terminal: str
) -> None:
    """The cell is whole: the table is as long as its cells, not as its lines times the widest."""
    wide, db = "n" * 1_000_000, str(tmp_path / "wide.db")
    with Store.open(db) as store, store.transaction():
        for n in range(300):
            config = pod(namespace=wide if n == 7 else "default")
            store.add(sandbox(f"s{n:03}", config=config), NOTREADY)
    if terminal:
        lines = on_terminal(db, 100, "list", TERM=terminal)
    else:
        assert 0 == program.main(["--db", db, "list"])
        lines = capsys.readouterr().out.splitlines()
    assert 301 <= len(lines)
    (long,) = (line for line in lines if len(line) > 1000)
    assert wide in long


def on_terminal(path: str, columns: int, *args: str, **variables: str) -> list[str]:
    """Return the lines that the real program writes to a terminal of so many columns."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, columns))
    names = {"TERM", "NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR"}
    env = {name: value for name, value in environment().items() if name not in names}
    env |= {name: value for name, value in variables.items() if value}
    command = [sys.executable, "-m", "registry", "--db", path, *args]
    with subprocess.Popen(command, stdout=slave, env=env) as process:
        os.close(slave)
        found = b""
        with suppress(OSError), os.fdopen(master, "rb", buffering=0) as terminal:
            while part := terminal.read(4096):  # EIO at the end
                found += part
    assert 0 == process.returncode
    return found.decode().splitlines()


@pytest.mark.parametrize("terminal", TERMINALS)
@pytest.mark.parametrize("columns", [1, 40, 200])
def test_field_names_are_never_folded(path: str, terminal: str, columns: int) -> None:
    """Every field of `inspect` begins a line of its own, on any terminal."""
    lines = on_terminal(path, columns, "inspect", "3f2a", **TERMINALS[terminal])
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", each) for each in lines]
    names = json.loads(run("--db", path, "inspect", "3f2a", "--json").out)
    assert ["FIELD            VALUE"] == plain[:1]
    shown = [each.split()[0] for each in plain[1 : plain.index("config:")] if each[:1] != " "]
    assert [name for name in names if name not in {"config", "extensions"}] == shown


@pytest.mark.parametrize(("terminal", "styled"), [
    ("xterm", True), ("no color", False), ("dumb", False), ("no TERM", False),
])  # fmt: skip
def test_only_a_terminal_with_escape_sequences_gets_colours(
    path: str, terminal: str, styled: bool
) -> None:
    """NO_COLOR turns them off; a dumb terminal gets the same output as a pipe."""
    lines = on_terminal(path, 30, "list", "--all", **TERMINALS[terminal])
    assert styled == any("\x1b" in each for each in lines)
    piped = run("--db", path, "list", "--all").out.splitlines()
    if TERMINALS[terminal]["TERM"] in {"", "dumb"}:
        assert piped == lines


# Pipes and streams.


@pytest.fixture
def many(tmp_path: Path) -> str:
    """Return a registry whose list is longer than the buffer of a pipe."""
    path = str(tmp_path / "many.db")
    with Store.open(path) as store, store.transaction():
        for number in range(1000):
            store.add(sandbox(f"{number:076}"), NOTREADY)
    return path


@pytest.mark.parametrize("unbuffered", [False, True], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("form", ["", "--json"], ids=["table", "json"])
def test_closed_pipe_ends_the_program_silently(many: str, form: str, unbuffered: bool) -> None:
    """The exit code is that of a program ended by SIGPIPE."""
    command = '"$@" | head -n 1; exit ${PIPESTATUS[0]}'
    done = shell(command, "--db", many, "list", *form.split(), unbuffered=unbuffered)
    assert (141, 1, "") == (done.code, done.out.count("\n"), done.err)


@pytest.mark.parametrize("unbuffered", [False, True], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("args", ["list", "list --json", "--help"])
def test_output_that_cannot_be_written_is_an_error(path: str, args: str, unbuffered: bool) -> None:
    """A partial output has another exit code than a complete one."""
    done = shell('"$@" >/dev/full', "--db", path, *args.split(), unbuffered=unbuffered)
    expected = "sandbox-registry: error: write output: No space left on device\n"
    assert Done(3, "", expected) == done


def test_an_error_of_the_system_that_is_not_of_the_output_names_its_file(path: str) -> None:
    """Here the module of the verb, which cannot be opened."""
    code = """
        import resource, sys
        from registry.cli import program
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        sys.exit(program.main(["--db", sys.argv[1], "list"]))
        """
    done = subprocess.run(
        python(code, path), env=clean(), capture_output=True, text=True, check=False
    )
    expected = r"sandbox-registry: error: '/.*/verbs/.*\.py': Too many open files\n"
    assert (3, "") == (done.returncode, done.stdout)
    assert re.fullmatch(expected, done.stderr), done.stderr


@pytest.mark.parametrize("redirect", [">&-", "2>&-", "2>/dev/full", ">&- 2>&-"])
def test_closed_and_full_streams_do_not_change_the_exit_code(path: str, redirect: str) -> None:
    """stderr, if it is open, has one line or none."""
    for args, expected in ((["list"], 0), (["inspect", "nope"], 1)):
        done = shell(f'"$@" {redirect}', "--db", path, *args)
        assert expected == done.code
        assert re.fullmatch(r"(sandbox-registry: error: .*\n)?", done.err)


def test_help_lists_every_verb_and_no_completion(path: str) -> None:
    """In plain text."""
    code, out, err = run("--help")
    assert (0, "") == (code, err)
    verbs = "list inspect history reconcile check delete backup restore salvage import export serve"
    assert verbs.split() == re.findall(r"^  (\w+) {2,}\w", out, re.MULTILINE)[-12:]
    assert "completion" not in out
    assert (code, out, err) == run("-h")


def test_path_that_is_not_utf_8_is_one_line(tmp_path: Path) -> None:
    """File names are bytes."""
    name = os.fsdecode(b"\xff.db")
    code, out, err = run("--db", str(tmp_path / name), "list")
    assert (3, "") == (code, out)
    assert re.fullmatch(r"sandbox-registry: error: .*\n", err)
