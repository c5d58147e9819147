"""A WAL that belongs to the database beside it is applied: its commits have the next numbers."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from registry import Store
from registry.engine import continuity
from tests.faults.programs import ADD, Make, Programs, backup
from tests.tools import READY, execute, ids, sandbox

CHANGES = ["CREATE TABLE theirs (a)", "DROP TABLE theirs"] * 20
"""Statements that each change the schema."""


# Each leaves a registry of the sandboxes a0 to a39 whose WAL is its own.


def wal_of_all(path: str, do: Programs) -> None:
    """Leave all commits in the WAL."""
    do.kill(path, ADD)


def wal_of_the_last_session(path: str, do: Programs) -> None:
    """Leave the commits of the last session in the WAL."""
    do.close(path, "add('a', 20)")
    do.kill(path, "add('a', 20, 40)")


def wal_that_was_moved_into_the_file(path: str, do: Programs) -> None:
    """Leave a WAL that a checkpoint has moved into the file."""
    checkpoint = "sqlite3.connect(path).execute('PRAGMA wal_checkpoint(PASSIVE)')"
    do.kill(path, f"{ADD}; {checkpoint}")


def wal_that_was_moved_in_part(path: str, do: Programs) -> None:
    """Leave a partial checkpoint: the file is shorter than its first page says."""
    do.kill(path, ADD)
    for name in ("", "-wal"):
        shutil.copyfile(path + name, f"{path}.2{name}")
    checkpointed(f"{path}.2")
    with open(f"{path}.2", "rb") as whole, open(path, "r+b") as part:
        part.write(whole.read(3 * 4096))
    assert os.path.getsize(path) == 3 * 4096


def checkpointed(path: str) -> None:
    """Move the WAL into the file."""
    with closing(sqlite3.connect(path)) as shell:
        shell.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def wal_that_was_begun_again(path: str, do: Programs) -> None:
    """Leave a WAL that was restarted, with older frames after its end."""
    checkpoint = "sqlite3.connect(path).execute('PRAGMA wal_checkpoint(RESTART)')"
    do.kill(path, f"add('a', 30); {checkpoint}; add('a', 30, 40)")


def wal_that_is_torn(path: str, do: Programs) -> None:
    """Leave a part of the last transaction, which was not acknowledged."""
    do.kill(path, f"{ADD}; add('b', 1)")
    os.truncate(f"{path}-wal", _end_of_commits(f"{path}-wal") - 2000)


def _end_of_commits(wal: str) -> int:
    """Return where the last commit ends; preallocated frames follow it."""
    with open(wal, "rb") as file:
        data = file.read()
    salts = data[16:24]
    frame = end = 32
    while data[frame + 8 : frame + 16] == salts:
        is_commit = data[frame + 4 : frame + 8] != bytes(4)
        frame += 24 + 4096
        end = frame if is_commit else end
    return end


def wal_of_a_shell(path: str, do: Programs) -> None:
    """Leave the WAL of a killed shell, which does not number its commits."""
    do.close(path, ADD)
    do.kill_shell(path, "UPDATE sandbox_statuses SET message = 'by hand'")


def wal_of_a_shell_that_writes_the_first_page(path: str, do: Programs) -> None:
    """Leave the WAL of a shell that wrote the first page, with the number of the file."""
    do.close(path, ADD)
    do.kill_shell(path, "CREATE TABLE theirs (a)", "DROP TABLE theirs", "VACUUM")


def wal_of_a_shell_that_changes_the_schema_often(path: str, do: Programs) -> None:
    """Leave the WAL of a shell that changed the schema many times in one transaction."""
    do.close(path, ADD)
    do.kill_shell(path, "BEGIN", *CHANGES, "COMMIT")


def wal_of_a_shell_that_changes_the_schema_of_a_backup(path: str, do: Programs) -> None:
    """Leave the WAL of a shell beside a backup, whose schema version is low."""
    do.close(f"{path}.other", ADD)
    backup(f"{path}.other", path)
    do.kill_shell(path, "BEGIN", *CHANGES[:20], "COMMIT")


def wal_of_a_restore(path: str, do: Programs) -> None:
    """Leave the WAL of the shell's `.restore`, killed before it moved the WAL into the file."""
    do.close(path, ADD)
    backup(path, f"{path}.copy")
    do.close(path, "add('b', 60); end(State.NOTREADY, 'a1')")
    do.kill(path, "sqlite3.connect(f'{path}.copy').backup(sqlite3.connect(path))")


def wal_from_before_commits_had_numbers(path: str, do: Programs) -> None:
    """Leave a file and a WAL as a version without numbers wrote them."""
    do.close(path, ADD)
    execute(path, "PRAGMA user_version = 0")
    do.kill_shell(path, "UPDATE sandbox_statuses SET message = 'by hand'")


def wal_of_a_registry_that_got_its_first_number(path: str, do: Programs) -> None:
    """Leave the WAL in which the registry got its first number."""
    do.close(path, ADD)
    execute(path, "PRAGMA user_version = 0")
    do.kill(path, "end(State.READY, 'a1')")


def wal_past_the_greatest_number(path: str, do: Programs) -> None:
    """Leave a WAL in which the numbers begin again at 1."""
    do.close(path, ADD)
    execute(path, f"PRAGMA user_version = {0x7FFFFFFF}")
    do.kill(path, "end(State.READY, 'a1', 'a2')")


OWN = [
    wal_of_all,
    wal_of_the_last_session,
    wal_that_was_moved_into_the_file,
    wal_that_was_moved_in_part,
    wal_that_was_begun_again,
    wal_that_is_torn,
    wal_of_a_shell,
    wal_of_a_shell_that_writes_the_first_page,
    wal_of_a_shell_that_changes_the_schema_often,
    wal_of_a_shell_that_changes_the_schema_of_a_backup,
    wal_of_a_restore,
    wal_from_before_commits_had_numbers,
    wal_of_a_registry_that_got_its_first_number,
    wal_past_the_greatest_number,
]


@pytest.mark.parametrize("without_index", [False, True], ids=["with shm", "without shm"])
@pytest.mark.parametrize("make", OWN, ids=lambda make: make.__name__)
def test_a_wal_of_the_database_is_applied(
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
    """The first number is random: a WAL of one registry never continues another one."""
    numbers = set()
    for n in range(3):
        Store.open(f"{tmp_path}/{n}.db").close()
        with closing(sqlite3.connect(f"{tmp_path}/{n}.db")) as shell:
            numbers |= set(shell.execute("PRAGMA user_version").fetchone())
    assert 3 == len(numbers)
