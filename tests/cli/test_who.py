"""The verb `who`, on registries that other processes use."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path

import pytest

from registry import Store
from registry.cli.verbs.who import _pids
from registry.engine import driver
from tests import needs
from tests.cli.program import Call, Done
from tests.integration.test_deadline import RECOVERY
from tests.integration.test_stopped import stopped
from tests.integration.test_usage import BYPASSING, READER, WRITER
from tests.tools import READY, line, make_old_registry, run, running, sandbox, say, until

FIELDS = [
    *("path", "registry_id", "incarnation", "level"),
    *("writer", "queue", "opener", "keepers", "processes", "hidden"),
    *("wal_bytes", "wal_bound", "reserve_bytes", "reserve_bound"),
]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a registry of one sandbox."""
    path = str(tmp_path / "registry.db")
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
    return path


def test_verb_who_shows_a_registry_that_no_process_uses(call: Call, path: str) -> None:
    """The lock is free, the disk reserve is allocated."""
    code, out, err = call("who")
    assert (0, "") == (code, err)
    assert f"registry      {path}\n" in out
    assert ", incarnation 1\nschema        level " in out
    assert "write lock    free\nqueue         no process waits\n" in out
    assert "disk reserve  allocated (393216 bytes)\n" in out
    assert out.endswith("No other process is seen to have it open.\n")


def test_verb_who_names_the_writer_and_its_queue(call: Call, path: str) -> None:
    """Both are in the table of processes, with what they do."""
    with running(WRITER, path) as writer, running(WRITER, path) as other:
        for process in (writer, other):
            assert "up" == line(process)
        say(writer)
        assert "inside" == line(writer)
        say(other)
        until(lambda: json.loads(call("who", "--json").out)["queue"])
        code, out, err = call("who")
        assert (0, "") == (code, err)
        assert f"write lock    held by process {writer.pid} (" in out
        assert f"queue         process {other.pid} (" in out
        rows = {each.split()[0]: each for each in out.splitlines() if each[:1].isdigit()}
        assert {str(writer.pid), str(other.pid)} == rows.keys()
        assert "write   writes  " in rows[str(writer.pid)]
        assert "write   waits to write  " in rows[str(other.pid)]


def test_verb_who_works_beside_a_stopped_writer(call: Call, path: str) -> None:
    """It says that the process is stopped; the registry is read all the same."""
    with running(WRITER, path) as writer:
        assert "up" == line(writer)
        say(writer)
        assert "inside" == line(writer)
        with stopped(writer.pid):
            code, out, err = call("who")
            assert (0, "") == (code, err)
            assert f"write lock    held by process {writer.pid} (" in out
            assert ", stopped) for " in out
            assert "writes, is stopped" in out
            found = json.loads(call("who", "--json").out)
            assert (writer.pid, True) == (found["writer"]["pid"], found["writer"]["stopped"])


def test_verb_who_tells_a_shell_from_a_program_that_queues(call: Call, path: str) -> None:
    """When it has locked the registry is not known."""
    with running(BYPASSING, path) as shell:
        assert "inside" == line(shell)
        out = call("who").out
        assert f"held by process {shell.pid} (" in out
        assert (
            ", which bypasses the process lock (a sqlite3 shell, say), since an unknown time; "
            in out
        )
        assert "; end its transaction, or that process\n" in out
        writer = json.loads(call("who", "--json").out)["writer"]
        assert (None, False) == (writer["since"], writer["queues"])


def test_verb_who_names_the_reader_that_keeps_the_wal(call: Call, path: str) -> None:
    """Past the bound it says what to do."""
    with running(WRITER, path) as writer, running(READER, path) as reader:
        assert "up" == line(writer)
        assert "inside" == line(reader)
        out = call("who").out
        assert f"; kept by the snapshot of process {reader.pid} (" in out
        assert "read    keeps a snapshot" in out
        assert [reader.pid] == [
            each["pid"] for each in json.loads(call("who", "--json").out)["keepers"]
        ]
        with open(f"{path}-wal", "r+b") as wal:
            wal.truncate(driver.WAL_MAX + 1)
        assert "; end the read transaction there\n" in call("who").out


def test_verb_who_names_the_process_for_which_readers_wait(call: Call, path: str) -> None:
    """It recovers the WAL and is stopped meanwhile; the registry itself cannot be read then."""
    with Store.open(path, reconcile=False), running(RECOVERY, path) as process:
        assert "held" == line(process)
        with stopped(process.pid):
            code, out, err = call("who")
            assert 3 == code
            assert f"readers       wait for process {process.pid} (" in out
            assert ", stopped), which opens, recovers or closes it\n" in out
            assert f"waiting for process {process.pid} (" in err
            opener = json.loads(call("who", "--json").out)["opener"]
            assert (process.pid, True) == (opener["pid"], opener["stopped"])
        say(process)
        assert "released" == line(process)


def test_verb_who_shows_the_processes_of_a_damaged_registry(call: Call, path: str) -> None:
    """Stderr has the damage, and the exit code is 3."""
    with running(WRITER, path) as writer:
        assert "up" == line(writer)
        with open(path, "r+b") as file:
            file.write(b"no database at all")
        code, out, err = call("who")
        assert 3 == code
        assert err.startswith("sandbox-registry: error: open registry ")
        assert f"\n{writer.pid}  " in out
        assert "id            -\nschema        -\n" in out


def test_verb_who_shows_the_processes_of_an_older_registry(main: Call, path: str) -> None:
    """The error says how to bring it up to date."""
    old = f"{path}-old"
    make_old_registry(old)
    code, out, err = main("--db", old, "who")
    assert 3 == code
    assert "write lock    free\n" in out
    assert "`sandbox-registry upgrade` brings it up to date" in err


def test_verb_who_shows_that_the_disk_reserve_is_used(call: Call, path: str) -> None:
    """Its files are missing on a full disk, and beside a copy that was not opened for writing."""
    os.unlink(f"{path}-reserve")
    shown = "disk reserve  131072 of 393216 bytes are allocated; its disk has "
    assert shown in call("who").out
    os.unlink(f"{path}-spare")
    assert "disk reserve  0 of 393216 bytes are allocated; " in call("who").out


def test_verb_who_reports_a_missing_registry(main: Call, tmp_path: Path) -> None:
    """Nothing is made there."""
    done = main("--db", str(tmp_path / "none.db"), "who")
    assert Done(3, "", done.err) == done
    assert "there is no such file; is its disk mounted?" in done.err
    assert [] == list(tmp_path.iterdir())


def test_fields_of_who_are_those_of_the_contract(call: Call) -> None:
    """In this order."""
    assert FIELDS == list(json.loads(call("who", "--json").out))


@needs.another_user
def test_verb_who_names_the_processes_whose_files_are_not_seen() -> None:
    """The caller is another user; at most five are named."""
    code = """
        import encodings.ascii, os, sys
        from registry.cli import program
        command = ["--db", sys.argv[1], "who"]
        program.main(command)  # imports what the other user may not read
        os.setresuid(65534, 65534, 65534)
        program.main(command)
        """
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        with Store.open(f"{folder}/registry.db"):
            out = run(code, f"{folder}/registry.db")
    named = re.findall("\nnot seen +the open files of (.*), for want of permission\n", out)
    assert named, out
    assert re.fullmatch(r"processes \d+(, \d+){,4}( and \d+ more)?", named[-1])


def test_one_process_whose_files_are_not_seen_is_named_with_its_program() -> None:
    """It is the one process that the caller may not see."""
    assert f"process {os.getpid()} (" in _pids((os.getpid(),))
    assert "processes 1, 2, 3, 4, 5 and 1 more" == _pids((1, 2, 3, 4, 5, 6))
