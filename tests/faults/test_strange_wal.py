"""A WAL that does not belong to the database beside it is refused, and nothing is changed.

SQLite applies any valid WAL to any database: a backup that is copied over a registry whose process
was killed, or the WAL of another registry, gives a mixture of both, or the wrong registry.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from registry import DataLossError, Store
from tests.faults.programs import ADD, Make, Programs, backup
from tests.tools import contents, environment, execute, ids, in_another_thread, sandbox


def remove_wal(path: str) -> None:
    """Remove the WAL, as the error advises."""
    for name in ("-wal", "-shm"):
        if os.path.exists(path + name):
            os.unlink(path + name)


# Each leaves a whole registry at the path, with a WAL that is not its own.


def wal_of_another_registry(path: str, do: Programs) -> None:
    """Put a WAL there that holds every commit of another registry."""
    do.close(path, ADD)
    do.kill(f"{path}.other", "add('x', 30)")
    shutil.copy(f"{path}.other-wal", f"{path}-wal")


def later_wal_of_another_registry(path: str, do: Programs) -> None:
    """Put a later WAL of another registry there, which does not hold its id."""
    do.close(path, ADD)
    do.close(f"{path}.other", "add('x', 40)")
    do.kill(f"{path}.other", "add('x', 40, 43)")
    shutil.copy(f"{path}.other-wal", f"{path}-wal")


def wal_of_a_registry_of_one_sandbox(path: str, do: Programs) -> None:
    """Put a WAL there that replaces every page: SQLite finds no fault with the mixture."""
    do.close(path, "add('a', 1)")
    do.close(f"{path}.other", "add('x', 1)")
    do.kill(f"{path}.other", "store.delete('x0'); add('x', 1)")
    shutil.copy(f"{path}.other-wal", f"{path}-wal")


def older_wal_of_one_session(path: str, do: Programs) -> None:
    """Put back a WAL from the middle of a session, whose later commits changed no state."""
    do.close(path, ADD)
    copy = "import shutil; shutil.copy(f'{path}-wal', f'{path}.wal')"
    do.close(path, f"end(State.READY, 'a1'); {copy}; end(State.READY, 'a2', 'a1', 'a3')")
    shutil.copy(f"{path}.wal", f"{path}-wal")


def older_wal_of_an_earlier_session(path: str, do: Programs) -> None:
    """Put back a WAL that an earlier session moved into the file."""
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
    """Put back an old copy of the file; the commits before the WAL are in neither."""
    do.close(path, ADD)
    shutil.copyfile(path, f"{path}.copy")
    do.close(path, "end(State.NOTREADY, 'a1')")
    do.kill(path, "add('b', 3)")
    shutil.copyfile(f"{path}.copy", path)


def another_registry_over_a_killed_one(path: str, do: Programs) -> None:
    """Move the file of another registry there, without its WAL."""
    do.kill(path, "add('x', 30)")
    do.close(f"{path}.other", ADD)
    os.rename(f"{path}.other", path)


def wal_of_another_kind_of_database(path: str, do: Programs) -> None:
    """Put the WAL of another database there, with pages of the same size."""
    do.close(path, ADD)
    do.kill_shell(f"{path}.other", "PRAGMA journal_mode = WAL", "CREATE TABLE t (a)")
    shutil.copy(f"{path}.other-wal", f"{path}-wal")


def wal_of_a_database_of_other_pages(path: str, do: Programs) -> None:
    """Put the WAL of a database there whose pages have 1024 bytes."""
    do.close(path, ADD)
    words = ["page_size = 1024", "journal_mode = WAL", "user_version = 7"]
    do.kill_shell(f"{path}.other", *(f"PRAGMA {each}" for each in words), "CREATE TABLE t (a)")
    shutil.copy(f"{path}.other-wal", f"{path}-wal")


def wal_without_numbers_of_another_registry(path: str, do: Programs) -> None:
    """Put a WAL there that a `sqlite3` shell wrote to another registry."""
    do.close(path, ADD)
    do.close(f"{path}.other", "add('x', 70)")
    do.kill_shell(f"{path}.other", "UPDATE sandbox_statuses SET message = hex(randomblob(300))")
    shutil.copy(f"{path}.other-wal", f"{path}-wal")


def wal_of_all_pages_of_another_registry(path: str, do: Programs) -> None:
    """Put a WAL of all pages there, whose schema version is one greater, as after `.restore`."""
    do.close(path, ADD)
    do.close(f"{path}.other", "add('x', 70)")
    do.kill_shell(f"{path}.other", "VACUUM")
    shutil.copy(f"{path}.other-wal", f"{path}-wal")


STRANGE = [
    wal_of_another_registry,
    later_wal_of_another_registry,
    wal_of_a_registry_of_one_sandbox,
    older_wal_of_one_session,
    older_wal_of_an_earlier_session,
    backup_over_a_killed_one,
    moved_backup_over_a_killed_one,
    backup_by_vacuum_over_a_killed_one,
    closed_copy_over_a_killed_one,
    another_registry_over_a_killed_one,
    wal_of_another_kind_of_database,
    wal_of_a_database_of_other_pages,
    wal_without_numbers_of_another_registry,
    wal_of_all_pages_of_another_registry,
]


@pytest.mark.parametrize("make", STRANGE, ids=lambda make: make.__name__)
def test_a_strange_wal_is_refused_and_the_database_is_whole_without_it(
    path: str, programs: Programs, make: Make, tried: Callable[[str], None]
) -> None:
    """Each way of opening refuses it; no byte of the database or of the WAL changes."""
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
    remove_wal(path)
    expected = {"a0"} if make is wal_of_a_registry_of_one_sandbox else {f"a{n}" for n in range(40)}
    with Store.open(path) as store:
        assert (expected, []) == (set(ids(store.list())), store.check())
    tried(f"strange WAL, {make.__name__}: refused, nothing changed")


COMMANDS = [
    *("list", "inspect a1", "history", "check", "export", "delete a1"),
    *("reconcile", "reconcile --dry-run", "import {document}", "import --create {document}"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_strange_wal_is_refused_by_every_command(
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
    """No connection to the strange WAL is left behind, in this thread or in another."""
    later_wal_of_another_registry(path, programs)
    for _ in range(2):
        with pytest.raises(DataLossError):
            Store.open(path)
        with pytest.raises(DataLossError):
            in_another_thread(lambda: Store.open(path))
    remove_wal(path)
    with Store.open(path) as store:
        assert 40 == len(store.list())
        store.add(sandbox("b"), store.get("a1").status.get())
    with Store.open(path, read_only=True) as reader:
        assert 41 == len(reader.list())
