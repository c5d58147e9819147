"""Commits after which the cache reads again: no entry of it is stale."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from enum import IntEnum
from typing import Any

import pytest

from registry import Sandbox, Store
from registry.engine import own_commits
from registry.engine.own_commits import OwnCommits
from registry.errors import RegistryError
from registry.handles.cache import Cache
from tests.conftest import OpenStore
from tests.convoy import more
from tests.integration.fresh import assert_fresh
from tests.tools import READY, execute, in_another_thread, run, sandbox


@pytest.mark.parametrize("point", ["commit_begins", "committed", "_version_of"])
def test_a_commit_of_the_shell_around_ours_is_read(
    store: Store, path: str, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Right before the data version is read after COMMIT, and right after."""
    handle, other = store.add(sandbox("a"), READY), store.add(sandbox("b"), READY)
    owner = own_commits if point == "_version_of" else OwnCommits
    original: Callable[..., Any] = getattr(owner, point)

    def interposed(*args: Any) -> Any:
        if point != "commit_begins":
            execute(path, "UPDATE sandbox_statuses SET message = 'shell' WHERE sandbox_id = 'b'")
        return original(*args)

    other.status.get()
    if point == "commit_begins":  # between two of ours, with no read in between
        handle.status.update(more)
        execute(path, "UPDATE sandbox_statuses SET message = 'shell' WHERE sandbox_id = 'b'")
    monkeypatch.setattr(owner, point, interposed)
    handle.status.update(more)
    assert "shell" == other.status.get().message == store.get("b").status_as_read.message
    assert_fresh(store)


@pytest.mark.parametrize("read", ["get", "list", "status"])
def test_a_reader_that_is_late_keeps_no_older_row(
    store: Store, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    """It has read, and has seen that no commit came; then one comes, and then it keeps."""
    handle = store.add(sandbox("a"), READY)
    store.add(sandbox("b"), READY)
    store.get("b")
    arrived, go_on = threading.Event(), threading.Event()
    original = Cache._exclusively

    def late(self: Cache, change: Callable[[], None]) -> None:
        if threading.current_thread() is reader:
            arrived.set()
            assert go_on.wait(30)
        original(self, change)

    monkeypatch.setattr(Cache, "_exclusively", late)
    reads: dict[str, Callable[[], object]] = {
        "get": lambda: store.get("a"),
        "list": lambda: store.list(pod="web"),
        "status": handle.status.get,
    }
    store._session._cache.invalidate()
    reader = threading.Thread(target=reads[read])
    reader.start()
    assert arrived.wait(30)
    store.get("b")
    handle.status.update(more)
    store.get("b").status.update(more)
    go_on.set()
    reader.join()
    assert [1, 1] == [store.get(id).status_as_read.exited_at for id in "ab"]
    assert [1, 1] == [each.status_as_read.exited_at for each in store.list(pod="web")]
    assert_fresh(store)


def test_a_row_that_is_read_while_ours_is_committed_is_not_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After COMMIT and before the cache follows: the reader sees the new row, and so do later."""
    handle = store.add(sandbox("a"), READY)
    store.get("a")
    original, found = OwnCommits.committed, list[int]()

    def pause(self: OwnCommits, *args: Any) -> None:
        found.append(in_another_thread(lambda: store.get("a").status_as_read.exited_at))
        original(self, *args)

    monkeypatch.setattr(OwnCommits, "committed", pause)
    for n in range(1, 4):
        handle.status.update(more)
        assert n == found[-1] == store.get("a").status_as_read.exited_at
    assert_fresh(store)


def test_a_statement_that_is_not_reported_empties_the_cache(store: Store) -> None:
    """Whatever else the transaction has reported."""
    handle, other = store.add(sandbox("a"), READY), store.add(sandbox("b"), READY)
    for first in (True, False):
        other.status.get()
        with store._session.write("test") as transaction:
            if first:
                handle.status.update(more)
            sql = "UPDATE sandbox_statuses SET message = message || 'raw' WHERE sandbox_id = 'b'"
            transaction.execute(sql)
            if not first:
                handle.status.update(more)
        assert "raw" in other.status.get().message
        assert_fresh(store)
    assert "rawraw" == store.get("b").status_as_read.message


def test_rolled_back_writes_are_not_cached(store: Store) -> None:
    """All of a transaction, or a part of one that commits the rest."""
    handle = store.add(sandbox("a"), READY)
    store.get("a")
    with suppress(LookupError), store.transaction():
        handle.status.update(more)
        raise LookupError
    assert_fresh(store)
    with store.transaction():
        with suppress(LookupError), store.transaction():
            handle.status.update(lambda old: replace(old, message="inner"))
            store.delete("a")
            raise LookupError
        handle.status.update(more)
    assert (1, "") == (store.get("a").status_as_read.exited_at, handle.status.get().message)
    assert_fresh(store)


class Number(IntEnum):
    """An int of a class of its own, as an embedder may have it."""

    ONE = 1


class Text(str):
    """A string of a class of its own."""

    __slots__ = ()


def test_values_of_subclasses_are_read_as_sqlite_stores_them(store: Store) -> None:
    """A plain int and a plain str."""
    handle = store.add(sandbox("a"), READY)
    store.get("a")
    handle.status.update(lambda old: replace(old, exit_status=Number.ONE, message=Text("x")))
    status = store.get("a").status_as_read
    assert (1, "x", int, str) == (
        status.exit_status,
        status.message,
        type(status.exit_status),
        type(status.message),
    )
    assert_fresh(store)


def test_a_commit_that_is_refused_is_not_followed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is one of which nothing is known; the error is the writer's."""
    handle = store.add(sandbox("a"), READY)
    store.get("a")
    writer = store._session.engine.writer
    original = writer.confirm

    def refuse(doing: str, deadline: float) -> None:
        original(doing, deadline)
        raise RegistryError("refused")

    monkeypatch.setattr(writer, "confirm", refuse)
    with pytest.raises(RegistryError, match="refused"):
        handle.status.update(more)
    monkeypatch.undo()
    assert_fresh(store)
    handle.status.update(more)
    assert_fresh(store)


def test_a_data_version_that_cannot_be_read_leaves_the_commit_as_it_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write returns, and later reads are fresh."""
    handle = store.add(sandbox("a"), READY)
    store.get("a")

    def fail(_doing: str) -> int:
        raise RegistryError("cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr(store._session.engine.data_version, "read", fail)
        assert 1 == handle.status.update(more).exited_at
    assert 1 == handle.status.get().exited_at
    assert_fresh(store)


def test_an_interrupt_between_commit_and_the_cache_leaves_nothing_stale(path: str) -> None:
    """At each point of an update that follows a read."""
    out = run(
        """
        import sys
        from contextlib import suppress
        from dataclasses import replace
        from registry import Metadata, State, Status, Store
        from tests.interrupts import Interrupt, Interrupts

        with (
            Store.open(sys.argv[1]) as store,
            Store.open(sys.argv[1], reconcile=False) as fresh,
        ):
            handle = store.add(Metadata("a", "a", None), Status(State.READY))
            other = store.add(Metadata("b", "b", None), Status(State.READY))

            def call():
                handle.status.update(lambda old: replace(old, exited_at=n))

            attempts = Interrupts()
            for n, attempt in enumerate(attempts, 1):
                other.status.get()
                attempt.run(call)
                for _ in "12":
                    fresh._session._cache.invalidate()
                    rows = [each._entry.row for each in fresh.list()]
                    assert rows == [each._entry.row for each in store.list()], attempt
                    assert rows == [store.get(id)._entry.row for id in "ab"], attempt
                    other.status.update(lambda old: replace(old, exited_at=n))
            print(*attempts.functions, sep="\\n")
        """,
        path,
    )
    points = {"OwnCommits.committed", "Cache.follow", "Cache._change", "Transaction.report"}
    assert points <= set(out.splitlines())


def assert_not_older(store: Store, handles: list[Sandbox], committed: list[int]) -> None:
    """Compare what *store* returns with what was acknowledged before; the last one is a shell's."""
    *least, by_shell = tuple(committed)
    for n, handle in enumerate(handles):
        assert least[n] <= handle.status.get().exited_at
        found = store.get(f"s{n}").status_as_read
        assert least[n] <= found.exited_at
        assert by_shell <= (found.exit_status or 0)
    listed = [each.status_as_read.exited_at for each in store.list()]
    assert [*map(max, least, listed)] == listed


def test_two_stores_and_a_shell_in_threads_read_nothing_older(
    open_store: OpenStore, path: str
) -> None:
    """Each thread writes one sandbox, and reads what the others report."""
    stores = open_store(), open_store()
    handles = [stores[n % 2].add(sandbox(f"s{n}"), READY) for n in range(4)]
    committed, stop = [0] * 5, threading.Event()

    def write(n: int) -> None:
        while not stop.is_set() and committed[n] < 150:
            found = stores[n % 2].get(f"s{n}").status.update(more)
            committed[n] = found.exited_at

    def shell() -> None:
        while not stop.is_set():
            execute(path, "UPDATE sandbox_statuses SET exit_status = coalesce(exit_status, 0) + 1")
            committed[4] += 1

    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    writers.append(threading.Thread(target=shell))
    for writer in writers:
        writer.start()
    try:
        while any(writer.is_alive() for writer in writers[:4]):
            for store in stores:
                assert_not_older(store, handles, committed)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert_fresh(stores[0])
