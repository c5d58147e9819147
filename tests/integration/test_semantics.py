"""Promises of a store, sentence by sentence."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from registry import (
    AlreadyExistsError,
    CompactedError,
    FailedPreconditionError,
    InvalidArgumentError,
    Metadata,
    NameReservedError,
    NotFoundError,
    State,
    Status,
    Store,
    StoreClosedError,
)
from tests.conftest import OpenStore
from tests.tools import (
    READY,
    UNKNOWN,
    Stop,
    fill_history,
    ids,
    in_another_thread,
    run,
    sandbox,
)

# UpdateFunc runs inside the database transaction.


def test_update_func_runs_exactly_once_on_the_latest_status(open_store: OpenStore) -> None:
    """The function sees what another handle committed, and is called once."""
    store, other = open_store(), open_store()
    handle = store.add(sandbox("a"), READY)
    other.get("a").status.update(lambda old: replace(old, message="latest"))
    seen: list[Status] = []

    def change(old: Status) -> Status:
        seen.append(old)
        return replace(old, exit_status=3)

    committed = handle.status.update(change)
    assert [replace(READY, message="latest")] == seen
    assert replace(READY, message="latest", exit_status=3) == committed
    assert committed == other.get("a").status.get()


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), KeyboardInterrupt(), SystemExit(3), GeneratorExit(), Stop()],
    ids=repr,
)
def test_the_exception_of_an_update_func_is_raised_unchanged(
    store: Store, error: BaseException
) -> None:
    """It is not wrapped, BaseException included, and the transaction is rolled back."""
    handle = store.add(sandbox("a"), READY)

    def fail(old: Status) -> Status:
        store.add(sandbox("b"), READY)
        raise error

    with pytest.raises(type(error)) as caught:
        handle.status.update(fail)
    assert caught.value is error
    assert READY == handle.status.get()
    assert ["a"] == [found.id for found in store.list()]
    assert READY == handle.status.update(lambda old: old)


def test_update_validates_the_status_that_the_function_returns(store: Store) -> None:
    """A status that cannot be stored raises, and the old one stays."""
    handle = store.add(sandbox("a"), READY)
    with pytest.raises(InvalidArgumentError) as caught:
        handle.status.update(lambda old: replace(old, pid=-1))
    assert ("pid", -1) == (caught.value.field, caught.value.value)
    assert READY == handle.status.get()


def test_metadata_and_status_are_plain_values() -> None:
    """An invalid value can be made: only the store refuses it."""
    assert -1 == Status(State.READY, pid=-1).pid
    assert "" == Metadata(id="", name="", config=None).id


def test_a_slow_update_func_causes_a_warning(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past one second a warning names the call, also of one that raises; a fast one is silent."""
    handle = store.add(sandbox("a"), READY)
    with caplog.at_level(logging.WARNING, "registry"):
        handle.status.update(lambda old: old)
        assert [] == caplog.messages
        monkeypatch.setattr("registry.handles.session.SLOW", 0.0)
        handle.status.update(lambda old: old)
        with pytest.raises(ZeroDivisionError):
            handle.status.update(lambda _: 1 // 0)  # type: ignore[arg-type, return-value]
    assert 2 == len(caplog.messages)
    assert all("update status of sandbox 'a'" in message for message in caplog.messages)


# Nested writes of the same owner.


def test_nested_writes_commit_with_the_outer_transaction(open_store: OpenStore) -> None:
    """Other stores see none of them before the commit, and all after it."""
    store, other = open_store(), open_store()
    with store.transaction():
        handle = store.add(sandbox("a"), READY)
        handle.status.update(lambda old: replace(old, message="nested"))
        assert "nested" == store.get("a").status.get().message
        assert [] == in_another_thread(other.list)
    assert "nested" == other.get("a").status.get().message


def test_a_nested_write_rolls_back_alone_when_it_alone_fails(store: Store) -> None:
    """The writes before and after it are committed."""
    with store.transaction():
        store.add(sandbox("a"), READY)
        with pytest.raises(ValueError, match="inner"), store.transaction():
            store.add(sandbox("b"), READY)
            raise ValueError("inner")
        with pytest.raises(AlreadyExistsError):
            store.add(sandbox("a"), READY)
        store.add(sandbox("c"), READY)
    assert ["a", "c"] == [found.id for found in store.list()]


def test_nothing_of_a_transaction_that_raises_is_stored(store: Store) -> None:
    """Nested writes that succeeded go with it."""
    with pytest.raises(Stop), store.transaction():
        store.add(sandbox("a"), READY)
        with store.transaction():
            store.add(sandbox("b"), READY)
        raise Stop
    assert [] == store.list(include_unknown=True)
    assert [] == store.history()


def test_another_thread_waits_for_the_transaction(open_store: OpenStore) -> None:
    """Its write is done after the commit, on what was committed."""
    store = open_store()
    handle = store.add(sandbox("a"), READY)
    entered = threading.Event()

    def add_x(old: Status) -> Status:
        return replace(old, message=old.message + "x")

    def write() -> None:
        entered.set()
        handle.status.update(add_x)

    with store.transaction():
        writer = threading.Thread(target=write)
        writer.start()
        entered.wait()
        handle.status.update(lambda old: replace(old, message="first-"))
    writer.join()
    assert "first-x" == handle.status.get().message


# Durable on return, and whole.


def test_a_change_is_in_the_file_when_the_call_returns(store: Store, path: str) -> None:
    """A process that opens the file at once sees it."""
    store.add(sandbox("a"), READY)
    found = run(
        """
        import contextlib, sqlite3, sys
        with contextlib.closing(sqlite3.connect(sys.argv[1])) as connection:
            print(connection.execute("SELECT id FROM sandboxes").fetchall())
        """,
        path,
    )
    assert "[('a',)]" == found.strip()


def test_the_writer_syncs_each_commit(store: Store) -> None:
    """WAL and synchronous=FULL are what the writer really runs with."""
    writer = store._session.engine.writer.connection
    assert writer is not None
    assert ("wal",) == writer.execute("PRAGMA journal_mode").fetchone()
    assert (2,) == writer.execute("PRAGMA synchronous").fetchone()


def test_both_rows_of_a_sandbox_are_there_or_none(store: Store) -> None:
    """A failure after the first row leaves nothing."""
    with pytest.raises(NameReservedError):
        store.add(sandbox("b", name=store.add(sandbox("a"), READY).name), READY)
    assert ["a"] == [found.id for found in store.list()]


# Readers.


def test_a_reader_is_not_blocked_by_a_writer_and_sees_only_commits(
    open_store: OpenStore,
) -> None:
    """While another thread writes, the old state is read: the write ends only after that."""
    store = open_store()
    handle = store.add(sandbox("a"), READY)
    with store.transaction():
        handle.status.update(lambda old: replace(old, state=State.NOTREADY))
        assert State.READY == in_another_thread(lambda: handle.status.get().state)
    assert State.NOTREADY == in_another_thread(lambda: handle.status.get().state)


def test_a_reader_sees_every_acknowledged_commit_of_another_process(
    store: Store, path: str
) -> None:
    """The next read returns it."""
    store.add(sandbox("a"), READY)
    run(
        """
        import sys
        from dataclasses import replace
        from registry import Store
        with Store.open(sys.argv[1]) as store:
            store.get("a").status.update(lambda old: replace(old, message="theirs"))
        """,
        path,
    )
    assert "theirs" == store.get("a").status.get().message


# UNKNOWN is hidden.


def test_unknown_is_hidden_unless_asked_for(store: Store) -> None:
    """From get and from list, by prefix too."""
    store.add(sandbox("abc"), UNKNOWN)
    assert [] == store.list()
    assert [] == store.list(state=State.UNKNOWN)
    assert ["abc"] == [found.id for found in store.list(include_unknown=True)]
    with pytest.raises(NotFoundError) as caught:
        store.get("ab")
    assert "abc" == caught.value.id
    assert "abc" == store.get("ab", include_unknown=True).id


def test_no_way_leads_back_to_unknown(store: Store) -> None:
    """Not from READY, not from NOTREADY; UNKNOWN itself may be rewritten."""
    handle = store.add(sandbox("a"), UNKNOWN)
    handle.status.update(lambda old: replace(old, message="still"))
    for state in (State.READY, State.NOTREADY):
        handle.status.update(lambda old, state=state: replace(old, state=state))  # type: ignore[misc]
        with pytest.raises(FailedPreconditionError) as caught:
            handle.status.update(lambda old: replace(old, state=State.UNKNOWN))
        assert "a" == caught.value.id
        assert state == handle.status.get().state


# Threads and processes.


def test_two_stores_of_one_file_share_one_engine(open_store: OpenStore) -> None:
    """And closing one leaves the other usable."""
    first, second = open_store(), open_store()
    assert first._session.engine is second._session.engine
    first.close()
    assert [] == second.list()


def test_a_closed_store_stays_closed(open_store: OpenStore) -> None:
    """Closing twice is harmless; every use raises, through its handles too."""
    store, other = open_store(), open_store()
    handle = store.add(sandbox("a"), READY)
    store.close()
    store.close()
    for call in (
        store.list,
        store.history,
        store.check,
        store.reconcile,
        lambda: store.get("a"),
        lambda: store.delete("a"),
        lambda: store.add(sandbox("b"), READY),
        lambda: store.update_metadata("a", lambda m: m),
        store.transaction,
        handle.status.get,
        lambda: handle.status.update(lambda old: old),
        handle.delete,
    ):
        with pytest.raises(StoreClosedError) as caught:
            call()
        assert caught.value.path
    assert ["a"] == [found.id for found in other.list()]
    assert "a" == handle.metadata.id


def test_the_history_orders_by_sequence_not_by_clock(open_store: OpenStore) -> None:
    """A clock that runs backwards changes nothing of the order."""
    ticks = iter(range(10_000, 0, -1))
    store = open_store(clock=lambda: next(ticks), actor="tester")
    handle = store.add(sandbox("a"), UNKNOWN)
    handle.status.update(lambda old: replace(old, state=State.READY, pid=0, reason="Up"))
    handle.status.update(lambda old: replace(old, message="no change of state"))
    handle.status.update(lambda old: replace(old, state=State.NOTREADY, reason="Down"))
    handle.delete()
    found = store.history("a")
    assert ["created", "changed", "changed", "deleted"] == [each.event for each in found]
    assert sorted(each.seq for each in found) == [each.seq for each in found]
    assert [
        (None, State.UNKNOWN, ""),
        (State.UNKNOWN, State.READY, "Up"),
        (State.READY, State.NOTREADY, "Down"),
        (State.NOTREADY, None, "Down"),
    ] == [(each.from_state, each.to_state, each.reason) for each in found]
    assert {"tester"} == {each.actor for each in found}
    assert sorted((each.at for each in found), reverse=True) == [each.at for each in found]


def test_history_is_read_in_parts(store: Store) -> None:
    """After a seq, of one sandbox, up to a limit."""
    for id in ("a", "b", "c"):
        store.add(sandbox(id), READY)
    everything = store.history()
    assert everything[1:] == store.history(after=everything[0].seq)
    assert everything[:2] == store.history(limit=2)
    assert [everything[1]] == store.history("b")
    assert [] == store.history("b", limit=0)
    assert [] == store.history("missing")
    assert [] == store.history(after=10**9)


def test_history_older_than_its_bound_is_compacted(store: Store, path: str) -> None:
    """100,000 are kept; asking for what is gone raises, and says from where on it is kept."""
    fill_history(path, 100_000)
    assert 1 == store.history(limit=1)[0].seq
    for id in ("a", "b"):
        store.add(sandbox(id), READY)
    assert [3, 4] == [each.seq for each in store.history(limit=2)]
    assert ["a", "b"] == [each.sandbox_id for each in store.history(after=100_000)]
    with pytest.raises(CompactedError) as caught:
        store.history(after=1)
    assert (1, 3) == (caught.value.after, caught.value.oldest)
    assert 100_000 == len(store.history(after=2)) == len(store.history())


def test_a_store_knows_its_file(tmp_path: Path) -> None:
    """By the path without symlinks."""
    os.symlink(tmp_path, tmp_path / "link")
    with Store.open(tmp_path / "link" / "registry.db") as store:
        assert str(tmp_path / "registry.db") == store.path


def test_a_function_that_closes_the_store_gets_an_error(open_store: OpenStore, path: str) -> None:
    """StoreClosedError; the status stays as it was."""
    store = open_store()
    handle = store.add(sandbox("a"), READY)

    def close(old: Status) -> Status:
        store.close()
        return replace(old, message="closed")

    with pytest.raises(StoreClosedError):
        handle.status.update(close)
    with Store.open(path) as again:
        assert "" == again.get("a").status.get().message


def test_a_transaction_continues_after_its_exit_was_read(store: Store) -> None:
    """Reading its `__exit__` ends nothing; an ExitStack ends it as a `with` does."""
    transaction = store.transaction()
    with transaction:
        store.add(sandbox("a"), READY)
        assert hasattr(transaction, "__exit__")
        store.add(sandbox("b"), READY)
    with ExitStack() as stack:
        stack.enter_context(store.transaction())
        store.add(sandbox("c"), READY)
    assert ["a", "b", "c"] == ids(store.list())
