"""Store for asyncio: the same methods as coroutines, which never block the event loop.

calls  calls that tasks await while a thread runs them; the thread of the writes
face   AsyncStore and AsyncSandbox, whose methods are those of Store and Sandbox

    from registry import Metadata, State, Status
    from registry.aio import AsyncStore

    async with await AsyncStore.open("/var/lib/shim/registry.db") as store:
        sandbox = await store.add(Metadata(id="4a33", name="web", config=None), Status(State.READY))

docs/asyncio.md describes their use.
"""

from registry.aio.face import AsyncExtensions, AsyncSandbox, AsyncStatusStorage, AsyncStore

__all__ = ["AsyncExtensions", "AsyncSandbox", "AsyncStatusStorage", "AsyncStore"]
