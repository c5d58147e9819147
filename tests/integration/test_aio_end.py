"""The end of an AsyncStore: loops, close, exit and fork."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable
from typing import Any

import pytest

from registry import (
    FailedPreconditionError,
    Store,
    StoreClosedError,
)
from registry.aio import AsyncStore
from registry.engine.engine import open_engines
from tests.convoy import more
from tests.integration.tasks import (
    busy,
    errors,
    join_own_threads,
    own_threads,
    set_timeout,
    started,
    stored,
)
from tests.tools import READY, query, run, sandbox, until


def test_a_store_is_used_in_one_loop_after_another(path: str) -> None:
    """It belongs to no loop."""
    store = asyncio.run(AsyncStore.open(path))
    asyncio.run(store.add(sandbox("a"), READY))
    assert "a" == asyncio.run(store.get("a")).id
    asyncio.run(store.close())
    assert [] == own_threads()


def test_a_store_is_used_in_two_loops_at_once(path: str) -> None:
    """Each task is woken in its own loop, also for writes of one batch."""
    store = asyncio.run(AsyncStore.open(path, timeout=1000))

    def run_one(name: str) -> None:
        async def main() -> None:
            handle = await store.add(sandbox(name), READY)
            await asyncio.gather(*(handle.status.update(more) for _ in range(200)))
            async with store.transaction():
                await handle.status.update(more)

        asyncio.run(main())

    running = [threading.Thread(target=run_one, args=[name]) for name in "ab"]
    for each in running:
        each.start()
    for each in running:
        each.join()
    found = query(path, "SELECT exited_at FROM sandbox_statuses")
    asyncio.run(store.close())
    assert [(201,), (201,)] == found


def test_a_transaction_of_a_loop_that_ended_is_rolled_back(path: str) -> None:
    """Its task was neither cancelled nor awaited: it is destroyed."""
    store, loop = asyncio.run(AsyncStore.open(path)), asyncio.new_event_loop()

    async def abandoned() -> None:
        async with store.transaction():
            await store.add(sandbox("a"), READY)
            loop.stop()
            await asyncio.sleep(3600)

    coroutine = abandoned()
    task = loop.create_task(coroutine)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.run_forever()
    coroutine.close()
    loop.close()
    del task
    asyncio.run(store.add(sandbox("b"), READY))
    asyncio.run(store.close())
    assert ["b"] == stored(path)


def test_close_lets_queued_writes_end_and_leaves_no_thread(path: str) -> None:
    """Calls after its beginning are refused; a second close does nothing."""

    async def main() -> None:
        store = await AsyncStore.open(path)
        assert ["registry-aio_0"] == own_threads()  # no write: no worker
        async with busy(store):
            tasks = await started(*(store.add(sandbox(f"s{n}"), READY) for n in range(100)))
            (closing,) = await started(store.close())
            late: list[Awaitable[Any]] = [
                *(store.add(sandbox("late"), READY), store.get("s1"), store.list())
            ]
            for refused in late:
                with pytest.raises(StoreClosedError):
                    await refused
        await closing
        assert [None] * 100 == await errors(tasks)
        assert ([], 101) == (own_threads(), len(stored(path)))
        await store.close()
        late = [store.add(sandbox("late"), READY), store.history()]
        for refused in late:
            with pytest.raises(StoreClosedError):
                await refused
        with pytest.raises(StoreClosedError):
            async with store:
                pass

    asyncio.run(main())


def test_a_transaction_that_is_queued_at_a_close_is_refused(path: str) -> None:
    """Its calls would be refused too, and close would wait for the end of its body."""

    async def main() -> None:
        store = await AsyncStore.open(path, timeout=1000)

        async def transact() -> None:
            async with store.transaction():
                raise AssertionError

        async with busy(store):
            (task,) = await started(transact())
            (closing,) = await started(store.close())
        await closing
        assert [StoreClosedError] == [type(each) for each in await errors([task])]
        assert ([], ["busy"]) == (own_threads(), stored(path))

    asyncio.run(main())


def test_close_rolls_back_the_transaction_of_its_own_task(path: str) -> None:
    """And the body's end says so."""

    async def main() -> None:
        store = await AsyncStore.open(path)
        with pytest.raises(StoreClosedError, match="nothing of it is stored"):
            async with store.transaction(), store.transaction():
                await store.add(sandbox("a"), READY)
                await store.close()
        assert ([], []) == (own_threads(), stored(path))

    asyncio.run(main())


def test_close_rolls_back_the_transaction_of_another_task_after_the_timeout(path: str) -> None:
    """That task is told at its next call, and at the end of the body."""

    async def main() -> None:
        store = await AsyncStore.open(path)
        inside, leave = asyncio.Event(), asyncio.Event()

        async def other() -> None:
            async with store.transaction():
                await store.add(sandbox("a"), READY)
                inside.set()
                await leave.wait()
                with pytest.raises(StoreClosedError):
                    await store.get("a")

        task = asyncio.create_task(other())
        await inside.wait()
        set_timeout(store, 0.1)
        await store.close()
        leave.set()
        with pytest.raises(StoreClosedError, match="nothing of it is stored"):
            await task
        assert ([], []) == (own_threads(), stored(path))

    asyncio.run(main())


def test_a_store_that_is_collected_warns_and_ends_its_threads(path: str) -> None:
    """Its file stays open until the exit, as that of a Store does."""
    stores = [asyncio.run(AsyncStore.open(path))]
    asyncio.run(stores[0].add(sandbox("a"), READY))
    session = stores[0]._sync._session
    idle = stores[0]._calls._worker.queue._changed.sleeping
    until(lambda: idle)  # the thread has dropped the call, which refers to the store

    def drop() -> None:
        stores.clear()
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed Store"):
        drop()
    join_own_threads()
    session.close()


def test_a_cancelled_open_closes_the_registry(path: str) -> None:
    """Another process can open it at once, and no thread is left."""

    async def main() -> None:
        (task,) = await started(AsyncStore.open(path))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    join_own_threads()
    assert path not in {each.path for each in open_engines}


def test_another_loop_than_of_asyncio_is_refused(path: str) -> None:
    """The error says what to use."""
    trio = pytest.importorskip("trio")
    with pytest.raises(FailedPreconditionError, match=r"anyio\.to_thread"):
        trio.run(AsyncStore.open, path)
    store = asyncio.run(AsyncStore.open(path))
    with pytest.raises(FailedPreconditionError, match=r"anyio\.to_thread"):
        trio.run(store.get, "a")
    asyncio.run(store.close())


ENDS = {
    "idle": "",
    "in a transaction": (
        "await store.transaction().__aenter__(); await store.add(sandbox('b'), READY)"
    ),
    "with queued writes": (
        "[asyncio.ensure_future(store.add(sandbox(str(n)), NOTREADY)) for n in range(500)];"
        "await asyncio.sleep(0); os.write(1, b'ended'); sys.exit(0)"
    ),
    "in a function": (
        "inside = threading.Event(); asyncio.ensure_future(handle.status.update("
        "lambda old: (inside.set(), threading.Event().wait()))); "
        "await asyncio.to_thread(inside.wait)"
    ),
}


@pytest.mark.parametrize("how", ENDS)
def test_an_exit_without_a_close_does_not_hang(path: str, how: str) -> None:
    """The registry is whole: a write is stored, or was not acknowledged."""
    code = f"""
    import asyncio, os, sys, threading, warnings
    from registry.aio import AsyncStore
    from tests.tools import NOTREADY, READY, sandbox
    warnings.simplefilter("ignore")

    async def main():
        global store
        store = await AsyncStore.open(sys.argv[1])
        handle = await store.add(sandbox("a"), READY)
        {ENDS[how]}

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    """
    run(code, path, timeout=60)
    with Store.open(path) as store:
        assert [] == store.check()
        assert "a" == store.get("a").id
        assert "b" not in stored(path)


def test_a_forked_child_is_refused_at_once_and_the_parent_goes_on(path: str) -> None:
    """Also where the parent has a transaction open."""
    code = """
    import asyncio, os, sys, warnings
    from registry import StoreClosedError
    from registry.aio import AsyncStore
    from tests.tools import READY, sandbox
    warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: it has threads

    async def child(store):
        for call in (store.get("a"), store.add(sandbox("b"), READY), store.list()):
            try:
                await call
            except StoreClosedError:
                os.write(1, b"refused ")
        await store.close()

    async def main():
        async with await AsyncStore.open(sys.argv[1]) as store:
            await store.add(sandbox("a"), READY)
            async with store.transaction():
                await store.add(sandbox("c"), READY)
                pid = os.fork()
                if pid == 0:
                    asyncio._set_running_loop(None)
                    asyncio.new_event_loop().run_until_complete(child(store))
                    os._exit(0)
                assert 0 == os.waitpid(pid, 0)[1]

    asyncio.run(main())
    """
    assert "refused refused refused " == run(code, path, timeout=60)
    assert ["a", "c"] == stored(path)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_handle_writes_after_its_store_was_dropped(path: str) -> None:
    """As a handle of a Store does: the thread of the writes ends with the last handle."""

    async def main() -> None:
        handle = await (await AsyncStore.open(path)).add(sandbox("a"), READY)
        gc.collect()
        assert 1 == (await handle.status.update(more)).exited_at

    asyncio.run(main())
    gc.collect()
    join_own_threads()
