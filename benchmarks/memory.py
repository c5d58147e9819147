"""What a sandbox that is kept in memory takes."""

from __future__ import annotations

import gc
import multiprocessing
import os

from benchmarks import samples
from benchmarks.measure import Figure, of_rounds
from registry import Store


def measure(path: str, count: int, goal: str) -> Figure:
    """Return the resident bytes of one, beside those of its config; *path* has *count*."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        grown = pool.apply(_grow, (path,))
    config = len(samples.config(count // 2).SerializeToString())
    work = "memory of a cached sandbox / its protobuf bytes"
    return of_rounds(work, [grown / count], [float(config)], "bytes", goal=goal)


def _grow(path: str) -> int:
    """Return by how many bytes a process grows that lists them all, and drops the handles."""
    with Store.open(path, reconcile=False) as store:
        store.get(samples.name(0))
        gc.collect()
        before = _resident()
        store.list()
        gc.collect()
        return _resident() - before


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
