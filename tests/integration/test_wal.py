"""The log has room ahead of what is written, so that a commit need not make it longer."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from registry import Sandbox, Store
from registry.engine import driver
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
WRITER = """
    import sys
    from registry import Store
    from tests.convoy import more
    with Store.open(sys.argv[1], reconcile=False) as store:
        for _ in sys.stdin:
            print(store.get("a").status.update(more).exited_at, flush=True)
    """


def size(path: str) -> int:
    """Return the bytes of the log."""
    return os.stat(f"{path}-wal").st_size


def grow(handle: Sandbox) -> None:
    """Write until there is room ahead: to that which a commit has made longer the next adds it."""
    for _ in range(2):
        handle.status.update(more)


def test_commits_do_not_make_the_log_longer(store: Store) -> None:
    """It gets longer by the room alone, and again when that is used up."""
    handle = store.add(sandbox("a"), READY)
    grow(handle)
    long = size(store.path)
    assert AHEAD < long < 2 * AHEAD
    sizes = set()
    for _ in range(AHEAD // COMMIT + 3):
        handle.status.update(more)
        sizes.add(size(store.path))
    assert 3 == len(sizes)  # as it was; longer, when one did not fit; with new room
    assert long == min(sizes)
    assert long + AHEAD < max(sizes) < long + AHEAD + 5 * COMMIT


def test_the_room_is_nothing_that_was_written(path: str) -> None:
    """Whoever opens the file after a kill finds what was acknowledged, and takes zeros for none."""
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
    with running(WRITER, path) as child:
        for n in range(1, 6):
            say(child)
            assert str(n) == line(child)
        assert AHEAD < size(path)
        child.kill()
        child.wait()
    with open(f"{path}-wal", "rb") as log:
        assert log.read().endswith(bytes(AHEAD // 2))
    assert [(5,)] == query(path, "SELECT exited_at FROM sandbox_statuses")
    with Store.open(path) as store:
        assert 5 == store.get("a").status.get().exited_at
        assert [] == store.check()


def test_two_processes_do_not_each_add_it(store: Store) -> None:
    """Who finds that it has grown by as much knows that another one was there."""
    handle = store.add(sandbox("a"), READY)
    with running(WRITER, store.path) as child:
        for _ in range(10):
            say(child)
            line(child)
            handle.status.update(more)
    assert 20 == handle.status.get().exited_at
    assert AHEAD < size(store.path) < 2 * AHEAD


def test_what_was_seen_in_line_may_be_old(store: Store) -> None:
    """The one before us may have added it since."""
    grow(store.add(sandbox("a"), READY))
    wal, long = store._session.engine.writer._wal, size(store.path)
    wal._file_identity.log_size = long - AHEAD
    wal._size = long - AHEAD - 1
    wal.extend()
    assert long == size(store.path)


def test_what_another_one_wrote_since_the_look_stays(store: Store) -> None:
    """The zeros go after the end as it is, whatever was seen in line."""
    handle = store.add(sandbox("a"), READY)
    grow(handle)
    wal, long = store._session.engine.writer._wal, size(store.path)
    while long == size(store.path):  # until the room is used up, and more
        handle.status.update(more)
    with open(f"{store.path}-wal", "rb") as file:
        written = file.read()
    wal._file_identity.log_size = len(written) - COMMIT
    wal._size = len(written) - 2 * COMMIT
    wal.extend()
    with open(f"{store.path}-wal", "rb") as file:
        assert written + bytes(AHEAD) == file.read()


def test_a_log_that_was_emptied_since_the_look_stays_empty(store: Store) -> None:
    """Without a frame it is no log, and nobody is to take zeros for what was written."""
    grow(store.add(sandbox("a"), READY))
    wal = store._session.engine.writer._wal
    query(store.path, "PRAGMA wal_checkpoint(TRUNCATE)")
    wal._file_identity.log_size, wal._size = 2 * COMMIT, COMMIT
    wal.extend()
    assert 0 == size(store.path)


def test_a_log_near_its_bound_gets_none(
    open_store: OpenStore, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is to be begun anew."""
    monkeypatch.setattr(driver, "WAL_MAX", AHEAD)
    grow(open_store().add(sandbox("a"), READY))
    assert 0 < size(path) < AHEAD


@pytest.mark.parametrize(("left", "milliseconds"), [(60.0, 1000), (0.0, 0)])
def test_who_begins_it_anew_waits_for_readers_within_the_deadline(
    store: Store, left: float, milliseconds: int
) -> None:
    """And not at all the next time, also where SQLite refuses to do it."""
    writer, seen = store._session.engine.writer, list[str]()
    connection = writer.connection
    connection.execute("BEGIN IMMEDIATE")  # in which no log is begun anew
    connection.set_trace_callback(seen.append)
    writer._wal.restart(connection, time.monotonic() + left)
    connection.set_trace_callback(None)
    connection.execute("ROLLBACK")
    assert f"PRAGMA busy_timeout = {milliseconds}" == seen[0]
    assert [(0,)] == connection.fetch("PRAGMA busy_timeout")


def test_a_plain_shell_writes_into_the_room(store: Store, path: str) -> None:
    """To SQLite it is the rest of an older log."""
    handle = store.add(sandbox("a"), READY)
    grow(handle)
    long = size(path)
    sqlite_shell(path, "UPDATE sandbox_statuses SET message = 'by hand'")
    assert "by hand" == handle.status.update(lambda old: replace(old, pid=7)).message
    assert long == size(path)


@needs.namespaces
@pytest.mark.parametrize("mebibytes", [12, 48])
def test_the_last_of_a_disk_is_not_kept_for_it(tmp_path: Path, mebibytes: int) -> None:
    """There it is for what is written."""
    with (
        small_file_system(f"{tmp_path}/disk", mebibytes) as disk,
        Store.open(f"{disk}/registry.db") as store,
    ):
        grow(store.add(sandbox("a"), READY))
        assert (mebibytes > 16) == (size(store.path) > AHEAD)


@pytest.mark.parametrize(
    ("limit", "cut_at"), [("NOFILE", 250_000), ("FSIZE", 350_000)], ids=["refused", "cut short"]
)
def test_a_log_that_cannot_be_given_room_grows_as_it_is_written(
    store: Store, path: str, limit: str, cut_at: int
) -> None:
    """What is refused to the room is no error of the write."""
    store.add(sandbox("a"), READY)
    query(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    assert 0 == size(path)
    code = """
        import resource, sys
        from registry import Store
        from tests.convoy import more
        with Store.open(sys.argv[1], reconcile=False) as store:
            handle = store.get("a")
            limit = getattr(resource, f"RLIMIT_{sys.argv[2]}")
            before = resource.getrlimit(limit)
            resource.setrlimit(limit, (int(sys.argv[3]), before[1]))
            for _ in range(20):
                handle.status.update(more)
            resource.setrlimit(limit, before)
            print(handle.status.get().exited_at, flush=True)
            sys.stdin.readline()
        """
    with running(code, path, limit, 0 if limit == "NOFILE" else cut_at) as child:
        assert "20" == line(child)
        assert 20 * COMMIT < size(path) <= cut_at
        say(child)


def test_another_log_at_its_path_gets_none(store: Store, path: str) -> None:
    """It is not ours to write."""
    store.add(sandbox("a"), READY)
    wal = store._session.engine.writer._wal
    os.rename(f"{path}-wal", f"{path}-wal.ours")
    try:
        with open(f"{path}-wal", "wb") as other:
            other.write(b"x" * wal._file_identity.log_size)
        wal._size = wal._file_identity.log_size - 1
        wal.extend()
        assert wal._file_identity.log_size == size(path)
    finally:
        os.rename(f"{path}-wal.ours", f"{path}-wal")
