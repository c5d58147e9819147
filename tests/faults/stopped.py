"""Workload that is stopped at one of its system calls, and the calls of others meanwhile.

It runs as a server, which forks a child for each run, so that hundreds of runs need one import.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from registry import Metadata, State, Status, Store
from registry.engine import driver, wal
from tests.faults.workload import say
from tests.tools import pod

TIMEOUT: Final = 0.1
"""Seconds that each call of another process may wait."""
HANGING: Final = 60
"""Seconds after which the calls hang, and their process is ended by SIGALRM."""


def metadata(id: str, size: int = 0) -> Metadata:
    """Return metadata of *size* bytes and some more."""
    return Metadata(id, f"name-{id}", pod(id, filler="x" * size))


def small_bounds() -> None:
    """Let few commits suffice for a checkpoint, a restart of the WAL and a preallocation."""
    vars(driver).update(WAL_PAGES=8, WAL_MAX=20 * 4096)
    vars(wal).update(AHEAD=6 * 4120)


def work(path: str) -> None:
    """Create a registry, write, let checkpoints and a preallocation happen, close, and open it."""
    for _ in range(2):
        with Store.open(path) as store:
            handle = store.add(metadata("a"), Status(State.READY))
            for n in range(3):
                handle.status.update(lambda old, n=n: replace(old, message=str(n)))  # type: ignore[misc]
            store.add(metadata("b", 12_000), Status(State.READY))
            store.add(metadata("c", 30_000), Status(State.READY))
            store.get("a").status.get()
            for id in "abc":
                store.delete(id)


def probe(path: str) -> dict[str, list[str]]:
    """Return "done", or the class, holder and message of the error, for a read and for a write."""

    def read() -> None:
        with Store.open(path, read_only=True, timeout=TIMEOUT) as store:
            store.list()

    def write() -> None:
        with Store.open(path, reconcile=False, timeout=TIMEOUT) as store:
            store.add(metadata("probe"), Status(State.READY))
            store.delete("probe")

    signal.alarm(HANGING)
    return {"read": _outcome(read), "write": _outcome(write)}


def _outcome(do: Callable[[], object]) -> list[str]:
    try:
        do()
    except Exception as error:  # the test shows it
        return [type(error).__name__, getattr(error, "holder", ""), str(error)]
    return ["done"]


def check(path: str) -> dict[str, list[str]]:
    """Return every violation of the registry at *path*."""
    with Store.open(path, reconcile=False) as store:
        return {"check": [str(each) for each in store.check()]}


def serve(folder: str) -> None:
    """Fork a child for each line `VERB PATH`, and say what it finds, and how it ended.

    A child that is to `work` stops first, so that strace can attach to it, and begins at SIGCONT.
    """
    with Store.open(f"{folder}/first.db") as store:  # imports and caches what the first use does
        store.check()
    small_bounds()
    while line := sys.stdin.readline():
        verb, path = line.split()
        child = os.fork()
        if child == 0:
            if verb == "work":
                os.kill(os.getpid(), signal.SIGSTOP)
                say(str(_outcome(partial(work, path))))
            else:
                say(json.dumps(probe(path) if verb == "probe" else check(path)))
            os._exit(0)
        if verb == "work":
            os.waitpid(child, os.WUNTRACED)
            say(f"pid {child}")
        _, status = os.waitpid(child, 0)
        say(f"ended {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    serve(sys.argv[1])
