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

from registry import Metadata, State, Status, Store
from registry.cli import program
from tests.cli.program import (
    HOSTILE,
    LONG,
    MARKUP,
    SHOWN,
    Call,
    Done,
    clean,
    real,
    run,
    shell,
)
from tests.cli.terminals import terminal
from tests.tools import (
    NOTREADY,
    READY,
    UNKNOWN,
    environment,
    pod,
    python,
    running,
    sandbox,
)

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
    for args in (
        ["inspect", f"{HOSTILE}?"],
        ["list", f"--state={HOSTILE}"],
        [HOSTILE],
        [f"--{HOSTILE}"],
    ):
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


def test_on_a_terminal_a_table_is_cut_to_its_width(path: str) -> None:
    """Titles and states are coloured; what the table has no room for ends with an ellipsis."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("77ab", config=pod("p" * 70, "n" * 30)), NOTREADY)
    lines = on_terminal(path, 80, "list", TERM="xterm")
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", each) for each in lines]
    assert max(map(len, plain)) <= 80
    assert "ppp…ppp" in plain[3]
    assert "\x1b[33mNOTREADY" in lines[3]
    assert "\x1b[1mREASON" in lines[0]
    whole = on_terminal(path, 80, "list", "--no-trunc", TERM="xterm")
    assert "p" * 70 in whole[3]
    assert "p" * 70 in run("--db", path, "list").out


def test_a_terminal_tells_how_many_unknown_sandboxes_are_hidden(
    path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Only those that match the other filters, and not where the states are named."""

    def note(*args: str) -> str:
        on_terminal(path, 80, "list", *args, TERM="xterm")
        return capfd.readouterr().err

    assert "1 UNKNOWN sandbox is not shown; --all shows it\n" == note()
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("5def", config=pod("job", "shop")), Status(State.UNKNOWN))
    assert "2 UNKNOWN sandboxes are not shown; --all shows them\n" == note("-n", "1")
    hidden = "1 UNKNOWN sandbox is not shown; --all shows it\n"
    assert f"no sandbox matches\n{hidden}" == note("--pod", "job")
    for args in (["--all"], ["--state", "ready"], ["-q"], ["--json"], ["--id", "3"]):
        assert "" == note(*args)
    assert "" == run("--db", path, "list").err


def test_a_terminal_shows_each_of_several_matches_on_a_line(path: str) -> None:
    """No id is broken at the end of a line; a pipe gets one line."""
    with Store.open(path, reconcile=False) as store:
        for n in range(11):
            created = Status(State.NOTREADY, created_at=n + 1)
            store.add(sandbox(f"{n:064}", config=pod("many", HOSTILE)), created)
    with terminal(real("--db", path, "inspect", "many"), clean(TERM="xterm")) as shown:
        shown.expect("1 more")
        assert 2 == shown.wait()
    text = shown.text.splitlines()
    lines = [each for each in text if each.startswith("  ")]
    head = " ".join(text[: -len(lines)])
    assert head.endswith("11 sandboxes match; give one of these ids, the newest first:")
    assert f"  {10:064} (name-{10:064}, NOTREADY)" == lines[0]
    assert ["  and 1 more"] == lines[10:]
    err = run("--db", path, "inspect", "many").err
    assert (1, True) == (err.count("\n"), f"the newest first: {10:064} (name" in err)


def test_hostile_text_is_escaped_on_a_terminal(path: str) -> None:
    """It sets no colour."""
    out = "\n".join(on_terminal(path, 200, "history", "-o", "wide", TERM="xterm"))
    assert r"\x1b[31mred" in out
    assert "\x1b[31m" not in out


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_path_is_never_folded(path: str, columns: int) -> None:
    """It can be copied from a terminal of any width, from a finding too."""
    netns_path = "/run/netns/" + "long-" * 20
    with Store.open(path, reconcile=False) as store:
        store.add(Metadata("77ab", "name", None, netns_path=netns_path), READY)
    for args in (("inspect", "77ab"), ("reconcile",)):
        lines = on_terminal(path, columns, *args, TERM="xterm", PAGER="cat")
        assert any(netns_path in each for each in lines)


def test_long_output_on_a_terminal_goes_through_the_pager(path: str, tmp_path: Path) -> None:
    """Not what fits on it, and not into a pipe; a pager that does not exist is left out."""
    with Store.open(path, reconcile=False) as store, store.transaction():
        for n in range(30):
            store.add(sandbox(f"s{n:03}"), READY)
    program = tmp_path / "pager"
    program.write_text("#!/bin/sh\necho paged; exec cat\n")
    program.chmod(0o755)
    for pager, args, is_paged in (
        (str(program), ("list",), True),
        (str(program), ("list", "-n", "3"), False),
        (str(program), ("list", "--no-pager"), False),
        (str(program), ("history",), True),
        (str(program), ("history", "--no-pager"), False),
        ("/no/such/pager", ("list",), False),
    ):
        lines = on_terminal(path, 80, *args, TERM="xterm", PAGER=pager)
        assert is_paged == ("paged" in lines)
        assert "s029" in "".join(lines)
    assert "paged" not in run("--db", path, "list", PAGER=str(program)).out


TERMINALS = {
    "xterm": {"TERM": "xterm"},
    "no color": {"TERM": "xterm-256color", "NO_COLOR": "1"},
    "dumb": {"TERM": "dumb"},
    "no TERM": {"TERM": ""},
}


def test_one_wide_cell_does_not_widen_every_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cell is whole: the table is as long as its cells, not as its lines times the widest."""
    wide, db = "n" * 1_000_000, str(tmp_path / "wide.db")
    with Store.open(db) as store, store.transaction():
        for n in range(300):
            config = pod(namespace=wide if n == 7 else "default")
            store.add(sandbox(f"s{n:03}", config=config), NOTREADY)
    assert 0 == program.main(["--db", db, "list"])
    lines = capsys.readouterr().out.splitlines()
    assert 301 == len(lines)
    (long,) = (line for line in lines if len(line) > 1000)
    assert wide in long
    shown = on_terminal(db, 100, "list", TERM="xterm", PAGER="cat")
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", each)) for each in shown) <= 100


def on_terminal(path: str, columns: int, *args: str, **variables: str) -> list[str]:
    """Return the lines that the real program writes to a terminal of so many columns."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, columns))
    names = {"TERM", "NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR", "PAGER", "LESS"}
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
    variables = TERMINALS[terminal] | {"PAGER": "cat"}
    lines = on_terminal(path, columns, "inspect", "3f2a", **variables)
    names = json.loads(run("--db", path, "inspect", "3f2a", "--json").out)
    shown = [each.split()[0] for each in lines[: lines.index("config:")]]
    left_out = {"config", "extensions", "created_at_ns", "exited_at_ns", "since_ns"}
    assert [name for name in names if name not in left_out] == shown


@pytest.mark.parametrize(("terminal", "styled"), [
    ("xterm", True), ("no color", False), ("dumb", False), ("no TERM", False),
])  # fmt: skip
def test_only_a_terminal_with_escape_sequences_gets_colours(
    path: str, terminal: str, styled: bool
) -> None:
    """NO_COLOR turns them off; a dumb terminal gets the same output as a pipe."""
    command = ("list", "--all", "-o", "wide")
    lines = on_terminal(path, 30, *command, **TERMINALS[terminal])
    assert styled == any("\x1b" in each for each in lines)
    piped = run("--db", path, *command).out.splitlines()
    if TERMINALS[terminal]["TERM"] in {"", "dumb"}:
        assert piped == lines


def test_no_line_of_a_table_ends_with_spaces(path: str) -> None:
    """Beside wide titles, the spaces would fill a further line of the terminal."""
    for verb in ("list", "history"):
        lines = on_terminal(path, 80, verb, "-o", "wide", TERM="xterm", PAGER="cat")
        plain = [re.sub(r"\x1b\[[0-9;]*m", "", each) for each in lines]
        assert "\x1b[1mID\x1b[0m " in lines[0]
        assert plain == [each.rstrip() for each in plain]


def test_a_note_on_a_terminal_breaks_between_words(path: str) -> None:
    """As errors do; a pipe gets one line."""
    args = ("--db", path, "list", "--reason", "x" * 20)
    with terminal(real(*args), clean(TERM="xterm"), columns=40) as shown:
        shown.expect("Broken")
        assert 0 == shown.wait()
    note = shown.text.splitlines()[1:]
    assert max(map(len, note)) <= 40
    assert run(*args).err.split() == " ".join(note).split()


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


def test_help_lists_every_verb(path: str) -> None:
    """In plain text, under headings, each with its whole sentence."""
    code, out, err = run("--help")
    assert (0, "") == (code, err)
    listed = re.findall(r"^(\w+):\n((?:  .*\n)+)", out, re.MULTILINE)
    found = {name: re.findall(r"^  (\w+) {2,}\w", text, re.MULTILINE) for name, text in listed}
    assert found.pop("Serve") == ["serve", "browse"]
    assert program.SECTIONS == {name: tuple(found[name]) for name in program.SECTIONS}
    assert "..." not in out
    assert (code, out, err) == run("-h")


def test_path_that_is_not_utf_8_is_one_line(tmp_path: Path) -> None:
    """File names are bytes."""
    name = os.fsdecode(b"\xff.db")
    code, out, err = run("--db", str(tmp_path / name), "list")
    assert (3, "") == (code, out)
    assert re.fullmatch(r"sandbox-registry: error: .*\n", err)


def test_an_error_on_a_terminal_breaks_between_words_and_in_no_command(path: str) -> None:
    """A command can be copied from it; a pipe gets one line."""
    args = ("--db", path, "sql", "DELETE FROM sandboxes")
    with terminal(real(*args), clean(TERM="xterm"), columns=60) as shown:
        shown.expect("operators.md says")
        assert 2 == shown.wait()
    lines = shown.text.splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= 60
    assert run(*args).err.split() == " ".join(lines).split()
    assert any("`sandbox-registry delete`" in each for each in lines)


def test_a_long_path_in_a_report_stands_below_its_row(path: str) -> None:
    """The rows of a dry run fit a terminal of 80 columns, with the widest verdict and reason."""
    netns_path = "/run/netns/cni-6f1c9b1e-2f7e-11ee-be56-0242ac120002"
    with Store.open(path, reconcile=False) as store:
        store.add(Metadata("77ab", "name", None, netns_path=netns_path), READY)
        with running("import sys; sys.stdin.read()") as creator:
            store.add(sandbox("88ab"), UNKNOWN, creator=creator.pid)
    lines = on_terminal(path, 80, "reconcile", "--dry-run", TERM="xterm", NO_COLOR="1")
    assert max(map(len, lines)) <= 80
    titles = ["ID", "VERDICT", "WOULD_CHANGE", "REASON"]
    assert [titles, ["MESSAGE"]] == [each.split() for each in lines[:2]]
    assert any(each.split()[1:] == ["CLOSED", "yes", "NetNSClosed"] for each in lines)
    assert f"'{netns_path}'" in map(str.strip, lines)
    wide = on_terminal(path, 200, "reconcile", "--dry-run", TERM="xterm", NO_COLOR="1")
    assert [*titles, "MESSAGE"] == wide[0].split()


def test_sentences_on_a_terminal_break_between_words_and_in_no_command(
    path: str, tmp_path: Path
) -> None:
    """Of the verbs that print no table; a pipe gets one line of each."""
    netns_path = "/run/netns/cni-6f1c9b1e-2f7e-11ee-be56-0242ac120002"
    with Store.open(path, reconcile=False) as store:
        for id in ("77ab", "78ab"):
            store.add(Metadata(id, id, None, netns_path=netns_path), READY)
        store.backup(str(tmp_path / "copy.db"))
        store.delete("78ab")
    args = ("restore", str(tmp_path / "copy.db"), "--force")
    lines = on_terminal(path, 60, *args, TERM="xterm", NO_COLOR="1")
    (command,) = [each for each in lines if "`sandbox-registry --db" in each]
    assert command.endswith(" history --after 5`")
    assert not [each for each in lines if len(each) > 60 and str(tmp_path) not in each]
    text = f"deleted 78ab; network namespace {netns_path} is gone"
    lines = on_terminal(path, 60, "delete", "78ab", TERM="xterm")
    assert max(map(len, lines)) <= 60
    assert text.split() == " ".join(lines).split()
    with Store.open(path, reconcile=False) as store:
        assert ["77ab"] == [each.id for each in store.list(id="77ab")]
    assert f"deleted 77ab; network namespace {netns_path} is gone\n" == (
        run("--db", path, "delete", "77ab").out
    )
