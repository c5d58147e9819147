"""Reads beside writes, and sandboxes whose network namespace does not exist.

The rows compare two ways to use one registry, except where plain `sqlite3` does the same work.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

from benchmarks import plain, samples
from benchmarks.measure import Call, Figure, of_rounds, single, took
from registry import Metadata, Status, Store
from registry.aio import AsyncStore

THREADS = 16
TASKS = 100
ABSENT = "/run/netns/absent-{}"
"""Path at which no network namespace exists."""
WARM = 1200
"""Commits before the first round: a WAL that still grows costs twice one that is written over."""

Update = Callable[[int], object]
"""Updates the sandbox of one thread; called with the number of the call."""


def absent(n: int) -> tuple[Metadata, Status]:
    """Return the *n*-th sandbox, with the path of a namespace that does not exist."""
    return samples.sandbox(n, netns_path=ABSENT.format(n))


def measure(folder: str, rounds: int, seconds: float) -> Iterator[Figure]:
    """Yield all rows.

    Args:
        folder: for the databases.
        rounds: how many there are of each row.
        seconds: length of a round of threads that write.
    """
    paths = [f"{folder}/mixed-{kind}.db" for kind in ("without", "absent", "plain")]
    samples.fill(paths[0], 64)
    with Store.open(paths[1], reconcile=False) as store, store.transaction():
        for n in range(64):
            store.add(*absent(n))
    plain.create(paths[2])
    with closing(plain.Plain(paths[2])) as reference:
        reference.add(*(samples.sandbox(n) for n in range(64)))
    yield from _throughputs(paths[0], paths[1], rounds, seconds)
    yield _tasks(paths[0], rounds, seconds)
    yield _get_after_commit(paths[0], paths[2], rounds)
    yield _add(paths[1], paths[2], rounds)


def _throughputs(without: str, absent: str, rounds: int, seconds: float) -> Iterator[Figure]:
    """Yield the rows of updates in 16 threads, each of a sandbox of its own."""
    with (
        Store.open(without, reconcile=False) as one,
        Store.open(absent, reconcile=False) as other,
    ):
        kept, found = _by_kept_handles, _by_get
        ways = {
            "kept": [kept(one, n) for n in range(THREADS)],
            "get": [found(one, n) for n in range(THREADS)],
            "absent": [kept(other, n) for n in range(THREADS)],
            "both": [found(other, n) for n in range(THREADS)],
        }
        for updates in ways.values():
            _throughput(updates, seconds)
        results: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, updates in ways.items():
                results[way].append(_throughput(updates, seconds))
    for work, way, goal in (
        ("get + update / update by kept handles", "get", "at least 0.8"),
        ("update, absent netns path / without", "absent", "at least 0.9"),
        ("get + update, absent / kept, without", "both", "at least 0.7"),
    ):
        name = f"{work}, {THREADS} threads"
        yield of_rounds(name, results[way], results["kept"], "/s", goal=goal)


def _by_kept_handles(store: Store, n: int) -> Update:
    status = store.get(samples.name(n)).status
    return lambda call: status.update(lambda old: replace(old, message=str(call)))


def _by_get(store: Store, n: int) -> Update:
    id = samples.name(n)
    return lambda call: store.get(id).status.update(lambda old: replace(old, message=str(call)))


def _throughput(updates: Sequence[Update], seconds: float) -> float:
    """Return how many calls a second all *updates* make, each in a thread of its own."""
    calls, start = [0] * len(updates), threading.Barrier(len(updates))

    def run(n: int) -> None:
        start.wait()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            updates[n](calls[n])
            calls[n] += 1

    workers = [threading.Thread(target=run, args=(n,)) for n in range(len(updates))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(calls) / seconds


def _tasks(path: str, rounds: int, seconds: float) -> Figure:
    """Return the row of updates in the tasks of one loop, beside updates in threads."""
    results: dict[str, list[float]] = {"tasks": [], "threads": []}
    for turn in range(rounds + 1):  # the first one warms up
        tasks = asyncio.run(_throughput_of_tasks(path, seconds))
        with Store.open(path, reconcile=False) as store:
            updates = [_by_kept_handles(store, n) for n in range(THREADS)]
            threads = _throughput(updates, seconds)
        if turn:
            results["tasks"].append(tasks)
            results["threads"].append(threads)
    name = f"AsyncStore.update in {TASKS} tasks / Store, {THREADS} threads"
    return of_rounds(name, results["tasks"], results["threads"], "/s", goal="at least 1")


def _with_message(message: str, old: Status) -> Status:
    return replace(old, message=message)


async def _throughput_of_tasks(path: str, seconds: float) -> float:
    """Return how many updates a second TASKS tasks make."""
    calls = [0] * TASKS
    async with await AsyncStore.open(path, reconcile=False) as store:
        handles = [await store.get(samples.name(n % 64)) for n in range(TASKS)]
        end = time.perf_counter() + seconds

        async def run(n: int) -> None:
            while time.perf_counter() < end:
                change = partial(_with_message, str(calls[n]))
                await handles[n].status.update(change)
                calls[n] += 1

        await asyncio.gather(*(run(n) for n in range(TASKS)))
    return sum(calls) / seconds


def _get_after_commit(ours: str, theirs: str, rounds: int) -> Figure:
    """Return the row of reads, each after a commit to another sandbox that is not timed."""
    with Store.open(ours, reconcile=False) as store, closing(plain.Plain(theirs)) as reference:
        ids = [samples.name(n) for n in range(16)]
        written = store.get(samples.name(63)).status
        for id in ids:
            store.get(id)

        def commit(n: int) -> None:
            written.update(lambda old: replace(old, message=str(n)))
            reference.update(samples.name(63), str(n))

        mine, others = [], []
        for turn in range(rounds):
            pairs = []
            for n in range(100):
                commit(turn * 100 + n)
                id = ids[n % len(ids)]
                pairs.append((took(partial(store.get, id)), took(partial(reference.get, id))))
            one, other = zip(*pairs, strict=True)
            mine.append(sorted(one)[len(one) // 2])
            others.append(sorted(other)[len(other) // 2])
    name = "get(id) after a commit of ours to another"
    return of_rounds(name, mine, others, "ms", goal="at most 1")


def _add(ours: str, theirs: str, rounds: int) -> Figure:
    """Return the row of additions with labels and the path of a namespace that does not exist."""
    with Store.open(ours, reconcile=False) as store, closing(plain.Plain(theirs)) as reference:
        add: Call = lambda n: store.add(*absent(1000 + n))  # noqa: E731
        other: Call = lambda n: reference.add(absent(1000 + n))  # noqa: E731
        name = "add, 6 labels, absent netns path"
        return single(name, add, other, "at most 2", rounds=rounds, calls=100, warm=WARM // 10)


def main() -> None:
    """Print the rows alone."""
    folder = f"{os.path.abspath('.')}/bench-mixed"
    os.makedirs(folder, exist_ok=True)
    try:
        for figure in measure(folder, 5, 1.0):
            print(figure, flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
