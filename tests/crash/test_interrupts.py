"""Interrupted calls: a change is stored whole or not at all, and nothing stays locked."""

from __future__ import annotations

import json

import pytest

from tests.tools import LONG, run

TIMEOUT = 3600 if LONG else 240
"""Seconds for one process."""

pytestmark = [pytest.mark.crash, pytest.mark.timeout(TIMEOUT + 60)]

IN_A_WRITE = {"Mutex.acquire", "ProcessLock.acquire", "Writer.commit", "Write.__exit__"}
INTERRUPTED = {
    "update": {*IN_A_WRITE, "_record"},
    "traced": {*IN_A_WRITE, "_trace", "_record.<locals>.at"},
    "nested": {*IN_A_WRITE, "Transaction.end_nested", "_record"},
    "deadline": {*IN_A_WRITE, "Deadline.__enter__", "Deadline.__exit__"},
    "add": {*IN_A_WRITE, "identify", "observe"},
    "delete": IN_A_WRITE,
    "extensions": IN_A_WRITE,
    "update_metadata": IN_A_WRITE,
    "get": {"DataVersion.read", "Readers.give_back"},
    "list": {"DataVersion.read", "Readers.give_back"},
    "history": {"Readers.give_back"},
    "watch": {"Watch._take", "Commits._sleep_and_poll", "Commits._leave", "Poller.sleep"},
    "wait": {"StopFollower._follow", "StopFollower._end", "Commits._leave"},
    "backup": {"PartFile.create", "PartFile.commit", "PartFile.discard", "Readers.give_back"},
    "reconcile": {*IN_A_WRITE, "Readers.give_back", "observe", "namespace_at"},
}
"""Functions that are called by each call, and so interrupted."""


def interrupt(path: str, call: str, action: str, **options: object) -> set[str]:
    """Interrupt *call* at its points, see `tests.crash.calls`; return which functions were."""
    code = "import sys; from tests.crash.calls import main; main(*sys.argv[1:])"
    printed = run(code, path, call, action, json.dumps(options), timeout=TIMEOUT)
    return set(printed.splitlines())


@pytest.mark.parametrize("call", INTERRUPTED)
@pytest.mark.parametrize("action", ["interrupt", "time_out"])
def test_an_interrupt_comes_out_and_leaves_the_change_whole_or_absent(
    path: str, call: str, action: str
) -> None:
    """The `except` block of the caller can write at once.

    A TimeoutError is an OSError, but not an answer of the system.
    """
    everywhere = LONG or action == "time_out" or call in {"update", "add"}
    assert INTERRUPTED[call] <= interrupt(path, call, action, selected=not everywhere)


@pytest.mark.parametrize("call", ["update", "nested", "add", "delete"] if LONG else ["add"])
def test_two_interrupts_at_the_end_leave_the_change_whole_or_absent(path: str, call: str) -> None:
    """The second one comes while the call cleans up after the first: in each function.

    In the long form the first one comes in each function of the whole call.
    """
    within = "" if LONG else "Write.__exit__"
    found = interrupt(path, call, "interrupt", times=2, selected=True, within=within)
    assert {"GroupCommit.commit", "Writer.commit", "Mutex.release", "Writer.release_lock"} <= found


BESIDE_OTHERS = """
    import sys
    from concurrent.futures import ThreadPoolExecutor
    from registry import Metadata, Store
    from tests.convoy import more, waiting
    from tests.interrupts import Interrupts, held
    from tests.tools import READY, until

    path, place = sys.argv[1:]

    def is_writing():
        return store._session.engine.writes.transaction is not None

    def lead():
        def wait_for_the_others(old):
            others = 2 if place == "middle" else 1
            until(lambda: waiting(store) + attempt.ended >= others)
            return more(old)

        ahead.status.update(wait_for_the_others)

    def follow():
        in_line = 0 if place == "first" else 1
        until(lambda: attempt.ended or is_writing() and waiting(store) == in_line)
        behind.status.update(more)

    def update():
        def wait_for_the_next(old):
            if place == "first":
                until(lambda: waiting(store) == 1)
            return more(old)

        ours.status.update(wait_for_the_next)

    with Store.open(path, timeout=20) as store, ThreadPoolExecutor(2) as pool:
        ours, ahead, behind = (store.add(Metadata(id, id, None), READY) for id in "abc")
        attempts, stored = Interrupts(), 0
        for n, attempt in enumerate(attempts, 1):
            others = []
            if place != "first":
                others.append(pool.submit(lead))
                until(is_writing)
            if place != "last":
                others.append(pool.submit(follow))
            attempt.run(update)
            assert [None] * len(others) == [other.result() for other in others], attempt
            until(lambda: not held(store), lambda: (held(store), attempt))
            before, stored = stored, ours.status.get().exited_at
            assert stored == before + 1 or attempt.raised, attempt
            assert stored in {before, before + 1}, attempt
            assert ahead.status.get().exited_at == (n if place != "first" else 0), attempt
            assert behind.status.get().exited_at == (n if place != "last" else 0), attempt
        assert [] == store.check()
    print(*attempts.functions, sep="\\n")
    """


@pytest.mark.parametrize(
    ("place", "interrupted"),
    [
        ("first", {"GroupCommit.begin", "GroupCommit._wait_for_outcome"}),
        ("middle", {"Mutex.acquire", "GroupCommit._wait_for_outcome"}),
        ("last", {"Mutex.acquire", "GroupCommit._finish", "Writer.commit"}),
    ],
)
def test_an_interrupted_member_leaves_the_writes_of_the_group_whole(
    path: str, place: str, interrupted: set[str]
) -> None:
    """At any place of the group: the writes of the other threads are stored, and they go on."""
    assert interrupted <= set(run(BESIDE_OTHERS, path, place, timeout=TIMEOUT).splitlines())


WHILE_IT_WAITS = """
    import signal, sys, threading, time
    from contextlib import closing
    from registry import Metadata, Store
    from registry.engine.process_lock import ProcessLock
    from tests.convoy import more
    from tests.interrupts import Interrupt, held, interrupt
    from tests.tools import READY, until

    path, wait = sys.argv[1:]
    main, gate = threading.main_thread().ident, threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: interrupt())

    def hold_mutex():
        theirs.status.update(lambda old: gate.wait(60) and more(old))

    def hold_process_lock():
        with closing(ProcessLock(path)) as other:
            assert other.acquire(time.monotonic() + 60)
            gate.wait(60)
            other.release()

    def send():
        until(lambda: sys._current_frames()[main].f_code.co_qualname == wait)
        signal.pthread_kill(main, signal.SIGUSR1)

    with Store.open(path, timeout=60) as store:
        ours, theirs = (store.add(Metadata(id, id, None), READY) for id in "ab")
        hold = hold_mutex if wait == "Mutex.acquire" else hold_process_lock
        holder, sender = threading.Thread(target=hold), threading.Thread(target=send)
        holder.start()
        until(lambda: held(store))
        sender.start()
        try:
            ours.status.update(more)
        except Interrupt:
            print("interrupted", ours.status.get().exited_at)
        gate.set()
        holder.join()
        sender.join()
        until(lambda: not held(store), lambda: held(store))
        ours.status.update(more)
        print(ours.status.get().exited_at, store.check())
    """


@pytest.mark.parametrize("wait", ["Mutex.acquire", "WaitQueue.wait"])
def test_an_interrupt_ends_the_wait_for_another_writer(path: str, wait: str) -> None:
    """For a thread at the mutex, for a process at its lock: nothing is written, nor held after."""
    assert ["interrupted 0", "1 []"] == run(WHILE_IT_WAITS, path, wait).splitlines()


AT_THE_PROCESS_LOCK = """
    import os, sys, time
    from registry.engine.process_lock import ProcessLock
    from tests.interrupts import Interrupts

    database, kind = sys.argv[1:]
    holder, third = ProcessLock(database), ProcessLock(database)
    attempts = Interrupts()
    for attempt in attempts:
        assert holder.acquire(time.monotonic() + 5), attempt
        interrupted = ProcessLock(database)
        if kind == "again":
            interrupted.acquire(time.monotonic() + 0.002)
            interrupted.release()
        if kind in {"committing", "removed"}:
            holder.release_queue()
        if kind == "removed":
            os.unlink(f"{database}-lock")
            os.unlink(f"{database}-queue")
        verify = holder.release if kind == "committing" else None
        attempt.run(lambda: interrupted.acquire(time.monotonic() + 0.01, verify))
        interrupted.release()
        holder.release()
        for each in (third, interrupted):
            assert each.acquire(time.monotonic() + 5), (attempt, each is interrupted)
            each.release()
        interrupted.close()
    print(*attempts.functions, sep="\\n")
    """


@pytest.mark.parametrize(
    ("kind", "interrupted"),
    [
        (
            "first",
            {"ProcessLock.acquire", "LockFile.try_acquire", "_QueueThread.wait", "WaitQueue.wait"},
        ),
        ("again", {"ProcessLock.acquire", "_QueueThread.wait", "WaitQueue.wait"}),
        ("committing", {"ProcessLock.acquire", "LockFile.release", "LockFile.record_holder"}),
        ("removed", {"ProcessLock.acquire", "LockFile.is_at_path", "LockFile.reopen"}),
    ],
)
def test_an_interrupt_at_the_process_lock_keeps_no_process_out(
    path: str, kind: str, interrupted: set[str]
) -> None:
    """While another process holds the lock, is about to release it, or its file was removed."""
    assert interrupted <= set(run(AT_THE_PROCESS_LOCK, path, kind).splitlines())


def test_an_interrupted_close_keeps_no_process_out(path: str) -> None:
    """Nor does it leave the files open in this process."""
    code = """
        import os, sys, time
        from registry import Metadata, Store
        from registry.engine.process_lock import ProcessLock
        from tests.interrupts import Interrupts
        from tests.tools import READY

        with Store.open(sys.argv[1], timeout=5) as store:
            store.add(Metadata("a", "a", None), READY)
        other = ProcessLock(sys.argv[1])
        attempts = Interrupts()
        for attempt in attempts:
            store = Store.open(sys.argv[1], reconcile=False, timeout=5)
            attempt.run(store.close)
            assert other.acquire(time.monotonic() + 1), attempt
            other.release()
            store.close()  # resumes what was interrupted
            assert not os.path.exists(f"{sys.argv[1]}-wal"), attempt
        print(*attempts.functions, sep="\\n")
        """
    interrupted = {"Engine.close", "Writer.close", "ProcessLock.release", "LockFile.close"}
    assert interrupted <= set(run(code, path).splitlines())


def test_an_interrupted_open_keeps_no_process_out(path: str) -> None:
    """Nor does it keep this process from opening the registry, and from closing it."""
    code = """
        import gc, os, sys, time
        from registry import Metadata, Store
        from registry.engine.process_lock import ProcessLock
        from tests.interrupts import Interrupts
        from tests.tools import READY

        with Store.open(sys.argv[1], timeout=5) as store:
            store.add(Metadata("a", "a", None), READY)
        other, opened = ProcessLock(sys.argv[1]), []
        attempts = Interrupts(selected=sys.argv[2] == "False")
        for attempt in attempts:
            attempt.run(lambda: opened.append(Store.open(sys.argv[1], timeout=5)))
            if opened:
                opened.pop().close()
            assert other.acquire(time.monotonic() + 1), attempt
            other.release()
            with Store.open(sys.argv[1], timeout=5) as store:
                assert store.get("a"), attempt
            if os.path.exists(f"{sys.argv[1]}-wal"):
                gc.collect()  # closes the connection that the interrupted open has lost
            assert not os.path.exists(f"{sys.argv[1]}-wal"), attempt
        print(*attempts.functions, sep="\\n")
        """
    interrupted = {"attach", "Engine.open", "Writer._connect", "ProcessLock.acquire"}
    assert interrupted <= set(run(code, path, LONG, timeout=TIMEOUT).splitlines())


def test_a_signal_handler_that_writes_in_the_middle_of_a_write_is_refused(path: str) -> None:
    """It would wait for the write that it interrupted; before and after that write it may write."""
    code = """
        import sys
        from dataclasses import replace
        from registry import FailedPreconditionError, Metadata, Store
        from tests.convoy import more
        from tests.interrupts import Interrupts
        from tests.tools import READY

        written = refused = 0

        def write():
            global written, refused
            try:
                theirs.status.update(more)
            except FailedPreconditionError:
                refused += 1
            else:
                written += 1

        with Store.open(sys.argv[1], timeout=20) as store:
            ours, theirs = (store.add(Metadata(id, id, None), READY) for id in "ab")
            attempts = Interrupts(write)
            for n, attempt in enumerate(attempts, 1):
                attempt.run(lambda: ours.status.update(more))
                assert n == ours.status.get().exited_at, attempt
                assert written == theirs.status.get().exited_at, attempt
            print(written > 0, refused > 0, store.check())
        print(*attempts.functions, sep="\\n")
        """
    outcome, *functions = run(code, path).splitlines()
    assert "True True []" == outcome
    assert IN_A_WRITE <= set(functions)


def test_an_interrupted_connection_does_not_end_the_main_thread(path: str) -> None:
    """CPython 3.11 and 3.12 take it for ended after an interrupt in the middle of `is_alive`."""
    code = """
        import sys, threading
        from registry import Metadata, Store
        from tests.interrupts import Interrupts

        attempts = Interrupts(within="Connection.__init__")
        for attempt in attempts:
            attempt.run(lambda: Store.open(sys.argv[1], timeout=5).close())
            assert threading.main_thread().is_alive(), attempt
        print(*attempts.functions, sep="\\n")
        """
    assert "Connection.__init__" in run(code, path, timeout=TIMEOUT).splitlines()
