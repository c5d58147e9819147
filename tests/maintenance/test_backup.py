"""Backups of a registry that is in use."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from registry import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    Store,
    StoreClosedError,
    UnavailableError,
)
from registry.aio import AsyncStore
from registry.host.part_file import SUFFIX
from registry.tables.copies import STEP
from tests import needs
from tests.conftest import OpenStore
from tests.tools import (
    READY,
    contents,
    execute,
    ids,
    line,
    query,
    running,
    sandbox,
    say,
    small_file_system,
)

ROWS = ("sandboxes", "sandbox_statuses", "sandbox_labels", "sandbox_transitions")
FILL = "CREATE TABLE filler AS WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE"
FILL += " n < 1000) SELECT randomblob(4000) AS data FROM n"
"""Makes a registry of several steps."""


@pytest.fixture
def target(tmp_path: Path) -> str:
    """Return a path for a backup, alone in a directory."""
    (tmp_path / "backups").mkdir()
    return str(tmp_path / "backups" / "registry.db")


def rows(path: str) -> dict[str, list[tuple[object, ...]]]:
    """Return the rows of the registry at *path*."""
    return {table: query(path, f"SELECT * FROM {table}") for table in ROWS}


def files(target: str) -> list[str]:
    """Return the names of the files beside *target*."""
    return sorted(os.listdir(os.path.dirname(target)))


# What a backup is.


def test_a_backup_has_what_the_registry_had_and_carries_a_mark(
    store: Store, path: str, target: str
) -> None:
    """One file of mode 0600, in no WAL mode, which opens as another registry."""
    store.add(sandbox("a"), READY)
    store.backup(target)
    store.add(sandbox("b"), READY)
    assert ["registry.db"] == files(target)
    assert 0o600 == stat.S_IMODE(os.stat(target).st_mode)
    assert [("delete",)] == query(target, "PRAGMA journal_mode")
    assert [("ok",)] == query(target, "PRAGMA integrity_check")
    (marked,) = query(target, "SELECT registry_id, copied_at IS NULL, incarnation FROM registry")
    assert (query(path, "SELECT registry_id FROM registry")[0][0], 0, 1) == marked
    assert [(None,)] == query(path, "SELECT copied_at FROM registry")
    with Store.open(target, read_only=True) as copy:
        assert ["a"] == ids(copy.list())
        assert [] == copy.check()
    assert ["registry.db"] == files(target)
    with Store.open(target) as copy:
        assert copy.new_netns_path()[:43] != store.new_netns_path()[:43]
        assert ["a"] == ids(copy.list())
        assert [] == copy.check()


def test_a_backup_belongs_to_the_owner_of_the_registry(store: Store, target: str) -> None:
    """A timer that runs as root makes backups that the shim can read."""
    store.list()
    if os.geteuid() == 0:
        os.chown(store.path, 65534, 65534)
    store.backup(target)
    found, expected = os.stat(target), os.stat(store.path)
    assert (expected.st_uid, expected.st_gid) == (found.st_uid, found.st_gid)


def test_a_backup_replaces_an_earlier_one(store: Store, target: str) -> None:
    """In one step: who has the earlier one open goes on reading it."""
    store.backup(target)
    with closing(sqlite3.connect(target)) as reader:
        assert [(0,)] == reader.execute("SELECT count(*) FROM sandboxes").fetchall()
        store.add(sandbox("a"), READY)
        store.backup(target)
        assert [(0,)] == reader.execute("SELECT count(*) FROM sandboxes").fetchall()
    assert [(1,)] == query(target, "SELECT count(*) FROM sandboxes")


def test_a_backup_inside_a_transaction_has_the_latest_commit(store: Store, target: str) -> None:
    """A sandbox that is not committed is not in it."""
    store.add(sandbox("a"), READY)
    with store.transaction():
        store.add(sandbox("b"), READY)
        store.backup(target)
    assert [("a",)] == query(target, "SELECT id FROM sandboxes")


def test_a_registry_that_is_only_read_can_be_backed_up(
    open_store: OpenStore, path: str, target: str
) -> None:
    """By an operator who may not write it."""
    open_store().add(sandbox("a"), READY)
    with Store.open(path, read_only=True) as reader:
        reader.backup(target)
    assert rows(path) == rows(target)


def test_a_backup_has_the_commits_that_are_in_the_log_alone(store: Store, target: str) -> None:
    """Nothing was moved into the database file yet."""
    store.add(sandbox("a"), READY)
    assert os.path.getsize(f"{store.path}-wal")
    store.backup(target)
    assert [("a",)] == query(target, "SELECT id FROM sandboxes")


def test_the_asynchronous_store_makes_backups(path: str, target: str) -> None:
    """In a thread."""

    async def work() -> None:
        async with await AsyncStore.open(path) as store:
            await store.add(sandbox("a"), READY)
            await store.backup(Path(target))

    asyncio.run(work())
    assert [("a",)] == query(target, "SELECT id FROM sandboxes")


# Beside writers.


def test_writers_go_on_during_a_backup_which_has_one_commit(store: Store, target: str) -> None:
    """A writer commits between two steps: the backup has nothing of it, and goes on."""
    execute(store.path, FILL)
    handle, steps = store.add(sandbox("a"), READY), []

    def write(done: int, total: int) -> None:
        handle.status.update(lambda old: replace(old, message=f"{done} of {total}"))
        steps.append((done, total))

    store.backup(target, progress=write)
    total = steps[0][1]
    assert [(min(STEP * n, total), total) for n in range(1, len(steps) + 1)] == steps
    assert len(steps) > 3
    assert [("",)] == query(target, "SELECT message FROM sandbox_statuses")
    assert f"{total} of {total}" == handle.status.get().message


def test_another_process_writes_between_two_steps(store: Store, target: str) -> None:
    """Its commits come through while the backup holds its snapshot."""
    execute(store.path, FILL)
    code = """
        import sys
        from registry import Metadata, State, Status, Store
        with Store.open(sys.argv[1], reconcile=False) as store:
            for n, _ in enumerate(sys.stdin):
                store.add(Metadata(f"s{n}", f"n{n}", None), Status(State.READY))
                print(len(store.list()), flush=True)
        """
    with running(code, store.path) as other:

        def write(done: int, total: int) -> None:
            say(other)
            assert line(other)

        store.backup(target, progress=write)
    assert [] == query(target, "SELECT id FROM sandboxes")
    assert len(store.list()) > 3


def test_a_backup_leaves_no_snapshot(store: Store, target: str) -> None:
    """Also after a failure: the next checkpoint moves the whole log into the database."""

    def fail(done: int, total: int) -> None:
        raise ValueError("enough")

    store.add(sandbox("a"), READY)
    for progress in (None, fail):
        if progress is None:
            store.backup(target)
        else:
            with pytest.raises(ValueError, match="enough"):
                store.backup(target, progress=progress)
        store.add(sandbox(f"b{progress}"), READY)
        ((busy, frames, moved),) = query(store.path, "PRAGMA wal_checkpoint(PASSIVE)")
        assert (0, frames) == (busy, moved)


# What fails.


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), OSError(5, "theirs"), sqlite3.OperationalError("theirs"), SystemExit(3)],
)
def test_an_exception_of_progress_is_raised_as_it_is_and_no_copy_is_left(
    store: Store, target: str, error: BaseException
) -> None:
    """Whatever its class; an earlier backup stays."""
    store.backup(target)
    before = contents(os.path.dirname(target))

    def fail(done: int, total: int) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        store.backup(target, progress=fail)
    assert error is caught.value
    assert (None, None) == (error.__cause__, error.__context__)
    assert before == contents(os.path.dirname(target))


def test_the_files_of_a_killed_backup_are_replaced(store: Store, target: str) -> None:
    """Another one that is running is not: its part is locked."""
    for suffix in ("", "-journal", "-wal"):
        Path(f"{target}{SUFFIX}{suffix}").write_bytes(b"left by a kill")

    def again(done: int, total: int) -> None:
        with pytest.raises(UnavailableError, match="another process is writing"):
            store.backup(target)

    store.backup(target, progress=again)
    assert [] == query(target, "SELECT id FROM sandboxes")
    assert ["registry.db"] == files(target)


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-lock", "-queue", "-reserve", "-journal"])
def test_a_backup_onto_a_file_of_the_registry_is_refused(
    store: Store, path: str, suffix: str, tmp_path: Path
) -> None:
    """By whatever path it is named."""
    store.add(sandbox("a"), READY)
    (tmp_path / "link").symlink_to(tmp_path)
    for name in (f"{path}{suffix}", str(tmp_path / "link" / f"registry.db{suffix}")):
        with pytest.raises(InvalidArgumentError, match="a file of the registry itself") as caught:
            store.backup(name)
        assert "path" == caught.value.field
    assert ["a"] == ids(store.list())


def _symlink(target: str) -> None:
    os.symlink("elsewhere", target)


def _text(target: str) -> None:
    Path(target).write_text("mine\n")


def _database(target: str) -> None:
    execute(target, "CREATE TABLE t (a)")


def _registry(target: str) -> None:
    Store.open(target).close()


def _opened_copy(target: str) -> None:
    with Store.open(f"{target}-source") as source:
        source.backup(target)
    Store.open(target).close()


@pytest.mark.parametrize("make", [_symlink, _text, _database, _registry, _opened_copy])
def test_a_backup_replaces_nothing_but_a_backup(
    store: Store, target: str, make: Callable[[str], None]
) -> None:
    """A symlink, another file, another database, a registry, and a copy that has become one."""
    make(target)
    before = contents(os.path.dirname(target))
    with pytest.raises(FailedPreconditionError, match="no backup of a registry") as caught:
        store.backup(target)
    assert target == caught.value.path
    assert before == contents(os.path.dirname(target))


@pytest.mark.parametrize("path_", ["", "x\0y", "backups/", 5, None, b"bytes"])
def test_a_path_that_names_no_file_is_refused(store: Store, path_: object) -> None:
    """Before anything is written."""
    with pytest.raises(InvalidArgumentError) as caught:
        store.backup(path_)  # type: ignore[arg-type]
    assert ("path", path_) == (caught.value.field, caught.value.value)


def test_a_directory_a_missing_one_and_a_closed_store_are_refused(
    open_store: OpenStore, target: str, tmp_path: Path
) -> None:
    """Each by its own class."""
    store = open_store()
    with pytest.raises(InvalidArgumentError, match="it is a directory"):
        store.backup(tmp_path)
    with pytest.raises(NotFoundError):
        store.backup(tmp_path / "missing" / "registry.db")
    with pytest.raises(InvalidArgumentError, match="progress"):
        store.backup(target, progress=5)  # type: ignore[arg-type]
    store.close()
    with pytest.raises(StoreClosedError):
        store.backup(target)
    assert [] == files(target)


def test_a_damaged_registry_is_not_backed_up(
    open_store: OpenStore, path: str, tmp_path: Path, target: str
) -> None:
    """The earlier backup stays; the copy that was made is removed."""
    store = open_store()
    with store.transaction():
        for n in range(100):
            store.add(sandbox(f"s{n}"), READY)
    store.backup(target)
    store.close()
    root = query(path, "SELECT rootpage FROM sqlite_master WHERE name = 'sandboxes_by_namespace'")
    roots = root or query(
        path, "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_sandboxes_2'"
    )
    damaged = str(tmp_path / "damaged.db")
    data = bytearray(Path(path).read_bytes())
    begin = (roots[0][0] - 1) * 4096
    data[begin + 200 : begin + 4096] = b"\xaa" * 3896
    Path(damaged).write_bytes(data)
    before = contents(os.path.dirname(target))
    try:
        with Store.open(damaged, read_only=True) as reader, pytest.raises(DataLossError):
            reader.backup(target)
    except DataLossError:
        pass  # it was not even opened
    assert before == contents(os.path.dirname(target))


@needs.namespaces
def test_a_full_disk_leaves_the_earlier_backup(store: Store, tmp_path: Path) -> None:
    """The error says that there is no space, and names the copy."""
    with small_file_system(str(tmp_path / "small"), 2) as small:
        target = f"{small}/registry.db"
        store.backup(target)
        before = contents(small)
        execute(store.path, FILL)
        with pytest.raises(ResourceExhaustedError) as caught:
            store.backup(target)
        assert before == contents(small)
        assert str(caught.value).startswith(f"back up registry {store.path!r} to {target!r}: ")
