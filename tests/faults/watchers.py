"""Processes that write and processes that watch, until they are killed.

Runs as a server: it forks a process for each line `KIND PATH LOG`, and says its pid and its end. A
watcher appends each transition to its log, and resumes after the last one that is there.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from registry import State, Store, Transition
from tests.tools import READY, sandbox


def line_of(transition: Transition) -> str:
    """Return the line that stands for *transition* in a log."""
    return f"{transition.seq} {transition.sandbox_id} {transition.event} {transition.to_state}\n"


class Log:
    """File in which a watcher notes the transitions, across its restarts."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        with open(path, encoding="ascii") as file:
            lines = file.readlines()
        self.last = int(lines[-1].split()[0]) if lines else 0

    def add(self, transition: Transition) -> None:
        """Append a line, in one write."""
        os.write(self._file, line_of(transition).encode())


def write(path: str, _: str) -> None:
    """Add, change and delete sandboxes."""
    store, n, other = Store.open(path, reconcile=False), 0, State.NOTREADY
    while True:
        n += 1
        handle = store.add(sandbox(f"p{os.getpid()}-{n}"), READY)
        handle.status.update(lambda old: replace(old, state=other))
        with store.transaction():
            handle.status.update(lambda old: replace(old, state=State.READY))
            handle.status.update(lambda old: replace(old, state=other))
        handle.delete()


def watch(path: str, log: str) -> None:
    """Watch in a thread."""
    seen = Log(log)
    with Store.open(path, reconcile=False) as store:
        for transition in store.watch(after=seen.last):
            seen.add(transition)


def watch_beside_a_write(path: str, log: str) -> None:
    """Watch in a thread of a process that also writes."""
    threading.Thread(target=write, args=[path, log], daemon=True).start()
    watch(path, log)


def watch_read_only(path: str, log: str) -> None:
    """Watch in a process that only reads."""
    seen = Log(log)
    with Store.open(path, read_only=True) as store:
        for transition in store.watch(after=seen.last):
            seen.add(transition)


def watch_in_a_task(path: str, log: str) -> None:
    """Watch in a task of asyncio."""
    seen = Log(log)

    async def main() -> None:
        with Store.open(path, reconcile=False) as store:
            async for transition in store.watch(after=seen.last):
                seen.add(transition)

    asyncio.run(main())


KINDS: Final[dict[str, Callable[[str, str], None]]] = {
    each.__name__: each
    for each in (write, watch, watch_beside_a_write, watch_read_only, watch_in_a_task)
}


def main() -> None:
    """Fork a process for each line of standard input."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # they are reaped by the kernel
    for text in sys.stdin:
        kind, path, log = text.split()
        child = os.fork()
        if child == 0:
            KINDS[kind](path, log)
        os.write(1, f"{child}\n".encode())


if __name__ == "__main__":
    main()
