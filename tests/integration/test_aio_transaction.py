"""Transactions of an AsyncStore, which belong to their tasks."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any

import pytest

from registry import (
    FailedPreconditionError,
    NotFoundError,
    Store,
)
from registry.aio import AsyncStore
from tests.convoy import more
from tests.integration.tasks import (
    commits,
    started,
    stored,
)
from tests.tools import READY, sandbox


def test_other_tasks_wait_for_the_transaction_of_a_task(path: str) -> None:
    """Their writes are stored after it, their reads do not see it, and its own do."""

    async def main() -> None:
        async with await AsyncStore.open(path) as store:
            handle = await store.add(sandbox("a"), READY)
            inside, leave = asyncio.Event(), asyncio.Event()

            async def other() -> None:
                await inside.wait()
                assert ["a"] == [each.id for each in await store.list()]
                with pytest.raises(NotFoundError):
                    await store.get("mine")
                assert 0 == (await handle.status.get()).exited_at
                write = (await started(store.add(sandbox("theirs"), READY)))[0]
                leave.set()
                await write

            task = asyncio.create_task(other())
            async with store.transaction():
                await store.add(sandbox("mine"), READY)
                await handle.status.update(more)
                inside.set()
                await leave.wait()
                assert ["a", "mine"] == [each.id for each in await store.list()]
                assert "mine" == (await store.get("mi")).id
                assert 1 == (await handle.status.get()).exited_at
                assert ["a"] == stored(path)
            await task
            assert ["a", "mine", "theirs"] == stored(path)

    asyncio.run(main())


def test_a_nested_transaction_is_rolled_back_alone(path: str) -> None:
    """It is a savepoint; all of it is one commit."""

    async def main() -> None:
        async with await AsyncStore.open(path) as store:
            before = commits(path)
            async with store.transaction():
                await store.add(sandbox("a"), READY)
                with pytest.raises(ZeroDivisionError):
                    async with store.transaction():
                        await store.delete("a")
                        raise ZeroDivisionError
                async with store.transaction():
                    await store.add(sandbox("b"), READY)
            assert (1, ["a", "b"]) == (commits(path) - before, stored(path))

    asyncio.run(main())


@pytest.mark.parametrize("how", ["raise", "cancel", "timeout"])
def test_a_body_that_does_not_end_is_rolled_back(path: str, how: str) -> None:
    """An exception comes out unchanged; the writer is free afterwards."""
    raised = LookupError("its own")

    async def body(store: AsyncStore) -> None:
        async with asyncio.timeout(0 if how == "timeout" else None), store.transaction():
            await store.add(sandbox("a"), READY)
            if how == "raise":
                raise raised
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            await asyncio.sleep(0)

    async def main() -> None:
        async with await AsyncStore.open(path) as store:
            (found,) = await asyncio.gather(body(store), return_exceptions=True)
            expected = {"raise": LookupError, "cancel": asyncio.CancelledError}
            assert expected.get(how, TimeoutError) is type(found)
            assert [] == stored(path)
            await store.add(sandbox("b"), READY)

    asyncio.run(main())


def test_a_task_that_was_started_inside_a_transaction_may_not_write_until_its_end(
    path: str,
) -> None:
    """The body may await it, and it would wait for the body; it may read."""

    async def main() -> None:
        async with await AsyncStore.open(path) as store:
            await store.add(sandbox("a"), READY)
            ended = asyncio.Event()

            async def later() -> None:
                await ended.wait()
                await store.add(sandbox("b"), READY)

            async with store.transaction():
                for write in (store.delete("a"), store.transaction().__aenter__()):
                    with pytest.raises(FailedPreconditionError, match="by another task"):
                        await asyncio.create_task(write)
                assert "a" == (await asyncio.create_task(store.get("a"))).id
                task = asyncio.create_task(later())
            ended.set()
            await task
            assert ["a", "b"] == stored(path)

    asyncio.run(main())


def test_a_store_without_asyncio_is_refused_inside_the_transaction_of_a_task(path: str) -> None:
    """Each would wait for the other in one task: a Store, a second AsyncStore, and the reverse."""

    async def main() -> None:
        with Store.open(path) as plain:
            async with await AsyncStore.open(path) as store, await AsyncStore.open(path) as second:
                async with store.transaction():
                    with pytest.raises(FailedPreconditionError):
                        plain.add(sandbox("a"), READY)
                    with pytest.raises(FailedPreconditionError):
                        await second.add(sandbox("a"), READY)
                with plain.transaction(), pytest.raises(FailedPreconditionError):
                    await store.add(sandbox("a"), READY)
                plain.add(sandbox("a"), READY)
                await second.add(sandbox("b"), READY)

    asyncio.run(main())


def test_a_transaction_is_entered_once(path: str) -> None:
    """Each `async with` has one of its own."""

    async def main() -> None:
        async with await AsyncStore.open(path) as store:
            transaction = store.transaction()
            async with transaction:
                pass
            with pytest.raises(FailedPreconditionError, match="entered before"):
                await transaction.__aenter__()

    asyncio.run(main())


def test_transactions_that_end_in_the_wrong_order_are_refused(path: str) -> None:
    """As those of two generators in one task; the task may write after both."""

    async def main() -> None:
        async with await AsyncStore.open(path) as store:
            outer, inner = store.transaction(), store.transaction()
            await outer.__aenter__()
            await store.add(sandbox("a"), READY)
            await inner.__aenter__()
            await store.add(sandbox("b"), READY)
            for each in (outer, inner):
                with pytest.raises(FailedPreconditionError, match="in the reverse order"):
                    await each.__aexit__(None, None, None)
            await store.add(sandbox("c"), READY)
            assert ["c"] == stored(path)

    asyncio.run(main())


def test_a_transaction_is_refused_outside_of_a_loop_and_of_a_task(path: str) -> None:
    """It belongs to a task; trio runs none of asyncio. So is every other call without a loop."""
    store = asyncio.run(AsyncStore.open(path))
    handle = asyncio.run(store.add(sandbox("a"), READY))
    uses: list[Coroutine[Any, Any, object]] = [
        store.transaction().__aenter__(),
        store.close(),
        store.get("a"),
        store.list(),
        store.delete("a"),
        handle.status.get(),
        handle.status.update(more),
        handle.extensions.read(),
        handle.netns(),
    ]
    for use in uses:
        with pytest.raises(FailedPreconditionError, match="needs a running loop of asyncio"):
            use.send(None)

    async def main() -> None:
        refused = asyncio.get_running_loop().create_future()

        def enter() -> None:
            try:
                store.transaction().__aenter__().send(None)
            except FailedPreconditionError as error:
                refused.set_result(error)

        asyncio.get_running_loop().call_soon(enter)
        assert "no task is running" in str(await refused)
        await store.close()

    asyncio.run(main())


def test_a_destroyed_task_leaves_no_transaction(path: str) -> None:
    """Its loop was closed in the body, so that nothing can run the end of it."""
    loop = asyncio.new_event_loop()
    store = loop.run_until_complete(AsyncStore.open(path, timeout=60))
    inside = asyncio.Event()

    async def hold() -> None:
        async with store.transaction():
            await store.add(sandbox("a"), READY)
            inside.set()
            await asyncio.Event().wait()

    async def main() -> None:
        # Python says there that the task was destroyed while it was pending.
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        task = asyncio.create_task(hold())
        await inside.wait()
        assert not task.done()

    loop.run_until_complete(main())
    loop.close()
    del loop
    gc.collect()

    async def after() -> None:
        await store.add(sandbox("b"), READY)
        await store.close()

    asyncio.run(after())
    assert ["b"] == stored(path)


def test_a_watch_does_not_wait_inside_the_transaction_of_its_task(path: str) -> None:
    """It would wait for ever, and hold the writer; a task that the body starts may watch."""

    async def main() -> None:
        async with await AsyncStore.open(path) as store:
            watch = store.watch(timeout=60)
            async with store.transaction():
                other = asyncio.create_task(anext(store.watch()))
                await store.add(sandbox("a"), READY)
                with pytest.raises(FailedPreconditionError, match="own transaction"):
                    await anext(watch)
                assert not other.done()
            assert ["a", "a"] == [(await each).sandbox_id for each in (anext(watch), other)]
            assert ["a"] == [each.sandbox_id for each in store.watch(after=0, timeout=0)]

    asyncio.run(main())
