"""Writers that update statuses at the same time: throughput and longest wait.

Each thread of each process updates a sandbox of its own, with a `Store` or with a plain connection.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from statistics import median

from benchmarks.orm import Orm
from benchmarks.plain import Plain
from benchmarks.samples import name
from registry import Store


@dataclass(frozen=True)
class Served:
    """Result of a run: throughput, slowest call, least-served writer."""

    throughput: float
    """Updates per second of all writers."""
    slowest: float
    """Slowest call of a writer (ms), median over the writers: a percentile of all calls would hide
    starved writers."""
    least: int
    """Updates of the least-served writer."""


@dataclass(frozen=True)
class Job:
    """Work of each process; *kind* is `ours`, `plain` or `orm`."""

    kind: str
    path: str
    threads: int
    seconds: float


def run(job: Job, processes: int) -> Served:
    """Run *job* in *processes* processes at the same time."""
    context = multiprocessing.get_context("spawn")
    pipes, children = [], []
    for process in range(processes):
        ours, theirs = context.Pipe()
        child = context.Process(target=_child, args=(theirs, job, process))
        child.start()
        pipes.append(ours)
        children.append(child)
    for pipe in pipes:
        pipe.recv()  # the process is ready
    for pipe in pipes:
        pipe.send("go")
    calls = [times for pipe in pipes for times in pipe.recv()]
    for child in children:
        child.join()
    return Served(
        throughput=sum(map(len, calls)) / job.seconds,
        slowest=1000 * median(max(times) if times else job.seconds for times in calls),
        least=min(map(len, calls)),
    )


def _child(pipe: Connection, job: Job, process: int) -> None:
    ours, threads = job.kind == "ours", job.threads
    store = Store.open(job.path, reconcile=False, timeout=60) if ours else None
    calls: list[list[float]] = [[] for _ in range(threads)]
    start = threading.Barrier(threads + 1)

    def write(thread: int) -> None:
        update, close = _updater(store, job, name(process * threads + thread))
        start.wait()
        end = time.perf_counter() + job.seconds
        count = 0
        while (begun := time.perf_counter()) < end:
            update(str(count))
            count += 1
            calls[thread].append(time.perf_counter() - begun)
        close()

    workers = [threading.Thread(target=write, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    pipe.send("ready")
    pipe.recv()
    start.wait()
    for worker in workers:
        worker.join()
    if store is not None:
        store.close()
    pipe.send(calls)


def _updater(
    store: Store | None, job: Job, id: str
) -> tuple[Callable[[str], object], Callable[[], None]]:
    """Return a function that updates a sandbox's message, and one that closes the connection."""
    if store is None:
        other = Plain(job.path) if job.kind == "plain" else Orm(job.path)
        return lambda message: other.update(id, message), other.close
    status = store.get(id).status
    return lambda message: status.update(lambda old: replace(old, message=message)), lambda: None
