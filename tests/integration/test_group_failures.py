"""A write or a transaction that fails in a group: the outcome of each member."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from registry import (
    FailedPreconditionError,
    NotFoundError,
    ResourceExhaustedError,
    Sandbox,
    State,
    Status,
    Store,
    UnavailableError,
)
from registry.engine import Connection
from tests.conftest import OpenStore
from tests.convoy import convoy, more
from tests.integration.groups import counts, fail, updates
from tests.tools import READY, query, run, sandbox


@pytest.mark.parametrize("place", [0, 3, 7])
def test_a_failing_function_rolls_back_its_member_alone(
    store: Store, handles: list[Sandbox], blocker: Sandbox, place: int
) -> None:
    """At any place of the group: the others are committed, and only its call raises."""

    def half(old: Status) -> Status:
        handles[place].status.update(more)
        store.add(sandbox("gone"), READY)
        return fail(old)

    calls = updates(handles)
    calls[place] = lambda: blocker.status.update(half)
    with convoy(store, blocker, *calls) as futures:
        pass
    assert isinstance(futures[place + 1].exception(), LookupError)
    assert [None] * 8 == [each.exception() for n, each in enumerate(futures) if n != place + 1]
    assert [n != place for n in range(8)] == [bool(count) for count in counts(handles)]
    assert store.list(id="gone") == []


def test_a_group_of_which_all_members_fail_leaves_nothing_open(
    store: Store, handles: list[Sandbox], blocker: Sandbox
) -> None:
    """Also when the first of the group fails."""
    with convoy(store, blocker, *([lambda: handles[0].status.update(fail)] * 5)) as futures:
        pass
    assert [LookupError] * 5 == [type(each.exception()) for each in futures[1:]]
    handles[0].status.update(more)
    assert [1] + [0] * 7 == counts(handles)


def rolled_back(connection: Connection, store: Store) -> None:
    """End the transaction, as SQLite itself may inside any statement."""
    connection.execute("ROLLBACK")


def rolled_back_in_a_part(connection: Connection, store: Store) -> None:
    """End it in a part that then fails by itself, which the caller catches."""
    with suppress(NotFoundError), store.transaction():
        connection.execute("ROLLBACK")
        store.get("none")


def savepoint_lost(connection: Connection, store: Store) -> None:
    """Fail, so that the member is rolled back, which SQLite refuses."""
    with suppress(sqlite3.OperationalError):
        while True:  # those of the members before it, too
            connection.execute("RELEASE member")
    raise LookupError("its own")


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (rolled_back, ""),
        (rolled_back_in_a_part, "NotFoundError"),
        (savepoint_lost, "no such savepoint: member"),
    ],
)
def test_an_error_that_ends_the_transaction_fails_the_whole_group(
    store: Store,
    handles: list[Sandbox],
    blocker: Sandbox,
    end: Callable[[Connection, Store], None],
    why: str,
) -> None:
    """No member is stored, the next write begins a new group, and the members may retry."""

    def last(old: Status) -> Status:
        end(store._session.engine.writer.connection, store)
        return more(old)

    calls = [*updates(handles[:3]), lambda: handles[3].status.update(last), *updates(handles[4:])]
    with convoy(store, blocker, *calls) as futures:
        pass
    assert [UnavailableError] * 4 == [type(each.exception()) for each in futures[:4]]
    assert isinstance(futures[4].exception(), (FailedPreconditionError, LookupError))
    message = str(futures[2].exception())
    assert re.fullmatch(
        rf".* 's1': the transaction was ended by thread .*'s3'.*{why}.*; nothing of it is stored, "
        "retry",
        message,
    )
    assert [None] * 4 == [each.exception() for each in futures[5:]]
    assert [0] * 4 + [1] * 4 == counts(handles)


def test_a_part_that_cannot_be_rolled_back_fails_its_member_alone(
    store: Store, handles: list[Sandbox], blocker: Sandbox
) -> None:
    """The error says what SQLite has refused, and not what the function has caught."""

    def last(old: Status) -> Status:
        with suppress(NotFoundError), store.transaction():
            store._session.engine.writer.connection.execute("RELEASE nested_2")
            store.get("none")
        return more(old)

    calls = [*updates(handles[:3]), lambda: handles[3].status.update(last), *updates(handles[4:])]
    with convoy(store, blocker, *calls) as futures:
        pass
    error = futures.pop(4).exception()
    assert isinstance(error, FailedPreconditionError)
    assert "no such savepoint: nested_2" in str(error)
    assert [None] * 8 == [each.exception() for each in futures]
    assert [1, 1, 1, 0, 1, 1, 1, 1] == counts(handles)


def test_a_full_disk_that_ends_the_transaction_is_the_error_of_all_members(
    store: Store, handles: list[Sandbox], blocker: Sandbox
) -> None:
    """All of them would have met it, also those that mark a sandbox NOTREADY."""
    connection = store._session.engine.writer.connection
    query(store.path, "CREATE TABLE big (it)")

    def fill(old: Status) -> Status:
        transaction = store._session.engine.own_transaction()
        assert transaction is not None
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        try:
            transaction.execute("INSERT INTO big VALUES (zeroblob(1000000))")
        finally:
            connection.execute("PRAGMA max_page_count = 4294967294")
        return old

    calls = [
        lambda: handles[0].status.update(lambda old: replace(old, state=State.NOTREADY)),
        *updates(handles[1:3]),
        lambda: handles[3].status.update(fill),
        *updates(handles[4:]),
    ]
    with convoy(store, blocker, *calls) as futures:
        pass
    query(store.path, "DROP TABLE big")
    errors = [each.exception() for each in futures]
    assert State.READY is handles[0].status.get().state
    assert [None] * 4 == errors[5:]
    for error in errors[:5]:
        assert isinstance(error, ResourceExhaustedError)
        assert sqlite3.SQLITE_FULL == error.sqlite_code
    assert errors[4] is getattr(errors[2], "__cause__", None)
    assert re.fullmatch(
        r"update .* 's1': the transaction was ended by thread .*'s3'\), which shared the commit: "
        r".*full.*; free some space",
        str(errors[2]),
    )


def test_a_function_that_waits_for_a_waiting_member_times_out(open_store: OpenStore) -> None:
    """At the earliest deadline the whole group fails, and no thread waits for ever."""
    store = open_store(timeout=2.0)
    blocker, *handles = (store.add(sandbox(id), READY) for id in ("blocker", "a", "b"))
    done = threading.Event()

    def first() -> None:
        try:
            handles[0].status.update(more)
        finally:
            done.set()

    def second() -> object:
        return handles[1].status.update(lambda old: more(old) if done.wait(60) else fail(old))

    with convoy(store, blocker, first, second) as futures:
        pass
    for future in futures:
        error = future.exception()
        assert isinstance(error, UnavailableError)
        assert "thread" in error.holder
        assert (future is futures[-1]) == ("its own function was still running" in str(error))
    assert [0, 0] == counts(handles)
    handles[0].status.update(more)


def test_an_interrupt_of_a_waiting_member_is_raised_when_the_outcome_is_known(path: str) -> None:
    """The change is stored then, and the next write succeeds."""
    out = run(
        """
        import signal, sys, threading
        from dataclasses import replace
        from registry import Metadata, State, Status, Store
        from tests.tools import until

        def more(old):
            return replace(old, exited_at=old.exited_at + 1)

        def queue():
            return len(store._session.engine.writes.mutex.queue)

        # Within a tenth of the timeout the third one has to join the group.
        with Store.open(sys.argv[1], timeout=300) as store:
            one, two, three = (
                store.add(Metadata(id, id, None), Status(State.READY)) for id in "abc")
            gates = [threading.Event(), threading.Event()]

            def slow(gate):
                return lambda old: gate.wait(120) and more(old)

            def wait(count):
                until(lambda: queue() == count)

            first = threading.Thread(target=lambda: one.status.update(slow(gates[0])))
            first.start()
            wait(1)

            def behind():
                wait(2)  # the main thread is in the queue
                last.start()
                wait(3)
                gates[0].set()
                wait(1)
                sleeping = store._session.engine.writes.mutex.freed.sleeping
                until(lambda: sleeping)  # the main thread has run, and waits for the commit
                before = sleeping[:]
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                until(lambda: sleeping[:] not in ([], before))  # it waits again
                gates[1].set()

            last = threading.Thread(target=lambda: three.status.update(slow(gates[1])))
            threading.Thread(target=behind).start()
            try:
                two.status.update(more)
            except KeyboardInterrupt:
                print("interrupted, and", two.status.get().exited_at)
            last.join()
            two.status.update(more)
            print([each.status.get().exited_at for each in (one, two, three)], store.check())
        """,
        path,
    )
    assert ["interrupted, and 1", "[1, 2, 1] []"] == out.splitlines()
