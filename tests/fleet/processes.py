"""Processes of the tests: writers of a registry, and pushers that are killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.tools import environment, running

WRITER = """
    import random, sqlite3, sys, time
    path, rest = sys.argv[1], float(sys.argv[2])
    db = sqlite3.connect(path, isolation_level=None, timeout=60)
    states = ("SANDBOX_NOTREADY", "SANDBOX_READY")
    added = "INSERT INTO sandboxes (id, name, pod, namespace) VALUES (?, ?, ?, 'load')"
    number, live, total = 0, [], 0
    print("writing")
    while True:
        db.execute("BEGIN IMMEDIATE")
        for _ in range(random.randrange(1, 40)):
            kind = random.randrange(4)
            if kind == 0 or not live:
                id, number = f"w{number}", number + 1
                db.execute(added, (id, id, id))
                db.execute("INSERT INTO sandbox_statuses (sandbox_id, state) VALUES (?, ?)",
                           (id, states[number % 2]))
                live.append(id)
            elif kind == 1 and len(live) > 300:
                id = live.pop(random.randrange(len(live)))
                db.execute("DELETE FROM sandboxes WHERE id = ?", (id,))
            else:
                id = random.choice(live)
                db.execute(
                    "UPDATE sandbox_statuses SET reason = 'Load', message = ?, state ="
                    " iif(state = ?, ?, ?) WHERE sandbox_id = ?",
                    (str(random.random()), *states, states[0], id))
        total += 20
        db.execute("COMMIT")
        # The registry keeps 100,000 transitions: a slow machine must not make a gap.
        time.sleep(rest if total < 50_000 else 1)
    """

FORKED = """
    import os, random, signal, sys, time
    from registry.fleet import follow, postgres
    from registry.fleet.push import Pusher
    from registry.fleet.source import Source

    follow.REST = 0  # so that nearly each kill meets a batch
    path, url, kills = sys.argv[1], sys.argv[2], int(sys.argv[3])
    for number in range(kills):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            to = postgres.target(url)
            pusher = Pusher(Source(path), to, node="node-1", machine_id="m1", every=30)
            follow.follow(pusher, lambda _: os.write(write, b"."))
            os._exit(1)
        os.close(write)
        for _ in range(number % 4):  # batches, so that each process but the first of four pushes
            assert os.read(read, 1) == b".", "it has ended by itself"
        time.sleep(random.uniform(0, 0.02))
        os.close(read)
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    print("killed", kills)
    """

DYING = """
    import glob, os, shutil, signal, sys
    import psycopg
    from registry import Store
    from registry.fleet import follow, lease, lines, postgres, push
    from registry.fleet.push import Pusher
    from registry.fleet.source import Source
    from tests.fleet.compare import assert_equal
    from tests.tools import READY, execute, fill, sandbox

    path, url, scenario, step = *sys.argv[1:4], int(sys.argv[4])
    push.BATCH = 40
    MODULES = {"restored": (lines, push), "replaced": (lease,)}
    FILES = {each.__file__ for each in MODULES[scenario]}

    def news():
        execute(path, fill(50), "DELETE FROM sandboxes WHERE id IN (SELECT min(id) FROM sandboxes)")
        with Store.open(path, reconcile=False) as store:
            store.add(sandbox(os.urandom(8).hex()), READY)

    def remove():
        for each in glob.glob(path + "*"):
            if not each.endswith(".raw"):
                os.unlink(each)

    def restored():
        news()
        remove()
        shutil.copy(path + ".raw", path)
        news()

    def replaced():
        remove()
        with Store.open(path, reconcile=False) as store:
            store.add(sandbox("a"), READY)
        news()
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            connection.execute("UPDATE fleet_registries SET seen_at = seen_at - interval '1 day'")

    def die_at(number):
        seen = set()

        def trace(frame, event, argument):
            if frame.f_code.co_filename not in FILES:
                return None
            seen.add((frame.f_code.co_filename, frame.f_lineno))
            if len(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)

    class Database:
        def query(self, sql):
            with psycopg.connect(url.replace("+psycopg", "")) as connection:
                return connection.execute(sql).fetchall()

    def push_it(number):
        pid = os.fork()
        if pid == 0:
            pusher = Pusher(Source(path), postgres.target(url), node="node-1", machine_id="m1")
            if number:
                die_at(number)
            follow.catch_up(pusher)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    for number in range(1, 1000, step):
        {"restored": restored, "replaced": replaced}[scenario]()
        status = push_it(number)
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        assert push_it(0) == 0
        assert_equal(Database(), path)
    print("killed", number - 1)
    """


@contextmanager
def writing(path: str, rest: float = 0.002) -> Iterator[None]:
    """Write to the registry at *path* during the block, resting *rest* seconds after a commit."""
    with running(WRITER, path, rest) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        assert process.poll() is None, process.stderr and process.stderr.read()


@contextmanager
def program(*args: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Run `sandbox-registry fleet` with *args* during the block, and kill it at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "registry", "fleet", *args],
        env={**environment(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
