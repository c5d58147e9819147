"""Completion in bash, zsh and fish: the scripts are read by real shells, and asked as TAB asks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from registry import State, Status, Store
from registry.cli import complete, program
from tests import needs
from tests.cli.program import clean
from tests.cli.terminals import terminal
from tests.integration.test_usage import BYPASSING
from tests.tools import READY, line, pod, query, running, sandbox

IDS = ["77b0d2e5", "7f2a9c41"]
BASH = """
source <("$0" completion bash)
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_sandbox_registry_completion sandbox-registry
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = 'sandbox-registry completion fish | source; complete --do-complete "$argv"'
Ask = Callable[..., list[str]]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a registry of two pods; a shell would expand the name of one sandbox."""
    path = str(tmp_path / "registry.db")
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox(IDS[0], name="web_shop", config=pod("web", "shop")), READY)
        evicted = Status(State.NOTREADY, reason="Evicted")
        store.add(sandbox(IDS[1], name="$(touch x)", config=pod("db", "store")), evicted)
    return path


@pytest.fixture
def programs(tmp_path: Path) -> str:
    """Return the PATH of a shell in which the program is installed."""
    program = tmp_path / "bin" / "sandbox-registry"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m registry "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


@pytest.fixture
def bash(path: str, programs: str) -> Ask:
    """Return a function that returns what bash offers for the words of a command."""

    def ask(*words: str, db: str = path) -> list[str]:
        done = subprocess.run(
            ["bash", "--norc", "-c", BASH, "sandbox-registry", "sandbox-registry", *words],
            env=clean(PATH=programs, SANDBOX_REGISTRY_DB=db),
            capture_output=True,
            text=True,
            check=True,
        )
        assert "" == done.stderr
        return [word.strip() for word in done.stdout.splitlines() if word.strip()]

    return ask


def test_bash_completes_verbs_and_options(bash: Ask) -> None:
    """Of the program, and of a verb."""
    assert {"why", "who", "watch"} == set(bash("w"))
    assert {"list", "inspect", "why", "sql", "completion"} <= set(bash(""))
    assert ["--db"] == bash("--d")
    assert ["--after"] == bash("watch", "--a")


def test_bash_completes_ids_names_and_pods_of_the_registry(bash: Ask) -> None:
    """The registry is that of the environment."""
    assert IDS == bash("why", "7")
    assert ["web_shop", "web"] == bash("why", "we")
    assert [*IDS, "web_shop", "db", "web"] == bash("inspect", "")


def test_bash_completes_from_the_registry_that_the_command_names(
    bash: Ask, path: str, tmp_path: Path
) -> None:
    """Before the verb, and after it."""
    missing = str(tmp_path / "none.db")
    assert IDS == bash("--db", path, "why", "7", db=missing)
    assert IDS == bash("why", "--db", path, "7", db=missing)


def test_completion_is_silent_where_there_is_no_registry(bash: Ask, tmp_path: Path) -> None:
    """A missing file, and one that is no database; no file is made."""
    other = tmp_path / "text"
    other.write_text("no database, but longer than the header of one would be" * 9)
    assert [] == bash("why", "7", db=str(tmp_path / "none.db"))
    assert [] == bash("why", "7", db=str(other))
    assert not (tmp_path / "none.db").exists()


def test_completion_does_not_wait_for_a_writer(bash: Ask, path: str) -> None:
    """A client that bypasses the process lock has the write lock."""
    with running(BYPASSING, path) as shell:
        assert "inside" == line(shell)
        assert IDS == bash("why", "7")


def test_values_that_a_shell_would_expand_are_not_offered(bash: Ask, path: str) -> None:
    """The name `$(touch x)` is not."""
    assert [] == bash("why", "$")


def test_bash_completes_the_pods_of_a_namespace(bash: Ask) -> None:
    """Once a text is typed: before, each pod is offered by its name alone."""
    assert ["shop/web"] == bash("why", "shop/")
    assert ["store/db"] == bash("inspect", "st")
    assert ["shop/web"] == bash("history", "shop/w")


def test_why_and_history_complete_deleted_sandboxes(bash: Ask, path: str) -> None:
    """The other verbs would not find them; a damaged table hides no history."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("7gone"), READY).delete()
    for verb in ("why", "history"):
        assert [*IDS, "7gone"] == bash(verb, "7")
    assert IDS == bash("inspect", "7")
    ((page,),) = query(path, "SELECT rootpage FROM sqlite_schema WHERE name = 'sandboxes'")
    with open(path, "r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    assert "7gone" in bash("why", "7")


FILE_PLACES = [
    *("--db", "list --db", "restore", "backup", "salvage", "salvage old.db", "import"),
    *("import --status", "export --status", "metrics --output-file"),
]


@pytest.mark.parametrize("before", FILE_PLACES)
def test_a_shell_is_asked_to_complete_files(
    before: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each place that names a file."""
    words = f"sandbox-registry {before} my"
    monkeypatch.setenv(complete.VARIABLE, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words.replace(" ", "\n"))
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert 0 == program.main([])
    assert "file,my\n" == capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", pytest.param("zsh", marks=needs.program("zsh"))])
def test_bash_and_zsh_complete_files(shell: str, programs: str, tmp_path: Path) -> None:
    """The user types the beginning of a path and presses TAB, on a real terminal."""
    (tmp_path / "my-backup.db").touch()
    rc = f'eval "$(sandbox-registry completion {shell})"\nPS1="ready> "\n'
    (tmp_path / ".zshrc").write_text(
        f'autoload -Uz compinit && compinit -u -d "$ZDOTDIR/dump"\n{rc}'
    )
    (tmp_path / "bashrc").write_text(rc)
    options = ["--rcfile", str(tmp_path / "bashrc")] if shell == "bash" else []
    environment = clean(PATH=programs, ZDOTDIR=str(tmp_path), TERM="dumb")
    with terminal([shell, *options, "-i"], environment, columns=500) as running_shell:
        shown = running_shell.expect("ready> ")
        running_shell.press(f"sandbox-registry restore {tmp_path}/my-\t")
        running_shell.expect("my-backup.db", shown)


@needs.program("fish")
def test_fish_completes_files(programs: str, tmp_path: Path) -> None:
    """By its own command."""
    (tmp_path / "my-backup.db").touch()
    done = subprocess.run(
        ["fish", "--no-config", "-c", FISH, f"sandbox-registry restore {tmp_path}/my-"],
        env=clean(PATH=programs, HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{tmp_path}/my-backup.db" in [x.split("\t")[0] for x in done.stdout.splitlines()]


def test_at_most_some_values_are_offered(bash: Ask, path: str) -> None:
    """Of 300 ids, which a terminal would not show either."""
    with Store.open(path, reconcile=False) as store, store.transaction():
        for number in range(300):
            store.add(sandbox(f"x{number:03}"), READY)
    assert complete.LIMIT == len(bash("why", "x"))


@needs.program("zsh")
def test_zsh_completes_ids(path: str, programs: str, tmp_path: Path) -> None:
    """The user types the beginning of one and presses TAB, on a real terminal."""
    (tmp_path / ".zshrc").write_text(
        'autoload -Uz compinit && compinit -u -d "$ZDOTDIR/dump"\n'
        'eval "$(sandbox-registry completion zsh)"\nPROMPT="ready> "\n'
    )
    environment = clean(PATH=programs, SANDBOX_REGISTRY_DB=path, ZDOTDIR=str(tmp_path), TERM="dumb")
    with terminal(["zsh", "-i"], environment) as shell:
        shown = shell.expect("ready> ")
        shell.press("sandbox-registry why 77\t")
        shell.expect(IDS[0], shown)


@needs.program("fish")
def test_fish_completes_ids(path: str, programs: str, tmp_path: Path) -> None:
    """By its own command, which runs the completions for a command line."""
    done = subprocess.run(
        ["fish", "--no-config", "-c", FISH, "sandbox-registry why 7"],
        env=clean(PATH=programs, SANDBOX_REGISTRY_DB=path, HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert IDS == [each.split("\t")[0] for each in done.stdout.splitlines()]
