"""A rollback journal beside a registry is rolled back only if it belongs to the database."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from registry import DataLossError, ReadOnlyError, Store
from registry.cli import failures, program
from tests.tools import READY, contents, execute, query, run, sandbox

SPILLED = ("PRAGMA journal_mode = DELETE", "PRAGMA cache_size = 1", "BEGIN")
"""Begin of a transaction that writes pages to the database before its end."""
CHANGE = "UPDATE sandbox_statuses SET message = hex(randomblob(20000))"
OPTIONS: tuple[dict[str, bool], ...] = (
    {},
    {"create": False},
    {"read_only": True},
    {"reconcile": False},
)


def killed(path: str, *statements: str) -> None:
    """Run SQL in a process that is killed right after."""
    code = """
        import os, signal, sqlite3, sys
        path, *statements = sys.argv[1:]
        shell = sqlite3.connect(path, isolation_level=None)
        for statement in statements:
            shell.execute(statement)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    run(code, path, *statements, expected=-signal.SIGKILL)


def registry(path: str, count: int) -> None:
    """Make a registry of *count* sandboxes."""
    with Store.open(path) as store, store.transaction():
        for n in range(count):
            store.add(sandbox(f"a{n}"), READY)


def of_another_registry(path: str) -> None:
    """Put the hot journal of a smaller registry there."""
    registry(f"{path}.other", 20)
    killed(f"{path}.other", *SPILLED, "CREATE TABLE t (a)", CHANGE)
    shutil.move(f"{path}.other-journal", f"{path}-journal")


def of_another_registry_without_its_first_page(path: str) -> None:
    """Put the hot journal of a transaction there that was not committed."""
    registry(f"{path}.other", 20)
    killed(f"{path}.other", *SPILLED, CHANGE)
    shutil.move(f"{path}.other-journal", f"{path}-journal")


def of_another_database(path: str) -> None:
    """Put the hot journal of a database there that is no registry."""
    other = f"{path}.other"
    execute(other, "CREATE TABLE t (a)", "INSERT INTO t VALUES (zeroblob(100000))")
    killed(other, *SPILLED, "UPDATE t SET a = randomblob(100000)", "CREATE TABLE u (a)")
    shutil.move(f"{other}-journal", f"{path}-journal")


def of_an_older_state(path: str) -> None:
    """Put a journal there that was left before the latest commits."""
    shutil.copy(path, f"{path}.other")
    killed(f"{path}.other", *SPILLED, "CREATE TABLE t (a)", CHANGE)
    with Store.open(path) as store:
        store.add(sandbox("later"), READY)
    shutil.move(f"{path}.other-journal", f"{path}-journal")


def text(path: str) -> None:
    """Put a text there, which SQLite would remove."""
    Path(f"{path}-journal").write_text("a journal of a voyage")


def beside_a_wal(path: str) -> None:
    """Put a journal of the registry there beside commits in a WAL."""
    shutil.copy(path, f"{path}.other")
    killed(f"{path}.other", *SPILLED, "CREATE TABLE t (a)", CHANGE)
    killed(path, "UPDATE sandbox_statuses SET message = 'in the WAL'")
    shutil.move(f"{path}.other-journal", f"{path}-journal")


@pytest.mark.parametrize(
    "make",
    [
        of_another_registry,
        of_another_registry_without_its_first_page,
        of_another_database,
        of_an_older_state,
        text,
        beside_a_wal,
    ],
)
def test_a_strange_journal_is_refused_and_the_database_is_whole_without_it(
    tmp_path: Path, make: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is rolled back, cut or removed, however the registry is opened."""
    path = str(tmp_path / "registry.db")
    registry(path, 60)
    make(path)
    before = contents(str(tmp_path))
    for options in OPTIONS:
        with pytest.raises(DataLossError, match=f"'{path}-journal' does not belong") as caught:
            Store.open(path, **options)  # type: ignore[arg-type]
        assert path == caught.value.path
    for command in ("list", "check", "reconcile"):
        assert failures.UNAVAILABLE == program.main(["--db", path, command])
    assert "move it away" in capsys.readouterr().err
    after = contents(str(tmp_path))
    assert without_index(before) == without_index(after)
    os.unlink(f"{path}-journal")
    with Store.open(path) as store:
        assert len(store.list()) >= 60
        assert [] == store.check()


def without_index(found: dict[str, str]) -> dict[str, str]:
    """Return *found* without the WAL index, which SQLite may rebuild."""
    return {name: was for name, was in found.items() if not name.endswith("-shm")}


def test_a_journal_beside_an_empty_file_is_evidence_of_a_lost_database(path: str) -> None:
    """SQLite would remove it."""
    registry(f"{path}.other", 20)
    killed(f"{path}.other", *SPILLED, CHANGE)
    shutil.move(f"{path}.other-journal", f"{path}-journal")
    for _ in range(2):
        with pytest.raises(DataLossError, match="does not belong"):
            Store.open(path)
        assert os.path.getsize(f"{path}-journal") > 0
        Path(path).touch()
    os.unlink(path)


@pytest.mark.parametrize("change", [(CHANGE,), ("CREATE TABLE t (a)", CHANGE)], ids=len)
def test_the_own_journal_of_a_killed_process_is_rolled_back(
    path: str, change: tuple[str, ...]
) -> None:
    """With the first page in it, and without."""
    registry(path, 60)
    killed(path, *SPILLED, *change)
    assert os.path.getsize(f"{path}-journal") > 0
    with pytest.raises(ReadOnlyError):
        Store.open(path, read_only=True)
    with Store.open(path) as store:
        assert (60, []) == (len(store.list()), store.check())
        assert {""} == {each.status.get().message for each in store.list()}


def test_a_registry_that_is_damaged_after_its_rollback_is_refused(path: str) -> None:
    """The content is inspected once the journal is rolled back."""
    path = f"{path}-damaged"
    registry(path, 60)
    ((page,),) = query(path, "SELECT rootpage FROM sqlite_master WHERE name = 'sandbox_labels'")
    killed(path, *SPILLED, CHANGE)
    data = bytearray(Path(path).read_bytes())
    data[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    Path(path).write_bytes(data)
    with pytest.raises(DataLossError) as caught:
        Store.open(path)
    assert caught.value.damage
    assert not os.path.exists(f"{path}-journal")
