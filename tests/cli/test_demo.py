"""The verb `demo`: what it makes, shows and removes."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from registry import Store
from tests.cli.program import clean, real, run
from tests.cli.terminals import terminal
from tests.tools import until

MINE = "sandbox-registry-demo-"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory for temporary files of the demo, and of it alone."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def sleeping(path: Path) -> list[str]:
    """Return the processes whose environment names the temporary directory *path*."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if f"TMPDIR={path}".encode() in environment.split(b"\0") and int(pid) != os.getpid():
            found.append(pid)
    return found


def test_the_demo_shows_its_commands_and_removes_what_it_made(folder: Path) -> None:
    """In a pipe it does not wait."""
    code, out, err = run("demo", TMPDIR=str(folder))
    assert (0, "") == (code, err)
    for command in ("list --all", "reconcile", "why cache-0", "who", "history"):
        assert f"\n$ sandbox-registry {command}\n" in out
    for reason in ("ProcessExited", "NetNSClosed", "CreationInterrupted", "OOMKilled"):
        assert reason in out
    assert "error" not in out
    assert out.endswith("The registry and its processes are removed again.\n")
    assert [] == list(folder.iterdir())
    assert [] == sleeping(folder)


def test_the_demo_breaks_no_word_on_a_terminal(folder: Path) -> None:
    """Its commands fit their tables to the terminal."""
    environment = clean(TMPDIR=str(folder), TERM="xterm", NO_COLOR="1")
    with terminal(real("demo"), environment, columns=80) as shell:
        shell.expect("Press Enter to remove")
        shell.press("\n")
        assert 0 == shell.wait()
    _, _, text = shell.text.partition("$ sandbox-registry reconcile")
    report, _, _ = text.partition("Which are not ready")
    assert "never-made-by-the-demo'" in report
    assert max(map(len, report.splitlines())) <= 80


def test_a_demo_that_is_kept_leaves_a_registry_to_try_commands_on(folder: Path) -> None:
    """Its processes end all the same; a second demo does not touch it."""
    kept = folder / "kept"
    code, out, _ = run("demo", "--keep", str(kept), TMPDIR=str(folder))
    assert 0 == code
    assert f"export SANDBOX_REGISTRY_DB={kept}/registry.db\n" in out
    assert [] == sleeping(folder)
    with Store.open(kept / "registry.db", read_only=True) as store:
        assert 5 == len(store.list(include_unknown=True))
        assert [] == store.check()
    code, _, err = run("demo", "--keep", str(kept), TMPDIR=str(folder))
    assert (3, True) == (code, "exists; name another directory" in err)


def test_the_proposed_commands_work_while_the_demo_waits(folder: Path) -> None:
    """On a terminal it waits for Enter."""
    with terminal(real("demo"), clean(TMPDIR=str(folder), TERM="dumb")) as shell:
        shell.expect("Press Enter to remove")
        _, _, text = shell.text.partition("  export SANDBOX_REGISTRY_DB=")
        path, *commands = text.splitlines()
        for command in filter(None, map(str.strip, commands)):
            if command.startswith("sandbox-registry "):
                shown = command.replace("sandbox-registry ", '"$@" ', 1)
                done = subprocess.run(
                    ["bash", "-c", shown, "bash", *real()],
                    env=clean(SANDBOX_REGISTRY_DB=path.strip()),
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert (0, "") == (done.returncode, done.stderr), command
        shell.press("\n")
        shell.expect("are removed again")
        assert 0 == shell.wait()
    assert [] == list(folder.iterdir())


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
def test_an_interrupted_demo_removes_what_it_made(
    folder: Path, number: signal.Signals, code: int
) -> None:
    """While it waits for Enter."""
    with terminal(real("demo"), clean(TMPDIR=str(folder), TERM="dumb")) as shell:
        shell.expect("Press Enter to remove")
        os.kill(shell.process.pid, number)
        assert code == shell.wait()
    assert [] == list(folder.iterdir())
    until(lambda: not sleeping(folder))


def test_the_processes_of_a_killed_demo_end(folder: Path) -> None:
    """Its temporary directory stays: nothing of it runs any more."""
    with terminal(real("demo"), clean(TMPDIR=str(folder), TERM="dumb")) as shell:
        shell.expect("Press Enter to remove")
        assert sleeping(folder)
        shell.process.kill()
        shell.wait()
        until(lambda: not sleeping(folder))


def test_a_demo_cannot_be_kept_where_a_file_is(folder: Path) -> None:
    """The error names the operation and the path."""
    (folder / "file").touch()
    code, _, err = run("demo", "--keep", str(folder / "file"), TMPDIR=str(folder))
    expected = f"keep the demo in '{folder}/file': File exists; name another directory"
    assert (3, True) == (code, expected in err), err
