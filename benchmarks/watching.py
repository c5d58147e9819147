"""Watches of the history: their latency, and the CPU time that one costs while nothing happens."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from statistics import median

from benchmarks.measure import Figure
from benchmarks.samples import name
from registry import Sandbox, State, Status, Store
from registry.handles.watch import Watch

SETTLED = 2.0
"""Seconds after a commit until its poller waits for the next event."""
IDLE = 10.0
"""Seconds of wall time for which the CPU time of an idle watch is counted."""
PAUSE = 0.02
"""Seconds between two commits, so that each of them wakes the watch."""
OTHER = {State.READY: State.NOTREADY, State.NOTREADY: State.READY}


def measure(path: str, commits: int) -> Iterator[Figure]:
    """Yield the figures of watches of the registry at *path*, each latency of *commits* commits."""
    with Store.open(path, reconcile=False) as store:
        watch = store.watch()
        between = list(_between_processes(path, watch, commits))
        yield _figure("watch: commit of another process, median", median(between), "at most 20")
        yield _figure("watch: commit of another process, slowest", max(between), "at most 100")
        within = _within_a_process(store.get(name(0)), watch, commits)
        yield _figure("watch: commit of the same process, median", median(within), "at most 2")
        yield _figure("watch: commit of the same process, slowest", max(within), "")
        yield Figure("watch: CPU while idle for 10 s", _idle(watch), None, "%", (), "below 0.1")


def _figure(work: str, milliseconds: float, goal: str) -> Figure:
    return Figure(work, milliseconds, None, "ms", (), goal)


def _flip(old: Status) -> Status:
    return replace(old, state=OTHER[old.state])


def _between_processes(path: str, watch: Watch, commits: int) -> Iterator[float]:
    """Yield the milliseconds from the return of a write in another process to that of `next`.

    A watch that returned first took none.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_write, args=(theirs, path))
    child.start()
    ours.recv()
    for _ in range(commits):
        ours.send("go")
        next(watch)
        seen = time.monotonic()
        yield max(0.0, seen - ours.recv()) * 1000
    ours.send("")
    child.join()


def _write(pipe: Connection, path: str) -> None:
    with Store.open(path, reconcile=False) as store:
        handle = store.get(name(0))
        pipe.send("ready")
        while pipe.recv():
            time.sleep(PAUSE)  # the watch waits
            handle.status.update(_flip)
            pipe.send(time.monotonic())


def _within_a_process(handle: Sandbox, watch: Watch, commits: int) -> list[float]:
    """Return the milliseconds from the return of each write to that of `next` in a thread.

    A watch that returned first took none.
    """
    seen, returned = list[float](), list[float]()

    def follow() -> None:
        while len(seen) < commits:
            next(watch)
            seen.append(time.monotonic())

    thread = threading.Thread(target=follow)
    thread.start()
    for _ in range(commits):
        time.sleep(PAUSE)
        handle.status.update(_flip)
        returned.append(time.monotonic())
    thread.join()
    return [max(0.0, a - b) * 1000 for a, b in zip(seen, returned, strict=True)]


def _idle(watch: Watch) -> float:
    """Return the percentage of a CPU that a thread takes while it waits."""
    thread = threading.Thread(target=list, args=[watch])
    thread.start()
    time.sleep(SETTLED)
    before = time.process_time()
    time.sleep(IDLE)
    spent = time.process_time() - before
    watch.close()
    thread.join()
    return 100 * spent / IDLE
