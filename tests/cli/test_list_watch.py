"""The verb `list --watch`: lines in a pipe, and a screen that is drawn again on a terminal."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from registry import Store
from tests.cli.program import clean, real, shell
from tests.cli.terminals import terminal
from tests.others import another, ready, tell
from tests.tools import READY, execute, sandbox


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a registry of one sandbox."""
    path = str(tmp_path / "registry.db")
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("a1"), READY)
    return path


@contextmanager
def listing(path: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Run `list -w` in a pipe during the block, and end it by SIGINT: the exit code is 130."""
    process = subprocess.Popen(
        real("--db", path, "list", "-w", *args), stdout=subprocess.PIPE, env=clean(), text=True
    )
    try:
        yield process
        process.send_signal(signal.SIGINT)
        assert 130 == process.wait()
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def next_line(process: subprocess.Popen[str]) -> str:
    """Return the next line that the verb writes."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def test_a_pipe_gets_the_list_and_then_a_line_for_each_change(path: str) -> None:
    """As `kubectl get -w`; a deleted sandbox has the state DELETED."""
    with another(path) as other, listing(path) as process:
        ready(other)
        assert ["ID", "STATE"] == next_line(process).split()[:2]
        assert ["a1", "READY"] == next_line(process).split()[:2]
        for command, id, state in (
            ("add b2", "b2", "READY"),
            ("stop a1", "a1", "NOTREADY"),
            ("delete b2", "b2", "DELETED"),
        ):
            tell(other, command)
            assert [id, state] == next_line(process).split()[:2]


def test_a_change_that_is_no_transition_is_listed_too(path: str) -> None:
    """The reason of a sandbox is changed, and its state is not."""
    with listing(path, "-o", "custom-columns=ID:id,REASON:reason", "--no-headers") as process:
        assert ["a1", "-"] == next_line(process).split()
        execute(path, "UPDATE sandbox_statuses SET reason = 'Odd'")
        assert ["a1", "Odd"] == next_line(process).split()


def test_filters_hold_for_changes_too(path: str) -> None:
    """A sandbox that no longer matches is listed once more."""
    with another(path) as other, listing(path, "-s", "ready", "--no-headers") as process:
        ready(other)
        assert ["a1", "READY"] == next_line(process).split()[:2]
        tell(other, "stop a1")
        assert ["a1", "DELETED"] == next_line(process).split()[:2]


def test_the_list_is_sorted_and_limited_as_without_watch(path: str) -> None:
    """Later changes follow in the order in which they are read."""
    with Store.open(path, reconcile=False) as store:
        for id in ("c3", "b2"):
            store.add(sandbox(id), READY)
    with listing(path, "--sort", "-id", "-n", "2", "-q") as process:
        assert ["c3", "b2"] == [next_line(process) for _ in range(2)]


def test_objects_are_written_one_on_each_line(path: str) -> None:
    """With -o jsonl; each is a whole object of the list."""
    with another(path) as other, listing(path, "-o", "jsonl") as process:
        ready(other)
        assert "SANDBOX_READY" == json.loads(next_line(process))["state"]
        tell(other, "stop a1")
        assert "SANDBOX_NOTREADY" == json.loads(next_line(process))["state"]


def test_an_idle_list_ends_when_its_reader_has_ended(path: str) -> None:
    """The exit code is 141."""
    done = shell(f'"$@" --db {path} list -w | head -1 >/dev/null; echo ${{PIPESTATUS[0]}}')
    assert ("141\n", "") == (done.out, done.err)


def test_a_terminal_is_drawn_again_and_restored_at_the_end(path: str) -> None:
    """The list is on the alternate screen; Ctrl-C shows what was there before."""
    with another(path) as other:
        ready(other)
        command = real("--db", path, "list", "--watch")
        with terminal(command, clean(TERM="xterm"), columns=80) as screen:
            place = screen.expect("a1")
            assert "\x1b[?1049h" in screen.text
            tell(other, "add b2")
            place = screen.expect("b2", place)
            tell(other, "stop a1")
            screen.expect("NOTREADY", place)
            screen.press("\x03")
            assert 130 == screen.wait()
            assert "\x1b[?1049l" in screen.text
            assert "Traceback" not in screen.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_a_signal_restores_the_terminal_too(path: str, number: signal.Signals) -> None:
    """The alternate screen is left, and the cursor is shown."""
    with terminal(real("--db", path, "list", "-w"), clean(TERM="xterm")) as screen:
        screen.expect("a1")
        screen.process.send_signal(number)
        assert 128 + number == screen.wait()
        screen.expect("\x1b[?1049l")
        screen.expect("\x1b[?25h")
        assert "Traceback" not in screen.text
