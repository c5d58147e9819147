"""Tasks of every event loop: one owns the transaction, and the others are refused at once."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from registry import FailedPreconditionError, State, Store
from registry.engine.owner import current_owner
from tests.convoy import more
from tests.tools import READY, ids, run, sandbox

trio = pytest.importorskip("trio")
anyio = pytest.importorskip("anyio")
greenlet = pytest.importorskip("greenlet")
pytest.importorskip("gevent")


class TakenBack(Exception):  # noqa: N818 - what ends the transaction of a test
    """Rolls a transaction back."""


def run_trio_as_guest(main: Callable[[], Awaitable[None]]) -> None:
    """Run *main* in trio, which runs inside asyncio's loop."""

    async def host() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        outcomes: list[Any] = []

        def end(outcome: Any) -> None:
            outcomes.append(outcome)
            done.set()

        trio.lowlevel.start_guest_run(
            main, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=end
        )
        await done.wait()
        outcomes[0].unwrap()

    asyncio.run(host())


LOOPS: dict[str, Callable[[Callable[[], Awaitable[None]]], None]] = {
    "anyio on asyncio": lambda main: anyio.run(main, backend="asyncio"),
    "anyio on trio": lambda main: anyio.run(main, backend="trio"),
    "trio": trio.run,
    "trio as guest": run_trio_as_guest,
}


@pytest.mark.parametrize("loop", LOOPS)
def test_another_task_of_a_loop_is_refused(store: Store, loop: str) -> None:
    """Its write is not rolled back with the other's transaction; it reads what is committed."""
    store.add(sandbox("a"), READY)

    async def main() -> None:
        entered, leave = anyio.Event(), anyio.Event()

        async def hold() -> None:
            with pytest.raises(TakenBack), store.transaction():
                store.add(sandbox("mine"), READY)
                entered.set()
                await leave.wait()
                store.add(sandbox("mine, too"), READY)  # across an await
                raise TakenBack

        async def intrude() -> None:
            await entered.wait()
            try:
                with pytest.raises(FailedPreconditionError, match="another task of this thread"):
                    store.add(sandbox("theirs"), READY)
                with pytest.raises(FailedPreconditionError, match="another task of this thread"):
                    store.get("a").status.update(more)
                assert ["a"] == ids(store.list())
            finally:
                leave.set()

        async with anyio.create_task_group() as group:
            group.start_soon(hold)
            group.start_soon(intrude)
        store.add(sandbox("later"), READY)

    LOOPS[loop](main)
    assert ["a", "later"] == sorted(ids(store.list()))


def test_another_greenlet_of_the_thread_is_refused(store: Store) -> None:
    """Also a greenlet that no loop runs; the main greenlet of a thread is the thread."""

    def intrude() -> None:
        with pytest.raises(FailedPreconditionError, match="another task of this thread"):
            store.add(sandbox("theirs"), READY)

    def hold() -> None:
        with pytest.raises(TakenBack), store.transaction():
            store.add(sandbox("mine"), READY)
            main.switch()
            raise TakenBack

    main, holder = greenlet.getcurrent(), greenlet.greenlet(hold)
    holder.switch()
    with pytest.raises(FailedPreconditionError, match="another task of this thread"):
        store.add(sandbox("main's"), READY)
    greenlet.greenlet(intrude).switch()
    holder.switch()
    assert [] == store.list()


@pytest.mark.parametrize("patched", [False, True], ids=["unpatched", "patched"])
def test_a_write_of_another_greenlet_of_gevent_is_not_lost(path: str, patched: bool) -> None:
    """It is refused, or waits if gevent has replaced the locks of threads."""
    out = run(
        """
        import sys
        import gevent
        if sys.argv[2] == "True":
            from gevent import monkey
            monkey.patch_all()
        from registry import FailedPreconditionError, Metadata, State, Status, Store

        store, said = Store.open(sys.argv[1]), []

        def one():
            try:
                with store.transaction():
                    store.add(Metadata("one", "one", None), Status(State.READY))
                    gevent.sleep(0.05)
                    store.add(Metadata("one, too", "one, too", None), Status(State.READY))
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass

        def two():
            try:
                store.add(Metadata("two", "two", None), Status(State.READY))
                said.append("stored")
            except FailedPreconditionError:
                said.append("refused")

        gevent.joinall([gevent.spawn(one), gevent.spawn(two)], raise_error=True)
        print(said, [each.id for each in store.list()])
        store.close()
        """,
        path,
        patched,
    )
    assert out.strip() == ("['stored'] ['two']" if patched else "['refused'] []")


def in_thread_of_asyncio(store: Store, fn: Callable[[], object]) -> None:
    """Call *fn* in a thread, as a task of asyncio that has a transaction open awaits it."""

    async def main() -> None:
        with store.transaction():
            await asyncio.to_thread(fn)

    asyncio.run(main())


def in_thread_of_anyio(backend: str) -> Callable[[Store, Callable[[], object]], None]:
    """Return the same for anyio."""

    def call(store: Store, fn: Callable[[], object]) -> None:
        async def main() -> None:
            with store.transaction():
                await anyio.to_thread.run_sync(fn)

        anyio.run(main, backend=backend)

    return call


def in_thread_of_trio(store: Store, fn: Callable[[], object]) -> None:
    """Do the same in trio."""

    async def main() -> None:
        with store.transaction():
            await trio.to_thread.run_sync(fn)

    trio.run(main)


def in_thread_with_context(store: Store, fn: Callable[[], object]) -> None:
    """Do the same without a loop, and with a savepoint in between."""
    with ThreadPoolExecutor(1) as pool, store.transaction(), store.transaction():
        pool.submit(contextvars.copy_context().run, fn).result()


IN_THREAD: dict[str, Callable[[Store, Callable[[], object]], None]] = {
    "asyncio": in_thread_of_asyncio,
    "anyio on asyncio": in_thread_of_anyio("asyncio"),
    "anyio on trio": in_thread_of_anyio("trio"),
    "trio": in_thread_of_trio,
    "executor": in_thread_with_context,
}


@pytest.mark.parametrize("way", IN_THREAD)
def test_a_write_in_a_thread_that_the_transaction_awaits_is_refused(store: Store, way: str) -> None:
    """It would wait for its own caller until the timeout; a read needs no lock."""
    store.add(sandbox("a"), READY)
    told: list[FailedPreconditionError] = []

    def write() -> None:
        with pytest.raises(FailedPreconditionError, match="in another thread from inside") as error:
            store.add(sandbox("b"), READY)
        told.append(error.value)
        assert ["a"] == ids(store.list())

    IN_THREAD[way](store, write)
    assert 1 == len(told)
    store.add(sandbox("c"), READY)
    assert ["a", "c"] == sorted(ids(store.list()))


def test_a_write_in_a_thread_is_refused_inside_an_update_function(store: Store) -> None:
    """An UpdateFunc is the body of a transaction too."""
    handle = store.add(sandbox("a"), READY)
    told = []

    def write() -> None:
        try:
            store.delete("a")
        except FailedPreconditionError as error:
            told.append(error)

    with ThreadPoolExecutor(1) as pool:

        def end(old: Any) -> Any:
            pool.submit(contextvars.copy_context().run, write).result()
            return replace(old, state=State.NOTREADY)

        handle.status.update(end)
    assert 1 == len(told)
    assert State.NOTREADY is handle.status.get().state


def test_a_context_of_a_transaction_that_has_ended_may_write(store: Store) -> None:
    """Tasks and threads that were begun inside it outlive it."""
    with store.transaction():
        store.add(sandbox("a"), READY)
        context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(context.run, lambda: store.add(sandbox("b"), READY)).result()
        later = contextvars.copy_context()
        pool.submit(later.run, lambda: store.add(sandbox("c"), READY)).result()
    assert ["a", "b", "c"] == sorted(ids(store.list()))


def test_a_thread_with_a_context_of_its_own_waits(store: Store) -> None:
    """It writes when the transaction has ended."""
    begun = threading.Event()

    def write() -> None:
        begun.set()
        store.add(sandbox("b"), READY)

    thread = threading.Thread(target=contextvars.Context().run, args=[write])
    with store.transaction():
        thread.start()
        assert begun.wait(30)
        store.add(sandbox("a"), READY)
    thread.join()
    assert ["a", "b"] == sorted(ids(store.list()))


def test_a_store_of_another_file_is_written_in_a_thread(store: Store, path: str) -> None:
    """A transaction of one file does not block writes to another file."""
    with Store.open(f"{path}.other") as other:
        IN_THREAD["asyncio"](store, lambda: other.add(sandbox("b"), READY))
        assert ["b"] == ids(other.list())


def test_a_task_is_no_owner_once_its_loop_has_ended() -> None:
    """Outside of loops the owner is the thread."""
    before = current_owner()

    async def owner() -> object:
        return current_owner()

    owners = [asyncio.run(owner()), trio.run(owner), greenlet.greenlet(current_owner).switch()]
    assert 4 == len({id(each) for each in (before, *owners)})
    assert current_owner() is before
