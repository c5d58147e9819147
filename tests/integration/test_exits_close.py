"""Exits and Process: closing, forks, interrupts, and limits."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import pytest

from registry import (
    Exit,
    Exits,
    FailedPreconditionError,
    InvalidArgumentError,
    Process,
    Store,
)
from tests.integration.exits import Noted, Start, added, watch
from tests.tools import run, until


def test_a_second_close_touches_no_strange_descriptor(store: Store, start: Start) -> None:
    """The descriptors of the watcher and of its processes belong to other files by then."""
    exits = Exits(lambda _: None)
    process = watch(exits, added(store, "a", start().pid))
    before = {int(fd) for fd in os.listdir("/proc/self/fd")}
    exits.close()
    freed = sorted(before - {int(fd) for fd in os.listdir("/proc/self/fd")})
    assert len(freed) >= 3  # a pidfd, an epoll instance, an eventfd
    others = [os.eventfd(0, os.EFD_NONBLOCK) for _ in freed]
    try:
        exits.close()
        process.close()
        del exits, process
        for fd in others:
            assert os.fstat(fd)
            with pytest.raises(BlockingIOError):
                os.eventfd_read(fd)  # nothing was written to it
    finally:
        for fd in others:
            os.close(fd)


def test_a_closed_watcher_and_a_closed_process_raise_failed_precondition(
    store: Store, start: Start
) -> None:
    """By every method; closing them again does nothing."""
    handle = added(store, "a", start().pid)
    exits, process = Exits(lambda _: None), handle.open_process()
    assert process is not None
    exits.close()
    uses: list[Callable[[], object]] = [
        lambda: exits.watch(handle, process),
        lambda: exits.retry(lambda: None),
    ]
    for call in uses:
        with pytest.raises(FailedPreconditionError) as caught:
            call()
        assert "watcher of exits is closed" in str(caught.value)
    assert not process.ended  # it is still the caller's
    process.close()
    uses = [process.kill, process.wait, process.exit_status, process.fileno]
    for call in (*uses, lambda: process.ended):
        with pytest.raises(FailedPreconditionError, match=f"process {process.pid} is closed"):
            call()
    with closing(Exits(lambda _: None)) as other:
        with pytest.raises(FailedPreconditionError, match="is closed"):
            other.watch(handle, process)
        with pytest.raises(InvalidArgumentError) as refused:
            other.watch(handle, None)  # type: ignore[arg-type]
        assert "process" == refused.value.field
    exits.close()
    process.close()


def test_a_note_may_close_its_own_watcher(store: Store, start: Start) -> None:
    """Its thread does not wait for itself."""
    closed = threading.Event()

    def note(ended: Sequence[Exit]) -> None:
        exits.close()
        closed.set()

    child = start()
    exits = Exits(note)
    process = watch(exits, added(store, "a", child.pid))
    child.kill()
    assert closed.wait(60)
    exits.close()
    with pytest.raises(FailedPreconditionError):
        process.fileno()


def test_the_same_process_watched_twice_is_told_once(store: Store, start: Start) -> None:
    """Through the same handle or another one."""
    noted, child = Noted(), start()
    handle = added(store, "a", child.pid)
    with closing(Exits(noted)) as exits:
        process = watch(exits, handle)
        exits.watch(handle, process)
        exits.watch(store.get("a"), process)
        child.kill()
        until(lambda: noted.statuses)
        other = start()
        watch(exits, added(store, "b", other.pid))
        other.kill()
        until(lambda: "b" in noted.statuses)
    assert {"a": [137], "b": [137]} == noted.statuses


def test_a_watched_process_that_its_owner_closes_is_not_taken_for_another(
    store: Store, start: Start
) -> None:
    """Its descriptor goes to the next process, which is watched as well."""
    noted, first, second = Noted(), start(), start()
    with closing(Exits(noted)) as exits:
        closed = watch(exits, added(store, "a", first.pid))
        number = closed.fileno()
        closed.close()
        process = watch(exits, added(store, "b", second.pid))
        assert number == process.fileno()
        first.kill()
        first.wait()
        second.kill()
        until(lambda: "b" in noted.statuses)
    assert {"b": [137]} == noted.statuses


def test_watching_while_another_thread_closes_loses_no_process(store: Store, start: Start) -> None:
    """A process is watched, and then closed with the watcher; or it is refused, and open still."""
    handle = added(store, "a", start().pid)
    for _ in range(50):
        exits = Exits(lambda _: None)
        closer = threading.Thread(target=exits.close)
        process = handle.open_process()
        assert process is not None
        closer.start()
        try:
            exits.watch(handle, process)
        except FailedPreconditionError:
            assert not process.ended
            process.close()
        closer.join()
        with pytest.raises(FailedPreconditionError):
            process.fileno()


def use(held: Process, ready: threading.Barrier) -> None:
    """Use a process, which lives, until it is closed."""
    ready.wait()
    with suppress(FailedPreconditionError):
        while True:
            assert held.kill(0)
            assert not held.ended
            assert held.exit_status(0) is None


def test_a_process_may_be_closed_while_threads_use_it(start: Start) -> None:
    """Each use reaches this process or raises; none reaches another with the same descriptor."""
    living, dead = start(), start("exit 0")
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
    for _ in range(30):
        held, ready = Process.of_pid(living.pid), threading.Barrier(5)
        with ThreadPoolExecutor(4) as pool:
            users = [pool.submit(use, held, ready) for _ in range(4)]
            ready.wait()
            held.close()
            others = [Process.of_pid(dead.pid) for _ in range(4)]
            for each in users:
                assert each.result(60) is None
        for other in others:
            other.close()
        with pytest.raises(FailedPreconditionError):
            held.kill()


def test_a_closed_process_does_not_kill_what_has_its_descriptor(start: Start) -> None:
    """The number goes to another process."""
    first, second = start(), start()
    held = Process.of_pid(first.pid)
    number = held.fileno()
    held.close()
    with Process.of_pid(second.pid) as other:
        assert number == other.fileno()
        with pytest.raises(FailedPreconditionError):
            held.kill()
        held.close()
        assert not other.ended


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
def test_a_wait_that_is_over_tells_that_it_runs(start: Start, timeout: float) -> None:
    """And a longer one than poll(2) can count waits all the same."""
    child = start()
    with Process.of_pid(child.pid) as held:
        assert not held.wait(timeout)
        child.kill()
        assert held.wait(1e12)
        assert held.wait(float("inf"))
        assert held.wait()


@pytest.mark.parametrize("number", [-1, 65, 10**10, True, "TERM"])
def test_a_signal_that_does_not_exist_is_an_invalid_argument(start: Start, number: int) -> None:
    """The process goes on."""
    with Process.of_pid(start().pid) as held:
        with pytest.raises(InvalidArgumentError) as caught:
            held.kill(number)
        assert ("number", number) == (caught.value.field, caught.value.value)
        assert not held.ended


# Forks.


@pytest.mark.parametrize("child_ends", ["close", "exit", "os._exit"])
def test_a_forked_child_does_not_end_the_watching_of_its_parent(path: str, child_ends: str) -> None:
    """Every use raises there; what it closes are its own copies."""
    out = run(
        """
        import os, subprocess, sys, threading
        from registry import Exits, Metadata, Process, State, Status, Store, StoreClosedError

        def raises(call):
            try:
                call()
            except StoreClosedError:
                return True
            return False

        told = threading.Event()
        store = Store.open(sys.argv[1])
        exits = Exits(lambda ended: told.set())
        sleeper = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        handle = store.add(Metadata("a", "a", None), Status(State.READY, pid=sleeper.pid))
        process = handle.open_process()
        exits.watch(handle, process)
        answer, out = os.pipe()
        child = os.fork()
        if child == 0:
            own = Process.of_pid(os.getpid())
            results = [raises(call) for call in (
                lambda: exits.watch(handle, process), lambda: exits.watch(handle, own),
                lambda: exits.retry(lambda: None), process.kill, lambda: process.ended,
                process.wait, process.exit_status, process.fileno,
            )]
            os.write(out, repr(all(results)).encode())
            if sys.argv[2] == "close":
                before = len(os.listdir("/proc/self/fd"))
                exits.close()
                exits.close()
                process.close()
                os.write(out, repr(len(os.listdir("/proc/self/fd")) - before).encode())
            if sys.argv[2] != "exit":
                os._exit(0)
            sys.exit(0)
        _, status = os.waitpid(child, 0)
        os.close(out)
        print(status, os.read(answer, 20).decode(), told.is_set(), process.ended)
        sleeper.kill()
        print(told.wait(60), sleeper.wait())
        exits.close()
        store.close()
        """,
        path,
        child_ends,
    )
    closed = "-3" if child_ends == "close" else ""
    assert [f"0 True{closed} False False", "True -9"] == out.splitlines()


# Interrupts, exits, limits.


def test_an_interrupted_close_can_be_called_again(path: str) -> None:
    """The handler's exception comes out, before each line of it and of watch."""
    out = run(
        """
        import gc, itertools, os, signal, subprocess, sys, time
        from registry import Exits, Metadata, State, Status, Store

        class Interrupt(Exception):
            pass

        def interrupt(number, frame):
            raise Interrupt
        signal.signal(signal.SIGUSR1, interrupt)
        FILES = ("exit_watcher.py", "descriptor.py", "process.py")

        def interrupted(nth, call):
            # Whether the nth line that the call runs was reached, and interrupted.
            left = nth
            def trace(frame, event, arg):
                nonlocal left
                if not frame.f_code.co_filename.endswith(FILES):
                    return None if event == "call" else trace
                if event == "line":
                    left -= 1
                    if left == 0:
                        signal.raise_signal(signal.SIGUSR1)
                return trace
            sys.settrace(trace)
            try:
                call()
            except Interrupt:
                return True
            finally:
                sys.settrace(None)
            assert left > 0, "swallowed"
            return False

        store = Store.open(sys.argv[1])
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        handle = store.add(Metadata("a", "a", None), Status(State.READY, pid=child.pid))
        exits = Exits(lambda _: None)
        exits.close()
        before = sorted(os.listdir("/proc/self/fd"))
        watches = closes = 0
        for nth in itertools.count(1):
            exits, process = Exits(lambda _: None), handle.open_process()
            in_watch = interrupted(nth, lambda: exits.watch(handle, process))
            in_close = interrupted(nth, exits.close)
            exits.close()
            process.close()
            watches += in_watch
            closes += in_close
            del exits, process
            while sorted(os.listdir("/proc/self/fd")) != before:
                gc.collect()
                time.sleep(0.001)  # the thread, which has finished, may still be there
            if not (in_watch or in_close):
                break
        child.kill()
        child.wait()
        store.close()
        print(watches > 5, closes > 5)
        """,
        path,
    )
    assert "True True" == out.strip()


def test_a_program_may_end_without_closing_its_watcher(path: str) -> None:
    """It ends without a word, also while a note is under way."""
    out = run(
        """
        import subprocess, sys, threading
        from registry import Exits, Metadata, State, Status, Store
        began, never = threading.Event(), threading.Event()
        def note(ended):
            began.set()
            never.wait()
        store, exits = Store.open(sys.argv[1]), Exits(note)
        children = [subprocess.Popen(["cat"], stdin=subprocess.PIPE) for _ in range(2)]
        for child in children:
            id = str(child.pid)
            handle = store.add(Metadata(id, id, None), Status(State.READY, pid=child.pid))
            exits.watch(handle, handle.open_process())
        for child in children:
            child.kill()
            child.wait()
        began.wait()
        store.close()
        print("ends")
        """,
        path,
    )
    assert "ends" == out.strip()


@pytest.mark.parametrize("lacking", ["descriptors", "threads"])
def test_a_watcher_that_cannot_start_raises_and_leaves_nothing(lacking: str) -> None:
    """ResourceExhaustedError; afterwards another one can be made where that is possible."""
    out = run(
        """
        import os, resource, sys
        from contextlib import suppress
        from registry import Exits, ResourceExhaustedError
        from tests.netns import seccomp

        def start():
            try:
                return Exits(lambda _: None)
            except ResourceExhaustedError as error:
                return str(error).partition(":")[0]

        start().close()
        held, before = [], len(os.listdir("/proc/self/fd"))
        if sys.argv[1] == "threads":
            seccomp.refuse_threads()
            print(start(), len(os.listdir("/proc/self/fd")) - before)
        else:
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            with suppress(OSError):
                while True:
                    held.append(os.dup(0))
            answers = []
            for left in range(2):
                answers.append(start())
                os.close(held.pop())
            for fd in held:
                os.close(fd)
            start().close()
            print(*set(answers), len(os.listdir("/proc/self/fd")) - before)
        """,
        lacking,
    )
    assert "watch exits 0" == out.strip()
