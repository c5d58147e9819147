"""Exits tells every end, and takes no exit status from the parent of a process."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from registry import (
    Exit,
    Exits,
    FailedPreconditionError,
    InvalidArgumentError,
    State,
    Store,
)
from tests.integration.exits import Noted, Start, added, watch
from tests.tools import line, run, running, say, tamper, until


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


def test_watch_all_watches_every_process_or_none(store: Store, start: Start) -> None:
    """One that is refused, or a closed watcher, leaves all of them to the caller."""
    noted = Noted()
    children = {id: start() for id in "abc"}
    with closing(Exits(noted)) as exits:
        processes = [
            (found, found.open_process())
            for found in (added(store, id, child.pid) for id, child in children.items())
        ]
        pairs = [(found, process) for found, process in processes if process is not None]
        with pytest.raises(InvalidArgumentError) as caught:
            exits.watch_all([*pairs, (pairs[0][0], None)])  # type: ignore[list-item]
        assert "process" == caught.value.field
        exits.watch_all([])
        for child in children.values():
            child.kill()
            child.wait()
        assert all(process.wait(60) for _, process in pairs)
        assert {} == noted.statuses
        exits.watch_all(pairs)
        until(lambda: noted.statuses.keys() == set("abc"))
    with pytest.raises(FailedPreconditionError):
        exits.watch_all([])


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
