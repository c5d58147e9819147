"""A process that is killed at any moment leaves every acknowledged write, and none half there.

This proves nothing of power loss: what a killed process wrote is in the kernel. For that see
`test_the_writer_syncs_each_commit`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from registry import State, Store
from tests.tools import line, query, running, say

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

    write(sys.argv[1], 1, 2)  # the writers below inherit what the first use does
    while line := sys.stdin.readline():
        path, first = line.split()
        begin = os.pipe()
        writer = os.fork()
        if writer == 0:
            os.read(begin[0], 1)
            write(path, int(first), float("inf"))
        say(f"pid {writer}")
        os.write(begin[1], b"x")
        for end in begin:
            os.close(end)
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


def kill_one(
    writers: subprocess.Popen[str], path: str, first: int, steps: int, delay: float
) -> int:
    """Kill a writer *delay* seconds after so many *steps*, and return its last round."""
    say(writers, f"{path} {first}")
    writer = int(line(writers).removeprefix("pid "))
    assert "up" == line(writers)
    said = [line(writers) for _ in range(steps)]
    time.sleep(delay)
    os.kill(writer, signal.SIGKILL)
    said += iter(lambda: line(writers), "reaped")
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


def test_a_writer_killed_200_times_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """No transaction is half there, and `check` finds nothing; each time in the same file."""
    seed = int(os.environ.get("KILL_SEED", str(time.time_ns())))
    print(f"KILL_SEED={seed}")  # noqa: T201 - shown if the test fails
    moments = random.Random(seed)
    n = 0
    with running(WRITERS, tmp_path / "first.db") as writers:
        assert ["up", "begin 1"] == [line(writers), line(writers)]
        assert STEPS[1:] == [line(writers).split()[0] for _ in STEPS[1:]]
        for _ in range(200):
            after = moments.randrange(2 * len(STEPS))
            delay = moments.uniform(0, 0.003)
            n = kill_one(writers, f"{tmp_path}/registry.db", n + 1, after, delay)


# Forks a process that creates a registry for each path that it reads.
CREATORS = """
    import os, sys
    from registry import Store
    Store.open(sys.argv[1]).close()  # imports what a creation needs
    for line in sys.stdin:
        begin = os.pipe()
        creator = os.fork()
        if creator == 0:
            os.read(begin[0], 1)
            Store.open(line.strip()).close()
            os.write(1, b"created\\n")
            os._exit(0)
        os.write(1, f"{creator}\\n".encode())
        os.write(begin[1], b"x")
        for end in begin:
            os.close(end)
        sys.stdin.readline()  # until then no other process gets its pid
        os.waitpid(creator, 0)
        os.write(1, b"reaped\\n")
    """


def test_the_next_open_succeeds_after_a_kill_during_creation(tmp_path: Path) -> None:
    """At moments spread over the time that a whole creation takes here."""
    with running(CREATORS, tmp_path / "first.db") as creators:
        began = time.monotonic()
        say(creators, f"{tmp_path}/whole.db")
        assert line(creators).isdigit()
        assert "created" == line(creators)
        whole = time.monotonic() - began
        say(creators)
        assert "reaped" == line(creators)
        for n in range(16):
            path = f"{tmp_path}/{n}.db"
            say(creators, path)
            creator = int(line(creators))
            time.sleep(whole * n / 16)
            os.kill(creator, signal.SIGKILL)
            say(creators)
            while line(creators) != "reaped":
                pass
            with Store.open(path) as store:
                assert [] == store.check()
            assert [(1,)] == query(path, "SELECT count(*) FROM registry")
