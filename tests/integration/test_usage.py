"""Use of a registry by other processes, as /proc shows it; each of them holds real locks."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from registry import Store
from registry.engine import driver, usage
from registry.engine.disk_reserve import SIZES
from registry.host.file_locks import locks_on
from registry.host.file_users import Program
from tests import needs
from tests.integration.test_stopped import stopped
from tests.tools import (
    READY,
    environment,
    is_recent,
    line,
    python,
    run,
    running,
    sandbox,
    say,
    small_file_system,
    until,
)

WRITER = """
    import sys
    from registry import Store
    with Store.open(sys.argv[1], reconcile=False) as store:
        print("up", flush=True)
        sys.stdin.readline()
        with store.transaction():
            store.get("a").status.update(lambda old: old)
            print("inside", flush=True)
            sys.stdin.readline()
    """
"""Process that opens a registry, and at a line of its stdin writes until the next line."""
BYPASSING = """
    import sqlite3, sys
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    print("inside", flush=True)
    sys.stdin.readline()
    """
READER = """
    import sqlite3, sys
    connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, isolation_level=None)
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM sandboxes").fetchone()
    print("inside", flush=True)
    sys.stdin.readline()
    """


@pytest.fixture
def path(path: str) -> str:
    """Return a registry of one sandbox, which no process has open."""
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
    return path


def pids(programs: tuple[Program, ...]) -> list[int]:
    """Return the pids of *programs*."""
    return [program.pid for program in programs]


def test_a_registry_that_no_process_uses_has_no_writer_and_no_users(path: str) -> None:
    """The disk reserve is allocated, and the WAL was removed by the last close."""
    found = usage.read(path)
    assert (None, (), None, ()) == (found.writer, found.queue, found.opener, found.keepers)
    assert () == found.users
    assert {suffix: (size, size) for suffix, size in SIZES.items()} == found.reserve
    assert (0, False) == (found.wal_bytes, found.wal_is_long)


def test_the_writer_is_shown_with_the_time_and_those_behind_it_as_its_queue(path: str) -> None:
    """The queue has the processes in the order in which they wait."""
    before = time.time_ns()
    with running(WRITER, path) as writer, running(WRITER, path) as other:
        for process in (writer, other):
            assert "up" == line(process)
        say(writer)
        assert "inside" == line(writer)
        say(other)
        until(lambda: usage.read(path).queue)
        found = usage.read(path)
        assert found.writer is not None
        assert (writer.pid, True) == (found.writer.program.pid, found.writer.queues)
        assert before <= found.writer.since or not is_recent(before)
        assert [other.pid] == pids(found.queue)
        assert {writer.pid, other.pid} == {user.program.pid for user in found.users}
        assert {"write"} == {user.access for user in found.users}


def test_a_stopped_writer_is_shown_as_stopped(path: str) -> None:
    """The read does not wait for it."""
    with running(WRITER, path) as writer:
        assert "up" == line(writer)
        say(writer)
        assert "inside" == line(writer)
        with stopped(writer.pid):
            found = usage.read(path).writer
            assert found is not None
            assert (writer.pid, True) == (found.program.pid, found.program.stopped)
            name = Path(f"/proc/{writer.pid}/comm").read_text(encoding="utf-8").strip()
            assert name == found.program.name
            assert found.program.command.startswith(sys.executable)


def test_a_writer_that_bypasses_the_queue_is_shown_as_such(path: str) -> None:
    """Like a sqlite3 shell, it has locked a byte of the WAL index alone."""
    with running(BYPASSING, path) as shell:
        assert "inside" == line(shell)
        found = usage.read(path).writer
        assert found is not None
        assert (shell.pid, 0, False) == (found.program.pid, found.since, found.queues)


def test_a_reader_is_shown_with_its_snapshot(path: str) -> None:
    """It has the database open to read; its snapshot keeps the WAL from being reset."""
    with running(WRITER, path) as writer, running(READER, path) as reader:
        assert "up" == line(writer)
        assert "inside" == line(reader)
        found = usage.read(path)
        assert [reader.pid] == pids(found.keepers)
        assert {(writer.pid, "write"), (reader.pid, "read")} == {
            (user.program.pid, user.access) for user in found.users
        }


@needs.namespaces
def test_a_lock_on_another_file_system_is_no_lock_of_the_file_with_the_same_inode(
    tmp_path: Path,
) -> None:
    """Two new file systems of memory number their files alike."""
    with (
        small_file_system(str(tmp_path / "a"), 1) as ours,
        small_file_system(str(tmp_path / "b"), 1) as others,
    ):
        files: dict[int, list[str]] = {}
        for folder in (ours, others):
            for number in range(100):
                file = Path(folder, f"{number}.db-lock")
                file.touch()
                files.setdefault(file.stat().st_ino, []).append(str(file))
        path, other = next(pair for pair in files.values() if len(pair) == 2)
        with open(other, "rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert [os.getpid()] == [lock.pid for lock in locks_on(other)]
            assert [] == list(locks_on(path))
            assert usage.read(path.removesuffix("-lock")).writer is None


def test_the_length_of_the_wal_is_that_of_the_file(path: str) -> None:
    """It is long once it has passed the bound."""
    Path(f"{path}-wal").write_bytes(b"")
    os.truncate(f"{path}-wal", driver.WAL_MAX + 1)
    found = usage.read(path)
    assert (driver.WAL_MAX + 1, True) == (found.wal_bytes, found.wal_is_long)
    os.unlink(f"{path}-wal")


def test_a_damaged_database_is_not_opened(path: str) -> None:
    """The processes are shown all the same."""
    with running(WRITER, path) as writer:
        assert "up" == line(writer)
        with open(path, "r+b") as file:
            file.write(b"no database at all")
        assert [writer.pid] == [user.program.pid for user in usage.read(path).users]


@needs.another_user
def test_processes_whose_files_may_not_be_seen_are_counted(path: str) -> None:
    """The writer belongs to root, and the caller to another user; locks are seen all the same."""
    code = """
        import encodings.ascii, os, sys
        from registry.engine import usage
        os.setresuid(65534, 65534, 65534)
        found = usage.read(sys.argv[1])
        print(bool(found.hidden), [user.program.pid for user in found.users])
        print(found.writer.program.pid)
        """
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        os.rename(path, f"{folder}/registry.db")
        with running(WRITER, f"{folder}/registry.db") as writer:
            assert "up" == line(writer)
            say(writer)
            assert "inside" == line(writer)
            assert ["True []", str(writer.pid)] == run(code, f"{folder}/registry.db").splitlines()


@needs.namespaces
def test_a_writer_of_another_pid_namespace_is_shown_without_a_pid(path: str) -> None:
    """The time of its lock is known."""
    code = """
        import sys
        from registry.engine import usage
        found = usage.read(sys.argv[1]).writer
        print(found.program.pid, found.since > 0)
        """
    with running(WRITER, path) as writer:
        assert "up" == line(writer)
        say(writer)
        assert "inside" == line(writer)
        done = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", *python(code, path)],
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
    assert "0 True\n" == done.stdout
