"""Watches of the history: each transition once and in order, whichever process commits it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from registry import (
    CompactedError,
    FailedPreconditionError,
    InvalidArgumentError,
    MetadataError,
    Sandbox,
    State,
    Store,
    StoreClosedError,
    Transition,
)
from registry.engine import driver
from registry.engine.commits import Commits
from registry.engine.poller import IDLE, UNANNOUNCED
from registry.handles.watch import Watch
from registry.tables.version import HISTORY_MAX
from tests import needs
from tests.conftest import OpenStore
from tests.others import another, ready, tell
from tests.tools import (
    READY,
    execute,
    fill_history,
    in_another_thread,
    line,
    query,
    run,
    running,
    sandbox,
    tamper,
    until,
)


def commits_of(store: Store) -> Commits:
    """Return the waiters of the file of *store*."""
    return store._session.engine.commits


def is_waiting(store: Store) -> bool:
    """Return whether a thread or a task waits for a commit."""
    return bool(commits_of(store)._threads or commits_of(store).loops)


def is_idle(store: Store) -> bool:
    """Return whether no thread and no task waits, and nothing is left of one that did."""
    commits = commits_of(store)
    return not (is_waiting(store) or commits.watchers or commits.followers)


def flip(handle: Sandbox) -> None:
    """Change the state."""
    other = {State.READY: State.NOTREADY, State.NOTREADY: State.READY}
    handle.status.update(lambda old: replace(old, state=other[old.state]))


def seqs(found: list[Transition]) -> list[int]:
    """Return their numbers."""
    return [each.seq for each in found]


class Consumer:
    """A thread that iterates over a watch until it ends."""

    def __init__(self, watch: Watch) -> None:
        self.found: list[Transition] = []
        self.error: BaseException | None = None
        self._watch = watch
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.found.extend(self._watch)
        except BaseException as error:
            self.error = error

    def join(self) -> list[Transition]:
        """Return what it was given, once the iteration has ended."""
        self._thread.join()
        if self.error is not None:
            raise self.error
        return self.found


# What is returned.


def test_a_watch_begins_at_the_call_and_not_at_the_first_next(store: Store) -> None:
    """Earlier commits are not returned, unless *after* says so."""
    first = store.add(sandbox("a"), READY)
    watch = store.watch(timeout=0)
    assert 1 == watch.after
    flip(first)
    store.delete("a")
    assert ["changed", "deleted"] == [each.event for each in watch]
    assert store.history() == list(store.watch(after=0, timeout=0))
    assert store.history(after=2) == list(store.watch(after=2, timeout=0))
    assert 3 == watch.after


def test_a_watch_resumes_after_a_seq(store: Store) -> None:
    """The watcher that goes on sees all that the first one has not."""
    for n in range(600):  # more than two batches
        store.add(sandbox(f"s{n}"), READY)
    found: list[Transition] = []
    while len(found) < 600:
        resumed = store.watch(after=found[-1].seq if found else 0, timeout=0)
        found += [each for _, each in zip(range(170), resumed, strict=False)]
    assert store.history() == found


def test_a_watch_ends_after_the_timeout_and_stays_ended(store: Store) -> None:
    """As an iterator has to."""
    watch = store.watch(timeout=0.05)
    assert [] == list(watch)
    store.add(sandbox("a"), READY)
    assert [] == list(watch)
    assert is_idle(store)


def test_commits_of_other_processes_are_returned_as_they_are_made(store: Store, path: str) -> None:
    """A transaction of several changes too, and what plain SQL commits."""
    consumer = Consumer(watch := store.watch())
    with another(path) as first, another(path) as second:
        ready(first)
        ready(second)
        tell(first, "add a", "stop a")
        tell(second, "add b")
        until(lambda: len(consumer.found) == 3)
        tell(second, "start a", "delete b")
        tell(first, "delete a")
        until(lambda: len(consumer.found) == 6)
    fill_history(path, 2)
    until(lambda: len(consumer.found) == 8)
    watch.close()
    assert store.history() == consumer.join()


def test_each_transition_is_given_to_one_of_the_threads_of_a_watch(store: Store) -> None:
    """Four threads share the watch, beside a writer."""
    watch = store.watch()
    consumers = [Consumer(watch) for _ in range(4)]
    handle = store.add(sandbox("a"), READY)
    for _ in range(300):
        flip(handle)
    until(lambda: sum(len(each.found) for each in consumers) == 301)
    watch.close()
    found = [consumer.join() for consumer in consumers]
    assert all(seqs(each) == sorted(seqs(each)) for each in found)
    assert list(range(1, 302)) == sorted(seq for each in found for seq in seqs(each))


def test_each_watch_returns_all(store: Store) -> None:
    """Of two Stores of the file, and of one that was opened read-only."""
    with Store.open(store.path) as other, Store.open(store.path, read_only=True) as reader:
        watches = [each.watch(after=0) for each in (store, store, other, reader)]
        consumers = [Consumer(each) for each in watches]
        handle = store.add(sandbox("a"), READY)
        for _ in range(20):
            flip(handle)
        until(lambda: all(len(each.found) == 21 for each in consumers))
        for watch in watches:
            watch.close()
        assert [store.history()] * 4 == [each.join() for each in consumers]


def test_uncommitted_transitions_are_never_returned(store: Store) -> None:
    """Not to the owner of the transaction either, who is told that it would wait in vain."""
    watch, drain = store.watch(timeout=240), store.watch(timeout=0)
    with store.transaction():
        store.add(sandbox("a"), READY)
        assert [] == list(drain)
        with pytest.raises(FailedPreconditionError, match="own transaction"):
            next(watch)
    assert 1 == next(watch).seq
    with pytest.raises(KeyError), store.transaction():
        store.delete("a")
        raise KeyError
    assert [] == list(store.watch(after=watch.after, timeout=0))


def test_a_state_that_is_not_known_is_an_error_and_the_next_call_goes_on(store: Store) -> None:
    """Of a newer program, for example."""
    for id in "abc":
        store.add(sandbox(id), READY)
    tamper(store.path, "UPDATE sandbox_transitions SET to_state = 'SANDBOX_NEW' WHERE seq = 2")
    watch = store.watch(after=0, timeout=0)
    assert 1 == next(watch).seq
    with pytest.raises(MetadataError) as caught:
        next(watch)
    assert 2 == caught.value.seq == watch.after
    assert [3] == seqs(list(watch))
    tamper(store.path, "UPDATE sandbox_transitions SET to_state = 'SANDBOX_READY' WHERE seq = 2")


def test_arguments_of_a_watch_are_checked_at_once(store: Store) -> None:
    """And not by the first call of next."""
    for bad in ({"after": -1}, {"after": "1"}, {"timeout": -1}, {"timeout": "1"}):
        with pytest.raises(InvalidArgumentError):
            store.watch(**bad)


# A history that is compacted.


def test_a_watch_of_a_compacted_history_raises(store: Store, path: str) -> None:
    """Also of one that is compacted while the watcher is slow, but not before it has to be."""
    fill_history(path, 1000)
    slow, begun = store.watch(after=1), store.watch(after=0)
    assert 2 == next(slow).seq
    assert 1 == next(begun).seq
    unread = store.watch(after=1)
    fill_history(path, HISTORY_MAX)
    for watch, last in ((slow, 257), (begun, 256), (unread, 1)):
        if last > 1:
            assert last == [next(watch).seq for _ in range(watch.after, last)][-1]
        for _ in range(2):
            with pytest.raises(CompactedError) as caught:
                next(watch)
            assert (last, 1001) == (caught.value.after, caught.value.oldest)
    assert 1001 == next(store.watch(after=0, timeout=0)).seq
    assert 1001 == next(store.watch(after=1000, timeout=0)).seq


def test_a_watch_from_an_empty_history_can_be_compacted(store: Store, path: str) -> None:
    """It began before the first transition, not at the first that is kept."""
    watch = store.watch()
    fill_history(path, HISTORY_MAX + 2)
    with pytest.raises(CompactedError) as caught:
        next(watch)
    assert (0, 3) == (caught.value.after, caught.value.oldest)


def test_a_seq_that_the_history_does_not_have_yet_is_an_error(store: Store) -> None:
    """It is of a registry that was lost since: waiting would leave out what comes before it."""
    store.add(sandbox("a"), READY)
    with pytest.raises(CompactedError, match="another registry") as caught:
        next(store.watch(after=2))
    assert (2, 1) == (caught.value.after, caught.value.oldest)


def test_a_watcher_beside_a_compacting_history_sees_all(store: Store, path: str) -> None:
    """The history is cut at each commit; a watcher that keeps up loses nothing."""
    fill_history(path, HISTORY_MAX)
    consumer = Consumer(watch := store.watch())
    for n in range(1, 41):
        fill_history(path, 50)
        until(lambda n=n: len(consumer.found) == 50 * n)  # type: ignore[misc]
    watch.close()
    first = HISTORY_MAX + 1
    assert list(range(first, first + 2000)) == seqs(consumer.join())
    assert 2001 == store.history(limit=1)[0].seq


# The end.


@pytest.mark.parametrize("how", ["the store", "another store's close and then its own", "itself"])
def test_a_watch_ends_when_it_is_closed(open_store: OpenStore, how: str) -> None:
    """In a thread that waits: the iteration ends, as at the end of any other."""
    store, other = open_store(), open_store()
    consumer = Consumer(watch := store.watch())
    until(lambda: is_waiting(store))
    if how == "itself":
        watch.close()
        watch.close()
    elif how == "the store":
        store.close()
    else:
        other.close()
        other = store
        assert is_waiting(store)
        store.close()
    assert [] == consumer.join()
    assert [] == list(watch)
    if how == "itself":
        other.close()
        assert [] == list(store.watch(timeout=0))
        store.close()
    with pytest.raises(StoreClosedError):
        store.watch()
    assert is_idle(other)


def test_a_watch_of_a_closed_store_ends(open_store: OpenStore) -> None:
    """Also in the middle of a batch: the next watch resumes."""
    store = open_store()
    for id in "abc":
        store.add(sandbox(id), READY)
    watch = store.watch(after=0)
    assert 1 == next(watch).seq
    store.close()
    assert [] == list(watch)
    assert [2, 3] == seqs(list(open_store().watch(after=watch.after, timeout=0)))


def test_a_watch_that_is_left_leaves_nothing_behind(store: Store) -> None:
    """By break, by the end of a generator, and by the garbage collector."""
    threads = set(threading.enumerate())
    store.add(sandbox("a"), READY)

    def generator() -> Generator[int, None, None]:
        for transition in store.watch(after=0):
            yield transition.seq

    for _ in store.watch(after=0):
        break
    iterated = generator()
    assert 1 == next(iterated)
    iterated.close()
    watch = store.watch()
    del watch
    gc.collect()
    assert is_idle(store)
    assert set(threading.enumerate()) <= threads


def test_an_interrupt_while_a_transition_is_decoded_loses_none(path: str) -> None:
    """The next call returns it: the watch goes on after it last."""
    code = """
        import sys
        from registry import Store
        from tests.interrupts import Interrupts
        from tests.tools import READY, sandbox

        with Store.open(sys.argv[1]) as store:
            store.add(sandbox("a"), READY)
            for attempt in Interrupts(within="Transition.load"):
                watch = store.watch(after=0)
                attempt.run(lambda: next(watch))
                assert attempt.raised == bool(attempt.points)
                assert watch.after == (0 if attempt.raised else 1), attempt
        print(attempt)
        """
    assert "interrupted in no function" == run(code, path).strip()


def test_an_interrupt_ends_a_wait_at_once(path: str) -> None:
    """SIGINT in the main thread, which polls or sleeps behind another thread that does."""
    code = """
        import signal, sys, threading
        from registry import Store
        from tests.tools import READY, sandbox, until

        behind, what = sys.argv[2] == "behind", sys.argv[3]
        with Store.open(sys.argv[1]) as store:
            handle = store.add(sandbox("a"), READY)
            waiting = store._session.engine.commits._threads
            if behind:
                other = store.watch()
                thread = threading.Thread(target=list, args=[other])
                thread.start()
                until(lambda: len(waiting) == 1)
            watch = store.watch()
            note = lambda: (until(lambda: len(waiting) == 1 + behind), print("waiting"))
            threading.Thread(target=note).start()
            try:
                handle.stopped.wait() if what == "stop" else next(watch)
            except KeyboardInterrupt:
                print("interrupted", len(waiting))
            if behind:
                other.close()
                thread.join()
            handle.delete()
            print(handle.stopped.wait(), next(watch).event, len(waiting))
        """
    for behind in ("alone", "behind"):
        for what in ("stop", "watch"):
            with running(code, f"{path}-{behind}-{what}", behind, what) as process:
                assert "waiting" == line(process)
                process.send_signal(signal.SIGINT)
                assert f"interrupted {int(behind == 'behind')}" == line(process)
                assert "True deleted 0" == line(process)
                assert 0 == process.wait()


def test_a_signal_handler_can_watch_while_its_thread_waits(path: str) -> None:
    """The wait in the handler polls by itself: the one that it interrupts cannot."""
    code = """
        import os, signal, sys, threading
        from registry import Store
        from tests.others import another, ready, tell
        from tests.tools import READY, sandbox, until

        with Store.open(sys.argv[1]) as store, another(sys.argv[1]) as other:
            ready(other)
            commits, watch = store._session.engine.commits, store.watch()
            commits.give_back(commits.take_poller())  # imports what a wait needs
            waiting = commits._threads

            def work():
                until(lambda: len(waiting) == 1)
                os.kill(os.getpid(), signal.SIGUSR1)
                until(lambda: len(waiting) == 2)
                tell(other, "add a")

            signal.signal(signal.SIGUSR1, lambda *_: print(next(store.watch()).sandbox_id))
            threading.Thread(target=work).start()
            print(next(watch).seq)
        """
    assert ["a", "1"] == run(code, path).split()


def test_a_signal_handler_in_the_middle_of_a_reading_can_wait(path: str) -> None:
    """It reads the history itself, since it cannot read the data version; now and then."""
    code = """
        import os, signal, sys, threading
        from registry import Store
        from tests.others import another, ready, tell
        from tests.tools import READY, sandbox, until

        def wait(*_):
            assert version.read("test") is None
            print(next(store.watch()).sandbox_id)
            handle = store.get("a")
            threading.Thread(target=once_it_waits, args=["delete a"]).start()
            print(handle.stopped.wait())

        def once_it_waits(command):
            until(lambda: waiting)
            tell(other, command)

        with Store.open(sys.argv[1]) as store, another(sys.argv[1]) as other:
            ready(other)
            engine = store._session.engine
            engine.commits.give_back(engine.commits.take_poller())  # imports what a wait needs
            version, waiting = engine.data_version, engine.commits._threads
            signal.signal(signal.SIGUSR1, wait)
            version._reading_thread = threading.get_ident()  # as in the middle of a reading
            threading.Thread(target=once_it_waits, args=["add a"]).start()
            os.kill(os.getpid(), signal.SIGUSR1)
            version._reading_thread = 0
        """
    assert ["a", "True"] == run(code, path).split()


def test_a_daemon_thread_in_a_watch_does_not_keep_the_interpreter(path: str) -> None:
    """Nor does a task that waits, or a watch that was never closed."""
    code = """
        import asyncio, sys, threading, warnings
        from registry import Store
        from tests.tools import until

        warnings.simplefilter("ignore", ResourceWarning)
        store = Store.open(sys.argv[1])
        commits = store._session.engine.commits
        watch, left = store.watch(), store.watch(after=0)
        threading.Thread(target=list, args=[watch], daemon=True).start()
        until(lambda: commits._threads)
        loop = asyncio.new_event_loop()
        task = loop.create_task(anext(left))
        loop.run_until_complete(asyncio.sleep(0))
        assert commits.loops
        task.add_done_callback(lambda done: done.exception())
        loop.close() if sys.argv[2] == "closed" else loop.stop()
        task._log_destroy_pending = False
        print("end")
        """
    for how in ("closed", "stopped"):
        assert ["end"] == run(code, path, how).split()


def test_a_forked_child_harms_no_watch_of_its_parent(path: str) -> None:
    """Each use in the child raises, and the threads and tasks of the parent go on."""
    code = """
        import asyncio, gc, os, sys, threading, warnings
        from registry import Store, StoreClosedError
        from tests.others import another, ready, tell
        from tests.tools import READY, sandbox, until

        warnings.simplefilter("ignore")  # Python 3.12 warns of fork beside threads

        def refused(call):
            try:
                call()
            except StoreClosedError as error:
                return "forked" in str(error)
            return False

        async def main(store, other):
            commits = store._session.engine.commits
            handle = store.add(sandbox("a"), READY)
            watch, batch, waited = store.watch(), store.watch(after=0), store.watch()
            consumer = threading.Thread(target=handle.stopped.wait)
            consumer.start()
            task = asyncio.create_task(anext(waited))
            stop = asyncio.create_task(handle.stopped.wait_async())
            await asyncio.sleep(0)
            until(lambda: commits._threads and commits.loops)
            child = os.fork()
            if child == 0:
                fine = refused(lambda: next(watch)) and refused(lambda: next(batch))
                fine = fine and refused(store.watch) and refused(handle.stopped.wait)
                for each in (task, stop):
                    each._coro.close()
                watch.close()
                waited.close()
                handle.stop()
                del task, stop, watch, waited
                gc.collect()
                store.close()
                os._exit(0 if fine else 1)
            assert 0 == os.waitpid(child, 0)[1]
            assert commits._threads and not handle.stopped.is_set()
            tell(other, "stop a")
            print((await task).event, next(watch).event, next(batch).event)
            await stop
            consumer.join()

        with Store.open(sys.argv[1]) as store, another(sys.argv[1]) as other:
            ready(other)
            asyncio.run(main(store, other))
        """
    assert ["changed", "changed", "created"] == run(code, path).split()


# How it waits.


class Woken:
    """A waiter that notes how many transitions were committed when it was woken."""

    def __init__(self, store: Store) -> None:
        self.seen: list[int] = []
        self._store = store

    def wake(self) -> None:
        """Read in another thread: this one is in the middle of a write."""
        self.seen.append(len(in_another_thread(self._store.history)))


def test_a_commit_of_this_process_wakes_the_watches_without_a_poll(store: Store) -> None:
    """After the commit is visible, once for each, and not for a transaction that is rolled back."""
    woken = Woken(store)
    commits_of(store).watchers.append(woken)
    handle = store.add(sandbox("a"), READY)
    with store.transaction():
        flip(handle)
        flip(handle)
    with pytest.raises(KeyError), store.transaction():
        flip(handle)
        raise KeyError
    commits_of(store).watchers.remove(woken)
    handle.delete()
    assert [1, 3] == woken.seen


class Statements:
    """The SQL that every connection of this process runs from now on."""

    def __init__(self) -> None:
        self.run: list[str] = []
        self._trace(self.run.append)

    def end(self) -> set[str]:
        """Return the statements, and note no more."""
        self._trace(None)
        return set(self.run)

    def _trace(self, note: Callable[[str], None] | None) -> None:
        for connection in tuple(driver._open):
            with suppress(sqlite3.ProgrammingError):  # it is closed, and not collected yet
                connection.set_trace_callback(note)


def test_a_watch_that_waits_queries_no_table_and_holds_no_snapshot(store: Store, path: str) -> None:
    """The WAL can be moved into the database, and reset, at any time."""
    handle, awaited = store.add(sandbox("a"), READY), store.add(sandbox("b"), READY)
    consumer = Consumer(watch := store.watch())
    stop = threading.Thread(target=awaited.stopped.wait)
    stop.start()
    commits, engine = commits_of(store), store._session.engine
    until(lambda: len(commits._threads) == 2)
    flip(handle)
    until(lambda: len(consumer.found) == 1)
    until(lambda: watch._version == engine.data_version.read("test") == commits._version)
    statements = Statements()
    until(lambda: len(statements.run) > 20)
    ran = statements.end()
    assert {"PRAGMA data_version"} == ran
    assert [(0, 0, 0)] == query(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    watch.close()
    consumer.join()
    awaited.stop()
    stop.join()


def test_a_poller_polls_seldom_while_events_announce_commits(store: Store, path: str) -> None:
    """After an event it polls until the commit is visible; without events it polls often."""
    handle = store.add(sandbox("a"), READY)
    poller = commits_of(store).take_poller()
    assert 0.0 == poller.delay()  # the first poll after the watch of the WAL has begun
    before = poller.poll()
    assert IDLE == poller.delay()
    with another(path) as other:
        ready(other)
        tell(other, "stop a")
    assert poller.poll() != before
    assert poller._announced_at is not None
    until(lambda: poller.poll() and poller.delay() == IDLE)
    events = poller.events
    assert events is not None
    flip(handle)
    assert events.take()  # as if the kernel had told of nothing
    poller.poll()
    assert UNANNOUNCED == poller.delay()
    flip(handle)
    poller.poll()
    until(lambda: poller.poll() and poller.delay() == IDLE)
    os.rename(f"{path}-wal", f"{path}-away")
    assert UNANNOUNCED == poller.delay()
    os.rename(f"{path}-away", f"{path}-wal")
    assert IDLE == poller.delay()
    poller.close()
    assert UNANNOUNCED == poller.delay()
    assert poller.poll() is not None


@needs.namespaces
def test_watches_and_stops_work_without_inotify(path: str) -> None:
    """In a user namespace without any instance, a thread and a task poll by time."""
    code = """
        import asyncio, sys, threading
        from registry import Store
        from registry.host import kernel
        from tests.others import another, ready, tell
        from tests.tools import READY, sandbox, until

        kernel.unshare(0x10000000)  # CLONE_NEWUSER
        for name, text in (
            ("self/setgroups", "deny"),
            ("self/uid_map", "0 0 1"),
            ("self/gid_map", "0 0 1"),
            ("sys/user/max_inotify_instances", "0"),
        ):
            with open(f"/proc/{name}", "w") as file:
                file.write(text)

        def follow():
            for transition in watch:
                found.append(transition.event)

        with Store.open(sys.argv[1], reconcile=False) as store, another(sys.argv[1]) as other:
            ready(other)
            handle, watch, found = store.add(sandbox("a"), READY), store.watch(), []
            consumer = threading.Thread(target=follow)
            consumer.start()
            tell(other, "stop a", "start a")
            until(lambda: len(found) == 2)
            waiting = store._session.engine.commits._threads
            until(lambda: waiting and waiting[0].poller is not None)
            print(waiting[0].poller.events)
            tell(other, "delete a")
            asyncio.run(handle.stopped.wait_async())
            until(lambda: len(found) == 3)
        consumer.join()
        print(*found)
        """
    assert ["None", "changed", "changed", "deleted"] == run(code, path).split()


def test_an_error_of_a_poll_reaches_each_that_waits(open_store: OpenStore, path: str) -> None:
    """A newer program has upgraded the registry past what this one may read."""
    store = open_store()
    handle = store.add(sandbox("a"), READY)
    consumer = Consumer(store.watch())
    stop = ThreadPoolExecutor(1).submit(handle.stopped.wait)
    until(lambda: len(commits_of(store)._threads) == 2)

    async def main() -> tuple[BaseException | None, ...]:
        tasks = [asyncio.create_task(each) for each in (handle.stopped.wait_async(),)]
        tasks.append(asyncio.ensure_future(_next(store.watch())))
        await asyncio.sleep(0)
        execute(path, "UPDATE registry SET level = 99, min_reader = 99", "CREATE TABLE newer (a)")
        await asyncio.wait(tasks)
        return tuple(task.exception() for task in tasks)

    errors = (*asyncio.run(main()), stop.exception())
    with pytest.raises(FailedPreconditionError):
        consumer.join()
    names = {type(error).__name__ for error in errors}
    assert {"SchemaVersionError"} == names
    assert is_idle(store)
    execute(path, "UPDATE registry SET level = 1, min_reader = 1", "DROP TABLE newer")


async def _next(watch: Watch) -> None:
    """Await the next transition, as a coroutine that a task can run."""
    await anext(watch)


# Tasks of asyncio.


def run_task(main: Callable[[], Any]) -> Any:
    """Run *main* in a new loop; fail if it has started a thread or left something in the loop."""
    threads = set(threading.enumerate())

    async def checked() -> Any:
        loop: Any = asyncio.get_running_loop()
        files = len(loop._selector.get_map())
        result = await main()
        assert files == len(loop._selector.get_map())
        assert not [each for each in loop._scheduled if not each.cancelled()]
        assert loop._default_executor is None
        assert set(threading.enumerate()) <= threads
        return result

    return asyncio.run(checked())


def test_a_task_watches_without_a_thread(store: Store, path: str) -> None:
    """Commits of another process, of another thread and of its own; then the timeout."""
    watch = store.watch()

    async def main() -> list[Transition]:
        found: list[Transition] = []
        with another(path) as other:
            ready(other)
            task = asyncio.create_task(collect(found))
            await asyncio.sleep(0)
            tell(other, "add a")
            store.add(sandbox("b"), READY)
            await task
        assert [] == [each async for each in store.watch(timeout=0.01)]
        return found

    async def collect(found: list[Transition]) -> None:
        async for transition in watch:
            found.append(transition)
            if len(found) == 2:
                store.delete("b")
            elif len(found) == 3:
                watch.close()

    found = run_task(main)
    assert store.history() == found
    assert is_idle(store)


def test_a_task_that_is_cancelled_takes_no_transition(store: Store) -> None:
    """Cancelled while it waits, or when it was woken and has not run yet."""
    handle = store.add(sandbox("a"), READY)
    watch = store.watch()

    async def main() -> list[int]:
        found: list[int] = []
        for n in range(60):
            task = asyncio.ensure_future(_take(watch, found))
            await asyncio.sleep(0)
            for _ in range(n % 4):
                flip(handle)
            for _ in range(n // 4 % 5):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert is_idle(store)
        return found + [each.seq async for each in watch_rest()]

    async def watch_rest() -> Any:
        async for each in store.watch(after=watch.after, timeout=0):
            yield each

    found = run_task(main)
    assert list(range(2, len(store.history()) + 1)) == found


async def _take(watch: Watch, found: list[int]) -> None:
    """Append the numbers of what *watch* returns."""
    async for transition in watch:
        found.append(transition.seq)  # noqa: PERF401 - it is cancelled in between


@pytest.mark.parametrize("how", ["the store", "the watch", "a timeout of the caller"])
def test_a_task_that_watches_ends(open_store: OpenStore, how: str) -> None:
    """By a close in another thread, or by `asyncio.timeout`."""
    store = open_store()
    watch = store.watch()

    async def main() -> bool:
        end = store.close if how == "the store" else watch.close
        closing = threading.Timer(0.05, end if how != "a timeout of the caller" else int)
        closing.start()
        try:
            async with asyncio.timeout(0.1 if how == "a timeout of the caller" else 60):
                assert [] == [each async for each in watch]
        except TimeoutError:
            return True
        finally:
            closing.join()
        return False

    assert (how == "a timeout of the caller") == run_task(main)
    assert is_idle(store)


def test_a_loop_that_is_closed_under_a_watch_holds_up_no_commit(store: Store) -> None:
    """The task never runs again; a watch in another loop goes on."""
    loop = asyncio.new_event_loop()
    task: Any = loop.create_task(_next(store.watch()))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    task._log_destroy_pending = False
    store.add(sandbox("a"), READY)
    assert [1] == asyncio.run(_first(store.watch(after=0)))


async def _first(watch: Watch) -> list[int]:
    """Return the number of the next transition."""
    return [(await anext(watch)).seq]


def test_a_watch_outside_of_asyncio_says_that_it_needs_a_loop(store: Store) -> None:
    """Trio has no timers that asyncio knows."""
    trio = pytest.importorskip("trio")
    handle = store.add(sandbox("a"), READY)
    assert [1] == trio.run(partial(_first, store.watch(after=0)))
    for call in (partial(_first, store.watch()), handle.stopped.wait_async):
        with pytest.raises(FailedPreconditionError, match="asyncio"):
            trio.run(call)
    assert is_idle(store)


def test_a_poller_without_descriptors_polls_by_time(store: Store, path: str) -> None:
    """No descriptor is left for the events: the caller's thread sleeps on a lock."""
    code = """
        import os, resource, sys, threading
        from registry import Store
        from tests.others import another, ready, tell

        with Store.open(sys.argv[1]) as store, another(sys.argv[1]) as other:
            ready(other)
            commits = store._session.engine.commits
            commits.give_back(commits.take_poller())  # imports what it needs
            commits._pollers.pop().close()
            watch = store.watch()
            threading.Timer(0.1, tell, (other, "add a")).start()
            limit = len(os.listdir("/proc/self/fd")) - 1
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            print(next(watch).sandbox_id)
        """
    assert ["a"] == run(code, path).split()
