"""The command line: exit code, stdout and stderr."""

from __future__ import annotations

import ast
import json
import os
import pty
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import registry
from registry import CNIResult, Metadata, NetNSError, Report, State, Status, Store
from registry.cli import program
from registry.cli.failures import ADVICE
from registry.cli.maintain import ORPHANS
from registry.cri import NamespaceMode
from tests import needs
from tests.tools import NOTREADY, environment, execute, pod, query, sandbox

LONG = "4f2a" * 16
MARKUP = "[bold]b[/bold]"
HOSTILE = "one\ntwo \x1b[31mred\x1b[0m \x9b1m \u202e tail"
SHOWN = r"one\ntwo \x1b[31mred\x1b[0m \x9b1m \u202e tail"
CREATED = 1_700_000_000_123_456_789
SHOWN_CREATED = "2023-11-14T22:13:20.123456789Z"


class Done(NamedTuple):
    """What a program left behind."""

    code: int
    out: str
    err: str


def real(*args: str, unbuffered: bool = False) -> list[str]:
    """Return the command that runs the real program."""
    return [sys.executable, *(["-u"] if unbuffered else []), "-m", "registry", *args]


def clean(**variables: str) -> dict[str, str]:
    """Return the environment of a shell, with *variables*."""
    left_out = ("PYTHONUNBUFFERED", "SANDBOX_REGISTRY_DB")
    known = {name: value for name, value in environment().items() if name not in left_out}
    return known | variables


def run(*args: str, **variables: str) -> Done:
    """Run the real program."""
    done = subprocess.run(
        real(*args), env=clean(**variables), capture_output=True, text=True, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


def shell(command: str, *args: str, unbuffered: bool = False) -> Done:
    """Run the real program in a pipeline: *command*, in which it is called "$@"."""
    done = subprocess.run(
        ["bash", "-c", command, "bash", *real(*args, unbuffered=unbuffered)],
        env=clean(),
        capture_output=True,
        text=True,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def path(path: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a registry of three sandboxes: READY, NOTREADY with hostile texts, UNKNOWN."""
    monkeypatch.delenv("SANDBOX_REGISTRY_DB", raising=False)
    config = pod("web", "shop", app="web", tier="front")
    config.linux.security_context.namespace_options.network = NamespaceMode.NODE
    with Store.open(path, reconcile=False) as store:
        ready = Status(State.READY, created_at=CREATED)
        store.add(sandbox("3f2a", config=config, ip="10.0.0.7"), ready)
        bad = Status(State.NOTREADY, created_at=CREATED + 1, reason="Broken", message=HOSTILE)
        netns_path = "/run/netns/which-nobody-made"
        store.add(Metadata(LONG, MARKUP, pod(HOSTILE), netns_path=netns_path), bad)
        store.add(sandbox("5abc", config=None), Status(State.UNKNOWN))
    return path


Call = Callable[..., Done]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return a function that runs the command line in this process."""

    def main(*args: str, **variables: str) -> Done:
        monkeypatch.delenv("SANDBOX_REGISTRY_DB", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        code = program.main(args)
        return Done(code, *capsys.readouterr())

    return main


@pytest.fixture
def call(path: str, main: Call) -> Call:
    """Return a function that runs the command line on the registry, in this process."""
    return lambda *args: main("--db", path, *args)


def ids(done: Done) -> list[str]:
    """Return the ids in an array of sandboxes."""
    return [each["id"] for each in json.loads(done.out)]


# One real run of each verb.


def test_list_prints_a_line_for_each_sandbox(path: str) -> None:
    """Whole ids, states as in SQL; UNKNOWN ones are left out."""
    code, out, err = run("--db", path, "list")
    assert (0, "") == (code, err)
    assert [
        ["ID", "STATE", "NAMESPACE", "POD", "PID", "IP", "CREATED_AT", "REASON"],
        ["3f2a", "SANDBOX_READY", "shop", "web", "-", "10.0.0.7", SHOWN_CREATED, "-"],
    ] == [line.split() for line in out.splitlines()[:2]]
    assert out.splitlines()[2].startswith(f"{LONG}  SANDBOX_NOTREADY")
    assert 3 == len(out.splitlines())


def test_inspect_prints_everything_about_one_sandbox(path: str) -> None:
    """Found by a prefix; the config as JSON."""
    code, out, err = run("--db", path, "inspect", "3f")
    assert (0, "") == (code, err)
    assert re.search(r"^created_at +2023-11-14T22:13:20\.123456789Z$", out, re.MULTILINE)
    assert re.search(r"^host_network +yes$", out, re.MULTILINE)
    _, _, config = out.partition("config:\n")
    assert {"app": "web", "tier": "front"} == json.loads(config)["labels"]


def test_history_prints_a_line_for_each_transition(path: str) -> None:
    """In order."""
    code, out, err = run("--db", path, "history")
    assert (0, "") == (code, err)
    assert [("SEQ", "SANDBOX_ID"), ("1", "3f2a"), ("2", LONG), ("3", "5abc")] == [
        (line.split()[0], line.split()[2]) for line in out.splitlines()
    ]


def test_reconcile_marks_what_is_gone_and_says_so(path: str) -> None:
    """Beside one that is being created, and one whose namespace was never made."""
    gone = sandbox("6def", netns_path="/run/netns/which-nobody-made")
    with Store.open(path, reconcile=False) as store:
        store.add(gone, Status(State.READY, created_at=CREATED + 2))
    code, out, err = run("--db", path, "reconcile")
    assert (0, "") == (code, err)
    verdicts = {line.split()[0]: line.split()[1:5] for line in out.splitlines()}
    assert ["CLOSED", "yes", "NetNSClosed"] == verdicts["6def"][:3]
    assert ["CREATING", "no", "-"] == verdicts["5abc"][:3]
    assert LONG not in verdicts
    assert "sandboxes: 1 CLOSED, 1 CREATING, 1 HOST, 1 OPEN" == out.splitlines()[-1]


def test_check_finds_nothing_in_a_registry_that_is_whole(path: str) -> None:
    """And says so."""
    assert Done(0, "no violations\n", "") == run("--db", path, "check")


def test_delete_deletes_one_sandbox(path: str) -> None:
    """And tells what is left."""
    expected = f"deleted {LONG}; network namespace /run/netns/which-nobody-made is left alone\n"
    assert Done(0, expected, "") == run("--db", path, "delete", "4f")
    assert [("3f2a",), ("5abc",)] == query(path, "SELECT id FROM sandboxes ORDER BY id")
    ((actor,),) = query(path, "SELECT actor FROM sandbox_transitions WHERE event = 'deleted'")
    assert re.fullmatch(r"sandbox-registry\[\d+\]", actor)


# What each verb takes.


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("", ["3f2a", LONG]),
        ("--all", ["5abc", "3f2a", LONG]),
        ("--state READY", ["3f2a"]),
        ("--state sandbox_notready", [LONG]),
        ("--state UNKNOWN", ["5abc"]),
        ("--label app=web --label tier=front", ["3f2a"]),
        ("--label app=web --label tier=back", []),
        ("--label app=", []),
        ("--pod web", ["3f2a"]),
        ("--namespace shop", ["3f2a"]),
        ("--name name-3f2a", ["3f2a"]),
        ("--id 4f", [LONG]),
        ("--id 4f --state READY", []),
    ],
)
def test_list_filters(call: Call, args: str, expected: list[str]) -> None:
    """All filters must let a sandbox through."""
    done = call("list", *args.split(), "--json")
    assert (0, "") == (done.code, done.err)
    assert expected == ids(done)


def test_list_of_nothing_is_a_header_or_an_empty_array(call: Call) -> None:
    """Neither is an error."""
    assert (0, 1) == (call("list", "--pod", "x").code, call("list", "--pod", "x").out.count("\n"))
    assert Done(0, "[]\n", "") == call("list", "--pod", "x", "--json")


def test_a_sandbox_that_changes_under_a_list_is_shown_as_it_was(
    path: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a list is of one moment: none in a state not asked for, none an error once deleted."""
    listed = Store.list

    def change_then_return(store: Store, **filters: Any) -> Any:
        found = listed(store, **filters)
        execute(path, *statements)
        return found

    monkeypatch.setattr(Store, "list", change_then_return)
    statements = ["UPDATE sandbox_statuses SET state = 'SANDBOX_NOTREADY', changed_at = 9"]
    before = call("list", "--state", "READY", "--json")
    assert {"SANDBOX_READY"} == {each["state"] for each in json.loads(before.out)}
    statements = ["DELETE FROM sandboxes"]
    after = call("list", "--json")
    assert {"SANDBOX_NOTREADY"} == {each["state"] for each in json.loads(after.out)}
    assert Done(0, "[]\n", "") == call("list", "--json")


def test_a_sandbox_whose_config_cannot_be_read_is_listed(path: str, call: Call) -> None:
    """The others too; one line says why, and the code tells it; so does inspect."""
    execute(path, "UPDATE sandboxes SET config = x'ff', config_json = '{}' WHERE id = '5abc'")
    code, out, err = call("list", "--all", "--json")
    assert (1, ["5abc", "3f2a", LONG]) == (code, [each["id"] for each in json.loads(out)])
    assert (None, None) == (json.loads(out)[0]["pod"], json.loads(out)[0]["namespace"])
    assert re.fullmatch(r"sandbox-registry: error: read metadata of sandbox '5abc': .*\n", err)
    code, out, again = call("inspect", "5abc", "--json")
    assert (1, "5abc", None) == (code, json.loads(out)["id"], json.loads(out)["config"])
    assert f"sandbox-registry: error: {json.loads(out)['error']}\n" == again == err


def test_inspect_finds_a_sandbox_under_creation(call: Call) -> None:
    """With null for what there is not."""
    done = call("inspect", "5abc", "--json")
    found = json.loads(done.out)
    assert (0, "SANDBOX_UNKNOWN", None) == (done.code, found["state"], found["config"])
    assert (None, None, None) == (found["created_at"], found["exit_status"], found["cni_result"])


def test_inspect_prints_every_field_of_the_metadata(path: str, call: Call) -> None:
    """For programs, and a line each for people."""
    metadata = sandbox("6", additional_ips=("10.0.0.8", "::1"), cni_result=CNIResult(), ip="::2")
    with Store.open(path, reconcile=False) as store:
        store.add(metadata, NOTREADY)
    found = json.loads(call("inspect", "6", "--json").out)
    assert (["10.0.0.8", "::1"], {"Interfaces": None, "DNS": None, "Routes": None}) == (
        found["additional_ips"],
        found["cni_result"],
    )
    assert set(Metadata.__dataclass_fields__) | set(Status.__dataclass_fields__) <= set(found)
    assert '["10.0.0.8", "::1"]\n' in call("inspect", "6").out


def test_history_of_one_sandbox_by_prefix_or_by_the_whole_id_once_deleted(call: Call) -> None:
    """A prefix of a deleted one finds nothing."""
    assert [LONG] == [
        each["sandbox_id"] for each in json.loads(call("history", "4f", "--json").out)
    ]
    call("delete", LONG)
    found = json.loads(call("history", LONG, "--json").out)
    assert [(None, "SANDBOX_NOTREADY"), ("SANDBOX_NOTREADY", None)] == [
        (each["from_state"], each["to_state"]) for each in found
    ]
    assert Done(0, "[]\n", "") == call("history", LONG, "--after", "99", "--json")
    assert 1 == call("history", "4f").code


def test_history_after_and_limit(call: Call) -> None:
    """A state of 0 is a state."""
    found = json.loads(call("history", "--after", "1", "--limit", "1", "--json").out)
    assert [2] == [each["seq"] for each in found]
    (last,) = json.loads(call("history", "--after", "2", "--json").out)
    assert ("SANDBOX_UNKNOWN", None) == (last["to_state"], last["from_state"])


def test_history_that_is_no_longer_kept_is_missing(path: str, call: Call) -> None:
    """So that a program which follows it begins anew."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            " AND tbl_name = 'sandbox_transitions'"
        ).fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("DELETE FROM sandbox_transitions WHERE seq < 3")
    code, out, err = call("history", "--after", "1")
    assert (1, "") == (code, out)
    assert "compacted" in err


def test_a_dry_run_writes_nothing(path: str, call: Call) -> None:
    """And reports the same."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("7", netns_path="/run/netns/nobody-made-it"), Status(State.READY))
    before = query(path, "SELECT * FROM sandbox_statuses ORDER BY sandbox_id")
    dry = json.loads(call("reconcile", "--dry-run", "--remove-orphans", "--json").out)
    assert before == query(path, "SELECT * FROM sandbox_statuses ORDER BY sandbox_id")
    assert "dry run: nothing was changed" in call("reconcile", "--dry-run").out
    wet = json.loads(call("reconcile", "--json").out)
    assert (dry["counts"], True, False) == (wet["counts"], dry["dry_run"], wet["dry_run"])
    assert [("7", "CLOSED", True)] == [
        (each["sandbox_id"], each["verdict"], each["changed"])
        for each in wet["findings"]
        if each["changed"]
    ]
    assert [("SANDBOX_NOTREADY", "NetNSClosed")] == query(
        path, "SELECT state, reason FROM sandbox_statuses WHERE sandbox_id = '7'"
    )


@pytest.fixture
def orphans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every reconcile find two orphans, the first of which cannot be removed."""

    def remove(store: Store, paths: list[str]) -> list[str]:
        if paths == ["/run/netns/sr-a"]:
            raise NetNSError("remove '/run/netns/sr-a': busy", path=paths[0], errno=16)
        return paths

    report = Report((), {}, ("/run/netns/sr-a", "/run/netns/sr-b"))
    monkeypatch.setattr(Store, "reconcile", lambda *_, **__: report)
    monkeypatch.setattr(Store, "remove_orphans", remove)


def test_orphans_are_reported_with_what_to_do(orphans: None, call: Call) -> None:
    """They are removed only on request."""
    assert Done(
        0,
        "sandboxes: none\n"
        "orphan /run/netns/sr-a: no sandbox owns it\n"
        "orphan /run/netns/sr-b: no sandbox owns it\n"
        f"{ORPHANS}\n",
        "",
    ) == call("reconcile")
    assert "--remove-orphans" in ORPHANS
    assert "no copy and was not restored from a backup" in ORPHANS
    assert (
        []
        == json.loads(call("reconcile", "--dry-run", "--remove-orphans", "--json").out)["removed"]
    )


def test_an_orphan_that_cannot_be_removed_does_not_stop_the_rest(orphans: None, call: Call) -> None:
    """The report is printed all the same, and the code tells it."""
    code, out, err = call("reconcile", "--remove-orphans", "--json")
    found = json.loads(out)
    assert (1, ["/run/netns/sr-b"]) == (code, found["removed"])
    assert ["/run/netns/sr-a", "/run/netns/sr-b"] == found["orphans"]
    assert "sandbox-registry: error: remove '/run/netns/sr-a': busy\n" == err
    out = call("reconcile", "--remove-orphans").out
    assert "orphan /run/netns/sr-a: not removed\norphan /run/netns/sr-b: removed\n" in out
    assert "restored" not in out


def test_check_reports_violations_with_code_1(path: str, call: Call) -> None:
    """A table for people, whose lines are whole, or an array."""
    execute(path, "DROP VIEW why_not_ready", "DROP VIEW sandbox_overview")
    code, out, err = call("check")
    assert (1, "", 3) == (code, err, len(out.splitlines()))
    code, out, err = call("check", "--json")
    assert (1, "") == (code, err)
    assert ["schema_is_whole"] * 2 == [each["rule"] for each in json.loads(out)]


def test_deleting_twice_is_missing_the_second_time(call: Call) -> None:
    """The whole id comes back, or what was asked for."""
    assert {"id": "5abc", "deleted": True} == json.loads(call("delete", "5", "--json").out)
    code, out, err = call("delete", "5", "--json")
    assert (1, {"id": "5", "deleted": False}) == (code, json.loads(out))
    assert "sandbox-registry: error: delete sandbox '5': there is no such sandbox\n" == err


@pytest.mark.parametrize(
    "verb", ["list", "inspect 3f2a", "history", "reconcile --dry-run", "check", "export"]
)
def test_verbs_that_read_leave_the_file_as_it_is(path: str, call: Call, verb: str) -> None:
    """No lock file is made either."""
    for file in Path(path).parent.glob("*-lock"):
        file.unlink()
    before = Path(path).read_bytes()
    assert 0 == call(*verb.split()).code
    assert before == Path(path).read_bytes()
    assert [] == list(Path(path).parent.glob("*-lock"))


# Text that means harm.


@pytest.mark.parametrize("verb", ["list", f"inspect {LONG}", "history", "reconcile", "check"])
def test_text_of_the_registry_is_not_obeyed(path: str, call: Call, verb: str) -> None:
    """Neither as markup nor by the terminal, also when it stands in a violation."""
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
    """Whatever a terminal or a locale would make of it."""
    out = call("inspect", LONG, "--json").out
    assert out.isascii()
    assert (MARKUP, HOSTILE) == (json.loads(out)["name"], json.loads(out)["message"])


def test_errors_are_one_line_whatever_they_are_about(call: Call) -> None:
    """An argument is shown, not obeyed."""
    for args in (["inspect", HOSTILE], ["list", f"--state={HOSTILE}"], [HOSTILE], [f"--{HOSTILE}"]):
        code, out, err = call(*args)
        assert (True, "") == (code in {1, 2}, out)
        assert err.startswith("sandbox-registry: error: ")
        assert err.endswith("\n")
        assert err[:-1].isprintable()


def test_a_locale_without_the_characters_gets_escapes(path: str) -> None:
    """Rather than an error."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("8", config=pod("web-ü")), NOTREADY)
    done = run("--db", path, "list", PYTHONIOENCODING="ascii")
    assert (0, "") == (done.code, done.err)
    assert r"web-\xfc" in done.out


def test_on_a_terminal_only_the_last_column_is_folded(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids stay whole, and what is coloured is ours."""
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
    """Whatever the terminal: every field of `inspect` begins a line of its own, whole."""
    lines = on_terminal(path, columns, "inspect", "3f2a", **TERMINALS[terminal])
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", each) for each in lines]
    names = json.loads(run("--db", path, "inspect", "3f2a", "--json").out)
    assert ["FIELD            VALUE"] == plain[:1]
    shown = [each.split()[0] for each in plain[1 : plain.index("config:")] if each[:1] != " "]
    assert [name for name in names if name != "config"] == shown


@pytest.mark.parametrize(("terminal", "styled"), [
    ("xterm", True), ("no color", False), ("dumb", False), ("no TERM", False),
])  # fmt: skip
def test_only_a_terminal_that_knows_escapes_gets_some(
    path: str, terminal: str, styled: bool
) -> None:
    """And only without NO_COLOR; a dumb one gets what a pipe gets, unfolded."""
    lines = on_terminal(path, 30, "list", "--all", **TERMINALS[terminal])
    assert styled == any("\x1b" in each for each in lines)
    piped = run("--db", path, "list", "--all").out.splitlines()
    if TERMINALS[terminal]["TERM"] in {"", "dumb"}:
        assert piped == lines


# Which registry.


def test_the_registry_is_named_after_the_verb_before_it_or_by_the_environment(
    path: str, tmp_path: Path, main: Call
) -> None:
    """The first of these goes."""
    other = str(tmp_path / "other.db")
    assert 0 == main("check", "--db", path).code
    assert 0 == main("check", SANDBOX_REGISTRY_DB=path).code
    assert 0 == main("--db", path, "check", SANDBOX_REGISTRY_DB=other).code
    assert 0 == main("--db", other, "check", "--db", path, SANDBOX_REGISTRY_DB=other).code
    assert 3 == main("--db", path, "check", "--db", other, SANDBOX_REGISTRY_DB=path).code


def test_no_registry_named_is_a_matter_of_usage(main: Call) -> None:
    """With both ways to name one."""
    for variables in ({}, {"SANDBOX_REGISTRY_DB": ""}):
        code, out, err = main("list", **variables)
        assert (2, "", 1) == (code, out, err.count("\n"))
        assert "--db" in err
        assert "SANDBOX_REGISTRY_DB" in err


# What goes wrong.


@pytest.mark.parametrize(
    "args",
    [
        "lst",
        "",
        "list --foo",
        "list surplus",
        "inspect",
        "list --state RUNNING",
        "list --state=",
        "list --label app",
        "list --label app=a --label app=b",
        "list --label app!=web",
        "list --label app==web",
        "list --label !app=web",
        "list --label =web",
        "list --label app=web,tier=db",
        "list --label -app=web",
        "list --label app/=web",
        "list --label /app=web",
        "list --label a/b/c=web",
        "list --label UPPER.example/app=web",
        f"list --label {'a' * 64}=web",
        f"list --label {'a.' * 127}a/app=web",
        "list --id=",
        "list --db=",
        "history --after -1",
        "history --after x",
        "history --limit 9223372036854775808",
        "delete 3f2a --timeout nan",
        "delete 3f2a --timeout inf",
        "delete 3f2a --timeout -1",
        "delete --",
    ],
)
def test_bad_arguments_are_usage(call: Call, args: str) -> None:
    """Code 2, nothing on stdout, one line on stderr."""
    code, out, err = call(*args.split())
    assert (2, "") == (code, out)
    assert re.fullmatch(r"sandbox-registry: error: .+\n", err)


@pytest.mark.parametrize("text", ["app in (a,b)", "app notin (a=b)", "!app", "app", "a b=c"])
def test_a_selector_with_an_operator_is_usage(call: Call, text: str) -> None:
    """It would match nothing; the message says what is accepted."""
    code, out, err = call("list", "--label", text)
    assert (2, "") == (code, out)
    assert f"{text!r} is not KEY=VALUE" in err


@pytest.mark.parametrize("key", ["app", "A.b_c-d", "io.kubernetes.pod/name", "a" * 63, "0"])
def test_a_label_key_of_kubernetes_is_taken(path: str, call: Call, key: str) -> None:
    """With any value that is no second operator."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("9", config=pod("labelled", **{key: "a=b c"})), NOTREADY)
    code, out, _ = call("list", "--label", f"{key}=a=b c", "--json")
    assert (0, ["9"]) == (code, [each["id"] for each in json.loads(out)])


def test_no_error_names_a_parameter_of_the_library() -> None:
    """Each advice that does has another text for operators."""
    found = set()
    for file in Path(registry.__file__).parent.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        docstrings = {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or id(node) in docstrings:
                continue
            if isinstance(node.value, str):
                found |= set(re.findall(r"[^;]*\b\w+=(?:True|False)\b", node.value))
                assert "include_unknown" not in node.value
    assert {text.strip() for text in found} == ADVICE.keys()


@needs.namespaces
@pytest.mark.parametrize("verb", ["reconcile", "delete 3f2a", "import /dev/null"])
def test_on_a_read_only_mount_the_advice_is_for_operators(path: str, verb: str) -> None:
    """What still works, and what to do about the rest; no parameter of Python."""
    folder = os.path.dirname(path)
    program = shlex.join([sys.executable, "-m", "registry", "--db", path, *verb.split()])
    script = f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} && cd / && exec"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{script} {program}"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (3, "") == (done.returncode, done.stdout)
    assert "mount its file system writable" in done.stderr
    assert "read_only=" not in done.stderr


def test_an_older_schema_is_told_by_the_verb_that_upgrades(path: str) -> None:
    """`list` only reads, so it cannot."""
    execute(path, "UPDATE registry SET level = 0, min_reader = 0, min_writer = 0")
    done = run("--db", path, "list")
    assert 3 == done.code
    assert "`sandbox-registry reconcile` brings it up to date" in done.err


def test_an_unknown_verb_is_usage_for_the_real_program() -> None:
    """With a guess at what was meant."""
    code, out, err = run("lst")
    assert (2, "") == (code, out)
    assert "sandbox-registry: error: No such command 'lst'. Did you mean 'list'?" in err


def test_an_ambiguous_prefix_is_usage(path: str, call: Call) -> None:
    """The error names the operation, and all ids that begin with the prefix."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("3f2b"), NOTREADY)
    operations = {"history": "read history of", "inspect": "inspect", "delete": "delete"}
    for verb, operation in (operations | {"export": "export"}).items():
        code, out, err = call(verb, "3f")
        assert (2, "") == (code, out)
        assert f"error: {operation} sandbox '3f': 2 ids begin" in err
        assert "3f2a" in err
        assert "3f2b" in err


@pytest.mark.parametrize("verb", ["inspect", "delete", "history"])
def test_a_missing_sandbox_is_code_1(call: Call, verb: str) -> None:
    """One line names it."""
    code, out, err = call(verb, "nope")
    assert (1, "") == (code, out)
    assert re.fullmatch(r"sandbox-registry: error: .*'nope'.*\n", err)


def test_the_version_is_said_without_a_registry(main: Call) -> None:
    """As it was installed."""
    assert (0, f"sandbox-registry {version('sandbox-registry')}\n", "") == main("--version")


@pytest.mark.parametrize("verb", ["list", "check", "reconcile", "reconcile --dry-run", "delete a"])
def test_a_missing_file_is_unavailable_and_stays_missing(
    main: Call, tmp_path: Path, verb: str
) -> None:
    """A disk that is not mounted yet is no empty node."""
    missing = tmp_path / "a" / "registry.db"
    code, out, err = main("--db", str(missing), *verb.split())
    assert (3, "") == (code, out)
    assert re.fullmatch(r"sandbox-registry: error: .*registry\.db.*\n", err)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["list", "reconcile"])
def test_a_file_that_is_no_registry_is_unavailable(main: Call, tmp_path: Path, verb: str) -> None:
    """A binary file, an empty one, and a database of someone else's."""
    (tmp_path / "binary.db").write_bytes(bytes(range(256)) * 64)
    (tmp_path / "empty.db").touch()
    execute(str(tmp_path / "other.db"), "CREATE TABLE sandboxes (id)")
    for name in ("binary.db", "empty.db", "other.db"):
        code, out, err = main("--db", str(tmp_path / name), verb)
        assert (3, "") == (code, out)
        assert re.fullmatch(rf"sandbox-registry: error: .*{name}.*\n", err)


def test_a_directory_is_usage(main: Call, tmp_path: Path) -> None:
    """With a file name to use instead."""
    code, out, err = main("--db", str(tmp_path), "list")
    assert (2, "") == (code, out)
    assert "registry.db" in err


@pytest.mark.parametrize("column", ["level = 0", "level = 9, min_reader = 9, min_writer = 9"])
def test_a_schema_of_another_level_is_unavailable(path: str, call: Call, column: str) -> None:
    """Whether older or newer, for who only reads."""
    execute(path, f"UPDATE registry SET {column}")
    code, out, err = call("list")
    assert (3, "") == (code, out)
    assert re.fullmatch(r"sandbox-registry: error: .* schema .*\n", err)


@pytest.mark.parametrize("verb", ["delete 3f2a", "reconcile"])
def test_a_locked_registry_is_unavailable_after_the_timeout(path: str, verb: str) -> None:
    """Reading goes on meanwhile."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        code, out, err = run("--db", path, *verb.split(), "--timeout", "0.2")
        assert 0 == run("--db", path, "list").code
    assert (3, "") == (code, out)
    assert re.fullmatch(r"sandbox-registry: error: .*\n", err)


def test_ctrl_c_ends_it_with_130(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quietly."""

    def interrupted(*args: object, **options: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Store, "open", interrupted)
    assert Done(130, "", "") == call("list")


@pytest.mark.parametrize(("missing", "extra"), [("click", "cli"), ("grpc", "shim")])
def test_without_its_libraries_it_says_what_to_install(missing: str, extra: str, path: str) -> None:
    """The library itself works without them."""
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"sys.argv[1:] = ['serve', '--db', {path!r}]\n"
        "from registry.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean(), capture_output=True, text=True, check=False
    )
    expected = f"sandbox-registry: error: this needs {missing}: install sandbox-registry[{extra}]\n"
    assert (2, "", expected) == (done.returncode, done.stdout, done.stderr)


# Where the output goes.


@pytest.fixture
def many(tmp_path: Path) -> str:
    """Return a registry whose list is longer than what a pipe holds."""
    path = str(tmp_path / "many.db")
    with Store.open(path) as store, store.transaction():
        for number in range(1000):
            store.add(sandbox(f"{number:076}"), NOTREADY)
    return path


@pytest.mark.parametrize("unbuffered", [False, True], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("form", ["", "--json"], ids=["table", "json"])
def test_a_pipe_that_is_closed_ends_it_quietly(many: str, form: str, unbuffered: bool) -> None:
    """As `head` does; the code is that of other programs."""
    command = '"$@" | head -n 1; exit ${PIPESTATUS[0]}'
    done = shell(command, "--db", many, "list", *form.split(), unbuffered=unbuffered)
    assert (141, 1, "") == (done.code, done.out.count("\n"), done.err)


@pytest.mark.parametrize("unbuffered", [False, True], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("args", ["list", "list --json", "--help"])
def test_output_that_cannot_be_written_is_an_error(path: str, args: str, unbuffered: bool) -> None:
    """Nobody takes half an answer for a whole one."""
    done = shell('"$@" >/dev/full', "--db", path, *args.split(), unbuffered=unbuffered)
    expected = "sandbox-registry: error: write output: No space left on device\n"
    assert Done(3, "", expected) == done


@pytest.mark.parametrize("redirect", [">&-", "2>&-", "2>/dev/full", ">&- 2>&-"])
def test_closed_and_full_streams_do_not_change_the_exit_code(path: str, redirect: str) -> None:
    """That is all that is wanted then; stderr, where there is one, has one line or none."""
    for args, expected in ((["list"], 0), (["inspect", "nope"], 1)):
        done = shell(f'"$@" {redirect}', "--db", path, *args)
        assert expected == done.code
        assert re.fullmatch(r"(sandbox-registry: error: .*\n)?", done.err)


def test_help_names_every_verb_and_no_completion(path: str) -> None:
    """In plain text."""
    code, out, err = run("--help")
    assert (0, "") == (code, err)
    verbs = "list inspect history reconcile check delete import export serve"
    assert verbs.split() == re.findall(r"^  (\w+) {2,}\w", out, re.MULTILINE)[-9:]
    assert "completion" not in out
    assert (code, out, err) == run("-h")


def test_a_path_that_is_no_utf_8_is_no_traceback(tmp_path: Path) -> None:
    """File names are bytes."""
    name = os.fsdecode(b"\xff.db")
    code, out, err = run("--db", str(tmp_path / name), "list")
    assert (3, "") == (code, out)
    assert re.fullmatch(r"sandbox-registry: error: .*\n", err)
