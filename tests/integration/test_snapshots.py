"""A reader that keeps a snapshot while the WAL grows is named, by a warning and by `check`."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from registry import Store
from registry.engine import driver, wal
from registry.engine.driver import WAL_MAX
from registry.host import paths
from registry.host.file_locks import READ_MARKS, locks_on, snapshot_holders
from tests.conftest import OpenStore
from tests.convoy import more
from tests.tools import (
    READY,
    line,
    pod,
    query,
    running,
    sandbox,
    say,
    until,
)

READER = """
    import sqlite3, sys
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM sandboxes").fetchall()
    print("reading", flush=True)
    sys.stdin.readline()
    connection.execute("ROLLBACK")
    print("done", flush=True)
    sys.stdin.readline()
    """


def grow(store: Store, prefix: str) -> None:
    """Write more to the WAL than its bound."""
    config = pod()
    config.annotations["long"] = "x" * 1_000_000
    with store.transaction():
        for n in range(WAL_MAX // 2_000_000 + 1):  # as protobuf and as JSON
            store.add(sandbox(f"{prefix}{n}", config=config), READY)


BOUND = 1024 * 1024
"""Bytes for `WAL_MAX` in a test that commits little at a time."""


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings about the WAL."""
    messages = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    return [each for each in messages if "cannot be reset" in each]


def found(store: Store) -> list[str]:
    """Return what `check` says of it."""
    violations = store.check()
    assert {"wal_can_be_reset"} >= {each.rule for each in violations}
    return [each.found for each in violations]


@pytest.mark.parametrize("wal_file", ["with commits", "empty"])
def test_another_process_that_keeps_a_snapshot_is_named(
    store: Store, caplog: pytest.LogCaptureFixture, wal_file: str
) -> None:
    """When the WAL passes 16 and 32 MiB; whether the reader reads the WAL or not."""
    store.add(sandbox("a"), READY)
    if wal_file == "empty":
        assert [(0, 0, 0)] == query(store.path, "PRAGMA wal_checkpoint(TRUNCATE)")
    with running(READER, store.path) as reader:
        assert "reading" == line(reader)
        name = f"process {reader.pid} ("
        assert [] == found(store)  # while the WAL is short
        grow(store, "b")
        assert 1 == len(told(caplog))
        assert name in told(caplog)[0]
        assert store.path in told(caplog)[0]
        store.get("a").status.update(more)
        assert 1 == len(told(caplog))
        assert [] == found(store)  # a snapshot that began just now would look the same
        grow(store, "c")
        assert 2 == len(told(caplog))
        (violation,) = found(store)
        assert violation.startswith(name)
        say(reader, "")
        assert "done" == line(reader)
        grow(store, "d")
        assert 2 == len(told(caplog))
        assert [] == found(store)


def waits(store: Store) -> list[str]:
    """Return a list to which each restart of the WAL by *store* adds its busy timeout."""
    seen = list[str]()

    def note(statement: str) -> None:
        if statement.startswith("PRAGMA busy_timeout = ") and not statement.endswith(" 0"):
            seen.append(statement.removeprefix("PRAGMA busy_timeout = "))

    store._session.engine.writer.connection.set_trace_callback(note)
    return seen


def grow_to(store: Store, bytes: int) -> None:
    """Update a sandbox until the WAL has more than *bytes*."""
    while paths.size(f"{store.path}-wal") <= bytes:
        store.get("a").status.update(more)


@pytest.mark.parametrize("began", ["before the WAL", "in its first half", "in its last quarter"])
def test_a_reader_that_stays_is_waited_for_once_at_most(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, began: str
) -> None:
    """When the WAL passes a bound and the reader began in the later half of it."""
    monkeypatch.setattr(driver, "WAL_MAX", BOUND)
    monkeypatch.setattr(wal, "RESET_WAIT", 0.001)
    store.add(sandbox("a"), READY)
    query(store.path, "PRAGMA wal_checkpoint(TRUNCATE)")
    seen = waits(store)
    if began != "before the WAL":
        grow_to(store, BOUND // 4 if began == "in its first half" else BOUND * 3 // 4)
    with running(READER, store.path) as reader:
        assert "reading" == line(reader)
        for bound in (BOUND, 2 * BOUND, 4 * BOUND):
            assert not [each for each in told(caplog) if str(bound) in each]
            grow_to(store, bound)
            store.get("a").status.update(more)
        assert (["1"] if began == "in its last quarter" else []) == seen
        assert 3 == len(told(caplog))
        assert all(f"process {reader.pid} (" in each for each in told(caplog))


def checkpoints(store: Store) -> list[int]:
    """Return a list to which each commit of *store* adds its number of pages for a checkpoint."""
    writer = store._session.engine.writer.connection
    seen = list[int]()

    def note(statement: str) -> None:
        if statement == "COMMIT":
            seen.extend(writer.execute("PRAGMA wal_autocheckpoint").fetchone())

    writer.set_trace_callback(note)
    return seen


def test_commits_beside_a_reader_that_stays_try_no_checkpoint(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try sorts the whole WAL: 36 % of the updates were lost; at each multiple one remains.

    The reader needs no WAL, so SQLite finds out that it may move nothing after it has sorted.
    """
    monkeypatch.setattr(driver, "WAL_MAX", BOUND)
    store = open_store()
    store.add(sandbox("a"), READY)
    query(store.path, "PRAGMA wal_checkpoint(TRUNCATE)")
    with running(READER, store.path) as reader:
        assert "reading" == line(reader)
        grow_to(store, 2 * BOUND)
        seen = checkpoints(store)
        grow_to(store, int(2.5 * BOUND))
        assert {0} == set(seen)
        say(reader, "")
        assert "done" == line(reader)
    grow_to(store, 3 * BOUND)  # at this multiple the reader is gone
    for _ in range(2):
        store.get("a").status.update(more)
    assert paths.size(f"{store.path}-wal") <= BOUND
    store.get("a").status.update(more)
    assert driver.WAL_PAGES == seen[-1]


def test_the_commit_that_passes_the_bound_waits_for_all_processes(
    store: Store, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The other processes neither wait nor warn."""
    monkeypatch.setattr(driver, "WAL_MAX", BOUND)
    store.add(sandbox("a"), READY)
    seen = waits(store)
    grow_to(store, BOUND * 3 // 4)
    code = """
        import logging, sys
        from registry import Store
        from registry.engine import driver, wal
        from tests.integration.test_snapshots import grow_to, waits
        driver.WAL_MAX, wal.RESET_WAIT = int(sys.argv[2]), 0.001
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        with Store.open(sys.argv[1], reconcile=False) as store:
            seen = waits(store)
            grow_to(store, driver.WAL_MAX)
            print(seen, flush=True)
        """
    with store._session.engine.snapshot("hold") as reader:
        assert reader.fetch("SELECT count(*) FROM sandboxes")
        with running(code, path, BOUND) as other:
            assert f"process {os.getpid()} (" in line(other)
            assert "['1']" == line(other)
        for _ in range(3):
            store.get("a").status.update(more)
    assert ([], []) == (seen, told(caplog))


def test_an_error_of_a_write_names_the_reader_that_keeps_a_long_wal(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that waits for another one, or finds the disk full, may owe it to the reader."""
    store, impatient = open_store(), open_store(timeout=0.01)
    store.add(sandbox("a"), READY)

    def failures() -> list[str]:
        with ThreadPoolExecutor(1) as pool, store.transaction():
            late = pool.submit(impatient.get("a").status.update, more).exception()
        return [str(late), str(store._session.engine.writer.disk_space._exhausted("add", "no"))]

    with running(READER, store.path) as reader:
        assert "reading" == line(reader)
        name = f"cannot be reset: process {reader.pid} ("
        assert [False, False] == [name in each for each in failures()]
        monkeypatch.setattr(driver, "WAL_MAX", 1)
        assert [True, True] == [name in each for each in failures()]


def test_a_snapshot_of_this_process_is_named(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """The snapshot of the check itself does not count."""
    store.add(sandbox("a"), READY)
    with store._session.engine.snapshot("hold") as reader:
        assert reader.fetch("SELECT count(*) FROM sandboxes")
        grow(store, "b")
        assert "this process keeps a snapshot" in told(caplog)[0]
        grow(store, "c")
        (violation,) = found(store)
        assert violation.startswith("this process keeps a snapshot")
    grow(store, "d")
    assert [] == found(store)
    assert [] == snapshot_holders(store.path)


def test_a_reader_of_a_wal_that_has_just_passed_its_bound_is_no_violation(store: Store) -> None:
    """The next write resets that WAL; a read then does not prevent it."""
    grow(store, "a")
    with store._session.engine.snapshot("hold") as reader:
        assert reader.fetch("SELECT count(*) FROM sandboxes")
        assert snapshot_holders(store.path)
        assert [] == found(store)


def reads(connection: sqlite3.Connection) -> None:
    """Begin a snapshot."""
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM sandboxes").fetchall()


def test_readers_of_which_one_is_always_there_do_not_keep_the_wal(
    open_store: OpenStore,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A write waits until the database has all of the WAL: a reader then needs no WAL."""
    monkeypatch.setattr(driver, "WAL_MAX", BOUND)
    monkeypatch.setattr(wal, "RESET_WAIT", 300.0)
    store, waits = open_store(timeout=300.0), threading.Event()
    handle = store.add(sandbox("a"), READY)
    grow_to(store, BOUND * 3 // 4)  # a reader that began earlier is not waited for
    writing = store._session.engine.writer.connection
    writing.set_trace_callback(lambda sql: waits.set() if "RESTART" in sql else None)

    def outgrow() -> None:
        while not waits.is_set():
            handle.status.update(more)

    def needs_no_wal() -> bool:
        reads(third)
        held = [each for each in locks_on(f"{path}-shm") if each.access == "READ"]
        if any(lock.first <= READ_MARKS[0] <= lock.last for lock in held):
            return True
        third.execute("ROLLBACK")
        return False

    with (
        closing(sqlite3.connect(path, isolation_level=None)) as first,
        closing(sqlite3.connect(path, isolation_level=None)) as second,
        closing(sqlite3.connect(path, isolation_level=None)) as third,
    ):
        reads(first)
        writer = threading.Thread(target=outgrow)
        writer.start()
        waits.wait()
        reads(second)
        first.execute("ROLLBACK")
        until(needs_no_wal)
        second.execute("ROLLBACK")
        writer.join()
        assert third.in_transaction
    assert [] == told(caplog)
