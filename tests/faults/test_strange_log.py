"""A log that does not belong to the database beside it is refused, and nothing is changed.

SQLite applies any valid log to any database: a backup that is copied over a registry whose process
was killed, or the log of another registry, gives a mixture of both, or the wrong registry.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from registry import DataLossError, State, Store
from registry.engine import continuity
from tests.tools import (
    READY,
    contents,
    environment,
    execute,
    ids,
    in_another_thread,
    line,
    running,
    sandbox,
    say,
)

ADD = "add('a', 40)"
CHANGES = ["CREATE TABLE theirs (a)", "DROP TABLE theirs"] * 20


class Programs:
    """Processes that each open a registry, use it, and are closed or killed.

    A process that has imported everything forks them, since an import takes most of their time.
    """

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server

    def close(self, path: str, code: str) -> None:
        """Run *code* on the registry at *path*, and close it."""
        self._run("close", path, code, expected=0)

    def kill(self, path: str, code: str) -> None:
        """Run *code* on the registry at *path*, and kill the process."""
        self._run("kill", path, code, expected=-signal.SIGKILL)

    def kill_shell(self, path: str, *statements: str) -> None:
        """Run SQL on a plain connection in a process that is killed."""
        self._run("shell", path, "\0".join(statements), expected=-signal.SIGKILL)

    def _run(self, how: str, path: str, code: str, expected: int) -> None:
        say(self._server, json.dumps([how, path, code]))
        assert f"ended {expected}" == line(self._server)


def serve() -> None:
    """Fork a process for each line: `[how, path, code]`."""
    while text := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            _do(*json.loads(text))
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(1, f"ended {status}\n".encode())


def _do(how: str, path: str, code: str) -> None:
    if how == "shell":
        shell = sqlite3.connect(path, isolation_level=None)
        for statement in code.split("\0"):
            shell.execute(statement)
        os.kill(os.getpid(), signal.SIGKILL)
    with Store.open(path, reconcile=False) as store:

        def add(prefix: str, *numbers: int) -> None:
            for n in range(*numbers):
                store.add(sandbox(f"{prefix}{n}"), READY)

        def end(state: State, *names: str) -> None:
            for name in names:
                store.get(name).status.update(lambda old: replace(old, state=state, message="end"))

        exec(code, {**globals(), **locals()})
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    """Return a runner of programs."""
    with running("from tests.faults.test_strange_log import serve; serve()") as server:
        yield Programs(server)


def remove_log(path: str) -> None:
    """Remove the log, as the error advises."""
    for name in ("-wal", "-shm"):
        if os.path.exists(path + name):
            os.unlink(path + name)


def backup(path: str, copy: str) -> None:
    """Copy the registry as the `.backup` of the shell does."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)


Make = Callable[[str, Programs], None]

# Each leaves a whole registry at the path, with a log that is not its own.


def log_of_another_registry(path: str, do: Programs) -> None:
    """Put a log there that holds every commit of another registry."""
    do.close(path, ADD)
    do.kill(f"{path}.other", "add('x', 30)")
    shutil.copy(f"{path}.other-wal", f"{path}-wal")


def later_log_of_another_registry(path: str, do: Programs) -> None:
    """Put a later log of another registry there, which does not hold its id."""
    do.close(path, ADD)
    do.close(f"{path}.other", "add('x', 40)")
    do.kill(f"{path}.other", "add('x', 40, 43)")
    shutil.copy(f"{path}.other-wal", f"{path}-wal")


def log_of_a_registry_of_one_sandbox(path: str, do: Programs) -> None:
    """Put a log there that replaces every page: SQLite finds no fault with the mixture."""
    do.close(path, "add('a', 1)")
    do.close(f"{path}.other", "add('x', 1)")
    do.kill(f"{path}.other", "store.delete('x0'); add('x', 1)")
    shutil.copy(f"{path}.other-wal", f"{path}-wal")


def older_log_of_one_session(path: str, do: Programs) -> None:
    """Put back a log from the middle of a session, whose later commits changed no state."""
    do.close(path, ADD)
    copy = "shutil.copy(f'{path}-wal', f'{path}.wal')"
    do.close(path, f"end(State.READY, 'a1'); {copy}; end(State.READY, 'a2', 'a1', 'a3')")
    shutil.copy(f"{path}.wal", f"{path}-wal")


def older_log_of_an_earlier_session(path: str, do: Programs) -> None:
    """Put back a log that an earlier session moved into the file."""
    do.kill(path, ADD)
    shutil.copy(f"{path}-wal", f"{path}.wal")
    do.close(path, "end(State.NOTREADY, 'a1', 'a2')")
    shutil.move(f"{path}.wal", f"{path}-wal")


def backup_over_a_killed_one(path: str, do: Programs) -> None:
    """Copy a backup over the registry with `cp`."""
    do.close(path, ADD)
    backup(path, f"{path}.copy")
    do.kill(path, "add('b', 60); end(State.NOTREADY, 'a1')")
    shutil.copyfile(f"{path}.copy", path)


def moved_backup_over_a_killed_one(path: str, do: Programs) -> None:
    """Move a backup of the same session over the registry with `mv`."""
    do.close(path, ADD)
    copy = "sqlite3.connect(path).backup(sqlite3.connect(f'{path}.copy'))"
    do.kill(path, f"end(State.NOTREADY, 'a1'); {copy}; add('b', 60)")
    os.rename(f"{path}.copy", path)


def backup_by_vacuum_over_a_killed_one(path: str, do: Programs) -> None:
    """Copy a backup by `VACUUM INTO` there: the same sandboxes, in other pages."""
    do.close(path, f"{ADD}; [store.delete(f'a{{n}}') for n in range(20, 30)]; add('a', 20, 30)")
    execute(path, f"VACUUM INTO '{path}.copy'")
    do.kill(path, "end(State.NOTREADY, 'a1')")
    shutil.copyfile(f"{path}.copy", path)


def closed_copy_over_a_killed_one(path: str, do: Programs) -> None:
    """Put back an old copy of the file; the commits before the log are in neither."""
    do.close(path, ADD)
    shutil.copyfile(path, f"{path}.copy")
    do.close(path, "end(State.NOTREADY, 'a1')")
    do.kill(path, "add('b', 3)")
    shutil.copyfile(f"{path}.copy", path)


def another_registry_over_a_killed_one(path: str, do: Programs) -> None:
    """Move the file of another registry there, without its log."""
    do.kill(path, "add('x', 30)")
    do.close(f"{path}.other", ADD)
    os.rename(f"{path}.other", path)


def log_of_another_kind_of_database(path: str, do: Programs) -> None:
    """Put the log of another database there, with pages of the same size."""
    do.close(path, ADD)
    do.kill_shell(f"{path}.other", "PRAGMA journal_mode = WAL", "CREATE TABLE t (a)")
    shutil.copy(f"{path}.other-wal", f"{path}-wal")


def log_of_a_database_of_other_pages(path: str, do: Programs) -> None:
    """Put the log of a database there whose pages have 1024 bytes."""
    do.close(path, ADD)
    words = ["page_size = 1024", "journal_mode = WAL", "user_version = 7"]
    do.kill_shell(f"{path}.other", *(f"PRAGMA {each}" for each in words), "CREATE TABLE t (a)")
    shutil.copy(f"{path}.other-wal", f"{path}-wal")


def log_without_numbers_of_another_registry(path: str, do: Programs) -> None:
    """Put a log there that a `sqlite3` shell wrote to another registry."""
    do.close(path, ADD)
    do.close(f"{path}.other", "add('x', 70)")
    do.kill_shell(f"{path}.other", "UPDATE sandbox_statuses SET message = hex(randomblob(300))")
    shutil.copy(f"{path}.other-wal", f"{path}-wal")


def log_of_all_pages_of_another_registry(path: str, do: Programs) -> None:
    """Put a log of all pages there, whose schema version is one greater, as after `.restore`."""
    do.close(path, ADD)
    do.close(f"{path}.other", "add('x', 70)")
    do.kill_shell(f"{path}.other", "VACUUM")
    shutil.copy(f"{path}.other-wal", f"{path}-wal")


STRANGE = [
    log_of_another_registry,
    later_log_of_another_registry,
    log_of_a_registry_of_one_sandbox,
    older_log_of_one_session,
    older_log_of_an_earlier_session,
    backup_over_a_killed_one,
    moved_backup_over_a_killed_one,
    backup_by_vacuum_over_a_killed_one,
    closed_copy_over_a_killed_one,
    another_registry_over_a_killed_one,
    log_of_another_kind_of_database,
    log_of_a_database_of_other_pages,
    log_without_numbers_of_another_registry,
    log_of_all_pages_of_another_registry,
]


@pytest.mark.parametrize("make", STRANGE, ids=lambda make: make.__name__)
def test_a_strange_log_is_refused_and_the_database_is_whole_without_it(
    path: str, programs: Programs, make: Make, tried: Callable[[str], None]
) -> None:
    """Each way of opening refuses it; no byte of the database or of the log changes."""
    make(path, programs)
    before = contents(os.path.dirname(path))
    for options in ({}, {"read_only": True}, {"create": False}, {"upgrade": False}):
        with pytest.raises(DataLossError, match="does not continue the database file") as caught:
            Store.open(path, **options)  # type: ignore[arg-type]
        assert path == caught.value.path
        assert f"{path}-wal" in str(caught.value)
        assert f"{path}-shm" in str(caught.value)
        after = contents(os.path.dirname(path))
        after.pop("registry.db-shm", None)
        assert {name: was for name, was in before.items() if name != "registry.db-shm"} == after
    remove_log(path)
    expected = {"a0"} if make is log_of_a_registry_of_one_sandbox else {f"a{n}" for n in range(40)}
    with Store.open(path) as store:
        assert (expected, []) == (set(ids(store.list())), store.check())
    tried(f"strange log, {make.__name__}: refused, nothing changed")


COMMANDS = [
    *("list", "inspect a1", "history", "check", "export", "delete a1"),
    *("reconcile", "reconcile --dry-run", "import {document}", "import --create {document}"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_strange_log_is_refused_by_every_command(
    path: str, programs: Programs, tmp_path: Path, command: str
) -> None:
    """The error is on stderr, with the exit code of a registry that cannot be opened."""
    backup_over_a_killed_one(path, programs)
    document = tmp_path / "document.json"
    document.write_bytes(sandbox("new").marshal_json())
    before = contents(str(tmp_path))
    words = command.format(document=document).split()
    done = subprocess.run(
        [sys.executable, "-m", "registry", "--db", path, *words],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (3, "") == (done.returncode, done.stdout)
    assert f"{path}-wal" in done.stderr
    after = contents(str(tmp_path))
    del before["registry.db-shm"], after["registry.db-shm"]  # an index, which SQLite makes again
    assert before == after


def test_a_refused_open_leaves_the_process_able_to_open_the_registry(
    path: str, programs: Programs
) -> None:
    """No connection to the strange log is left behind, in this thread or in another."""
    later_log_of_another_registry(path, programs)
    for _ in range(2):
        with pytest.raises(DataLossError):
            Store.open(path)
        with pytest.raises(DataLossError):
            in_another_thread(lambda: Store.open(path))
    remove_log(path)
    with Store.open(path) as store:
        assert 40 == len(store.list())
        store.add(sandbox("b"), store.get("a1").status.get())
    with Store.open(path, read_only=True) as reader:
        assert 41 == len(reader.list())


# Each leaves a registry of the sandboxes a0 to a39 whose log is its own.


def log_of_all(path: str, do: Programs) -> None:
    """Leave all commits in the log."""
    do.kill(path, ADD)


def log_of_the_last_session(path: str, do: Programs) -> None:
    """Leave the commits of the last session in the log."""
    do.close(path, "add('a', 20)")
    do.kill(path, "add('a', 20, 40)")


def log_that_was_moved_into_the_file(path: str, do: Programs) -> None:
    """Leave a log that a checkpoint has moved into the file."""
    checkpoint = "sqlite3.connect(path).execute('PRAGMA wal_checkpoint(PASSIVE)')"
    do.kill(path, f"{ADD}; {checkpoint}")


def log_that_was_moved_in_part(path: str, do: Programs) -> None:
    """Leave a partial checkpoint: the file is shorter than its first page says."""
    do.kill(path, ADD)
    for name in ("", "-wal"):
        shutil.copyfile(path + name, f"{path}.2{name}")
    checkpointed(f"{path}.2")
    with open(f"{path}.2", "rb") as whole, open(path, "r+b") as part:
        part.write(whole.read(3 * 4096))
    assert os.path.getsize(path) == 3 * 4096


def checkpointed(path: str) -> None:
    """Move the log into the file."""
    with closing(sqlite3.connect(path)) as shell:
        shell.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def log_that_was_begun_again(path: str, do: Programs) -> None:
    """Leave a log that was restarted, with older frames after its end."""
    checkpoint = "sqlite3.connect(path).execute('PRAGMA wal_checkpoint(RESTART)')"
    do.kill(path, f"add('a', 30); {checkpoint}; add('a', 30, 40)")


def log_that_is_torn(path: str, do: Programs) -> None:
    """Leave a part of the last transaction, which was not acknowledged."""
    do.kill(path, f"{ADD}; add('b', 1)")
    os.truncate(f"{path}-wal", _end_of_commits(f"{path}-wal") - 2000)


def _end_of_commits(log: str) -> int:
    """Return where the last commit ends; preallocated frames follow it."""
    with open(log, "rb") as file:
        data = file.read()
    salts = data[16:24]
    frame = end = 32
    while data[frame + 8 : frame + 16] == salts:
        is_commit = data[frame + 4 : frame + 8] != bytes(4)
        frame += 24 + 4096
        end = frame if is_commit else end
    return end


def log_of_a_shell(path: str, do: Programs) -> None:
    """Leave the log of a killed shell, which does not number its commits."""
    do.close(path, ADD)
    do.kill_shell(path, "UPDATE sandbox_statuses SET message = 'by hand'")


def log_of_a_shell_that_writes_the_first_page(path: str, do: Programs) -> None:
    """Leave the log of a shell that wrote the first page, with the number of the file."""
    do.close(path, ADD)
    do.kill_shell(path, "CREATE TABLE theirs (a)", "DROP TABLE theirs", "VACUUM")


def log_of_a_shell_that_changes_the_schema_often(path: str, do: Programs) -> None:
    """Leave the log of a shell that changed the schema many times in one transaction."""
    do.close(path, ADD)
    do.kill_shell(path, "BEGIN", *CHANGES, "COMMIT")


def log_of_a_shell_that_changes_the_schema_of_a_backup(path: str, do: Programs) -> None:
    """Leave the log of a shell beside a backup, whose schema version is low."""
    do.close(f"{path}.other", ADD)
    backup(f"{path}.other", path)
    do.kill_shell(path, "BEGIN", *CHANGES[:20], "COMMIT")


def log_of_a_restore(path: str, do: Programs) -> None:
    """Leave the log of the shell's `.restore`, killed before it moved the log into the file."""
    do.close(path, ADD)
    backup(path, f"{path}.copy")
    do.close(path, "add('b', 60); end(State.NOTREADY, 'a1')")
    do.kill(path, "sqlite3.connect(f'{path}.copy').backup(sqlite3.connect(path))")


def log_from_before_commits_had_numbers(path: str, do: Programs) -> None:
    """Leave a file and a log as a version without numbers wrote them."""
    do.close(path, ADD)
    execute(path, "PRAGMA user_version = 0")
    do.kill_shell(path, "UPDATE sandbox_statuses SET message = 'by hand'")


def log_of_a_registry_that_got_its_first_number(path: str, do: Programs) -> None:
    """Leave the log in which the registry got its first number."""
    do.close(path, ADD)
    execute(path, "PRAGMA user_version = 0")
    do.kill(path, "end(State.READY, 'a1')")


def log_past_the_greatest_number(path: str, do: Programs) -> None:
    """Leave a log in which the numbers begin again at 1."""
    do.close(path, ADD)
    execute(path, f"PRAGMA user_version = {0x7FFFFFFF}")
    do.kill(path, "end(State.READY, 'a1', 'a2')")


OWN = [
    log_of_all,
    log_of_the_last_session,
    log_that_was_moved_into_the_file,
    log_that_was_moved_in_part,
    log_that_was_begun_again,
    log_that_is_torn,
    log_of_a_shell,
    log_of_a_shell_that_writes_the_first_page,
    log_of_a_shell_that_changes_the_schema_often,
    log_of_a_shell_that_changes_the_schema_of_a_backup,
    log_of_a_restore,
    log_from_before_commits_had_numbers,
    log_of_a_registry_that_got_its_first_number,
    log_past_the_greatest_number,
]


@pytest.mark.parametrize("without_index", [False, True], ids=["with shm", "without shm"])
@pytest.mark.parametrize("make", OWN, ids=lambda make: make.__name__)
def test_a_log_that_is_its_own_is_applied(
    path: str, programs: Programs, make: Make, without_index: bool
) -> None:
    """Its commits are read, and the registry accepts writes."""
    make(path, programs)
    if without_index:
        os.unlink(f"{path}-shm")
    expected = [f"a{n}" for n in range(40)]
    with Store.open(path, read_only=True, timeout=5) as store:
        assert set(expected) == set(ids(store.list()))
    with Store.open(path, reconcile=False) as store:
        assert set(expected) == set(ids(store.list()))
        assert [] == store.check()
        store.delete("a0")
        with Store.open(path, read_only=True) as other:
            assert 39 == len(other.list())


def test_each_commit_has_the_next_number_and_what_changes_nothing_has_none(path: str) -> None:
    """Also if several writes share a commit, a part is rolled back, or the commit is empty."""

    def number() -> int:
        with closing(sqlite3.connect(path)) as shell:
            return int(shell.execute("PRAGMA user_version").fetchone()[0])

    with Store.open(path) as store:
        began = number()
        assert began > 0
        store.add(sandbox("a"), READY)
        assert continuity.following(began) == number()
        with store.transaction():
            store.add(sandbox("b"), READY)
            with pytest.raises(ZeroDivisionError), store.transaction():
                store.delete("a")
                raise ZeroDivisionError
        assert began + 2 == number()
        with store.transaction():
            store.list()
        with pytest.raises(ZeroDivisionError), store.transaction():
            store.delete("a")
            raise ZeroDivisionError
        assert began + 2 == number()


def test_two_registries_begin_with_different_numbers(tmp_path: Path) -> None:
    """The first number is random: a log of one registry never continues another one."""
    numbers = set()
    for n in range(3):
        Store.open(f"{tmp_path}/{n}.db").close()
        with closing(sqlite3.connect(f"{tmp_path}/{n}.db")) as shell:
            numbers |= set(shell.execute("PRAGMA user_version").fetchone())
    assert 3 == len(numbers)
