"""The verb `watch`: transitions of other processes, in a pipe and on a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from registry import State, Store, restore
from tests.cli.program import Call, clean, real, shell
from tests.cli.terminals import terminal
from tests.others import another, ready, tell
from tests.tools import READY, UNKNOWN, fill_history, pod, sandbox, tamper


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a registry of one sandbox."""
    path = str(tmp_path / "registry.db")
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("a1"), READY)
    return path


@contextmanager
def watching(path: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Run the verb in a pipe during the block, and end it by SIGINT: the exit code is 130."""
    process = subprocess.Popen(
        real("--db", path, "watch", *args), stdout=subprocess.PIPE, env=clean(), text=True
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


def test_a_transition_is_written_when_another_process_commits_it(path: str) -> None:
    """Each line is there before the next transition is made."""
    with another(path) as other, watching(path) as process:
        ready(other)
        assert ["SEQ", "TIME", "ID", "FROM", "TO", "POD", "REASON"] == next_line(process).split()
        tell(other, "add b2")
        assert ["2", "b2", "-", "READY", "web", "-"] == [
            cell for cell in next_line(process).split() if not cell.endswith("Z")
        ]
        tell(other, "stop b2", "delete b2")
        assert ["b2", "READY", "NOTREADY"] == next_line(process).split()[2:5]
        assert ["b2", "NOTREADY", "-"] == next_line(process).split()[2:5]


def test_columns_stand_below_each_other(path: str) -> None:
    """The widths do not depend on transitions that come later, unless a cell is wider."""
    with another(path) as other, watching(path, "--after", "0") as process:
        ready(other)
        title, first = next_line(process), next_line(process)
        tell(other, "stop a1")
        second = next_line(process)
        for column, cells in (("TO", ("READY", "NOTREADY")), ("ID", ("a1", "a1"))):
            place = title.index(column)
            assert first[place:].startswith(cells[0])
            assert second[place:].startswith(cells[1])


def test_a_restore_is_explained_and_the_columns_stay_below_each_other(
    path: str, tmp_path: Path
) -> None:
    """The seq jumps to a number of ten digits, which makes its column wider from then on."""
    copy = str(tmp_path / "copy.db")
    with Store.open(path, reconcile=False) as store:
        store.backup(copy)
    restore(copy, path)
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("b2"), READY)
        store.add(sandbox("c3"), READY)
    done = shell(f'"$@" --db {path} watch --after 0 --no-headers | head -3')
    lines = done.out.splitlines()
    assert ["1", "1000000001", "1000000002"] == [each.split()[0] for each in lines]
    assert lines[1].index(" b2 ") == lines[2].index(" c3 ")
    assert "after a restore, the history goes on with seq 1000000001\n" == done.err


@pytest.mark.parametrize("verb", ["history", "watch --after 0"])
def test_transitions_fit_a_terminal_of_80_columns(tmp_path: Path, verb: str) -> None:
    """Names and reasons are cut, and times, numbers and states are whole."""
    path = str(tmp_path / "long.db")
    with Store.open(path, reconcile=False, clock=lambda: 7) as store:
        handle = store.add(sandbox("d" * 64, config=pod("pod-" + "x" * 59)), UNKNOWN)
        handle.status.update(lambda old: replace(old, state=State.READY))
        reason = "R" * 80
        handle.status.update(lambda old: replace(old, state=State.NOTREADY, reason=reason))
    with terminal(
        real("--db", path, *verb.split()), clean(TERM="xterm", PAGER="cat", NO_COLOR="1")
    ) as shown:
        for seq in ("3", "2", "1") if verb == "history" else ("1", "2", "3"):
            place = shown.expect(f"\n{seq} ")
        shown.expect("\n", after=place)
        text = shown.text
    lines = [each for each in text.splitlines() if "1970-" in each]
    assert lines
    for line in lines:
        assert len(line) <= 80
        assert "1970-01-01T00:00:00Z" in line
    assert "TIME" in text.splitlines()[0].split()


def test_history_and_watch_have_the_same_columns(call: Call, path: str) -> None:
    """In the same order, in both tables of theirs."""
    for form in ("table", "wide"):
        titles = call("history", "-o", form).out.splitlines()[0].split()
        done = shell(f'"$@" --db {path} watch --after 0 -o {form} | head -1')
        assert titles == done.out.split()


def test_a_watch_of_one_sandbox_leaves_out_the_others(path: str) -> None:
    """It is named by a prefix; with --after the transitions before are shown too."""
    with another(path) as other, watching(path, "a", "--after", "0", "--no-headers") as process:
        ready(other)
        tell(other, "add b2", "stop b2", "stop a1")
        assert "a1" == next_line(process).split()[2]
        assert ["a1", "READY", "NOTREADY"] == next_line(process).split()[2:5]


def test_a_wide_watch_has_exact_times_and_writers(path: str) -> None:
    """A table has times to the second, and ids of twelve characters unless --no-trunc is given."""
    with Store.open(path, reconcile=False, actor="shim[7]", clock=lambda: 7) as store:
        store.add(sandbox("c" * 20), READY)
    with watching(path, "--after", "1") as process:
        next_line(process)
        assert ["1970-01-01T00:00:00Z", "c" * 12] == next_line(process).split()[1:3]
    with watching(path, "--after", "1", "--no-trunc") as process:
        next_line(process)
        assert "c" * 20 in next_line(process)
    with watching(path, "--after", "1", "-o", "wide") as process:
        next_line(process)
        found = next_line(process)
        assert "1970-01-01T00:00:00.000000007Z  " + "c" * 20 in found
        assert " shim[7] " in found


@pytest.mark.parametrize("form", ["jsonl", "json", "yaml"])
def test_objects_are_written_one_after_the_other(path: str, form: str) -> None:
    """Of jsonl each takes a line; `jq` reads a stream of either kind of JSON."""
    with watching(path, "--after", "0", "-o", form) as process:
        assert process.stdout is not None
        text = next_line(process)
        if form == "json":
            while not text.endswith("\n}"):
                text += "\n" + next_line(process)
        if form == "yaml":
            assert "seq: 1" == text
        else:
            found = json.loads(text)
            assert (1, "a1", "SANDBOX_READY") == (
                found["seq"],
                found["sandbox_id"],
                found["to_state"],
            )


def test_a_watch_resumes_after_a_transition(path: str) -> None:
    """A seq that the history does not have any more is an error with exit code 1."""
    fill_history(path, 5)
    with watching(path, "--after", "4", "-o", "custom-columns=N:seq") as process:
        assert ["5", "6"] == [next_line(process).strip() for _ in range(2)]
    done = shell(f'"$@" --db {path} watch --after 99')
    assert (1, "") == (done.code, "".join(done.out.splitlines()[1:]))
    assert "the history after seq 99 is of another registry, or of a later backup" in done.err


def test_an_idle_watch_ends_when_its_reader_has_ended(path: str) -> None:
    """The exit code is 141, though no transition is written."""
    done = shell(f'set -o pipefail; "$@" --db {path} watch | head -1; echo ${{PIPESTATUS[0]}}')
    assert "141" == done.out.splitlines()[-1]
    assert "" == done.err


def test_ctrl_c_ends_a_watch_on_a_terminal(path: str) -> None:
    """No traceback is shown, and the exit code is 130."""
    with terminal(real("--db", path, "watch", "--after", "0"), clean(TERM="dumb")) as shell:
        shell.expect("a1")
        shell.press("\x03")
        assert 130 == shell.wait()
        assert "Traceback" not in shell.text


def test_a_damaged_transition_is_reported_and_the_watch_goes_on(path: str) -> None:
    """On stderr, with its seq, after the damage that SQLite finds."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("b2"), READY)
    tamper(path, "UPDATE sandbox_transitions SET to_state = 'SANDBOX_ODD' WHERE seq = 1")
    process = subprocess.Popen(
        real("--db", path, "watch", "--after", "0", "--no-headers"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean(),
        text=True,
    )
    with process:
        assert process.stderr is not None
        assert ["2", "b2"] == next_line(process).split()[:3:2]
        process.send_signal(signal.SIGINT)
        assert 130 == process.wait()
        assert "read transition 1 of sandbox 'a1'" in process.stderr.read()


def test_a_watch_of_an_unknown_sandbox_is_an_error(call: Call) -> None:
    """As `inspect` of it is."""
    code, out, err = call("watch", "zz")
    assert (1, "") == (code, out)
    assert "watch sandbox 'zz': there is no such sandbox" in err


def test_a_watch_writes_nothing_to_the_registry(path: str) -> None:
    """No lock file is made either."""
    for file in Path(path).parent.glob("*-lock"):
        file.unlink()
    with watching(path, "--after", "0") as process:
        next_line(process)
        next_line(process)
    assert not os.path.exists(f"{path}-lock")
