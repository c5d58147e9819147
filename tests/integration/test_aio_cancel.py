"""Cancelled calls of an AsyncStore: each change is whole or absent."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from registry import (
    Status,
    Store,
)
from registry.aio import AsyncStore
from tests.convoy import more
from tests.integration.tasks import (
    Gate,
    busy,
    join_own_threads,
    own_threads,
    started,
    stored,
)
from tests.tools import READY, sandbox


def test_a_write_that_is_cancelled_in_the_queue_is_not_stored(path: str) -> None:
    """Its function is not called."""
    called = list[Status]()

    def note(old: Status) -> Status:
        called.append(old)
        return old

    async def main() -> None:
        async with await AsyncStore.open(path) as store:
            handle = await store.add(sandbox("a"), READY)
            async with busy(store):
                tasks = await started(
                    store.add(sandbox("b"), READY),
                    handle.status.update(note),
                    handle.status.update(more),
                    store.transaction().__aenter__(),
                )
                for each in (tasks[0], tasks[1], tasks[3]):
                    each.cancel()
                await asyncio.wait([tasks[0], tasks[1], tasks[3]])
                assert all(tasks[n].cancelled() for n in (0, 1, 3))
            await tasks[2]
            assert (1, [], ["a", "busy"]) == (
                (await handle.status.get()).exited_at,
                called,
                stored(path),
            )

    asyncio.run(main())


def test_a_write_that_is_cancelled_while_it_runs_is_stored_whole(path: str) -> None:
    """The task gets its CancelledError at once, before the function returns."""

    async def main() -> None:
        async with await AsyncStore.open(path) as store:
            handle, gate = await store.add(sandbox("a"), READY), Gate()
            (task,) = await started(handle.status.update(gate))
            await gate.entered()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.open()
            assert 2 == (await handle.status.update(more)).exited_at

    asyncio.run(main())


class Cancelled(Awaitable[None]):
    """Awaitable that cancels its task at one of its waits."""

    def __init__(self, body: Coroutine[Any, Any, None], at: int) -> None:
        self._body, self._at = body, at
        self.waits = 0

    def __await__(self) -> Any:
        task, steps = asyncio.current_task(), self._body.__await__()
        assert task is not None
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                waited = steps.send(value) if error is None else steps.throw(error)
            except StopIteration:
                return None
            value = error = None
            if self.waits == self._at:
                asyncio.get_running_loop().call_soon(task.cancel)
            self.waits += 1
            try:
                value = yield waited
            except BaseException as raised:
                error = raised


async def scenario(path: str) -> None:
    """Use every kind of call once."""
    async with await AsyncStore.open(path) as store:
        handle = await store.add(sandbox("a"), READY)
        await handle.status.update(more)
        async with store.transaction():
            await store.add(sandbox("b"), READY)
            async with store.transaction():
                await store.add(sandbox("c"), READY)
            await handle.status.update(more)
        await store.list()
        await store.get("b")
        await store.reconcile()
        await handle.delete()


def test_a_cancellation_at_any_wait_leaves_each_change_whole_or_absent(tmp_path: Any) -> None:
    """No thread is left, the registry has no violation, and the next store writes at once."""
    at = 0
    while True:
        path = str(tmp_path / f"{at}.db")
        cancelled = Cancelled(scenario(path), at)

        async def main(body: Cancelled = cancelled) -> None:
            await body

        if at:  # else there is no file when the open is cancelled
            Store.open(path).close()
        with suppress(asyncio.CancelledError):
            asyncio.run(main())
        join_own_threads()
        with Store.open(path, timeout=0) as store:
            assert [] == store.check()
            found = [each.id for each in store.list()]
            assert ("b" in found) == ("c" in found)
            counts = {each.id: each.status.get().exited_at for each in store.list()}
            assert "a" not in counts or (counts["a"] == 2) == ("b" in found)
            store.add(sandbox("next"), READY)
        if cancelled.waits <= at:
            break
        at += 1
    assert at > 12
    assert ["b", "c", "next"] == stored(path)


def test_writes_that_are_cancelled_at_random_are_stored_or_were_not_acknowledged(path: str) -> None:
    """Beside transactions that are cancelled, too; AIO_SEED repeats a run."""
    seed = int(os.environ.get("AIO_SEED") or random.randrange(2**32))
    chance, acknowledged, tried = random.Random(seed), [0, 0], [0, 0]

    async def main() -> None:
        async with await AsyncStore.open(path, timeout=1000) as store:
            handles = [await store.add(sandbox(id), READY) for id in "ab"]

            async def update(n: int) -> None:
                tried[n] += 1
                await handles[n].status.update(more)
                acknowledged[n] += 1

            async def update_both() -> None:
                tried[0] += 1
                tried[1] += 1
                async with store.transaction():
                    await handles[0].status.update(more)
                    await handles[1].status.update(more)
                acknowledged[0] += 1
                acknowledged[1] += 1

            tasks = list[asyncio.Task[None]]()
            for _ in range(500):
                call = update_both() if chance.random() < 0.2 else update(chance.randrange(2))
                tasks.append(asyncio.create_task(call))
                if chance.random() < 0.3:
                    await asyncio.sleep(0)
                if chance.random() < 0.5:
                    chance.choice(tasks).cancel()
            await asyncio.wait(tasks)
            stored = [(await each.status.get()).exited_at for each in handles]
            for least, found, most in zip(acknowledged, stored, tried, strict=True):
                assert least <= found <= most, f"AIO_SEED={seed}"

    asyncio.run(main())
    assert [] == own_threads()
