"""The mutex, the process lock, the wait queue and StopCh."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from registry.engine.process_lock import IDLE, ProcessLock
from registry.handles.runtime_state import DELETED_MAX, RuntimeStates, StopCh
from registry.sync.locks import Mutex, WaitQueue
from tests.tools import in_another_thread, is_locked, is_recent, line, running, say, until


def soon() -> float:
    """Return the deadline of a wait that is in vain."""
    return time.monotonic() + 0.05


def later() -> float:
    """Return the deadline of a wait that succeeds, however slow the machine is."""
    return time.monotonic() + 120


def test_the_mutex_is_first_in_first_out() -> None:
    """Also for threads that queue while others are served."""
    mutex, order = Mutex(), []
    assert mutex.acquire("first", later())

    def ask(name: str) -> None:
        assert mutex.acquire(name, later())
        order.append(name)
        mutex.release(name)

    threads = []
    for n in range(8):
        threads.append(threading.Thread(target=ask, args=[f"n{n}"]))
        threads[-1].start()
        until(lambda n=n: len(mutex.queue) == n + 2)  # type: ignore[misc]
    mutex.release("first")
    for thread in threads:
        thread.join()
    assert [f"n{n}" for n in range(8)] == order
    assert None is mutex.holder


def test_a_waiter_past_its_deadline_leaves_the_queue() -> None:
    """The waiter behind it gets the mutex."""
    mutex = Mutex()
    assert mutex.acquire("first", later())
    assert not mutex.acquire("second", soon())
    assert not mutex.acquire("third", time.monotonic() - 1)
    mutex.release("second")
    assert "first" == mutex.holder
    mutex.release("first")
    mutex.release("first")
    assert mutex.acquire("fourth", later())


def test_a_wait_queue_checks_when_woken_and_at_the_deadline() -> None:
    """No wake is lost between the check and the sleep."""
    sleepers, said = WaitQueue(), []
    assert sleepers.wait(lambda: True, None)
    assert not sleepers.wait(lambda: False, soon())
    thread = threading.Thread(
        target=lambda: said.append(sleepers.wait(lambda: bool(said), later()))
    )
    thread.start()
    said.append(True)
    sleepers.wake()
    sleepers.wake()
    thread.join()
    assert [True, True] == said


def test_a_stop_ch_wakes_all_who_wait() -> None:
    """Once set it stays so."""
    stop = StopCh()
    assert not stop.wait(0)
    woken: list[bool] = []
    threads = [threading.Thread(target=lambda: woken.append(stop.wait())) for _ in range(5)]
    for thread in threads:
        thread.start()
    stop.stop()
    stop.stop()
    for thread in threads:
        thread.join()
    assert [True] * 5 == woken
    assert stop.is_set()


def test_runtime_states_of_deleted_sandboxes_are_dropped_in_the_end() -> None:
    """The table of a process that creates and deletes for months does not grow."""
    states = RuntimeStates()
    first = states.of(-1)
    kept = states.of(-2)
    assert first is states.of(-1)
    for creation in range(3 * DELETED_MAX):
        states.of(creation)
        states.mark_deleted(creation)
    states.mark_deleted(-1)
    assert first.stopped.is_set()
    assert len(states._of) <= DELETED_MAX + 2
    assert not kept.stopped.is_set()
    assert kept is states.of(-2)


def test_a_released_process_lock_can_be_acquired(tmp_path: object) -> None:
    """By this process or another."""
    database = f"{tmp_path}/r.db"
    one, two = ProcessLock(database), ProcessLock(database)
    assert one.acquire(later())
    assert not two.acquire(soon())
    one.release()
    assert two.acquire(later())
    two.release()
    # The thread that waited in vain took it over, and gave it back when it left.
    assert one.acquire(later())
    one.close()
    two.close()


def test_the_process_lock_names_its_holder_and_since(tmp_path: object) -> None:
    """Nothing is written for it, and the record of a killed holder is gone."""
    code = """
        import sys, time
        from registry.engine.process_lock import ProcessLock
        lock = ProcessLock(sys.argv[1])
        assert lock.acquire(time.monotonic() + 120)
        print("held", flush=True)
        sys.stdin.readline()
        lock.release_queue()
        print("left", flush=True)
        sys.stdin.readline()
        lock.release()
        print("released", flush=True)
        sys.stdin.readline()
        """
    ours = ProcessLock(f"{tmp_path}/r.db")
    with running(code, f"{tmp_path}/r.db") as child:
        assert "held" == line(child)
        holder = ours.holder()
        assert holder is not None
        assert child.pid == holder.pid
        assert is_recent(holder.since)
        say(child)
        assert "left" == line(child)
        assert holder == ours.holder()
        say(child)
        assert "released" == line(child)
        assert ours.holder() is None
    with running(code, f"{tmp_path}/r.db") as child:
        assert "held" == line(child)
        child.kill()
        child.wait()
        assert ours.holder() is None
    assert 0 == os.stat(f"{tmp_path}/r.db-lock").st_size
    ours.close()
    assert ours.holder() is None


def test_a_caller_past_its_deadline_does_not_keep_the_lock(tmp_path: object) -> None:
    """Its thread still waits in the queue, and unlocks it as soon as it is served."""
    database = f"{tmp_path}/r.db"
    one, two, three = (ProcessLock(database) for _ in range(3))
    assert one.acquire(later())
    assert not two.acquire(soon())
    one.release()
    assert three.acquire(later())
    three.release()
    for lock in (one, two, three):
        lock.close()


@pytest.fixture
def database(tmp_path: Path) -> str:
    """Return the path of a registry that does not exist."""
    return str(tmp_path / "r.db")


@pytest.fixture
def pair(database: str) -> Iterator[tuple[ProcessLock, ProcessLock]]:
    """Return two process locks of one database, as two processes have them."""
    with closing(ProcessLock(database)) as one, closing(ProcessLock(database)) as two:
        yield one, two


def test_the_first_in_the_queue_wakes_while_the_holder_commits(
    pair: tuple[ProcessLock, ProcessLock],
) -> None:
    """It acquires the lock only after the release, and waits no longer than its deadline."""
    one, two = pair
    assert one.acquire(later())
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(two.acquire, later())
        until(lambda: two._queue_thread.state is not IDLE)
        one.release_queue()
        until(lambda: two._queue_thread.state is IDLE)
        assert not asking.done()
        one.release()
        assert asking.result()
    two.release_queue()
    assert not one.acquire(soon())
    two.release()
    assert one.acquire(later())


def test_the_first_in_the_queue_verifies_while_the_holder_commits(
    database: str, pair: tuple[ProcessLock, ProcessLock]
) -> None:
    """It holds the queue then, and not the lock; what `verify` raises is raised."""
    one, two = pair
    assert one.acquire(later())
    one.release_queue()
    seen = []

    def verify() -> None:
        seen.append(is_locked(f"{database}-queue"))
        one.release()  # without which two would wait in vain

    assert two.acquire(later(), verify)
    assert [True] == seen
    two.release()
    with pytest.raises(ZeroDivisionError):
        two.acquire(later(), lambda: 1 // 0)
    two.release()
    assert one.acquire(later())


def test_a_waiter_in_a_removed_queue_moves_to_the_new_one(
    database: str, pair: tuple[ProcessLock, ProcessLock]
) -> None:
    """Processes that come later wait in the new file."""
    one, two = pair
    assert one.acquire(later())
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(two.acquire, later())
        until(lambda: two._queue_thread.state is not IDLE)
        os.unlink(f"{database}-queue")
        one.release()
        assert asking.result()
    assert is_locked(f"{database}-queue")


def test_a_process_lock_closed_while_its_thread_waits_is_released_in_the_end(
    tmp_path: object,
) -> None:
    """Nothing is locked and no descriptor left when the holder releases."""
    database = f"{tmp_path}/r.db"
    one, two = ProcessLock(database), ProcessLock(database)
    assert one.acquire(later())
    assert not two.acquire(soon())
    two.close()
    one.release()
    until(lambda: -1 == two._lock.fd == two._queue.fd)
    with open(f"{database}-lock", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    one.close()


def test_acquire_that_can_start_no_thread_leaves_no_place_in_the_queue(tmp_path: object) -> None:
    """Other processes get the lock, then and later, and so does another thread of the process."""
    code = """
        import sys, threading, time
        from registry.engine.process_lock import ProcessLock
        from tests.netns.seccomp import refuse_threads
        lock = ProcessLock(sys.argv[1])
        def in_vain():
            refuse_threads()
            try:
                lock.acquire(time.monotonic() + 120)
            except OSError as error:
                print(error, flush=True)
                lock.release()
        limited = threading.Thread(target=in_vain)
        limited.start()
        limited.join()
        sys.stdin.readline()
        print(lock.acquire(time.monotonic() + 120), flush=True)
        """
    ours = ProcessLock(f"{tmp_path}/r.db")
    assert ours.acquire(later())
    with running(code, f"{tmp_path}/r.db") as child:
        assert "can't start new thread" in line(child)
        ours.release()
        assert ours.acquire(later())
        say(child)
        ours.release_queue()
        until(lambda: is_locked(f"{tmp_path}/r.db-queue"))  # by the child
        ours.release()
        assert "True" == line(child)
    ours.close()


def test_the_process_lock_is_a_queue_between_processes(tmp_path: object) -> None:
    """A holder that acquires it again queues behind the process that waits."""
    code = """
        import os, sys, time
        from registry.engine.process_lock import ProcessLock
        lock = ProcessLock(sys.argv[1])
        print("up", flush=True)
        sys.stdin.readline()
        print(lock.acquire(time.monotonic() + 120), flush=True)
        sys.stdin.readline()
        lock.release()
        lock.close()
        """
    ours = ProcessLock(f"{tmp_path}/r.db")
    with running(code, f"{tmp_path}/r.db") as child:
        assert "up" == line(child)
        assert ours.acquire(later())
        say(child)
        ours.release_queue()
        until(lambda: is_locked(f"{tmp_path}/r.db-queue"))  # by the child
        ours.release()
        taken = in_another_thread(lambda: ours.acquire(time.monotonic() + 0.2))
        assert not taken
        assert "True" == line(child)
        holder = ours.holder()
        assert holder is not None
        assert child.pid == holder.pid
        say(child)
        assert ours.acquire(later())
    ours.release()
    ours.close()


@pytest.mark.parametrize("which", ["lock", "queue"])
def test_a_lock_file_is_a_regular_file(tmp_path: object, which: str) -> None:
    """A fifo at its path must not block."""
    os.mkfifo(f"{tmp_path}/r.db-{which}")
    with pytest.raises(Exception, match="is a FIFO"):
        ProcessLock(f"{tmp_path}/r.db")
