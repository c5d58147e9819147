"""StopCh: a thread or a task that waits hears of a stop or a deletion in another process."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest

from registry import InvalidArgumentError, Sandbox, State, Store, StoreClosedError
from registry.engine.commits import Commits
from registry.handles.runtime_state import StopCh
from registry.tables.version import HISTORY_MAX
from tests.conftest import OpenStore
from tests.others import another, ready, tell
from tests.tools import READY, fill, query, sandbox, tamper, until

MANY = 1000


def commits_of(store: Store) -> Commits:
    """Return the waiters of the file of *store*."""
    return store._session.engine.commits


def waiting(store: Store) -> int:
    """Return how many threads and tasks wait for a StopCh."""
    followers: Any = tuple(commits_of(store).followers)
    return sum(len(each._awaited) for each in followers)


def is_idle(store: Store) -> bool:
    """Return whether nothing is left of what has waited."""
    commits = commits_of(store)
    return not (commits._threads or commits.loops or commits.watchers or commits.followers)


@contextmanager
def in_a_thread(stopped: StopCh) -> Iterator[Future[bool | None]]:
    """Wait for *stopped* in a thread."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(stopped.wait)


@contextmanager
def in_a_task(stopped: StopCh) -> Iterator[Future[bool | None]]:
    """Wait for *stopped* in a task of a loop that runs in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield asyncio.run_coroutine_threadsafe(stopped.wait_async(), loop)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


Wait = Callable[[StopCh], Any]
WAITS = pytest.mark.parametrize("wait", [in_a_thread, in_a_task])


@WAITS
@pytest.mark.parametrize(
    "changes",
    [
        ["stop a"],
        ["delete a"],
        ["delete a", "add a"],
        ["stop a", "start a"],
        ["add b", "start a", "stop b", "delete b", "delete a", "add a"],
    ],
    ids=", ".join,
)
def test_a_wait_ends_by_a_change_in_another_process(
    store: Store, path: str, wait: Wait, changes: list[str]
) -> None:
    """Also when the sandbox has been added again, or is READY again, before this one reads."""
    handle, other_handle = store.add(sandbox("a"), READY), store.add(sandbox("c"), READY)
    with another(path) as other, wait(handle.stopped) as done:
        ready(other)
        until(lambda: waiting(store) == 1)
        if len(changes) > 2:
            tell(other, *changes[:4])
            assert not done.done()
            tell(other, *changes[4:])
        else:
            tell(other, *changes)
        done.result()
    assert handle.stopped.is_set()
    assert not other_handle.stopped.is_set()
    assert is_idle(store)


@WAITS
def test_a_wait_ends_at_once_if_the_sandbox_has_stopped(
    store: Store, path: str, wait: Wait
) -> None:
    """In another process, before the wait began and after the handle was read."""
    handles = [store.add(sandbox(id), READY) for id in "abc"]
    with another(path) as other:
        ready(other)
        tell(other, "stop a", "delete b", "delete c", "add c")
    for handle in handles:
        with wait(handle.stopped) as done:
            done.result()
        assert handle.stopped.is_set()
    assert not store.get("c").stopped.is_set()
    assert is_idle(store)


@WAITS
def test_a_stop_before_the_sandbox_was_read_does_not_end_a_wait(
    store: Store, path: str, wait: Wait
) -> None:
    """An earlier sandbox of the same id was stopped and deleted."""
    with another(path) as other:
        ready(other)
        tell(other, "add a", "stop a", "delete a", "add a")
        handle = store.get("a")
        with wait(handle.stopped) as done:
            until(lambda: waiting(store) == 1)
            tell(other, "add b", "stop b")
            assert not done.done()
            store.delete("a")
            done.result()


@WAITS
def test_a_wait_ends_by_a_change_in_this_process(store: Store, wait: Wait) -> None:
    """By a commit, but not by one that is rolled back; and by `Sandbox.stop`."""
    handle, by_hand = store.add(sandbox("a"), READY), store.add(sandbox("b"), READY)
    with wait(handle.stopped) as done:
        until(lambda: waiting(store) == 1)
        with pytest.raises(KeyError), store.transaction():
            handle.status.update(lambda old: replace(old, state=State.NOTREADY))
            raise KeyError
        assert not done.done()
        handle.status.update(lambda old: replace(old, state=State.NOTREADY))
        done.result()
    with wait(by_hand.stopped) as done:
        until(lambda: waiting(store) == 1)
        by_hand.stop()
        done.result()
    assert is_idle(store)


@WAITS
@pytest.mark.parametrize("committed", [True, False])
def test_a_wait_for_a_sandbox_that_is_not_committed_yet_goes_on(
    store: Store, path: str, wait: Wait, committed: bool
) -> None:
    """It is no sandbox that was deleted; after the commit it is followed as any other."""
    failure = [] if committed else [KeyError]
    handles: list[Sandbox] = []

    def add_and(wait_for: Callable[[], object]) -> None:
        with store.transaction():
            handles.append(store.add(sandbox("a"), READY))
            wait_for()
            for error in failure:
                raise error

    with ThreadPoolExecutor(1) as pool, another(path) as other:
        ready(other)
        begun, end = threading.Event(), threading.Event()

        def wait_for_the_end() -> None:
            begun.set()
            end.wait()

        adding = pool.submit(add_and, wait_for_the_end)
        begun.wait()
        with wait(handles[0].stopped) as done:
            until(lambda: waiting(store) == 1)
            assert not done.done()
            end.set()
            if committed:
                adding.result()
            else:
                assert isinstance(adding.exception(), KeyError)
            tell(other, *(["start a"] if committed else ["add a"]))
            assert not done.done()
            if committed:
                tell(other, "delete a")
            else:
                handles[0].stop()
            done.result()


@WAITS
def test_a_wait_for_a_sandbox_that_has_lost_its_id_goes_on(path: str, wait: Wait) -> None:
    """It is damaged and not deleted."""
    with Store.open(path) as store:
        handle = store.add(sandbox("a"), READY)
        tamper(path, "UPDATE sandboxes SET id = 'b'")
        with wait(handle.stopped) as done:
            until(lambda: waiting(store) == 1)
            with another(path) as other:
                ready(other)
                tell(other, "add c", "stop c")
            assert not done.done()
            tamper(path, "DELETE FROM sandboxes WHERE id = 'b'")
            done.result()


@WAITS
def test_a_wait_survives_a_history_that_is_compacted(store: Store, path: str, wait: Wait) -> None:
    """The sandbox itself is read then."""
    handles = [store.add(sandbox(id), READY) for id in "ab"]
    with wait(handles[0].stopped) as stopped, wait(handles[1].stopped) as deleted:
        until(lambda: waiting(store) == 2)
        stop = "UPDATE sandbox_statuses SET state = 'SANDBOX_NOTREADY' WHERE sandbox_id = 'a'"
        with closing(sqlite3.connect(path)) as shell, shell:
            shell.execute("PRAGMA foreign_keys = ON")
            for statement in (stop, "DELETE FROM sandboxes WHERE id = 'b'", fill(HISTORY_MAX)):
                shell.execute(statement)
        stopped.result()
        deleted.result()
    assert [(5,)] == query(path, "SELECT min(seq) FROM sandbox_transitions")


def wait_in_a_loop_that_is_closed(stopped: StopCh) -> None:
    """Close a loop while a task of it waits for *stopped*."""
    loop = asyncio.new_event_loop()
    task: Any = loop.create_task(stopped.wait_async())
    loop.run_until_complete(asyncio.sleep(0))
    task._log_destroy_pending = False
    loop.close()


def test_a_loop_that_is_closed_under_waits_leaves_nothing(open_store: OpenStore) -> None:
    """Its poller serves the next loop, and is closed with the store."""
    gc.collect()  # of what other tests have left
    before = set(os.listdir("/proc/self/fd"))
    store = open_store()
    handle = store.add(sandbox("a"), READY)
    for _ in range(3):
        wait_in_a_loop_that_is_closed(handle.stopped)
        assert 1 == len(commits_of(store).loops)
        gc.collect()  # of the loops before: their tasks, and what these have begun
        assert 1 == waiting(store)
    store.close()
    gc.collect()
    assert is_idle(store)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_thousand_tasks_wait_without_a_thread(store: Store, path: str) -> None:
    """Half of them are cancelled, the others are woken by another process; nothing is left."""
    handles = [store.add(sandbox(f"s{n}"), READY) for n in range(4)]
    threads = set(threading.enumerate())

    async def main() -> int:
        loop: Any = asyncio.get_running_loop()
        files = len(loop._selector.get_map())
        tasks = [asyncio.create_task(handles[n % 4].stopped.wait_async()) for n in range(MANY)]
        await asyncio.sleep(0)
        assert MANY == waiting(store)
        assert set(threading.enumerate()) <= threads
        for task in tasks[::2]:
            task.cancel()
        gone = await asyncio.gather(*tasks[::2], return_exceptions=True)
        assert {asyncio.CancelledError} == set(map(type, gone))
        assert MANY / 2 == waiting(store)
        with another(path) as other:
            ready(other)
            tell(other, "stop s1", "delete s3")
            await asyncio.gather(*tasks[1::2])
        assert files == len(loop._selector.get_map())
        assert not [each for each in loop._scheduled if not each.cancelled()]
        assert loop._default_executor is None
        return sum(each.stopped.is_set() for each in handles)

    assert 2 == asyncio.run(main())
    assert [] == [waiter for each in handles for waiter in each.stopped.__dict__["waiters"]]
    assert set(threading.enumerate()) <= threads
    assert is_idle(store)


def test_a_thousand_threads_share_one_poller(store: Store, path: str) -> None:
    """No thread is started for them; one of them polls, and hands that on when it leaves."""
    handles = [store.add(sandbox(f"s{n}"), READY) for n in range(10)]
    before = set(threading.enumerate())
    threads = [
        threading.Thread(target=handles[n % 10].stopped.wait, daemon=True) for n in range(MANY)
    ]
    for thread in threads:
        thread.start()
    until(lambda: waiting(store) == MANY)
    commits = commits_of(store)
    until(lambda: len([each for each in commits._threads if each.poller is not None]) == 1)
    assert set(threads) == set(threading.enumerate()) - before
    with another(path) as other:
        ready(other)
        for n in range(10):
            tell(other, f"{'stop' if n % 2 else 'delete'} s{n}")
            until(lambda n=n: waiting(store) == MANY * (9 - n) // 10)  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert is_idle(store)
    assert len(commits._pollers) < 10


@WAITS
def test_a_wait_on_a_store_that_closes_raises(open_store: OpenStore, wait: Wait) -> None:
    """Nothing would ever end it; one that is set already returns. A second store keeps it alive."""
    store, reader = open_store(), open_store(read_only=True)
    handle, stopped = store.add(sandbox("a"), READY), store.add(sandbox("b"), READY)
    stopped.stop()
    with wait(handle.stopped) as done:
        until(lambda: waiting(store) == 1)
        store.close()
        until(lambda: waiting(reader) == 1)
        assert not done.done()
        reader.close()
        with pytest.raises(StoreClosedError, match="closed"):
            done.result()
    with wait(stopped.stopped) as done:
        done.result()
    with wait(handle.stopped) as done, pytest.raises(StoreClosedError):
        done.result()
    assert not handle.stopped.wait(0)
    assert is_idle(store)
    assert is_idle(reader)


def test_a_timeout_ends_a_wait(store: Store) -> None:
    """Of a thread by its argument, of a task by `asyncio.timeout`."""
    handle = store.add(sandbox("a"), READY)
    assert not handle.stopped.wait(0.01)
    assert not handle.stopped.wait(-1)

    async def main() -> None:
        async with asyncio.timeout(0.01):
            await handle.stopped.wait_async()

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert is_idle(store)


@pytest.mark.parametrize("timeout", ["5", [], True, math.nan, math.inf])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(store: Store, timeout: Any) -> None:
    """As by every other call; also if the sandbox has stopped. Without a limit it is None."""
    handle = store.add(sandbox("a"), READY)
    for _ in range(2):
        with pytest.raises(InvalidArgumentError, match="wait for the stop of a sandbox: timeout"):
            handle.stopped.wait(timeout)
        handle.stop()


@WAITS
def test_a_stop_ch_of_its_own_is_waited_for(wait: Wait) -> None:
    """As a program's tests make one, without a store."""
    stopped = StopCh()
    assert not stopped.wait(0.01)
    with wait(stopped) as done:
        until(lambda: len(stopped.__dict__["waiters"]) == 1)
        stopped.stop()
        done.result()
    assert [] == stopped.__dict__["waiters"]
