"""A process that is killed at any moment leaves every acknowledged write, and none half there.

This proves nothing of power loss: what a killed process wrote is in the kernel. For that see
`test_the_writer_syncs_each_commit`.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from registry import State, Store
from tests.tools import environment, line, python, running, say

pytestmark = pytest.mark.crash

# Forks a writer for each line that it reads, so that 200 of them cost no 200 imports. In each round
# a writer makes one transaction of every kind, and says after each that it returned.
WRITERS = """
    import os, sys
    from dataclasses import replace
    from registry import Metadata, State, Status, Store
    from registry.cri import PodSandboxConfig

    def say(text):
        os.write(1, (text + "\\n").encode())

    def write(path, n, end):
        store = Store.open(path)
        config = PodSandboxConfig(labels={"round": "x" * 200})
        say("up")
        while n < end:
            id, twin = f"s{n}", f"t{n}"
            say(f"begin {n}")
            with store.transaction():
                store.add(Metadata(id, f"{id}-name", config), Status(State.UNKNOWN))
                store.add(Metadata(twin, f"{twin}-name", config), Status(State.UNKNOWN))
            say(f"added {n}")
            store.update_metadata(id, lambda old: replace(old, ip="10.0.0.1"))
            say(f"completed {n}")
            handle = store.get(id, include_unknown=True)
            handle.status.update(lambda old: replace(old, state=State.READY, message=str(n)))
            say(f"ready {n}")
            store.delete(twin)
            say(f"deleted {n}")
            n += 1
        store.close()

    write(sys.argv[1], 1, 2)  # what is done at first use need not be done in each writer anew
    while line := sys.stdin.readline():
        path, first = line.split()
        writer = os.fork()
        if writer == 0:
            write(path, int(first), float("inf"))
        say(f"pid {writer}")
        os.waitpid(writer, 0)
        say("reaped")
    """
STEPS = ["begin", "added", "completed", "ready", "deleted"]


def state_of(store: Store, n: int) -> int:
    """Return how many steps of round *n* are in the file; fails when one is half there."""
    found = {each.id: each for each in store.list(include_unknown=True)}
    one, twin = found.get(f"s{n}"), found.get(f"t{n}")
    if one is None:
        assert twin is None
        return 0
    status = one.status.get()
    done = [
        one is not None,
        one.ip == "10.0.0.1",
        status.message == str(n),
        twin is None,
    ]
    assert sorted(done, reverse=True) == done
    assert (status.state is State.READY) == done[2]
    return sum(done)


def kill_one(writers: subprocess.Popen[str], path: str, first: int, delay: float) -> int:
    """Let a writer write for *delay* seconds, kill it, and return its last round."""
    say(writers, f"{path} {first}")
    begun = sorted([line(writers), line(writers)])
    assert "up" == begun[1]
    time.sleep(delay)
    os.kill(int(begun[0].removeprefix("pid ")), signal.SIGKILL)
    said = list(iter(lambda: line(writers), "reaped"))
    step, n = said[-1].split() if said else ("begin", str(first))
    with Store.open(path, reconcile=False) as store:
        # What was acknowledged is there; the one step under way may be, whole.
        assert STEPS.index(step) <= state_of(store, int(n)) <= STEPS.index(step) + 1
        for earlier in range(first, int(n)):
            assert 4 == state_of(store, earlier)
        assert [] == store.check()
        with store.transaction():
            for each in store.list(include_unknown=True):
                each.delete()
    return int(n)


def test_killed_200_times_at_random_moments_nothing_acknowledged_is_lost(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Nor is anything half there, and `check` finds nothing; each time in the same file."""
    seed = int(os.environ.get("KILL_SEED", str(time.time_ns())))
    record_property("KILL_SEED", seed)
    moments = random.Random(seed)
    n = 0
    with running(WRITERS, tmp_path / "first.db") as writers:
        assert ["up", "begin 1"] == [line(writers), line(writers)]
        assert STEPS[1:] == [line(writers).split()[0] for _ in STEPS[1:]]
        for _ in range(200):
            n = kill_one(writers, f"{tmp_path}/registry.db", n + 1, moments.uniform(0, 0.02))
    # More rounds than kills: the writers did write between them.
    assert n > 210, f"KILL_SEED={seed}"


def test_killed_while_it_creates_the_registry_the_next_open_succeeds(tmp_path: Path) -> None:
    """At moments spread over the whole creation."""
    code = """
        import os, sys
        from registry import Store
        from alembic import command, config
        os.write(1, b"up\\n")
        Store.open(sys.argv[1]).close()
        os.write(1, b"done\\n")
        """
    for n in range(12):
        path = f"{tmp_path}/{n}.db"
        process = subprocess.Popen(python(code, path), env=environment(), stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert b"up\n" == process.stdout.readline()
        time.sleep(n * 0.008)
        process.kill()
        process.communicate()
        with Store.open(path) as store:
            assert [] == store.check()
        with closing(sqlite3.connect(path)) as connection:
            assert (1,) == connection.execute("SELECT count(*) FROM registry").fetchone()
