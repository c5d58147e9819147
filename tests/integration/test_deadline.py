"""Deadlines of the calls in the body of a `with`, on locks that are really held."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry import (
    FailedPreconditionError,
    InvalidArgumentError,
    Store,
    StoreClosedError,
    UnavailableError,
)
from registry.engine.deadline import Deadline, remaining
from tests.conftest import OpenStore
from tests.tools import READY, UNKNOWN, in_another_thread, line, running, sandbox, say, until

HOLDER = """
    import sys
    from registry import Store
    with Store.open(sys.argv[1], reconcile=False) as store:
        with store.transaction():
            print("held", flush=True)
            sys.stdin.readline()
    print("released", flush=True)
    """
"""A process that holds the write lock until it is told to end."""
SOON, LATE = 0.05, 600.0
"""Seconds of a deadline that passes, and of one that does not."""


@contextmanager
def held(path: str) -> Iterator[Callable[[], None]]:
    """Hold the write lock in another process; return a function that releases it."""
    with running(HOLDER, path) as process:
        assert "held" == line(process)

        def release() -> None:
            say(process)
            assert "released" == line(process)

        yield release


@pytest.fixture
def patient(open_store: OpenStore) -> Store:
    """Return a store whose own timeout is longer than a test may take."""
    return open_store(timeout=LATE)


def left(store: Store) -> float:
    """Return the seconds for which a call of *store* may wait here."""
    return remaining(store.path, LATE)


@pytest.mark.parametrize(
    "name", ["add", "adopt", "update", "update_metadata", "delete", "transaction", "handle.delete"]
)
def test_every_write_waits_until_the_deadline_only(patient: Store, path: str, name: str) -> None:
    """It raises UnavailableError with the holder, and nothing is stored."""
    store, handle = patient, patient.add(sandbox("a"), UNKNOWN)

    def transaction() -> None:
        with store.transaction():
            pytest.fail("it began")

    calls: dict[str, Callable[[], object]] = {
        "add": lambda: store.add(sandbox("b"), READY),
        "adopt": lambda: store.adopt(sandbox("b"), READY),
        "update": lambda: handle.status.update(lambda _: READY),
        "update_metadata": lambda: store.update_metadata("a", lambda old: replace(old, ip="::1")),
        "delete": lambda: store.delete("a"),
        "transaction": transaction,
        "handle.delete": handle.delete,
    }
    with held(path):
        before = time.monotonic()
        with pytest.raises(UnavailableError) as caught, store.deadline(SOON):
            calls[name]()
        assert time.monotonic() - before >= SOON
        assert 0 < caught.value.timeout <= SOON
        assert caught.value.holder.startswith("process ")
        assert [("a", 0)] == [
            (s.id, s.status.get().state) for s in store.list(include_unknown=True)
        ]
    assert left(store) == LATE


def test_calls_of_one_body_share_the_deadline(patient: Store, path: str) -> None:
    """A call behind the deadline that has to wait raises at once; one that need not is made."""
    with held(path) as release, patient.deadline(SOON):
        for _ in range(3):
            with pytest.raises(UnavailableError) as caught:
                patient.add(sandbox("a"), READY)
        assert 0 == caught.value.timeout
        assert [] == patient.list()
        release()

        def is_added() -> bool:
            with suppress(UnavailableError):  # the queue hands the lock over in a moment
                patient.add(sandbox("a"), READY)
            return [] != patient.list()

        until(is_added)


def test_a_wait_that_succeeds_before_the_deadline_is_no_error(patient: Store, path: str) -> None:
    """The lock is released while the write waits for it."""
    with held(path) as release, ThreadPoolExecutor(1) as pool:

        def release_soon() -> None:
            while not patient._session.engine.writes.mutex.queue:
                time.sleep(0.001)
            release()

        released = pool.submit(release_soon)
        with patient.deadline(LATE):
            patient.add(sandbox("a"), READY)
        released.result()
    assert "a" == patient.get("a").id


def test_a_thread_of_this_process_is_waited_for_until_the_deadline(patient: Store) -> None:
    """The mutex between threads is covered too."""
    with ThreadPoolExecutor(1) as pool:

        def add() -> None:
            with patient.deadline(SOON):
                patient.add(sandbox("a"), READY)

        with patient.transaction():
            waiting = pool.submit(add)
            with pytest.raises(UnavailableError, match="held by thread"):
                waiting.result()


def test_the_earliest_of_nested_deadlines_counts(store: Store) -> None:
    """The store's timeout is one of them; each ends with its body."""
    with store.deadline(100):
        with store.deadline(50):
            assert left(store) <= 50
            with store.deadline(70):
                assert left(store) <= 50
        assert 50 < left(store) <= 100
        with store.deadline(0):
            assert 0 == left(store)
    assert LATE == left(store)
    assert 1 == remaining(store.path, 1)
    with store.deadline(100):
        assert 1 == remaining(store.path, 1)


def test_a_deadline_concerns_all_stores_of_its_file_and_no_other(
    open_store: OpenStore, path: str, tmp_path: Path
) -> None:
    """Handles follow the store that they came from."""
    one, two = open_store(), open_store(timeout=LATE)
    with Store.open(tmp_path / "other.db") as other, one.deadline(SOON):
        assert left(two) <= SOON
        assert LATE == left(other)
    with held(path), pytest.raises(UnavailableError), one.deadline(SOON):
        two.add(sandbox("a"), READY)


def test_a_deadline_ends_with_an_exception_of_its_body(store: Store) -> None:
    """The exception is raised unchanged."""
    error = ValueError("no")
    with pytest.raises(ValueError, match="no") as caught, store.deadline(SOON):
        raise error
    assert error is caught.value
    assert LATE == left(store)


def test_a_deadline_does_not_hold_in_another_thread(store: Store) -> None:
    """Only where a copy of the context is given to the thread, and until the body ends."""
    with store.deadline(SOON):
        assert LATE == in_another_thread(lambda: left(store))

    async def main() -> list[float]:
        with store.deadline(SOON):
            inside = await asyncio.to_thread(left, store)
            task = asyncio.create_task(later())
        return [inside, await task, left(store)]

    async def later() -> float:
        return left(store)

    inside, after, outside = asyncio.run(main())
    assert inside <= SOON
    assert (LATE, LATE) == (after, outside)


def test_a_deadline_belongs_to_its_task(store: Store) -> None:
    """Another task of the thread is not concerned, however the two alternate."""

    async def main() -> None:
        entered, seen = asyncio.Event(), asyncio.Event()

        async def bounded() -> None:
            with store.deadline(SOON):
                entered.set()
                await seen.wait()
                assert left(store) <= SOON
            assert LATE == left(store)

        async def free() -> None:
            await entered.wait()
            assert LATE == left(store)
            seen.set()

        await asyncio.gather(bounded(), free())

    asyncio.run(main())


def test_a_transaction_begun_before_keeps_its_own_deadline(patient: Store) -> None:
    """Nested writes wait for nothing."""
    with patient.transaction(), patient.deadline(0):
        patient.add(sandbox("a"), READY)
        with patient.transaction():
            patient.delete("a")
    with patient.deadline(0), patient.transaction():
        patient.add(sandbox("a"), READY)
    assert "a" == patient.get("a").id


def test_close_waits_until_the_deadline_only(path: str) -> None:
    """It goes on without the lock, as past the store's timeout."""
    store = Store.open(path, timeout=LATE)
    with held(path), store.deadline(SOON):
        store.close()
    with pytest.raises(StoreClosedError):
        store.deadline(1)


@pytest.mark.parametrize("seconds", [-1, "1", None, True, float("nan"), float("inf")], ids=repr)
def test_seconds_that_are_none_are_refused(store: Store, seconds: Any) -> None:
    """The error has the operand."""
    with pytest.raises(InvalidArgumentError) as caught:
        store.deadline(seconds)
    assert "seconds" == caught.value.field


def test_a_deadline_is_entered_once(store: Store) -> None:
    """Its time has begun."""
    deadline = store.deadline(LATE)
    with deadline, pytest.raises(FailedPreconditionError, match="entered before"):
        deadline.__enter__()
    with pytest.raises(FailedPreconditionError, match="call deadline"), deadline:
        pytest.fail("it was entered")


def test_a_deadline_can_be_entered_by_an_exit_stack(store: Store) -> None:
    """Which takes `__exit__` from the class."""
    with ExitStack() as stack:
        stack.enter_context(store.deadline(SOON))
        assert left(store) <= SOON
    assert LATE == left(store)


def test_a_deadline_whose_exit_was_not_run_has_ended(store: Store) -> None:
    """As after an interrupt at its first bytecode."""
    deadline = Deadline(store.path, SOON)
    leave = deadline.__exit__
    deadline.__enter__()
    assert left(store) <= SOON
    del leave
    assert LATE == left(store)


RECOVERY = """
    import fcntl, os, struct, sys
    fd = os.open(sys.argv[1] + "-shm", os.O_RDWR)

    def lock(kind):
        for byte in (120, 122):  # WAL_WRITE_LOCK and WAL_RECOVER_LOCK
            fcntl.lockf(fd, kind, 1, byte)

    lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.pwrite(fd, b"\\\\xff", 8)  # the two copies of the header differ
    print("held", flush=True)
    sys.stdin.readline()
    lock(fcntl.LOCK_UN)
    print("released", flush=True)
    """
"""A process that holds SQLite's locks of a recovery of the WAL, as after a crash."""


def test_a_read_that_waits_for_a_recovery_waits_until_the_deadline_only(
    patient: Store, path: str
) -> None:
    """It is answered once the other process has released its locks."""
    patient.add(sandbox("a"), READY)
    patient.get("a")
    with running(RECOVERY, path) as process:
        assert "held" == line(process)
        reads: tuple[Callable[[], object], ...] = (
            lambda: patient.get("a"),
            patient.list,
            patient.history,
            patient.check,
        )
        for read in reads:
            with pytest.raises(UnavailableError), patient.deadline(SOON):
                read()
        say(process)
        assert "released" == line(process)
    assert "a" == patient.get("a").id
    assert [(5000,)] == patient._session.engine.fetch("PRAGMA busy_timeout", {}, "test")
