"""A process keeps memory for existing sandboxes, not for those that were rolled back or deleted."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from registry import NameReservedError, NotFoundError, ResourceExhaustedError, State, StopCh, Store
from registry.engine import open_files
from registry.handles import runtime_state
from tests.tools import NOTREADY, READY, execute, ids, in_another_thread, run, sandbox


class TakenBack(Exception):  # noqa: N818 - what ends the transaction of a test
    """Rolls a transaction back."""


def channels() -> int:
    """Return how many StopChs there are in the process: one for each sandbox that is kept."""
    gc.collect()
    return sum(type(each) is StopCh for each in gc.get_objects())


def add(store: Store, n: int) -> None:
    """Add ten sandboxes, and look at them."""
    for k in range(10):
        handle = store.add(sandbox(f"s{n}-{k}"), READY)
        handle.status.update(lambda old: replace(old, state=State.NOTREADY))
        assert store.get(handle.id).status.get().state is State.NOTREADY
        assert len(store.list()) >= 1


def rolled_back(store: Store, n: int) -> None:
    """Do so in a transaction that fails."""
    with pytest.raises(TakenBack), store.transaction():
        add(store, n)
        raise TakenBack


def rolled_back_part(store: Store, n: int) -> None:
    """Do so in a part of a transaction that is committed."""
    with store.transaction():
        with pytest.raises(TakenBack), store.transaction():
            add(store, n)
            raise TakenBack
        store.get("first").status.update(lambda old: replace(old, message=str(n)))


def refused_commit(store: Store, n: int) -> None:
    """Have SQLite refuse to store it."""
    connection = store._session.engine.writer.connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    try:
        with pytest.raises(ResourceExhaustedError), store.transaction():
            for k in range(1000):
                store.add(sandbox(f"s{n}-{k}"), READY)
    finally:
        connection.execute("PRAGMA max_page_count = 4294967294")


def refused_add(store: Store, n: int) -> None:
    """Add one whose name is taken."""
    with pytest.raises(NameReservedError):
        store.add(sandbox(f"s{n}", name="name-first"), READY)


@pytest.mark.parametrize("fail", [rolled_back, rolled_back_part, refused_commit, refused_add])
def test_a_rolled_back_write_leaves_nothing_in_memory(
    store: Store, fail: Callable[[Store, int], None]
) -> None:
    """Neither in the transaction as a whole nor in a part of it."""
    store.add(sandbox("first"), READY)
    before = channels()
    for n in range(3):
        fail(store, n)
    assert before == channels()
    assert ["first"] == ids(store.list())


def test_a_handle_of_a_rolled_back_sandbox_leaves_nothing(store: Store) -> None:
    """It may be asked for ever after."""
    handles = []
    with pytest.raises(TakenBack), store.transaction():
        handles.append(store.add(sandbox("a"), READY))
        raise TakenBack
    assert not store._session._runtime_states.known(handles[0]._entry.row.creation)
    for ask in (
        handles[0].status.get,
        lambda: handles[0].status.update(lambda old: old),
    ):
        with pytest.raises(NotFoundError):
            ask()
    assert not handles[0].delete()
    assert not handles[0].stopped.is_set()
    assert not store._session._runtime_states.known(handles[0]._entry.row.creation)


def test_a_handle_that_was_added_in_a_transaction_shares_its_stop_channel(store: Store) -> None:
    """With those that are read later, and with those of its own transaction."""
    with store.transaction():
        added = store.add(sandbox("a"), READY)
        inside = store.get("a")
    later = store.get("a")
    assert added.stopped is inside.stopped
    assert added.stopped is later.stopped
    in_another_thread(lambda: store.delete("a"))
    assert added.stopped.is_set()


def test_a_handle_that_was_read_in_a_failed_transaction_is_told_of_the_end(store: Store) -> None:
    """The sandbox was committed before, and only the transaction was rolled back."""
    store.add(sandbox("a"), READY)
    store.close()
    with Store.open(store.path, reconcile=False) as again:
        with pytest.raises(TakenBack), again.transaction():
            handle = again.get("a")
            handle.status.update(lambda _: NOTREADY)
            raise TakenBack
        assert not handle.stopped.is_set()
        again.get("a").status.update(lambda _: NOTREADY)
        assert handle.stopped.is_set()


def test_a_process_that_only_adds_forgets_what_others_delete(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never reads a list, from which it would learn of the deletions."""
    monkeypatch.setattr(runtime_state, "DELETED_MAX", 10)
    store._session._runtime_states._bound = 10
    before = channels()
    for n in range(200):
        store.add(sandbox(f"s{n}"), READY)
        execute(store.path, f"DELETE FROM sandboxes WHERE id = 's{n}'")
    assert channels() - before <= 40


@pytest.mark.parametrize("read", ["get", "filter"])
def test_a_process_that_only_reads_forgets_what_others_delete(
    store: Store, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    """It never lists all sandboxes: it gets each by its id, or lists those in a state."""
    monkeypatch.setattr(runtime_state, "DELETED_MAX", 10)
    store._session._runtime_states._bound = 10
    before = channels()
    for n in range(3):
        run(
            """
            import sys
            from registry import Metadata, State, Status, Store
            with Store.open(sys.argv[1]) as store, store.transaction():
                for k in range(50):
                    id = f"s{sys.argv[2]}-{k}"
                    store.add(Metadata(id, f"name-{id}", None), Status(State.READY))
            """,
            store.path,
            n,
        )
        if read == "get":
            assert all(store.get(f"s{n}-{k}") for k in range(50))
        else:
            assert len(store.list(state=State.READY)) == 50
        execute(store.path, "DELETE FROM sandboxes")
    assert channels() - before <= 110


def test_no_gate_is_left_of_a_path_that_is_closed(tmp_path: Path) -> None:
    """A process may open thousands of files in its life."""
    for n in range(3):
        Store.open(tmp_path / f"{n}.db").close()
        with pytest.raises(NotFoundError):
            Store.open(tmp_path / f"{n}.none", create=False)
    assert [] == [path for path, *_ in open_files._mutexes if path.startswith(str(tmp_path))]


def test_threads_that_open_and_close_one_file_share_its_engine(path: str) -> None:
    """Although the gate of the path is removed whenever no thread is at it."""
    Store.open(path).close()
    wrong: list[BaseException] = []

    def open_and_close() -> None:
        try:
            for _ in range(30):
                with Store.open(path, reconcile=False) as store:
                    engine = store._session.engine
                    assert open_files._engines[store.path, False, False] is engine
                    assert not engine.closed
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=open_and_close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == wrong
    assert (os.path.realpath(path), False, False) not in open_files._engines


def test_a_process_that_commits_often_imports_nothing_late(path: str) -> None:
    """A late import looks like a leak to a program that measures its own memory."""
    found = run(
        """
        import sys
        from registry import Store
        from tests.tools import READY, sandbox

        def work():
            try:
                with store.transaction():
                    store.add(sandbox("a"), READY)
                    raise KeyError
            except KeyError:
                pass

        with Store.open(sys.argv[1]) as store:
            for _ in range(12):
                work()
            before = set(sys.modules)
            for _ in range(60):
                work()
            print(sorted(set(sys.modules) - before))
        """,
        path,
    )
    assert found.strip() == "[]"
