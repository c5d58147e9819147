"""Calls of an AsyncStore: writes of tasks share commits, and reads see the latest one."""

from __future__ import annotations

import asyncio
import contextvars
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from registry import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    RegistryError,
    State,
    Status,
    UnavailableError,
)
from registry.aio import AsyncStore
from registry.aio.calls import BATCH_MAX
from tests.conftest import OpenStore
from tests.convoy import more, waiting
from tests.integration.tasks import (
    busy,
    commits,
    errors,
    set_timeout,
    started,
    stored,
)
from tests.tools import READY, execute, query, run, sandbox, until


def test_a_thousand_tasks_share_commits(path: str) -> None:
    """All that is queued is in batches of BATCH_MAX, each of one commit."""

    async def main() -> None:
        async with await AsyncStore.open(path, timeout=1000) as store:
            handles = [await store.add(sandbox(f"s{n}"), READY) for n in range(10)]
            async with busy(store):
                before = commits(path)
                tasks = await started(*(handles[n % 10].status.update(more) for n in range(1000)))
            assert [None] * 1000 == await errors(tasks)
            assert -(-1001 // BATCH_MAX) == commits(path) - before
            assert [100] * 10 == [(await each.status.get()).exited_at for each in handles]

    asyncio.run(main())


def test_a_thread_writes_between_two_batches(path: str, open_store: OpenStore) -> None:
    """It waits for one batch alone, however many writes of tasks are queued."""
    plain, seen = open_store(timeout=1000), list[int]()

    def note(old: Status) -> Status:
        seen.append(old.exited_at)
        return old

    async def main() -> None:
        async with await AsyncStore.open(path, timeout=1000) as store:
            handle = await store.add(sandbox("a"), READY)
            thread = threading.Thread(target=plain.get("a").status.update, args=[note])
            async with busy(store):
                tasks = await started(*(handle.status.update(more) for _ in range(300)))
                thread.start()
                await asyncio.to_thread(until, lambda: waiting(plain) == 1)
            assert [None] * 300 == await errors(tasks)
            await asyncio.to_thread(thread.join)

    asyncio.run(main())
    assert [BATCH_MAX - 1] == seen  # the rest of the batch of the busy worker


def test_identities_of_the_processes_of_a_batch_are_recorded_in_one_commit(path: str) -> None:
    """They are observed after the commit of the batch, as those of one transaction are."""

    def run_here(old: Status) -> Status:
        return replace(old, pid=os.getpid())

    async def main() -> None:
        async with await AsyncStore.open(path, timeout=1000) as store:
            handles = [await store.add(sandbox(f"s{n}"), READY) for n in range(20)]
            async with busy(store):
                before = commits(path)
                tasks = await started(*(each.status.update(run_here) for each in handles))
            assert [None] * 20 == await errors(tasks)
            assert 2 == commits(path) - before
            for each in handles:
                process = await each.open_process()
                assert process is not None
                process.close()

    asyncio.run(main())


def test_a_write_that_raises_fails_alone_with_its_own_exception(path: str) -> None:
    """The others of its batch are stored; a BaseException is no different."""

    class Ours(BaseException):
        pass

    raised = [LookupError("its own"), Ours()]

    def fail(error: BaseException) -> Callable[[Status], Status]:
        def function(_: Status) -> Status:
            raise error

        return function

    async def main() -> None:
        async with await AsyncStore.open(path) as store:
            handle = await store.add(sandbox("a"), READY)
            async with busy(store):
                tasks = await started(
                    handle.status.update(more),
                    handle.status.update(fail(raised[0])),
                    store.add(sandbox("a"), READY),
                    handle.status.update(fail(raised[1])),
                    handle.status.update(more),
                )
            found = await errors(tasks)
            assert [None, raised[0], raised[1], None] == [*found[:2], *found[3:]]
            assert isinstance(found[2], AlreadyExistsError)
            assert 2 == (await handle.status.get()).exited_at

    asyncio.run(main())


def test_a_function_that_raises_stop_iteration_does_not_hang(path: str) -> None:
    """Python itself lets no coroutine raise it: the task gets a RuntimeError from it."""

    async def main() -> None:
        async with await AsyncStore.open(path) as store:
            handle = await store.add(sandbox("a"), READY)
            with pytest.raises(RuntimeError) as found:
                await handle.status.update(lambda _: next(iter(())))
            assert isinstance(found.value.__cause__, StopIteration)

    asyncio.run(main())


def broken_commit(connection: sqlite3.Connection) -> None:
    """Make SQLite refuse the COMMIT."""
    connection.execute("INSERT INTO later VALUES ('none')")


def ended(connection: sqlite3.Connection) -> None:
    """End the transaction, as SQLite itself may inside any statement."""
    connection.execute("ROLLBACK")


@pytest.mark.parametrize(
    ("end", "expected"), [(broken_commit, FailedPreconditionError), (ended, UnavailableError)]
)
def test_each_write_of_a_failed_batch_gets_an_error_of_its_own(
    path: str, end: Callable[[Any], None], expected: type[RegistryError]
) -> None:
    """Nothing of the batch is stored, and the next write is."""

    async def main() -> None:
        async with await AsyncStore.open(path) as store:
            handle = await store.add(sandbox("a"), READY)
            connection = store._sync._session.engine.writer.connection
            query(
                path, "CREATE TABLE later (id REFERENCES sandboxes DEFERRABLE INITIALLY DEFERRED)"
            )

            def last(old: Status) -> Status:
                end(connection)
                return more(old)

            async with busy(store):
                tasks = await started(
                    store.add(sandbox("b"), READY),
                    store.add(sandbox("a"), READY),
                    store.delete("b"),
                    handle.status.update(last),
                )
            found = await errors(tasks)
            assert isinstance(found[1], AlreadyExistsError)
            assert [expected] * 2 == [type(found[0]), type(found[2])]
            assert isinstance(found[3], RegistryError)
            assert 4 == len({id(each) for each in found})
            assert re.match("add sandbox 'b': .", str(found[0]))
            assert re.match("delete sandbox 'b': .", str(found[2]))
            assert (0, ["a", "busy"]) == ((await handle.status.get()).exited_at, stored(path))
            query(path, "DROP TABLE later")
            await store.add(sandbox("b"), READY)

    asyncio.run(main())


def test_an_async_function_is_refused(path: str) -> None:
    """It would return a coroutine instead of a value."""

    async def asynchronous(old: Any) -> Any:
        return old

    later: Any = asynchronous

    async def main() -> None:
        async with await AsyncStore.open(path) as store:
            handle = await store.add(sandbox("a"), Status(State.UNKNOWN))
            with pytest.raises(InvalidArgumentError, match="plain function"):
                await handle.status.update(later)
            with pytest.raises(InvalidArgumentError, match="plain function"):
                await store.update_metadata("a", fn=later)
        with pytest.raises(InvalidArgumentError, match="plain function"):
            await AsyncStore.open(path, clock=later)

    asyncio.run(main())


def test_a_function_runs_in_the_worker_with_the_context_of_its_task(path: str) -> None:
    """One thread for all writes, and a copy of the caller's context variables."""
    variable, seen = contextvars.ContextVar[str]("variable"), list[tuple[str, str]]()

    def note(old: Status) -> Status:
        seen.append((threading.current_thread().name, variable.get()))
        return old

    async def main() -> None:
        async with await AsyncStore.open(path) as store:
            handle = await store.add(sandbox("a"), READY)
            variable.set("ours")
            await handle.status.update(note)
            async with store.transaction():
                await handle.status.update(note)
        assert [("registry-aio", "ours")] * 2 == seen

    asyncio.run(main())


def test_a_read_from_memory_does_not_wait(path: str) -> None:
    """Neither get does once the sandbox is cached; another process's commit has it read again."""

    async def main() -> None:
        async with await AsyncStore.open(path) as store:
            handle = await store.add(sandbox("a"), READY)
            await handle.status.get()
            for read in (handle.status.get(), store.get("a")):
                with pytest.raises(StopIteration):
                    read.send(None)
            execute(path, "UPDATE sandbox_statuses SET message = 'theirs'")
            for n in range(2):
                read = handle.status.get()
                if n == 0:
                    assert read.send(None) is not None
                    read.close()
                else:
                    assert "theirs" == (await read).message

    asyncio.run(main())


def test_extensions_are_updated_and_read(path: str) -> None:
    """In the transaction of the task too, which other tasks do not see."""

    async def main() -> None:
        async with await AsyncStore.open(path) as store:
            handle = await store.add(sandbox("a"), READY)
            await handle.extensions.update(lambda old: {**old, "b": b"1"})
            async with store.transaction():
                await handle.extensions.update(lambda old: {**old, "c": b"2"})
                assert {"b", "c"} == (await handle.extensions.read()).keys()
                assert {"b"} == (await asyncio.create_task(handle.extensions.read())).keys()
            assert b"2" == (await handle.extensions.read())["c"].value

    asyncio.run(main())


def test_a_missing_sandbox_is_noticed_as_deleted(path: str) -> None:
    """Another process has deleted it: a write that does not find it sets its StopCh."""

    async def main() -> None:
        async with await AsyncStore.open(path) as store:
            gone = [await store.add(sandbox(id), READY) for id in "ab"]
            run(
                "import sys; from registry import Store; s = Store.open(sys.argv[1]);"
                "s.delete('a'), s.delete('b'); s.close()",
                path,
            )
            assert not await store.delete("a")
            assert all(each.stopped.is_set() for each in gone)
            with pytest.raises(NotFoundError):
                await gone[0].status.update(more)
            assert not await gone[1].delete()

    asyncio.run(main())


def test_a_queued_write_fails_at_its_deadline(path: str) -> None:
    """The error names the writer; nothing of it is stored later."""

    async def main() -> None:
        async with await AsyncStore.open(path) as store:
            async with busy(store):
                set_timeout(store, 0.1)
                with pytest.raises(
                    UnavailableError, match=r"^add sandbox 'a': timed out .*registry-aio"
                ):
                    await store.add(sandbox("a"), READY)
                with pytest.raises(UnavailableError, match="transaction: timed out"):
                    async with store.transaction():
                        pass
            set_timeout(store, 60)
            await store.add(sandbox("b"), READY)
            assert ["b", "busy"] == stored(path)

    asyncio.run(main())


def test_a_deadline_holds_for_queued_writes(path: str) -> None:
    """It bounds all calls of the body together, below the store's timeout."""

    async def main() -> None:
        async with await AsyncStore.open(path, timeout=1000) as store:
            async with busy(store):
                with store.deadline(0.1):
                    with pytest.raises(UnavailableError, match=r"^add sandbox 'a': timed out"):
                        await store.add(sandbox("a"), READY)
                    with pytest.raises(UnavailableError, match="transaction: timed out"):
                        async with store.transaction():
                            pass
            assert ["busy"] == stored(path)

    asyncio.run(main())


def test_a_write_waits_for_another_writer_until_its_deadline(
    path: str, open_store: OpenStore
) -> None:
    """It may be cancelled meanwhile, and is then not stored."""
    plain, inside, leave = open_store(), threading.Event(), threading.Event()

    def hold() -> None:
        with plain.transaction():
            inside.set()
            assert leave.wait(60)

    thread = threading.Thread(target=hold, name="holder")
    thread.start()
    assert inside.wait(60)

    async def main() -> None:
        async with await AsyncStore.open(path, timeout=0.2, reconcile=False) as store:
            with pytest.raises(UnavailableError, match="'holder'"):
                await store.add(sandbox("a"), READY)
        async with await AsyncStore.open(path, timeout=60, reconcile=False) as store:
            tasks = await started(store.add(sandbox("b"), READY), store.add(sandbox("c"), READY))
            await asyncio.to_thread(until, lambda: waiting(plain) == 1)
            tasks[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
            leave.set()
            await tasks[1]

    asyncio.run(main())
    thread.join()
    assert ["c"] == stored(path)


def test_a_write_that_waits_names_its_sandbox_and_is_refused_inside_a_function(path: str) -> None:
    """Each message begins as that of the same write of a Store; the function would wait for it."""

    async def main() -> None:
        async with await AsyncStore.open(path, timeout=60) as store:
            handle = await store.add(sandbox("a"), READY)
            writes: list[tuple[Callable[[], Coroutine[Any, Any, object]], str]] = [
                (lambda: store.add(sandbox("b"), READY), "add sandbox 'b'"),
                (lambda: store.adopt(status=READY, metadata=sandbox("b")), "adopt sandbox 'b'"),
                (
                    lambda: store.update_metadata(fn=lambda old: old, id="a"),
                    "update metadata of sandbox 'a'",
                ),
                (lambda: store.delete(id="a"), "delete sandbox 'a'"),
                (handle.delete, "delete sandbox 'a'"),
                (lambda: handle.status.update(more), "update status of sandbox 'a'"),
                (
                    lambda: handle.extensions.update(lambda old: old),
                    "update extensions of sandbox 'a'",
                ),
            ]
            for write, doing in writes:

                def inside(old: Status, write: Any = write) -> Status:
                    asyncio.run(write())
                    return old

                with pytest.raises(FailedPreconditionError, match=f"^{doing}: called by the funct"):
                    await handle.status.update(inside)
            assert ["a"] == stored(path)

    asyncio.run(main())
