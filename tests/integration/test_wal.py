"""The WAL is preallocated, so that a commit need not make it longer."""

from __future__ import annotations

import os
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest

from registry import Sandbox, Store
from registry.engine import driver, wal
from registry.engine.wal import AHEAD
from tests import needs
from tests.conftest import OpenStore
from tests.convoy import more
from tests.tools import (
    READY,
    line,
    query,
    running,
    sandbox,
    say,
    small_file_system,
    sqlite_shell,
)

COMMIT = 2 * 4120
"""Bytes of the smallest commit: the page of a row, and the first page with the commit's number."""
LEAST = AHEAD - 4 * 4120
"""Bytes by which a preallocation makes the WAL longer, at least: SQLite keeps the last pages."""
WRITER = """
    import sys
    from registry import Store
    from tests.convoy import more
    with Store.open(sys.argv[1], reconcile=False) as store:
        for _ in sys.stdin:
            print(store.get("a").status.update(more).exited_at, flush=True)
    """


def size(path: str) -> int:
    """Return the bytes of the WAL."""
    return os.stat(f"{path}-wal").st_size


def grow(handle: Sandbox) -> None:
    """Make the WAL longer by a commit, after which the next one preallocates."""
    for _ in range(2):
        handle.status.update(more)


def test_commits_after_a_preallocation_do_not_make_the_log_longer(store: Store) -> None:
    """It grows by preallocations alone, and by the commit that does not fit into one."""
    handle = store.add(sandbox("a"), READY)
    grow(handle)
    long = size(store.path)
    assert LEAST < long < 2 * LEAST
    sizes = set()
    for _ in range(AHEAD // COMMIT + 3):
        handle.status.update(more)
        sizes.add(size(store.path))
    assert 3 == len(sizes)  # before, after a commit that does not fit, after a preallocation
    assert long == min(sizes)
    assert long + LEAST < max(sizes) < long + AHEAD + 5 * COMMIT


def test_a_preallocation_is_no_commit(path: str) -> None:
    """After a kill, the next process finds the acknowledged commits, and nothing else."""
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
    with running(WRITER, path) as child:
        for n in range(1, 6):
            say(child)
            assert str(n) == line(child)
        assert LEAST < size(path)
        child.kill()
        child.wait()
    assert [(5,)] == query(path, "SELECT exited_at FROM sandbox_statuses")
    names = query(path, "SELECT name FROM sqlite_sequence ORDER BY name")
    assert [("sandbox_transitions",), ("sandboxes",)] == names
    with Store.open(path) as store:
        assert 5 == store.get("a").status.get().exited_at
        assert [] == store.check()


def test_two_processes_share_a_preallocation(store: Store) -> None:
    """A process takes growth by that much for the preallocation of another one."""
    handle = store.add(sandbox("a"), READY)
    with running(WRITER, store.path) as child:
        for _ in range(10):
            say(child)
            line(child)
            handle.status.update(more)
    assert 20 == handle.status.get().exited_at
    assert LEAST < size(store.path) < 2 * LEAST


def test_a_preallocation_leaves_the_connection_as_it_was(store: Store) -> None:
    """No transaction is open, the cache has its size, and no reader takes it for a commit."""
    handle = store.add(sandbox("a"), READY)
    engine = store._session.engine
    connection = engine.writer.connection
    query(store.path, "PRAGMA wal_checkpoint(TRUNCATE)")
    before = engine.data_version.read("test")
    wal._append_uncommitted(connection)
    assert LEAST < size(store.path)
    assert engine.data_version.read("test") == before
    assert not connection.in_transaction
    assert [(-16384,)] == connection.fetch("PRAGMA cache_size")
    assert 1 == handle.status.update(more).exited_at


def test_a_preallocation_gives_way_to_another_writer(store: Store) -> None:
    """That of a connection that bypasses the process lock."""
    store.add(sandbox("a"), READY)
    before = size(store.path)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    wal._append_uncommitted(store._session.engine.writer.connection)
    other.close()
    assert before == size(store.path)
    assert [] == store.check()


def test_a_log_near_its_bound_is_not_preallocated(
    open_store: OpenStore, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is about to be restarted."""
    monkeypatch.setattr(driver, "WAL_MAX", AHEAD)
    grow(open_store().add(sandbox("a"), READY))
    assert 0 < size(path) < LEAST


@pytest.mark.parametrize(("left", "milliseconds"), [(60.0, 1000), (0.0, 0)])
def test_a_restart_waits_for_readers_within_the_deadline(
    store: Store, monkeypatch: pytest.MonkeyPatch, left: float, milliseconds: int
) -> None:
    """The busy timeout is 0 again afterwards."""
    store.add(sandbox("a"), READY)
    monkeypatch.setattr(driver, "WAL_MAX", 1)
    writer, seen = store._session.engine.writer, list[str]()
    writer.connection.set_trace_callback(seen.append)
    writer._wal.restart_if_outgrown(writer.connection, time.monotonic() + left)
    writer.connection.set_trace_callback(None)
    passive, timeout, restart, no_timeout = seen
    assert ("PASSIVE", "RESTART") == (passive[-8:-1], restart[-8:-1])
    assert f"PRAGMA busy_timeout = {milliseconds}" == timeout
    assert "PRAGMA busy_timeout = 0" == no_timeout


def test_a_restart_that_sqlite_refuses_leaves_no_busy_timeout(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a transaction no WAL is restarted; the write that was committed before succeeds."""
    store.add(sandbox("a"), READY)
    monkeypatch.setattr(driver, "WAL_MAX", 1)
    writer = store._session.engine.writer
    writer.connection.execute("BEGIN IMMEDIATE")
    writer._wal.restart_if_outgrown(writer.connection, time.monotonic() + 60)
    writer.connection.execute("ROLLBACK")
    assert [(0,)] == writer.connection.fetch("PRAGMA busy_timeout")


def test_a_plain_shell_writes_into_the_preallocated_frames(store: Store, path: str) -> None:
    """Its commits do not make the WAL longer either."""
    handle = store.add(sandbox("a"), READY)
    grow(handle)
    long = size(path)
    sqlite_shell(path, "UPDATE sandbox_statuses SET message = 'by hand'")
    assert "by hand" == handle.status.update(lambda old: replace(old, pid=7)).message
    assert long == size(path)


@needs.namespaces
@pytest.mark.parametrize("mebibytes", [12, 48])
def test_the_last_of_a_disk_is_not_preallocated(tmp_path: Path, mebibytes: int) -> None:
    """It is left for data."""
    with (
        small_file_system(f"{tmp_path}/disk", mebibytes) as disk,
        Store.open(f"{disk}/registry.db") as store,
    ):
        grow(store.add(sandbox("a"), READY))
        assert (mebibytes > 16) == (size(store.path) > LEAST)


def test_a_log_that_cannot_be_preallocated_grows_with_each_commit(store: Store, path: str) -> None:
    """An error of a preallocation is no error of the write."""
    store.add(sandbox("a"), READY)
    query(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    assert 0 == size(path)
    code = """
        import resource, sys
        from registry import Store
        from tests.convoy import more
        with Store.open(sys.argv[1], reconcile=False) as store:
            handle = store.get("a")
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), before[1]))
            for _ in range(20):
                handle.status.update(more)
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            print(handle.status.get().exited_at, flush=True)
            sys.stdin.readline()
        """
    with running(code, path, 200_000) as child:
        assert "20" == line(child)
        assert 20 * COMMIT < size(path) <= 200_000
        say(child)
