"""StopCh: set by a committed change to NOTREADY and by a deletion, of any process."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace

import pytest

from registry import (
    NotFoundError,
    RegistryError,
    Sandbox,
    State,
    Status,
    Store,
)
from registry.engine import driver
from registry.tables import sql
from tests.conftest import OpenStore
from tests.tools import (
    NOTREADY,
    READY,
    Stop,
    execute,
    ids,
    in_another_thread,
    run,
    sandbox,
    tamper,
)


def test_a_sandbox_added_notready_is_stopped(store: Store) -> None:
    """From the start; a READY one is not."""
    assert store.add(sandbox("a"), NOTREADY).stopped.is_set()
    assert not store.add(sandbox("b"), READY).stopped.is_set()


def test_a_committed_change_to_notready_stops_all_handles(open_store: OpenStore) -> None:
    """Handles of all Stores of the process, and before the call returns."""
    store, other = open_store(), open_store()
    first = store.add(sandbox("a"), READY)
    second = other.get("a")
    with store.transaction():
        first.status.update(lambda old: replace(old, state=State.NOTREADY))
        assert State.NOTREADY == first.status.get().state
        assert not store.get("a").stopped.is_set()
        assert not first.stopped.wait(0)
    assert first.stopped.is_set()
    assert second.stopped.wait(0)


def test_a_waiting_thread_is_woken(store: Store) -> None:
    """By the commit of another thread."""
    handle = store.add(sandbox("a"), READY)
    woken: list[bool] = []
    waiter = threading.Thread(target=lambda: woken.append(handle.stopped.wait(30)))
    waiter.start()
    handle.status.update(lambda old: replace(old, state=State.NOTREADY))
    waiter.join()
    assert [True] == woken


def test_transaction_yields_none(store: Store) -> None:
    """Its body is given nothing of the engine."""
    with store.transaction() as body:
        assert body is None


def test_a_rolled_back_change_does_not_stop(store: Store) -> None:
    """Neither to NOTREADY nor a deletion, nor a handle that was read meanwhile."""
    handle = store.add(sandbox("a"), READY)
    with pytest.raises(Stop), store.transaction():
        handle.status.update(lambda old: replace(old, state=State.NOTREADY))
        assert State.NOTREADY == store.get("a").status.get().state
        store.list()
        store.delete("a")
        raise Stop
    assert not handle.stopped.is_set()
    assert not store.get("a").stopped.is_set()


def test_a_nested_change_that_is_rolled_back_does_not_stop(store: Store) -> None:
    """Though the outer transaction commits."""
    handle = store.add(sandbox("a"), READY)
    with store.transaction():
        with pytest.raises(Stop), store.transaction():
            handle.status.update(lambda old: replace(old, state=State.NOTREADY))
            raise Stop
        store.add(sandbox("b"), READY)
    assert not handle.stopped.is_set()


def test_sandbox_being_added_is_not_stopped_by_another_read(store: Store) -> None:
    """It is in its own snapshot alone: neither a thread nor a task takes it for deleted."""

    async def add() -> Sandbox:
        with store.transaction():
            added = store.add(sandbox("a"), READY)
            await asyncio.sleep(0)
        return added

    async def both() -> Sandbox:
        added, _ = await asyncio.gather(add(), asyncio.to_thread(store.list))
        return added

    assert not asyncio.run(both()).stopped.is_set()
    with store.transaction():
        added = store.add(sandbox("b"), READY)
        assert ["a"] == in_another_thread(lambda: ids(store.list()))
        with pytest.raises(NotFoundError):
            in_another_thread(lambda: store.get("b"))
        with pytest.raises(NotFoundError):
            in_another_thread(added.status.get)
    assert not added.stopped.is_set()


def test_adds_beside_reads_stop_no_sandbox(store: Store) -> None:
    """Two threads list and look up missing ids, while a third adds."""
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            store.list()
            with suppress(NotFoundError):
                store.get("none")

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        added = [store.add(sandbox(f"s{n}"), READY) for n in range(200)]
        done.set()
        for reader in readers:
            reader.result()
    assert not any(each.stopped.is_set() for each in added)


def test_a_read_only_store_shares_the_stop_channel(open_store: OpenStore) -> None:
    """All handles of one sandbox in a process do."""
    store = open_store()
    handle = store.add(sandbox("a"), READY)
    reader = open_store(read_only=True)
    seen = reader.get("a").stopped
    handle.status.update(lambda old: replace(old, state=State.NOTREADY))
    assert seen.is_set()


@pytest.mark.parametrize("nested", [False, True])
def test_deletion_stops_a_sandbox_that_was_read_in_a_failed_transaction(
    store: Store, path: str, nested: bool
) -> None:
    """It was committed before, so that the outcome of the transaction does not matter."""
    store.add(sandbox("a"), READY)
    with (
        Store.open(path) as other,
        other.transaction() if nested else nullcontext(),
        suppress(ValueError),
        other.transaction(),
    ):
        found = other.get("a")
        raise ValueError
    run(
        "import sys; from registry import Store\nwith Store.open(sys.argv[1]) as s: s.delete('a')",
        path,
    )
    store.list()
    assert found.stopped.is_set()


@pytest.mark.parametrize("call", ["update", "metadata", "delete", "delete by id"])
def test_a_write_that_misses_the_sandbox_stops_it(store: Store, path: str, call: str) -> None:
    """Another process has deleted it."""
    handle = store.add(sandbox("a"), READY)
    execute(path, "DELETE FROM sandboxes")
    if call == "delete":
        assert not handle.delete()
    elif call == "delete by id":
        assert not store.delete("a")
    elif call == "metadata":
        with pytest.raises(NotFoundError):
            store.update_metadata("a", lambda old: old)
    else:
        with pytest.raises(NotFoundError):
            handle.status.update(lambda old: old)
    assert handle.stopped.is_set()


def test_sandbox_that_has_lost_its_id_is_not_stopped(path: str) -> None:
    """It is damaged and not deleted, whichever read misses it."""
    with Store.open(path) as store:
        handle = store.add(sandbox("a"), READY)
        tamper(path, "UPDATE sandboxes SET id = 'b'")
        for read in (handle.status.get, lambda: store.get("a"), store.list, handle.open_process):
            with suppress(RegistryError):
                read()
        assert not store.delete("a")
        assert not handle.stopped.is_set()


def test_a_list_stops_a_deleted_sandbox_that_a_slow_read_returned(store: Store, path: str) -> None:
    """That read began before the deletion, and ends after a list that has missed another one."""
    for id in "abc":
        store.add(sandbox(id), READY)
    row = store.get("c")._entry.row
    store.close()
    with Store.open(path, reconcile=False) as again:
        again.get("a")
        other = again.get("b")
        execute(path, "DELETE FROM sandboxes WHERE id != 'a'")
        again.list()
        assert other.stopped.is_set()
        slow = again._session.entry(row)
        assert ["a"] == ids(again.list())
        assert slow.runtime_state.stopped.is_set()


def test_missing_id_costs_no_query_of_all_sandboxes(store: Store, path: str) -> None:
    """A shim asks for an id before it adds the sandbox, beside thousands of others."""
    for id in ("known", "other"):
        store.add(sandbox(id), READY)
    statements: list[str] = []
    for connection in tuple(driver._open):
        with suppress(sqlite3.ProgrammingError):  # closed, by another test
            connection.set_trace_callback(statements.append)
    for n in range(3):
        with pytest.raises(NotFoundError):
            store.get(f"none{n}")
        assert not store.delete(f"none{n}")
        store.add(sandbox(f"none{n}"), READY)
    assert statements
    assert sql.CREATIONS not in statements


def test_id_added_again_by_another_process_stops_the_old_creation(store: Store, path: str) -> None:
    """At the next read of any sandbox; the new creation is not stopped."""
    old = store.add(sandbox("a"), READY)
    run(
        """
        import sys
        from registry import Metadata, State, Status, Store
        with Store.open(sys.argv[1]) as store:
            store.delete("a")
            store.add(Metadata("a", "name-a", None), Status(State.READY))
        """,
        path,
    )
    new = store.get("a")
    assert old.stopped.is_set()
    assert not new.stopped.is_set()


def test_a_deletion_stops(store: Store) -> None:
    """All handles, however it is deleted."""
    first, second = store.add(sandbox("a"), READY), store.add(sandbox("b"), READY)
    store.delete("a")
    second.delete()
    assert first.stopped.is_set()
    assert second.stopped.is_set()


def test_stop_sets_the_stop_channel_and_keeps_the_status(store: Store) -> None:
    """And once set it stays so, for handles got later too."""
    store.add(sandbox("a"), READY).stop()
    assert READY == store.get("a").status.get()
    assert store.get("a").stopped.is_set()
    store.get("a").status.update(lambda old: replace(old, message="x"))
    assert store.get("a").stopped.is_set()


@pytest.mark.parametrize("read", ["status", "get", "prefix", "list", "filter", "process", "delete"])
@pytest.mark.parametrize("change", ["notready", "delete", "delete and add"])
def test_a_read_after_a_commit_of_another_process_sets_the_stop_channel(
    store: Store, path: str, read: str, change: str
) -> None:
    """Whichever read of that sandbox it is, also beside one that is hidden."""
    handle = store.add(sandbox("abc"), READY)
    store.add(sandbox("hidden"), Status(State.UNKNOWN))
    store.list(include_unknown=True)
    run(
        """
        import sys
        from dataclasses import replace
        from registry import Metadata, State, Status, Store
        with Store.open(sys.argv[1]) as store:
            if sys.argv[2] == "notready":
                store.get("abc").status.update(lambda old: replace(old, state=State.NOTREADY))
            else:
                store.delete("abc")
            if sys.argv[2] == "delete and add":
                store.add(Metadata("abc", "name", None), Status(State.READY))
        """,
        path,
        change,
    )
    assert not handle.stopped.is_set()
    reads: dict[str, Callable[[], object]] = {
        "status": handle.status.get,
        "get": lambda: store.get("abc"),
        "prefix": lambda: store.get("a"),
        "list": store.list,
        "filter": lambda: store.list(id="abc"),
        "process": handle.open_process,
        "delete": lambda: store.delete("abc"),
    }
    if (read, change) in {("filter", "delete"), ("delete", "delete and add")}:
        reads[read]()  # this one does not read that sandbox
        read = "list"
    with suppress(NotFoundError):
        reads[read]()
    assert handle.stopped.is_set()
    if change == "delete and add" and read != "list":
        assert not store.get("abc").stopped.is_set()
