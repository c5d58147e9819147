"""Waits for the write lock: deadlines, and errors that name the lock holder."""

from __future__ import annotations

import fcntl
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry import (
    FailedPreconditionError,
    Status,
    Store,
    StoreClosedError,
    UnavailableError,
)
from registry.engine import open_files
from registry.engine.process_lock import ProcessLock
from tests.conftest import OpenStore
from tests.convoy import more
from tests.tools import READY, ids, is_locked, is_recent, line, running, sandbox, say, until


def test_the_timeout_error_names_the_holding_thread(open_store: OpenStore) -> None:
    """An UpdateFunc sleeps past another writer's deadline, within a process."""
    store, impatient = open_store(), open_store(timeout=0.2)
    handle = store.add(sandbox("a"), READY)
    store.add(sandbox("b"), READY)
    other = impatient.get("b")
    inside, leave = threading.Event(), threading.Event()

    def sleep(old: Status) -> Status:
        inside.set()
        leave.wait()
        return old

    sleeper = threading.Thread(target=handle.status.update, args=[sleep], name="the-sleeper")
    sleeper.start()
    inside.wait()
    began = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        other.status.update(more)
    assert time.monotonic() - began >= 0.2
    leave.set()
    sleeper.join()
    assert "'the-sleeper'" in caught.value.holder
    assert "update status of sandbox 'a'" in str(caught.value)
    assert is_recent(caught.value.since)
    assert 0.2 == caught.value.timeout
    assert READY == other.status.get()
    assert 1 == store.get("b").status.update(more).exited_at


HOLDER = """
    import sys
    from registry import Store
    with Store.open(sys.argv[1]) as store:
        def hold(old):
            print("inside", flush=True)
            sys.stdin.readline()
            return old
        store.get("a").status.update(hold)
        print("done", flush=True)
    """


def test_the_timeout_error_names_the_holding_process(open_store: OpenStore, path: str) -> None:
    """The same between two processes; a wait with a longer timeout succeeds."""
    store, impatient = open_store(), open_store(timeout=0.2)
    store.add(sandbox("a"), READY)
    with running(HOLDER, path) as child:
        assert "inside" == line(child)
        with pytest.raises(UnavailableError) as caught:
            impatient.get("a").status.update(more)
        assert f"process {child.pid}" in caught.value.holder
        assert is_recent(caught.value.since)
        assert "python" in str(caught.value)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(store.get("a").status.update, more)
            say(child)
            assert 1 == waiting.result().exited_at
        assert "done" == line(child)


def test_the_error_says_that_the_lock_holder_is_stopped(open_store: OpenStore, path: str) -> None:
    """A stopped process (Ctrl-Z, a debugger) keeps the lock until it is resumed or killed."""
    impatient = open_store(timeout=0.2)
    handle = impatient.add(sandbox("a"), READY)
    with running(HOLDER, path) as child:
        assert "inside" == line(child)
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        with pytest.raises(UnavailableError, match="stopped") as caught:
            handle.status.update(more)
        assert f"process {child.pid} (python" in caught.value.holder


def test_a_killed_holder_releases_the_lock(store: Store, path: str) -> None:
    """The kernel releases its locks, and nothing of its write is there."""
    handle = store.add(sandbox("a"), READY)
    with running(HOLDER, path) as child:
        assert "inside" == line(child)
        child.kill()
        assert 1 == handle.status.update(more).exited_at


def test_the_timeout_error_names_a_client_that_bypasses_the_process_lock(
    open_store: OpenStore, path: str
) -> None:
    """The sqlite3 shell, say, that holds SQLite's own lock."""
    store, impatient = open_store(), open_store(timeout=0.2)
    handle = store.add(sandbox("a"), READY)
    code = """
        import sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        print("inside", flush=True)
        sys.stdin.readline()
        connection.execute("ROLLBACK")
        connection.close()
        print("done", flush=True)
        """
    with running(code, path) as child:
        assert "inside" == line(child)
        with pytest.raises(UnavailableError) as caught:
            impatient.get("a").status.update(more)
        assert f"process {child.pid}" in caught.value.holder
        say(child)
        assert "done" == line(child)
    assert 1 == handle.status.update(more).exited_at


def test_the_queue_is_unlocked_just_before_the_commit(store: Store, path: str) -> None:
    """A writer holds the queue until its COMMIT, and the lock until COMMIT has returned."""
    handle = store.add(sandbox("a"), READY)
    seen = []

    def note(statement: str) -> None:
        verb = statement.split(maxsplit=1)[0]
        seen.append((verb, is_locked(f"{path}-queue"), is_locked(f"{path}-lock")))

    connection = store._session.engine.writer.connection
    connection.set_trace_callback(note)
    handle.status.update(more)
    connection.set_trace_callback(None)
    assert ("BEGIN", True, True) == seen[0]
    assert ("COMMIT", False, True) == seen[-1]
    assert {(True, True)} == {(queue, lock) for _, queue, lock in seen[:-1]}


def test_the_timeout_error_names_this_process(open_store: OpenStore, path: str) -> None:
    """A checkpoint or a close holds the process lock without a transaction."""
    store, impatient = open_store(), open_store(timeout=0.2)
    handle = store.add(sandbox("a"), READY)
    other = ProcessLock(path)
    assert other.acquire(time.monotonic() + 60)
    with pytest.raises(UnavailableError, match="held by this process, by another thread; retry"):
        impatient.get("a").status.update(more)
    other.close()
    handle.status.update(more)


@pytest.mark.parametrize("suffix", ["-lock", "-queue"])
def test_the_timeout_error_names_a_process_that_has_not_recorded_itself(
    open_store: OpenStore, path: str, suffix: str
) -> None:
    """It has locked one of the files, and was stopped there."""
    store, impatient = open_store(), open_store(timeout=0.2)
    handle = store.add(sandbox("a"), READY)
    code = """
        import fcntl, sys
        file = open(sys.argv[1], "rb")
        fcntl.flock(file, fcntl.LOCK_EX)
        print("locked", flush=True)
        sys.stdin.readline()
        """
    with running(code, f"{path}{suffix}") as child:
        assert "locked" == line(child)
        with pytest.raises(UnavailableError, match=rf"process {child.pid} \(python") as caught:
            impatient.get("a").status.update(more)
        assert str(child.pid) in caught.value.holder
        say(child)
    handle.status.update(more)


def test_a_write_that_can_start_no_thread_reports_the_limit(store: Store, path: str) -> None:
    """It needs a thread to wait for another process; a later write may start one."""
    store.add(sandbox("a"), READY)
    code = """
        import sys, threading
        from registry import Store
        from registry.errors import ResourceExhaustedError
        from tests.netns.seccomp import refuse_threads
        def in_vain():
            refuse_threads()
            try:
                handle.status.update(lambda old: old)
            except ResourceExhaustedError as error:
                print(error, flush=True)
        with Store.open(sys.argv[1], reconcile=False) as store:
            handle = store.get("a")
            print("open", flush=True)
            sys.stdin.readline()
            limited = threading.Thread(target=in_vain)
            limited.start()
            limited.join()
            sys.stdin.readline()
            print(handle.status.update(lambda old: old).state, flush=True)
        """
    with running(code, path) as child:
        assert "open" == line(child)
        with store.transaction():
            say(child)
            assert "can't start new thread; raise the limit" in line(child)
        say(child)
        assert "SANDBOX_READY" == line(child)


def test_waiters_for_other_locks_do_not_hide_the_holder(
    open_store: OpenStore, path: str, tmp_path: Path
) -> None:
    """The kernel lists waiters among the locks."""
    open_store()
    store = open_store(timeout=0.2)
    code = """
        import fcntl, sys
        with open(sys.argv[1], "w") as file:
            print("waits", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        """
    other = tmp_path / "other"
    with other.open("w") as held, closing(sqlite3.connect(path, isolation_level=None)) as shell:
        fcntl.flock(held, fcntl.LOCK_EX)
        shell.execute("BEGIN IMMEDIATE")
        with running(code, other) as waiter:
            assert "waits" == line(waiter)
            with pytest.raises(UnavailableError, match="bypasses the process lock"):
                store.add(sandbox("a"), READY)
        shell.execute("ROLLBACK")


def test_open_waits_for_a_client_that_bypasses_the_process_lock(path: str) -> None:
    """Until the timeout, whose error names the client; and no longer than the client writes."""
    Store.open(path).close()
    code = """
        import sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        print("inside", flush=True)
        sys.stdin.readline()
        connection.execute("ROLLBACK")
        connection.close()
        """
    with running(code, path) as child, ThreadPoolExecutor(1) as pool:
        assert "inside" == line(child)
        began = time.monotonic()
        with pytest.raises(UnavailableError) as caught:
            Store.open(path, timeout=0.3)
        assert time.monotonic() - began >= 0.3
        assert f"process {child.pid}" in caught.value.holder
        opening = pool.submit(Store.open, path)
        say(child)
        opening.result().close()


def test_a_waiting_open_delays_only_opens_of_the_same_file(path: str, tmp_path: Path) -> None:
    """And those no longer than until their own deadline."""
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
    with running(HOLDER, path) as child, ThreadPoolExecutor(1) as pool:
        assert "inside" == line(child)
        waiting = pool.submit(Store.open, path)
        key = (path, False, False)
        until(lambda: key in open_files._mutexes and open_files._mutexes[key].holder)
        Store.open(tmp_path / "other.db").close()
        with pytest.raises(UnavailableError, match="another thread") as caught:
            Store.open(path, timeout=0.1)
        assert (path, 0.1) == (caught.value.path, caught.value.timeout)
        assert not waiting.done()
        say(child)
        waiting.result().close()


def test_a_transaction_is_entered_once(store: Store) -> None:
    """A second `with` is refused, also inside the first one, which goes on unharmed."""
    transaction = store.transaction()
    with transaction:
        store.add(sandbox("a"), READY)
        with pytest.raises(FailedPreconditionError, match="entered before"), transaction:
            pass
    with pytest.raises(FailedPreconditionError, match="entered before"), transaction:
        pass
    store.add(sandbox("b"), READY)
    assert ["a", "b"] == ids(store.list())


def test_a_close_past_its_timeout_rolls_back_the_write_under_way(path: str) -> None:
    """The write raises StoreClosedError; then all is closed, and the next process may write."""
    store = Store.open(path, timeout=0.2)
    handle = store.add(sandbox("a"), READY)
    begun, closed = threading.Event(), threading.Event()

    def slow(old: Status) -> Status:
        begun.set()
        closed.wait()
        return replace(old, message="too late")

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(handle.status.update, slow)
        begun.wait()
        store.close()
        closed.set()
        with pytest.raises(StoreClosedError):
            writer.result()
    with Store.open(path) as again:
        assert "" == again.get("a").status.get().message
        again.get("a").status.update(lambda old: replace(old, message="in time"))
        assert [] == again.check()
    assert not os.path.exists(f"{path}-wal")


def test_one_deadline_covers_all_waits_of_a_write(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The waits for a thread and for another process do not add up."""
    deadlines: list[float] = []

    def noted(acquire: Callable[..., bool], place: int) -> Callable[..., bool]:
        def note(*args: Any) -> bool:
            deadlines.append(args[place])
            return acquire(*args)

        return note

    handle = store.add(sandbox("a"), READY)
    # This store's own locks: the garbage collector may close another test's store meanwhile.
    mutex = store._session.engine.writes.mutex
    process_lock = store._session.engine.writer._lock
    assert process_lock is not None
    monkeypatch.setattr(mutex, "acquire", noted(mutex.acquire, 1))
    monkeypatch.setattr(process_lock, "acquire", noted(process_lock.acquire, 0))
    handle.status.update(more)
    assert 2 == len(deadlines)
    assert 1 == len(set(deadlines))
