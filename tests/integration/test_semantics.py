"""Promises of a store, sentence by sentence."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from registry import (
    AlreadyExistsError,
    AmbiguousPrefixError,
    CompactedError,
    FailedPreconditionError,
    InvalidArgumentError,
    Metadata,
    NameReservedError,
    NotFoundError,
    Sandbox,
    State,
    Status,
    Store,
    StoreClosedError,
)
from tests.conftest import OpenStore
from tests.tools import (
    NOTREADY,
    READY,
    UNKNOWN,
    execute,
    ids,
    in_another_thread,
    pod,
    query,
    run,
    sandbox,
)


class Stop(BaseException):
    """Exception that no code of the package expects."""


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
def test_the_very_exception_of_an_update_func_comes_out(store: Store, error: BaseException) -> None:
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


def test_a_slow_update_func_is_warned_of(
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


# Prefix look-up.


def test_an_exact_id_wins_over_a_longer_one(store: Store) -> None:
    """Containerd calls this ambiguous."""
    store.add(sandbox("ab"), READY)
    store.add(sandbox("abc"), READY)
    assert "ab" == store.get("ab").id
    assert store.delete("ab")
    assert "abc" == store.get("ab").id


def test_a_prefix_of_several_ids_is_ambiguous_and_names_them(store: Store) -> None:
    """Hidden ones count: hiding comes after looking up."""
    for id in ("abc", "abd"):
        store.add(sandbox(id), READY)
    store.add(sandbox("abe"), UNKNOWN)
    for call in (store.get, store.delete, lambda a: store.update_metadata(a, lambda m: m)):
        with pytest.raises(AmbiguousPrefixError) as caught:
            call("ab")
        assert ("ab", ("abc", "abd", "abe")) == (caught.value.prefix, caught.value.ids)
        assert "'abd'" in str(caught.value)
    assert 3 == len(store.list(include_unknown=True))


def test_many_ambiguous_ids_are_counted_in_the_message(store: Store) -> None:
    """The attribute has all of them, the message the first ones."""
    with store.transaction():
        for n in range(30):
            store.add(sandbox(f"a{n:02}"), READY)
    with pytest.raises(AmbiguousPrefixError, match=r"30 ids begin with it.* and 20 more") as caught:
        store.get("a")
    assert 30 == len(caught.value.ids)


def test_an_empty_id_raises_everywhere(store: Store) -> None:
    """It is a prefix of everything."""
    store.add(sandbox("a"), READY)
    for call in (
        lambda: store.get(""),
        lambda: store.list(id=""),
        lambda: store.delete(""),
        lambda: store.history(""),
        lambda: store.update_metadata("", lambda m: m),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            call()
        assert "id" == caught.value.field
    assert ["a"] == [found.id for found in store.list()]


def test_percent_and_underscore_are_ordinary_characters(store: Store) -> None:
    """They match themselves only."""
    for id in ("a%b", "a_b", "axb", "A%b"):
        store.add(sandbox(id), READY)
    assert "a%b" == store.get("a%").id
    assert "a_b" == store.get("a_").id
    assert ["A%b"] == [found.id for found in store.list(id="A")]
    with pytest.raises(NotFoundError):
        store.get("%")


def test_prefixes_beyond_ascii_are_found(store: Store) -> None:
    """Also where the last character is the greatest there is."""
    for id in ("é1", "é2", "\U0010ffff", "\U0010ffffz", "e"):
        store.add(sandbox(id), READY)
    assert ["é1", "é2"] == [found.id for found in store.list(id="é")]
    assert ["\U0010ffff", "\U0010ffffz"] == [found.id for found in store.list(id="\U0010ffff")]


# Names.


def test_a_taken_id_and_a_taken_name_are_told_apart(store: Store) -> None:
    """The id first; the name with its holder."""
    store.add(sandbox("a"), READY)
    with pytest.raises(AlreadyExistsError) as taken:
        store.add(sandbox("a", name="other"), READY)
    assert type(taken.value) is AlreadyExistsError
    assert "a" == taken.value.id
    with pytest.raises(NameReservedError) as reserved:
        store.add(sandbox("b", name="name-a"), READY)
    assert ("b", "name-a", "a") == (
        reserved.value.id,
        reserved.value.name,
        reserved.value.holder,
    )
    assert "name 'name-a' is reserved for 'a'" in str(reserved.value)


def test_a_name_is_free_again_after_the_deletion(store: Store) -> None:
    """And not before, NOTREADY or not."""
    store.add(sandbox("a", name="n"), NOTREADY)
    with pytest.raises(NameReservedError):
        store.add(sandbox("b", name="n"), READY)
    store.delete("a")
    assert "n" == store.add(sandbox("b", name="n"), READY).name


# StopCh.


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


def test_a_store_that_only_reads_shares_it(open_store: OpenStore) -> None:
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


@pytest.mark.parametrize("call", ["update", "delete"])
def test_a_write_that_does_not_find_it_stops_it(store: Store, path: str, call: str) -> None:
    """Another process has deleted it."""
    handle = store.add(sandbox("a"), READY)
    execute(path, "DELETE FROM sandboxes")
    if call == "delete":
        assert not handle.delete()
    else:
        with pytest.raises(NotFoundError):
            handle.status.update(lambda old: old)
    assert handle.stopped.is_set()


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


def test_stop_sets_it_without_touching_the_status(store: Store) -> None:
    """And once set it stays so, for handles got later too."""
    store.add(sandbox("a"), READY).stop()
    assert READY == store.get("a").status.get()
    assert store.get("a").stopped.is_set()
    store.get("a").status.update(lambda old: replace(old, message="x"))
    assert store.get("a").stopped.is_set()


@pytest.mark.parametrize("read", ["status", "get", "prefix", "list", "filter", "process", "delete"])
@pytest.mark.parametrize("change", ["notready", "delete", "delete and add"])
def test_another_processs_commit_sets_it_at_the_next_read(
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


# A handle belongs to one creation.


def test_after_deletion_metadata_is_readable_and_the_status_is_not_found(store: Store) -> None:
    """Also when the id has been added again."""
    old = store.add(sandbox("a", ip="10.0.0.1"), READY)
    store.delete("a")
    for _ in range(2):
        assert "10.0.0.1" == old.metadata.ip == old.ip
        with pytest.raises(NotFoundError) as caught:
            old.status.get()
        assert "a" == caught.value.id
        with pytest.raises(NotFoundError):
            old.status.update(lambda status: status)
        assert not old.delete()
        if not store.list():
            new = store.add(sandbox("a", ip="10.0.0.2"), READY)
    assert READY == new.status.get()
    assert not new.stopped.is_set()


def test_a_handle_of_a_rolled_back_add_never_becomes_another_sandbox(store: Store) -> None:
    """Though the id is added again at once."""
    with pytest.raises(Stop), store.transaction():
        stale = store.add(sandbox("a"), NOTREADY)
        raise Stop
    fresh = store.add(sandbox("a"), READY)
    with pytest.raises(NotFoundError):
        stale.status.get()
    assert not fresh.stopped.is_set()


# Write-ahead creation.


def test_metadata_is_completed_while_unknown_and_fixed_afterwards(store: Store) -> None:
    """By update_metadata only, and never id or name."""
    store.add(sandbox("abc", netns_path="/run/netns/planned"), UNKNOWN)
    done = store.update_metadata(
        "ab", lambda old: replace(old, ip="10.0.0.9", config=pod(name="db", tier="back"))
    )
    assert ("10.0.0.9", "/run/netns/planned", "db") == (
        done.ip,
        done.netns_path,
        done.config.metadata.name if done.config else "",
    )
    for field in ("id", "name"):
        with pytest.raises(InvalidArgumentError) as caught:
            store.update_metadata("abc", lambda old, field=field: replace(old, **{field: "x"}))  # type: ignore[misc]
        assert field == caught.value.field
    done.status.update(lambda old: replace(old, state=State.READY))
    with pytest.raises(FailedPreconditionError) as fixed:
        store.update_metadata("abc", lambda old: replace(old, ip="10.0.0.1"))
    assert "abc" == fixed.value.id
    assert "10.0.0.9" == store.get("abc").ip
    assert ["abc"] == [found.id for found in store.list(labels={"tier": "back"}, pod="db")]


@pytest.mark.parametrize("how", ["update", "delete"])
def test_a_function_that_itself_changes_the_sandbox_is_refused(store: Store, how: str) -> None:
    """Its result would overwrite that change; neither is stored."""
    handle = store.add(sandbox("a"), UNKNOWN)

    def meddle() -> None:
        if how == "delete":
            store.delete("a")
        else:
            store.update_metadata("a", lambda old: replace(old, ip="1.2.3.4"))

    def metadata(old: Metadata) -> Metadata:
        meddle()
        return old

    def status(old: Status) -> Status:
        meddle()
        return old

    with pytest.raises(FailedPreconditionError, match="its own function") as caught:
        store.update_metadata("a", metadata)
    assert "a" == caught.value.id
    with pytest.raises(FailedPreconditionError, match="its own function"):
        handle.status.update(status)
    assert "" == store.get("a", include_unknown=True).ip


def test_a_clock_that_stands_still_hides_no_nested_update(open_store: OpenStore) -> None:
    """Two updates inside an UpdateFunc are seen, though the times may be the same."""
    handle = open_store(clock=lambda: 1_000).add(sandbox("a"), READY)

    def twice(old: Status) -> Status:
        handle.status.update(lambda inner: replace(inner, message="one"))
        handle.status.update(lambda inner: replace(inner, message="two"))
        return old

    with pytest.raises(FailedPreconditionError, match="its own function"):
        handle.status.update(twice)
    assert "" == handle.status.get().message


def test_the_functions_error_leaves_the_metadata(store: Store) -> None:
    """The very exception comes out."""
    store.add(sandbox("a", ip="10.0.0.1"), UNKNOWN)
    error = Stop()

    def fail(_: Metadata) -> Metadata:
        raise error

    with pytest.raises(Stop) as caught:
        store.update_metadata("a", fail)
    assert caught.value is error
    assert "10.0.0.1" == store.get("a", include_unknown=True).ip


def test_the_store_records_who_is_creating(store: Store, path: str) -> None:
    """The pid of this process, in the row."""
    store.add(sandbox("a"), UNKNOWN)
    assert [(os.getpid(),)] == query(path, "SELECT creator_pid FROM sandboxes")


def test_a_path_or_pid_that_does_not_exist_is_accepted_without_identity(
    store: Store, path: str
) -> None:
    """It may be made later."""
    store.add(sandbox("a", netns_path="/run/netns/not-yet"), Status(State.UNKNOWN, pid=2**22 + 1))
    assert [(None, None, None)] == query(
        path,
        "SELECT netns_inode, process_inode, process_start_time FROM sandboxes"
        " JOIN sandbox_statuses ON sandbox_id = id",
    )


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
    # Of a sandbox that is created and deleted 50,000 times, by plain SQL for speed.
    execute(
        path,
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 100000)"
        " INSERT INTO sandbox_transitions (sandbox_id, name, pod, namespace, uid, event,"
        " from_state, to_state, pid, reason, message, actor, at) SELECT 'x', 'x', '', '', '',"
        " iif(n % 2, 'created', 'deleted'), iif(n % 2, NULL, 'SANDBOX_READY'),"
        " iif(n % 2, 'SANDBOX_READY', NULL), 0, '', '', '', n FROM n",
    )
    assert 1 == store.history(limit=1)[0].seq
    for id in ("a", "b"):
        store.add(sandbox(id), READY)
    assert [3, 4] == [each.seq for each in store.history(limit=2)]
    assert ["a", "b"] == [each.sandbox_id for each in store.history(after=100_000)]
    with pytest.raises(CompactedError) as caught:
        store.history(after=1)
    assert (1, 3) == (caught.value.after, caught.value.oldest)
    assert 100_000 == len(store.history(after=2)) == len(store.history())


# Filters.


def test_filters_are_anded_and_ordered(store: Store) -> None:
    """By created_at, then id."""
    store.add(
        sandbox("c", config=pod("web", "prod", app="x", tier="1")), replace(READY, created_at=5)
    )
    store.add(sandbox("b", config=pod("web", "prod", app="x")), replace(READY, created_at=5))
    store.add(sandbox("a", config=pod("db", "prod", app="y")), replace(READY, created_at=9))
    store.add(sandbox("d", config=None), replace(NOTREADY, created_at=1))
    assert ["d", "b", "c", "a"] == ids(store.list())
    assert ["b", "c"] == ids(store.list(pod="web", namespace="prod"))
    assert ["c"] == ids(store.list(labels={"app": "x", "tier": "1"}))
    assert ["b", "c", "a"] == ids(store.list(state=State.READY, labels={}))
    assert ["d"] == ids(store.list(name="name-d", id="d", state=State.NOTREADY))
    assert [] == ids(store.list(labels={"app": "y"}, pod="web"))


# Handles.


def test_a_handle_has_the_fields_of_its_metadata(store: Store) -> None:
    """As Go's embedding gives them."""
    given = sandbox(
        "a",
        netns_path="/run/netns/x",
        ip="10.0.0.1",
        additional_ips=("fd00::1",),
        runtime_handler="runc",
        process_label="system_u",
    )
    handle = store.add(given, READY)
    for found in (handle, store.get("a")):
        assert given == found.metadata
        for field in ("id", "name", "config", "netns_path", "ip", "additional_ips"):
            assert getattr(given, field) == getattr(found, field)
        for field in ("runtime_handler", "cni_result", "process_label"):
            assert getattr(given, field) == getattr(found, field)


def test_changing_a_handles_config_changes_nothing_stored(store: Store) -> None:
    """Each handle has a copy of its own, and so has the store."""
    given = pod()
    handle = store.add(sandbox("a", config=given), READY)
    given.metadata.name = "changed"
    assert handle.config is not None
    handle.config.metadata.namespace = "changed"
    kept = store.get("a").config
    assert kept is not None
    assert ("web", "default") == (kept.metadata.name, kept.metadata.namespace)


def test_none_and_empty_are_told_apart(store: Store) -> None:
    """As Go tells nil from empty."""
    store.add(sandbox("a", additional_ips=None, config=None), READY)
    store.add(sandbox("b", additional_ips=()), READY)
    assert (None, None) == (store.get("a").additional_ips, store.get("a").config)
    assert () == store.get("b").additional_ips


class Task:
    """A container that says what it is told to."""

    def __init__(self, pid: int | None) -> None:
        self.id = "c1"
        self._pid = pid

    def pid(self) -> int | None:
        return self._pid


def test_a_handle_has_the_status_with_which_it_was_read(open_store: OpenStore) -> None:
    """Of one moment in a list, and no other even when it has changed since."""
    store, other = open_store(), open_store()
    added = store.add(sandbox("a"), READY)
    store.add(sandbox("b"), READY)
    listed = store.list()
    other.get("a").status.update(lambda old: replace(old, state=State.NOTREADY))
    assert [READY, READY] == [each.status_as_read for each in listed]
    assert READY == added.status_as_read
    assert State.NOTREADY is listed[0].status.get().state
    assert [State.NOTREADY, State.READY] == [each.status_as_read.state for each in store.list()]


def test_a_store_knows_its_file(tmp_path: Path) -> None:
    """By the path without symlinks."""
    os.symlink(tmp_path, tmp_path / "link")
    with Store.open(tmp_path / "link" / "registry.db") as store:
        assert str(tmp_path / "registry.db") == store.path


def test_a_container_is_shared_by_the_handles_and_loaded_after_a_restart(
    open_store: OpenStore,
) -> None:
    """By add, and by the loader of open, which one failure does not stop."""
    store = open_store()
    task = Task(1)
    assert task is store.add(sandbox("a"), READY, container=task).container
    assert task is store.get("a").container
    store.add(sandbox("b"), READY)
    assert None is store.get("b").container
    store.close()

    def load(found: object) -> Task:
        if getattr(found, "id", "") == "a":
            raise ValueError("no such container")
        return Task(2)

    again = open_store(container_loader=load)
    assert None is again.get("a").container
    assert isinstance(again.get("b").container, Task)


@pytest.mark.parametrize(
    "id",
    ["x" * 76, "a b", "a:b@c", "ünïcode-日本", "-", "%_", "'\"; DROP TABLE sandboxes; --"],
    ids=repr,
)
def test_odd_ids_that_can_be_stored_are_taken(store: Store, id: str) -> None:
    """Every other character is ordinary."""
    store.add(sandbox(id), READY)
    assert id == store.get(id).id
    assert store.delete(id)


def test_a_function_that_closes_the_store_is_told_so(open_store: OpenStore, path: str) -> None:
    """With our error, and nothing has changed."""
    store = open_store()
    handle = store.add(sandbox("a"), READY)

    def close(old: Status) -> Status:
        store.close()
        return replace(old, message="closed")

    with pytest.raises(StoreClosedError):
        handle.status.update(close)
    with Store.open(path) as again:
        assert "" == again.get("a").status.get().message


def test_a_transaction_that_is_looked_at_goes_on(store: Store) -> None:
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
