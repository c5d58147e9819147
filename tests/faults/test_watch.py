"""Watchers beside writers, all of them killed at random: each transition is seen once, in order."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from registry import Store
from tests.faults.watchers import KINDS, line_of
from tests.tools import LONG, line, running, say, until

WRITERS = 8
WATCHERS = [kind for kind in KINDS if kind != "write"]
SECONDS = 60.0 if LONG else 0.0
"""Time for which processes are killed at least; the short form is bounded by the counts alone."""
KILLS = 24
"""Processes that are killed at least."""
SEEN = 1000
"""Transitions at least."""
SERVER = "from tests.faults.watchers import main; main()"


def number(text: str) -> int:
    """Return the seq at the beginning of a line of a log."""
    return int(text.split(maxsplit=1)[0])


class Living:
    """The processes, each with what it does."""

    def __init__(self, server: subprocess.Popen[str], path: str, folder: Path) -> None:
        self._server, self._path, self._folder = server, path, folder
        self._pids: dict[str, int] = {}
        self.killed = 0

    def start(self, name: str) -> None:
        """Start the process *name*, which begins with its kind."""
        say(self._server, f"{name.split(':', maxsplit=1)[0]} {self._path} {self._folder / name}")
        self._pids[name] = int(line(self._server))

    def kill(self, name: str) -> None:
        """Kill the process, and wait until it is gone."""
        pid = self._pids.pop(name)
        os.kill(pid, signal.SIGKILL)  # raises if it has ended by itself
        until(lambda: not os.path.exists(f"/proc/{pid}"))
        self.killed += 1

    def log(self, name: str) -> list[str]:
        """Return the lines that a watcher has written."""
        log = self._folder / name
        return log.read_text("ascii").splitlines(keepends=True) if log.exists() else []


def test_watchers_that_are_killed_see_every_transition_once(
    path: str, tmp_path: Path, tried: Callable[[str], None]
) -> None:
    """In a thread, beside a writer of the same process, read-only, and in a task of asyncio."""
    seed = int(os.environ.get("KILL_SEED", str(time.time_ns())))
    chance = random.Random(seed)
    writers = [f"write:{n}" for n in range(WRITERS)]
    watchers = [f"{kind}:log" for kind in WATCHERS]
    Store.open(path).close()
    with running(SERVER) as server:
        living = Living(server, path, tmp_path)
        for name in (*writers, *watchers):
            living.start(name)
        end = time.monotonic() + SECONDS
        shortest = 0
        while time.monotonic() < end or living.killed < KILLS or shortest < SEEN:
            until(lambda: min(len(living.log(each)) for each in watchers) > shortest)  # noqa: B023
            shortest = min(len(living.log(each)) for each in watchers)
            name = chance.choice((chance.choice(writers), chance.choice(watchers)))
            living.kill(name)
            living.start(name)
        beside = "watch_beside_a_write:log"
        for name in (*writers, beside):
            living.kill(name)
        with Store.open(path, reconcile=False) as store:
            history = [line_of(each) for each in store.history()]
            assert [] == store.check()
        newest = number(history[-1])
        others = [each for each in watchers if each != beside]
        until(lambda: all(len(living.log(each)) >= newest for each in others))
        for name in others:
            living.kill(name)
        for name in others:
            seen = living.log(name)
            assert list(range(1, newest + 1)) == [*map(number, seen)], f"{name} KILL_SEED={seed}"
            assert history == seen[-len(history) :], f"{name} KILL_SEED={seed}"
        assert seen[: len(living.log(beside))] == living.log(beside), f"KILL_SEED={seed}"
    tried(
        f"watch: {WRITERS} writers and {len(watchers)} watchers, {living.killed} killed, "
        f"{newest} transitions, each seen once and in order (KILL_SEED={seed})"
    )
