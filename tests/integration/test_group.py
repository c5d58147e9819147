"""Group commit: threads that write at the same time share one commit and its outcome."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import count

import pytest

from registry import (
    Sandbox,
    State,
    Status,
    Store,
    StoreClosedError,
)
from registry.engine import driver, group_commit, wal
from registry.engine.transaction import Group, Transaction
from tests.conftest import OpenStore
from tests.convoy import Call, convoy, more
from tests.integration.groups import counts, fail, updates
from tests.tools import READY, line, query, running, sandbox, say, until


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    """Record the statements of the writer."""
    connection, seen = store._session.engine.writer.connection, list[str]()
    connection.set_trace_callback(seen.append)
    yield seen
    connection.set_trace_callback(None)


def test_waiting_threads_share_one_commit(
    store: Store, handles: list[Sandbox], blocker: Sandbox
) -> None:
    """Nine threads, one BEGIN, one COMMIT, and each call returns its own result."""
    with (
        statements(store) as seen,
        convoy(store, blocker, *updates(handles)) as futures,
    ):
        pass
    results = [future.result() for future in futures]
    assert [1] * 9 == [each.exited_at for each in results if isinstance(each, Status)]
    assert [1] * 8 == counts(handles)
    assert (1, 1) == (seen.count("BEGIN IMMEDIATE"), seen.count("COMMIT"))


def test_a_write_without_waiters_makes_no_savepoint(store: Store, handles: list[Sandbox]) -> None:
    """A single thread pays nothing for group commit."""
    with statements(store) as seen:
        handles[0].status.update(more)
    assert [] == [each for each in seen if each.startswith(("SAVEPOINT", "RELEASE", "ROLLBACK"))]


def test_no_member_returns_before_the_commit(
    store: Store, handles: list[Sandbox], blocker: Sandbox
) -> None:
    """Members that have run wait for the one that runs."""
    futures: list[Future[object]] = []
    returned: list[bool] = []

    def slow(old: Status) -> Status:
        time.sleep(0.1)
        returned.extend(future.done() for future in futures)
        return more(old)

    with convoy(
        store, blocker, *updates(handles[:4]), lambda: handles[4].status.update(slow)
    ) as members:
        futures += members
    assert [False] * 6 == returned
    assert [1] * 5 + [0] * 3 == counts(handles)


def test_changes_of_a_group_are_invisible_before_its_commit(
    store: Store, handles: list[Sandbox], blocker: Sandbox
) -> None:
    """No reader sees them, not in this process either; then all appear at once."""
    seen = []

    def read(old: Status) -> Status:
        with ThreadPoolExecutor(1) as other:
            seen.extend(other.submit(counts, handles).result())
        return more(old)

    with convoy(store, blocker, *updates(handles[:4]), lambda: handles[4].status.update(read)):
        pass
    assert [0] * 8 == seen
    assert [1] * 5 + [0] * 3 == counts(handles)


def test_an_exclusive_transaction_runs_after_the_group(
    store: Store, handles: list[Sandbox], blocker: Sandbox
) -> None:
    """Writes before it are committed when it begins, and writes behind it after its end."""
    seen = []

    def transact() -> None:
        with store.transaction():
            with ThreadPoolExecutor(1) as other:
                seen.extend(other.submit(counts, handles).result())
            handles[2].status.update(more)

    calls = updates(handles)
    calls[2] = transact
    with statements(store) as statement, convoy(store, blocker, *calls):
        pass
    assert [1, 1, 0, 0, 0, 0, 0, 0] == seen
    assert [1] * 8 == counts(handles)
    assert 3 == statement.count("COMMIT")


def test_a_group_is_committed_after_a_bounded_number_of_runs(
    store: Store, handles: list[Sandbox], blocker: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many threads wait, also if those that join only fail."""
    monkeypatch.setattr(group_commit, "RUNS_MAX", 3)
    failing = [lambda: handles[0].status.update(fail)] * 4
    with (
        statements(store) as seen,
        convoy(store, blocker, *updates(handles), *failing) as futures,
    ):
        pass
    assert [1] * 8 == counts(handles)
    assert 3 == seen.count("COMMIT")
    assert [LookupError] * 4 == [type(each.exception()) for each in futures[-4:]]


def test_close_waits_for_the_pending_group(open_store: OpenStore, path: str) -> None:
    """The members are stored; a write that had not begun is not."""
    store, other = open_store(), open_store()
    handles = [store.add(sandbox(id), READY) for id in ("blocker", "a", "b")]
    other.close()
    with convoy(store, handles[0], *updates(handles[1:]), store.close) as futures:
        pass
    assert [None] * 4 == [future.exception() for future in futures]
    with pytest.raises(StoreClosedError):
        handles[1].status.update(more)
    with Store.open(path) as again:
        assert [1, 1] == [again.get(id).status.get().exited_at for id in ("a", "b")]


def test_each_member_runs_its_own_effects_after_the_commit(
    store: Store, handles: list[Sandbox], blocker: Sandbox
) -> None:
    """A sandbox has stopped when the call that stops it returns, and not after a rollback."""

    def stop(handle: Sandbox) -> bool:
        handle.status.update(lambda old: replace(old, state=State.NOTREADY))
        return handle.stopped.is_set()

    def stop_in_vain() -> None:
        with store.transaction():
            handles[3].status.update(lambda old: replace(old, state=State.NOTREADY))
            raise LookupError

    calls: list[Call] = [lambda handle=each: stop(handle) for each in handles[:3]]  # type: ignore[misc]
    with convoy(store, blocker, *calls, stop_in_vain) as futures:
        pass
    assert [True] * 3 == [future.result() for future in futures[1:4]]
    assert not handles[3].stopped.is_set()


def test_16_threads_lose_no_update(open_store: OpenStore) -> None:
    """16 x 100 increments of one status are 1600, some of which fail on the way."""
    stores = [open_store(), open_store()]
    stores[0].add(sandbox("a"), READY)

    def count(n: int) -> int:
        handle, failed = stores[n % 2].get("a"), 0
        for turn in range(100):
            handle.status.update(more)
            if turn % 10 == n % 10:
                with pytest.raises(LookupError):
                    handle.status.update(lambda old: fail(more(old)))
                failed += 1
        return failed

    with ThreadPoolExecutor(16) as pool:
        assert 160 == sum(pool.map(count, range(16)))
    assert 1600 == stores[0].get("a").status.get().exited_at


COUNTER = """
    import sys
    from concurrent.futures import ThreadPoolExecutor
    from dataclasses import replace
    from registry import Store
    path, threads, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with Store.open(path) as store, ThreadPoolExecutor(threads) as pool:
        handle = store.get("a")
        print("open", flush=True)
        sys.stdin.readline()
        def count(_):
            for _ in range(times):
                handle.status.update(lambda old: replace(old, exited_at=old.exited_at + 1))
        list(pool.map(count, range(threads)))
    print("done")
    """


@pytest.mark.parametrize(("processes", "threads"), [(8, 1), (4, 4)])
def test_processes_lose_no_update(store: Store, path: str, processes: int, threads: int) -> None:
    """All calls of all processes return."""
    store.add(sandbox("a"), READY)
    children = [running(COUNTER, path, threads, 50) for _ in range(processes)]
    started = [child.__enter__() for child in children]
    try:
        assert ["open"] * processes == [line(child) for child in started]
        for child in started:
            say(child)
        assert ["done"] * processes == [line(child) for child in started]
    finally:
        for each in children:
            each.__exit__(None, None, None)
    assert processes * threads * 50 == store.get("a").status.get().exited_at


def test_a_sandbox_added_by_another_member_is_not_taken_for_deleted(
    store: Store, handles: list[Sandbox], blocker: Sandbox
) -> None:
    """A function of the group reads it; a reader beside the group does not see it yet."""
    seen: list[Sandbox] = []

    def add() -> object:
        return store.add(sandbox("new"), READY)

    def read(old: Status) -> Status:
        seen.append(store.get("new"))
        with ThreadPoolExecutor(1) as other:  # and something was deleted since it has looked
            other.submit(store.list).result()
        return more(old)

    assert store.delete("s7")
    with convoy(store, blocker, add, lambda: handles[0].status.update(read)):
        pass
    store.list()
    assert [False, False] == [each.stopped.is_set() for each in (*seen, store.get("new"))]


def test_no_transaction_joins_after_a_tenth_of_the_timeout(
    open_store: OpenStore, path: str
) -> None:
    """A stream of slow functions does not delay the commit: a later write finds it made."""
    store = open_store(timeout=10.0)
    blocker, quick, slow, late = (store.add(sandbox(f"s{n}"), READY) for n in range(4))
    seen = []

    def outlast(old: Status) -> Status:
        group = store._session.engine.writes._group
        assert group is not None
        until(lambda: time.monotonic() > group.join_deadline)
        return more(old)

    def read(old: Status) -> Status:
        seen.extend(query(path, "SELECT exited_at FROM sandbox_statuses WHERE sandbox_id = 's1'"))
        return more(old)

    calls: list[Call] = [
        lambda: quick.status.update(more),
        lambda: slow.status.update(outlast),
        lambda: late.status.update(read),
    ]
    with convoy(store, blocker, *calls) as futures:
        pass
    assert [None] * 4 == [each.exception() for each in futures]
    assert [(1,)] == seen


def test_the_wal_is_restarted_only_under_the_process_lock(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A confirmation that runs again without the lock, after an interrupt, does not."""
    handle = store.add(sandbox("a"), READY)
    writer, seen = store._session.engine.writer, list[str]()
    writer.connection.set_trace_callback(seen.append)
    handle.status.update(lambda old: replace(old, message="long"))
    assert not writer._holds_lock
    multiples = count()
    monkeypatch.setattr(driver, "WAL_MAX", 1)
    monkeypatch.setattr(
        wal, "_multiple_below", lambda _size: next(multiples)
    )  # passed at each commit
    writer.confirm("confirm again", time.monotonic() + 1)
    assert not [statement for statement in seen if "wal_checkpoint" in statement]
    handle.status.update(lambda old: replace(old, message="longer"))
    assert [statement for statement in seen if "wal_checkpoint" in statement]
    writer.connection.set_trace_callback(None)


def test_a_group_leaves_nothing_for_the_garbage_collector(
    store: Store, handles: list[Sandbox], blocker: Sandbox
) -> None:
    """Members that shared a commit do not refer to each other: their objects are freed at once."""

    def parts() -> int:
        return sum(isinstance(each, Group | Transaction) for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = parts()
        with convoy(store, blocker, *updates(handles)) as futures:
            pass
        assert [None] * 9 == [future.exception() for future in futures]
        assert before == parts()
    finally:
        gc.enable()
