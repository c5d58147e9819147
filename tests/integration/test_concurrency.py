"""Concurrent calls of threads, processes and tasks."""

from __future__ import annotations

import asyncio
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
    NameReservedError,
    Status,
    Store,
    StoreClosedError,
    UnavailableError,
)
from registry.engine import shared
from registry.engine.process_lock import ProcessLock
from registry.sync.locks import Mutex
from tests.conftest import OpenStore
from tests.tools import READY, ids, is_locked, is_recent, line, query, running, sandbox, say, until


def more(old: Status) -> Status:
    """Count one up."""
    return replace(old, exited_at=old.exited_at + 1)


def test_8_threads_lose_no_update(open_store: OpenStore) -> None:
    """8 x 200 increments are 1600, through two Stores."""
    stores = [open_store(), open_store()]
    stores[0].add(sandbox("a"), READY)

    def count(n: int) -> None:
        handle = stores[n % 2].get("a")
        for _ in range(200):
            handle.status.update(more)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(8)))
    assert 1600 == stores[0].get("a").status.get().exited_at


def test_4_processes_lose_no_update(store: Store, path: str) -> None:
    """4 x 200 increments are 800, and all calls return."""
    store.add(sandbox("a"), READY)
    code = """
        import sys
        from dataclasses import replace
        from registry import Store
        with Store.open(sys.argv[1]) as store:
            handle = store.get("a")
            print("open", flush=True)
            sys.stdin.readline()
            for _ in range(200):
                handle.status.update(lambda old: replace(old, exited_at=old.exited_at + 1))
        print("done")
        """
    with (
        running(code, path) as one,
        running(code, path) as two,
        running(code, path) as three,
        running(code, path) as four,
    ):
        children = [one, two, three, four]
        assert ["open"] * 4 == [line(child) for child in children]
        for child in children:
            say(child)
        assert ["done"] * 4 == [line(child) for child in children]
    assert 800 == store.get("a").status.get().exited_at


def test_one_of_many_threads_gets_a_contended_name(store: Store) -> None:
    """The errors of all others name its holder."""
    winners: list[str] = []
    holders: list[str] = []

    def add(n: int) -> None:
        try:
            winners.append(store.add(sandbox(f"s{n}", name="wanted"), READY).id)
        except NameReservedError as error:
            holders.append(error.holder)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    assert 1 == len(winners)
    assert winners * 7 == holders


def test_concurrent_reads_and_writes_raise_no_error(store: Store) -> None:
    """Threads add, update, list and delete at once."""
    stop = threading.Event()

    def write(n: int) -> None:
        for round_ in range(30):
            id = f"s{n}-{round_}"
            handle = store.add(sandbox(id), READY)
            handle.status.update(more)
            assert store.delete(id)

    def read() -> int:
        reads = 0
        while not stop.is_set():
            assert all(found.name.startswith("name-s") for found in store.list())
            reads += 1
        return reads

    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        list(pool.map(write, range(5)))
        stop.set()
        assert all(reader.result() > 0 for reader in readers)
    assert [] == store.list()
    assert 5 * 30 * 2 == len(store.history())


# Tasks.


def test_another_task_of_the_thread_is_refused(store: Store) -> None:
    """A transaction held across an await does not take in the other task's write."""
    store.add(sandbox("a"), READY)

    async def hold(entered: asyncio.Event, leave: asyncio.Event) -> None:
        with store.transaction():
            store.add(sandbox("mine"), READY)
            entered.set()
            await leave.wait()
            store.get("a").status.update(lambda old: replace(old, message="mine"))

    async def intrude(entered: asyncio.Event, leave: asyncio.Event) -> None:
        await entered.wait()
        try:
            with pytest.raises(FailedPreconditionError, match="another task of this thread"):
                store.add(sandbox("theirs"), READY)
            with pytest.raises(FailedPreconditionError):
                store.get("a").status.update(more)
            # Reading is free, and sees what is committed.
            assert ["a"] == [found.id for found in store.list()]
        finally:
            leave.set()

    async def both() -> None:
        entered, leave = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(hold(entered, leave))
            group.create_task(intrude(entered, leave))

    asyncio.run(both())
    assert ["a", "mine"] == sorted(found.id for found in store.list())
    assert "mine" == store.get("a").status.get().message


def test_a_task_nests_in_its_own_transaction(store: Store) -> None:
    """Across an await too, and its thread may write afterwards."""

    async def write() -> None:
        with store.transaction():
            store.add(sandbox("a"), READY)
            await asyncio.sleep(0)
            with store.transaction():
                store.add(sandbox("b"), READY)

    asyncio.run(write())
    store.add(sandbox("c"), READY)
    assert 3 == len(store.list())


# Waiting.


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
        until(lambda: (path, False) in shared._mutexes and shared._mutexes[path, False].holder)
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
    monkeypatch.setattr(Mutex, "acquire", noted(Mutex.acquire, 2))
    monkeypatch.setattr(ProcessLock, "acquire", noted(ProcessLock.acquire, 1))
    handle.status.update(more)
    assert 2 == len(deadlines)
    assert 1 == len(set(deadlines))


def test_a_process_that_writes_without_pause_starves_no_other(store: Store, path: str) -> None:
    """Each write of this process is served; test_waiting tests that the lock is a queue."""
    store.add(sandbox("a"), READY)
    store.add(sandbox("b"), READY)
    code = """
        import sys
        from dataclasses import replace
        from registry import Store
        with Store.open(sys.argv[1]) as store:
            handle = store.get("b")
            print("open", flush=True)
            while True:
                handle.status.update(lambda old: replace(old, exited_at=old.exited_at + 1))
        """
    handle = store.get("a")
    theirs = store.get("b")
    with running(code, path) as child:
        assert "open" == line(child)
        until(lambda: theirs.status.get().exited_at)
        for _ in range(50):
            handle.status.update(more)
        before = theirs.status.get().exited_at
        until(lambda: theirs.status.get().exited_at > before)
    assert 50 == handle.status.get().exited_at


# Opening at the same instant.


def test_8_processes_open_a_fresh_path_at_once_50_times(tmp_path: object) -> None:
    """All succeed and find the same registry."""
    code = """
        import os, sys
        from registry import Store
        folder = sys.argv[1]
        print("up", flush=True)
        for text in sys.stdin:
            with Store.open(os.path.join(folder, text.strip())) as store:
                print(store.new_netns_path("/").split("-")[1], flush=True)
        """
    children = [running(code, tmp_path) for _ in range(8)]
    opened = [child.__enter__() for child in children]
    try:
        assert ["up"] * 8 == [line(child) for child in opened]
        for n in range(50):
            for child in opened:
                say(child, f"{n}.db")
            found = [line(child) for child in opened]
            assert [found[0]] * 8 == found
            assert [(1,)] == query(f"{tmp_path}/{n}.db", "SELECT count(*) FROM registry")
    finally:
        for running_child in children:
            running_child.__exit__(None, None, None)
