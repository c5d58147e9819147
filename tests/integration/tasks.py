"""Tools of the tests of AsyncStore: a busy worker, tasks that wait, and what is stored."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from registry import (
    Status,
)
from registry.aio import AsyncStore
from tests.convoy import more
from tests.tools import READY, query, sandbox


def commits(path: str) -> int:
    """Return the number of the latest commit."""
    return int(query(path, "PRAGMA user_version")[0][0])


def stored(path: str) -> list[str]:
    """Return the ids in the file, in order."""
    return [id for (id,) in query(path, "SELECT id FROM sandboxes ORDER BY id")]


def own_threads() -> list[str]:
    """Return the names of the threads of AsyncStores."""
    return [each.name for each in threading.enumerate() if each.name.startswith("registry-aio")]


def join_own_threads() -> None:
    """Wait for the end of the threads of AsyncStores."""
    for each in threading.enumerate():
        if each.name in own_threads():
            each.join(60)
    assert [] == own_threads()


class Gate:
    """An UpdateFunc that keeps the worker until it is opened."""

    def __init__(self) -> None:
        self._inside, self._opened = threading.Event(), threading.Event()

    def __call__(self, old: Status) -> Status:
        self._inside.set()
        assert self._opened.wait(60)
        return more(old)

    async def entered(self) -> None:
        """Wait until the worker runs it."""
        assert await asyncio.to_thread(self._inside.wait, 60)

    def open(self) -> None:
        """Let it return."""
        self._opened.set()


@asynccontextmanager
async def busy(store: AsyncStore) -> AsyncIterator[Gate]:
    """Keep the worker in an update of the sandbox "busy" during the body."""
    gate, handle = Gate(), await store.add(sandbox("busy"), READY)
    update = asyncio.create_task(handle.status.update(gate))
    try:
        await gate.entered()
        yield gate
    finally:
        gate.open()
        await asyncio.wait([update])


async def started(*coroutines: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """Return a task for each, after each has run to its first wait."""
    tasks = [asyncio.create_task(each) for each in coroutines]
    await asyncio.sleep(0)
    return tasks


async def errors(tasks: list[asyncio.Task[Any]]) -> list[BaseException | None]:
    """Wait for the tasks, and return their exceptions."""
    await asyncio.wait(tasks)
    return [each.exception() for each in tasks]


def set_timeout(store: AsyncStore, seconds: float) -> None:
    """Give the calls that follow another timeout; those before must not fail on a busy machine."""
    store._sync._session.timeout = seconds  # type: ignore[misc]
