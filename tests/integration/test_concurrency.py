"""Concurrent calls of threads, processes and tasks."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from registry import (
    FailedPreconditionError,
    NameReservedError,
    Store,
)
from tests.conftest import OpenStore
from tests.convoy import more
from tests.tools import READY, line, query, running, sandbox, say, until


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
