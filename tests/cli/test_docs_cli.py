"""Agreement of docs/cli.md with the program: verbs, options, fields, exit codes, examples."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest

from registry import Metadata, State, Status, Store
from registry.__main__ import ABOVE
from registry.cli import failures, program
from registry.cri import LinuxPodSandboxConfig, NamespaceMode
from tests.tools import ROOT, environment, execute, pod, tamper

DOCS = Path(ROOT, "docs", "cli.md").read_text(encoding="utf-8")
SECTIONS = dict(
    re.findall(r"^#{2,3} `?([\w ]+)`?\n(.*?)(?=^##|\Z)", DOCS, re.DOTALL | re.MULTILINE)
)
EXAMPLES = re.findall(r"^```console\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE)

GROUP = program.group(ABOVE)
CONTEXT = click.Context(GROUP, help_option_names=["-h", "--help"])
COMMANDS: dict[str, click.Command] = {}
for verb in GROUP.list_commands(CONTEXT):
    command = GROUP.get_command(CONTEXT, verb)
    assert command is not None
    COMMANDS[verb] = command

SHOWN = 1_760_000_000_000_000_000
"""Time at which the documents say that the sandboxes were created, in ns since the Unix epoch."""
CREATED = time.time_ns() // 10**9 * 10**9 - (5 * 24 + 12) * 3600 * 10**9
"""Time at which they are created: ages are 5d, however long the tests take."""
WEB = "3f2a9c41d07e"
PROXY = "77b0d2e5a9f1"


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a registry of two sandboxes; the namespace of one does not exist."""
    path = str(tmp_path / "registry.db")
    clock = iter(range(CREATED, 2**63, 1_500_000_000))
    host = pod("proxy", "kube-system")
    options = host.linux.security_context.namespace_options
    assert isinstance(host.linux, LinuxPodSandboxConfig)
    options.network = NamespaceMode.NODE
    with Store.open(path, clock=lambda: next(clock), actor="shim[812]") as store:
        web = Metadata(
            WEB, "web_shop_1_0", pod("web", "shop", app="web"), "/run/netns/web", "10.88.0.7"
        )
        ready = Status(State.READY, created_at=CREATED)
        store.add(web, Status(State.UNKNOWN)).status.update(lambda _: ready)
        store.add(Metadata(PROXY, "proxy_kube-system_2_0", host), ready)
    return path


WRITER = r"process \d+ (\([^)]*\) still runs|has ended, and another one has its pid)"
"""What `why` says of the writer of a transition if a process has its pid."""


def documented_options(section: str) -> set[str]:
    """Return the options in the first cells of the tables in a section."""
    cells = re.findall(r"^\| (`-.*?) \|", SECTIONS[section], re.MULTILINE)
    return set(re.findall(r"`(--?[a-z-]+)", " ".join(cells)))


def documented_fields(verb: str) -> list[str]:
    """Return the fields in the first cells of the table of fields of a verb, in order."""
    _, _, table = SECTIONS[verb].partition("| field | meaning |")
    return re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)


@pytest.fixture
def printed(path: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Return a function that returns the JSON which a verb prints."""

    def printed(*args: str) -> Any:
        program.main(["--db", path, *args, "--json"])
        return json.loads(capsys.readouterr().out)

    return printed


def test_docs_have_one_section_for_each_verb() -> None:
    """In the order of --help."""
    assert list(COMMANDS) == re.findall(r"^### `(\w+)`", DOCS, re.MULTILINE)


@pytest.mark.parametrize("verb", COMMANDS)
def test_docs_have_exactly_the_options_of_each_verb(verb: str) -> None:
    """Options that verbs share are documented once, others in the section of their verb."""
    common = documented_options("Options that verbs share")
    if verb in {"browse", "export", "metrics", "demo", "completion", "serve"}:  # no objects
        common -= {"--json", "--output", "-o", "--no-headers", "--no-trunc"}
    if verb in {"salvage", "demo", "completion"}:  # their arguments name registries, or none
        common -= {"--db"}
    if verb == "fleet":  # its verbs are documented in docs/fleet.md
        common &= {"-h", "--help"}
    parameters = COMMANDS[verb].get_params(click.Context(COMMANDS[verb], parent=CONTEXT))
    options = {option for each in parameters for option in each.opts if option[0] == "-"}
    assert options == documented_options(verb) | common
    assert set() == documented_options(verb) & common


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_and_option_has_help(verb: str) -> None:
    """Arguments have one too."""
    assert COMMANDS[verb].help
    assert all(getattr(each, "help", None) for each in COMMANDS[verb].params)


def test_fields_of_list_are_as_documented(printed: Callable[..., Any]) -> None:
    """In the same order."""
    assert documented_fields("list") == list(printed("list")[0])


def test_fields_of_inspect_are_as_documented(printed: Callable[..., Any]) -> None:
    """The fields of list come first."""
    expected = documented_fields("list") + documented_fields("inspect")
    assert expected == list(printed("inspect", WEB))


@pytest.mark.parametrize("command", ["why 3f", "who", "upgrade"])
def test_fields_of_one_object_are_as_documented(printed: Callable[..., Any], command: str) -> None:
    """In the same order; those of nested objects are in the JSON schema."""
    assert documented_fields(command.partition(" ")[0]) == list(printed(*command.split()))


def test_fields_of_history_are_as_documented(printed: Callable[..., Any]) -> None:
    """In the same order."""
    assert documented_fields("history") == list(printed("history")[0])


def test_fields_of_reconcile_are_as_documented(printed: Callable[..., Any]) -> None:
    """Fields of nested objects are documented too."""
    found = printed("reconcile")
    expected = []
    for name, value in found.items():
        expected.append(name)
        if name == "findings":
            expected += [f"findings[].{field}" for field in value[0]]
        elif name == "counts":
            expected += [f"counts.{verdict}" for verdict in value]
    assert expected == documented_fields("reconcile")


def test_fields_of_check_are_as_documented(path: str, printed: Callable[..., Any]) -> None:
    """A violation is made by hand."""
    execute(path, "DROP VIEW why_not_ready")
    assert documented_fields("check") == list(printed("check")[0])


def test_fields_of_delete_are_as_documented(printed: Callable[..., Any]) -> None:
    """They do not depend on whether there was a sandbox."""
    for _ in range(2):
        assert documented_fields("delete") == list(printed("delete", WEB))


def test_fields_of_salvage_are_as_documented(
    path: str, tmp_path: Path, printed: Callable[..., Any]
) -> None:
    """The registry has lost the status of one sandbox."""
    tamper(path, f"DELETE FROM sandbox_statuses WHERE sandbox_id = '{WEB}'")
    found = printed("salvage", path, str(tmp_path / "new.db"))
    expected = []
    for name, value in found.items():
        expected.append(name)
        if name == "losses":
            expected += [f"losses[].{field}" for field in value[0]]
    assert expected == documented_fields("salvage")


def test_fields_of_backup_and_restore_are_as_documented(
    tmp_path: Path, printed: Callable[..., Any]
) -> None:
    """In the same order."""
    copy = str(tmp_path / "copy.db")
    assert documented_fields("backup") == list(printed("backup", copy))
    assert documented_fields("restore") == list(printed("restore", copy))


def test_fields_of_import_are_as_documented(tmp_path: Path, printed: Callable[..., Any]) -> None:
    """Fields of nested objects are documented too."""
    (tmp_path / "a.json").write_text("{}")
    found = printed("import", str(tmp_path / "a.json"))
    expected = [f"sandboxes[].{field}" for field in found["sandboxes"][0]]
    expected = ["sandboxes", *expected, *list(found)[1:]]
    assert expected == documented_fields("import")


def as_shown(text: str) -> str:
    """Return *text* with the times that the documents have."""

    def moved(found: re.Match[str]) -> str:
        if found[0].isdigit():
            return str(int(found[0]) - CREATED + SHOWN)
        moment = datetime.fromisoformat(found[1] + "Z") - timedelta(
            microseconds=(CREATED - SHOWN) // 1000
        )
        return f"{moment:%Y-%m-%dT%H:%M:%S}{found[2]}"

    def moved_of_year(found: re.Match[str]) -> str:
        """Return a time without its year, which it has only if that is not the present one."""
        year = found[1] or f"{datetime.fromtimestamp(CREATED // 10**9, UTC):%Y-}"
        moment = datetime.fromisoformat(f"{year}{found[2]}Z")
        return f"{moment - timedelta(microseconds=(CREATED - SHOWN) // 1000):%m-%dT%H:%M:%S}Z"

    text = re.sub(WRITER, "no process 812 runs here now", text)  # it may have the pid by chance
    text = re.sub(r"(?m)^(SEQ  TIME) {10,}(?=ID)", rf"\1{' ' * 13}", text)
    text = re.sub(r"(\d{4}-)?\b(\d\d-\d\dT\d\d:\d\d:\d\d)Z", moved_of_year, text)
    return re.sub(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{9}Z)|\b\d{19}\b", moved, text)


def test_exit_codes_are_as_documented() -> None:
    """The codes of the program, and 130 of Ctrl-C."""
    codes = [
        failures.FINE,
        failures.FOUND,
        failures.USAGE,
        failures.UNAVAILABLE,
        failures.INTERRUPTED,
        failures.CLOSED_PIPE,
    ]
    text = " ".join(re.findall(r"^\| ([\d, ]+) \|", SECTIONS["Exit codes"], re.MULTILINE))
    assert codes == [int(code) for code in re.findall(r"\d+", text)]


def test_examples_print_the_documented_output(path: str, tmp_path: Path) -> None:
    """All of them are run, in order, on one registry."""
    program = tmp_path / "bin" / "sandbox-registry"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m registry "$@"\n')
    program.chmod(0o755)
    places = {"PATH": f"{program.parent}:{os.environ['PATH']}", "SANDBOX_REGISTRY_DB": path}
    shown = []
    for example in EXAMPLES:
        lines = []
        for command in re.findall(r"^\$ (.*)$", example, re.MULTILINE):
            done = subprocess.run(
                command,
                shell=True,
                cwd=tmp_path,
                env=environment() | places,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            lines.append(f"$ {command}\n{as_shown(done.stdout)}")
        shown.append("".join(lines))
    assert EXAMPLES == shown
