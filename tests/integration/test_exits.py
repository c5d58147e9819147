"""Exits tells every end, and takes no exit status from the parent of a process."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from registry import (
    Exit,
    Exits,
    FailedPreconditionError,
    InvalidArgumentError,
    Process,
    Sandbox,
    State,
    Store,
)
from tests.tools import READY, line, run, running, sandbox, say, tamper, until

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a shell command, by default one that sleeps."""
    started = []

    def start_it(command: str = "exec sleep 1000") -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sh", "-c", command]))
        return started[-1]

    yield start_it
    for child in started:
        child.kill()
        child.wait()


class Noted:
    """Record of the ends that an `Exits` has noted, and of its calls."""

    def __init__(self, fails_for: Callable[[str], BaseException | None] = lambda _: None) -> None:
        """Note everything but what *fails_for* has an exception for."""
        self.fails_for = fails_for
        self.calls: list[list[str]] = []
        self.statuses: dict[str, list[int | None]] = {}

    def __call__(self, ended: Sequence[Exit]) -> None:
        self.calls.append([found.id for found, _ in ended])
        for found, _ in ended:
            error = self.fails_for(found.id)
            if error is not None:
                raise error
        for found, status in ended:
            self.statuses.setdefault(found.id, []).append(status)

    def last(self, id: str) -> int | None:
        """Return the last exit status that was noted of a sandbox; None before that."""
        return self.statuses.get(id, [None])[-1]


def added(store: Store, id: str, pid: int) -> Sandbox:
    """Add a sandbox whose init process is *pid*."""
    return store.add(sandbox(id), replace(READY, pid=pid))


def watch(exits: Exits, found: Sandbox) -> Process:
    """Watch the init process of a sandbox, and return it."""
    process = found.open_process()
    assert process is not None
    exits.watch(found, process)
    return process


def kernel_tells_exits() -> bool:
    """Return whether the kernel tells how a process ended that its parent has reaped."""
    return tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (6, 15)


# Whose child it is.

EMBEDDER = """
import asyncio, os, signal, subprocess, sys, threading, time, warnings
from registry import Exits, Metadata, State, Status, Store

warnings.simplefilter("ignore", DeprecationWarning)  # of asyncio's older child watchers
gone = threading.Event()
told = []
def note(ended):
    told.extend(status for _, status in ended)
    if told[-1] is not None:
        gone.set()

store = Store.open(sys.argv[1])
exits = Exits(note)
names = iter(range(1000))

def watch(pid):
    name = str(next(names))
    sandbox = store.add(Metadata(name, name, None), Status(State.READY, pid=pid))
    exits.watch(sandbox, sandbox.open_process())

def finish(expected, *got):
    assert gone.wait(30), told
    exits.close()
    store.close()
    assert told[-1] == expected, told
    assert len(told) - told.count(None) == 1, told
    print(*got)
"""

BESIDE = {
    "Popen.wait": """
        child = subprocess.Popen(["sh", "-c", "read go; exit 7"], stdin=subprocess.PIPE)
        watch(child.pid)
        child.communicate(b"go\\n")
        finish(7, child.wait())
    """,
    "Popen.poll": """
        child = subprocess.Popen(["sh", "-c", "read go; exit 7"], stdin=subprocess.PIPE)
        watch(child.pid)
        child.stdin.close()
        while child.poll() is None:
            pass
        finish(7, child.poll())
    """,
    "Popen.wait after the end was told": """
        child = subprocess.Popen(["sh", "-c", "read go; kill -TERM $$"], stdin=subprocess.PIPE)
        watch(child.pid)
        child.stdin.close()
        assert gone.wait(30)
        finish(143, child.wait())
    """,
    "os.waitpid(-1)": """
        read, write = os.pipe()
        pid = os.posix_spawn(
            "/bin/sh", ["sh", "-c", "read go; exit 7"], os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, read, 0)],
        )
        watch(pid)
        os.write(write, b"go\\n")
        reaped, status = os.waitpid(-1, 0)
        assert reaped == pid
        finish(7, os.waitstatus_to_exitcode(status))
    """,
    "a handler of SIGCHLD": """
        reaped = []
        def reap(number, frame):
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                reaped.append(os.waitstatus_to_exitcode(status))
        signal.signal(signal.SIGCHLD, reap)
        read, write = os.pipe()
        pid = os.posix_spawn(
            "/bin/sh", ["sh", "-c", "read go; exit 7"], os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, read, 0)],
        )
        watch(pid)
        os.close(read)
        os.write(write, b"go\\n")
        while not reaped:
            time.sleep(0.01)
        finish(7, *reaped)
    """,
    "SIGCHLD ignored": """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps at once
        read, write = os.pipe()
        pid = os.posix_spawn(
            "/bin/sh", ["sh", "-c", "read go; exit 7"], os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, read, 0)],
        )
        watch(pid)
        os.write(write, b"go\\n")
        finish(7, 7)
    """,
    "a double fork": """
        read, write = os.pipe()
        answer, out = os.pipe()
        child = os.fork()
        if child == 0:
            grandchild = os.fork()
            if grandchild == 0:
                os.read(read, 1)
                os._exit(7)
            os.write(out, str(grandchild).encode())
            os._exit(0)
        pid = int(os.read(answer, 20))
        os.waitpid(child, 0)  # its child is init's now, which reaps it
        watch(pid)
        os.write(write, b"g")
        finish(7, 7)
    """,
}
ASYNCIO = """
        async def main():
            child = await asyncio.create_subprocess_exec(
                "sh", "-c", "read go; exit 7", stdin=asyncio.subprocess.PIPE
            )
            watch(child.pid)
            await child.communicate(b"go\\n")
            return await child.wait()
"""
WATCHERS = ["ThreadedChildWatcher", "PidfdChildWatcher", "SafeChildWatcher", "FastChildWatcher"]
WATCHERS += ["MultiLoopChildWatcher"]
BESIDE["asyncio"] = ASYNCIO + "        finish(7, asyncio.run(main()))\n"
for watcher in WATCHERS if sys.version_info < (3, 12) else []:
    BESIDE[f"asyncio's {watcher}"] = f"""{ASYNCIO}
        async def watched():
            watcher = asyncio.{watcher}()
            watcher.attach_loop(asyncio.get_running_loop())
            asyncio.set_child_watcher(watcher)
            return await main()
        finish(7, asyncio.run(watched()))
"""


@pytest.mark.parametrize("how", BESIDE)
def test_the_exit_status_of_a_child_is_told_to_its_parent_and_to_the_watcher(
    how: str, path: str
) -> None:
    """Each once, in any order: the library reaps nothing."""
    if not kernel_tells_exits():
        pytest.skip("only Linux 6.15 tells of a process that its parent has reaped")
    code = EMBEDDER + "\n".join(text[8:] for text in BESIDE[how].splitlines())
    expected = "-15" if "after the end" in how else "7"
    assert expected == run(code, path).strip()


def test_an_unknown_exit_status_is_told_as_none_and_again_when_it_is_known(store: Store) -> None:
    """The parent is another process, which has not reaped it yet."""
    parent = """
        import os, sys
        pid = os.fork()
        if pid == 0:
            sys.stdin.readline()
            os._exit(3)
        print(pid, flush=True)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        print("zombie", flush=True)
        sys.stdin.readline()
        os.waitpid(pid, 0)
        print("reaped", flush=True)
        sys.stdin.readline()
        """
    noted = Noted()
    with running(parent) as other, closing(Exits(noted)) as exits:
        watch(exits, added(store, "a", int(line(other))))
        say(other)
        assert "zombie" == line(other)
        until(lambda: "a" in noted.statuses)
        say(other)
        assert "reaped" == line(other)
        if kernel_tells_exits():
            until(lambda: noted.last("a") == 3)
            assert {"a": [None, 3]} == noted.statuses
    assert None is noted.statuses["a"][0]


# One that cannot be noted.


@pytest.mark.parametrize(
    "error",
    [RuntimeError("no"), FailedPreconditionError("no"), SystemExit(3), MemoryError(), KeyError()],
    ids=lambda error: type(error).__name__,
)
def test_one_end_that_cannot_be_noted_keeps_none_from_being_noted(
    store: Store, start: Start, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """It is tried again, alone, each second; what was noted is not noted again."""
    broken = {"bad"}
    noted = Noted(lambda name: error if name in broken else None)
    children = {id: start() for id in ("bad", "good", "later")}
    with closing(Exits(noted)) as exits:
        for id, child in children.items():
            watch(exits, added(store, id, child.pid))
        children["bad"].kill()
        children["good"].kill()
        until(lambda: noted.last("good") == 137)
        until(lambda: noted.calls.count(["bad"]) >= 2)
        children["later"].kill()
        until(lambda: noted.last("later") == 137)
        assert "bad" not in noted.statuses
        broken.clear()
        until(lambda: noted.last("bad") == 137)
    assert {id: [137] for id in children} == noted.statuses
    assert 1 == caplog.text.count("trying again")
    last = max(n for n, call in enumerate(noted.calls) if call == ["good"] or "good" in call)
    assert all("good" not in call for call in noted.calls[last + 1 :])


def test_ends_that_come_together_are_noted_in_one_call(store: Store, start: Start) -> None:
    """And each alone, once, when that call raises."""
    gate = threading.Event()
    calls: list[list[str]] = []

    def note(ended: Sequence[Exit]) -> None:
        calls.append(sorted(found.id for found, _ in ended))
        gate.wait(60)
        if "b" in calls[-1]:
            raise RuntimeError

    children = {id: start() for id in "abc"}
    first = start()
    with closing(Exits(note)) as exits:
        watch(exits, added(store, "first", first.pid))
        processes = [watch(exits, added(store, id, child.pid)) for id, child in children.items()]
        first.kill()
        until(lambda: calls)
        for child in children.values():
            child.kill()
        for process in processes:
            assert process.wait(60)
        gate.set()
        until(lambda: calls.count(["b"]) == 2)
    assert ["first"] == calls[0]
    assert ["a", "b", "c"] == calls[1]
    assert [["a"], ["b"], ["b"], ["c"]] == sorted(calls[2:])


def test_a_damaged_status_is_retried_without_holding_up_the_others(
    store: Store, path: str, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Once it is mended it is noted; the log is not flooded meanwhile."""
    attempts: list[str] = []

    def note(ended: Sequence[Exit]) -> None:
        with store.transaction():
            for found, code in ended:
                attempts.append(found.id)
                found.status.update(
                    lambda old, code=code: replace(  # type: ignore[misc]
                        old, state=State.NOTREADY, pid=0, exit_status=code
                    )
                )

    children = {id: start() for id in "ab"}
    handles = {id: added(store, id, child.pid) for id, child in children.items()}
    with closing(Exits(note)) as exits:
        for handle in handles.values():
            watch(exits, handle)
        tamper(path, "UPDATE sandbox_statuses SET state = 'ODD' WHERE sandbox_id = 'a'")
        children["a"].kill()
        until(lambda: "a" in attempts)
        children["b"].kill()
        until(lambda: handles["b"].status.get().state is State.NOTREADY)
        until(lambda: attempts.count("a") >= 3)
        tamper(path, "UPDATE sandbox_statuses SET state = 'SANDBOX_READY' WHERE sandbox_id = 'a'")
        until(lambda: handles["a"].status.get().state is State.NOTREADY)
    assert [137, 137] == [handle.status.get().exit_status for handle in handles.values()]
    assert 1 == attempts.count("b")
    assert 1 == caplog.text.count("trying again")


def test_failures_are_tried_again_after_a_second_and_not_before(store: Store, start: Start) -> None:
    """Measured by the clock of the watcher: no attempt is nearer to the one before it."""
    times: list[float] = []

    def note(ended: Sequence[Exit]) -> None:
        times.append(time.monotonic())
        raise RuntimeError

    child = start("exit 0")
    child.wait()
    spare = start()
    with closing(Exits(note)) as exits:
        watch(exits, added(store, "a", spare.pid))
        spare.kill()
        until(lambda: len(times) == 4)
    assert min(after - before for before, after in itertools.pairwise(times)) >= 0.99


def test_the_end_of_a_sandbox_of_a_closed_store_is_dropped(
    store: Store, start: Start, tmp_path: object, caplog: pytest.LogCaptureFixture
) -> None:
    """It can never be noted; the ends of another store's sandboxes are."""

    def note(ended: Sequence[Exit]) -> None:
        calls.append([found.id for found, _ in ended])
        for found, _ in ended:
            found.status.update(lambda old: replace(old, state=State.NOTREADY, pid=0))

    calls: list[list[str]] = []
    with Store.open(f"{tmp_path}/other.db") as other, closing(Exits(note)) as exits:
        first, second = start(), start()
        closed = watch(exits, added(other, "a", first.pid))
        handle = added(store, "b", second.pid)
        watch(exits, handle)
        other.close()
        first.kill()
        until(lambda: "the end is not noted" in caplog.text)
        second.kill()
        until(lambda: handle.status.get().state is State.NOTREADY)
        assert 1 == calls.count(["a"])
        with pytest.raises(FailedPreconditionError):
            closed.fileno()


def test_an_end_is_not_dropped_since_another_store_is_closed(
    store: Store, start: Start, tmp_path: Path
) -> None:
    """*note* may use other stores; the sandbox belongs to its own."""
    other = Store.open(f"{tmp_path}/other.db")
    other.close()
    refused = threading.Event()

    def note(ended: Sequence[Exit]) -> None:
        if not refused.is_set():
            refused.set()
            other.list()
        for found, _ in ended:
            found.status.update(lambda old: replace(old, state=State.NOTREADY, pid=0))

    child = start()
    with closing(Exits(note)) as exits:
        handle = added(store, "a", child.pid)
        watch(exits, handle)
        child.kill()
        assert refused.wait(60)
        until(lambda: handle.status.get().state is State.NOTREADY)


# Work to be tried again.


def test_no_retry_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    """Handed over by many threads while the list is worked off; each is done once it succeeds."""
    caplog.set_level(logging.CRITICAL, "registry")
    done: list[int] = []
    failed: set[int] = set()

    def work(n: int) -> None:
        if n % 3 == 0 and n not in failed:
            failed.add(n)
            raise RuntimeError
        done.append(n)

    with closing(Exits(lambda _: None)) as exits:

        def hand_over(worker: int) -> None:
            for n in range(250):
                exits.retry(lambda n=worker * 250 + n: work(n))  # type: ignore[misc]

        workers = [threading.Thread(target=hand_over, args=(n,)) for n in range(8)]
        for each in workers:
            each.start()
        for each in workers:
            each.join()
        until(lambda: len(done) == 2000)
    assert sorted(done) == list(range(2000))


# Closing.


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
