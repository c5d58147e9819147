"""Stores that are still open, or opened, when the interpreter exits."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from registry import Store
from registry.engine.process_lock import ProcessLock
from tests import needs
from tests.tools import READY, contents, environment, ids, python, sandbox

OPEN = """
    import atexit, os, sys, threading
    from registry import Store
    from tests.tools import READY, sandbox
    store = Store.open(sys.argv[1], timeout=1000)
    store.add(sandbox("a"), READY)
    """
ENDS = {
    "at the end of the program": "",
    "by sys.exit": "sys.exit(0)",
    "by an exception": "sys.excepthook = lambda *_: None; raise RuntimeError",
    "beside a thread that calls sys.exit": "threading.Thread(target=sys.exit).start()",
    "beside a thread that outlives main": (
        "threading.Thread(target=lambda: (threading.main_thread().join(), store.list())).start()"
    ),
    "in a transaction": "t = store.transaction(); t.__enter__(); store.add(sandbox('b'), READY)",
    "with a second store": "other = Store.open(sys.argv[1] + '.other')",
    "with a store that only reads": "other = Store.open(sys.argv[1], read_only=True)",
}


def end(code: str, path: str, expected: int = 0) -> str:
    """Run *code* in another process, and return what it printed to stderr."""
    done = subprocess.run(
        python(code, path),
        env=environment() | {"PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected == done.returncode, done.stderr
    return done.stderr


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the process lock meanwhile."""
    lock = ProcessLock(path)
    assert lock.acquire(time.monotonic() + 60)
    try:
        yield
    finally:
        lock.release()
        lock.close()


@pytest.mark.parametrize("how", ENDS)
def test_an_open_store_is_closed_at_exit(path: str, how: str) -> None:
    """The WAL is moved into the database, an open transaction is rolled back, and Python warns."""
    failed = "exception" in how  # which keeps the store until no warning can be shown any more
    said = end(f"{OPEN}\n    {ENDS[how]}", path, expected=int(failed))
    assert failed or "ResourceWarning: unclosed Store" in said
    assert "Traceback" not in said
    assert not [name for name in os.listdir(os.path.dirname(path)) if "-wal" in name]
    with Store.open(path) as store:
        assert (["a"], []) == (ids(store.list()), store.check())


@needs.strace
def test_an_open_store_is_closed_at_exit_under_the_process_lock(tmp_path: Path, path: str) -> None:
    """No file is written or removed before the lock is held."""
    calls = "trace=write,flock,unlink,pwrite64"
    strace = ["strace", "-f", "-qq", "-y", "-e", calls, "-o", str(tmp_path / "trace")]
    program = python(f"{OPEN}\n    os.write(2, b'END-OF-PROGRAM')", path)
    subprocess.run(
        [*strace, *program],
        env=environment() | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        check=True,
    )
    after = (tmp_path / "trace").read_text().partition("END-OF-PROGRAM")[2]
    taken = re.search(r"flock\(\d+<[^>]*-lock>, LOCK_EX[^\n]*= 0\n", after)
    touched = re.search(rf"pwrite64\(\d+<{path}>|unlink\(\"[^\"]*-wal\"", after)
    assert taken is not None
    assert touched is not None
    assert taken.start() < touched.start()


@pytest.mark.parametrize("how", ["at the end of the program", "in a transaction"])
def test_an_exit_waits_for_the_lock_briefly_and_changes_nothing_without_it(
    path: str, how: str
) -> None:
    """Another process holds it: the WAL stays, as after a kill. The timeout is 1,000 s."""
    ready = "os.write(1, b'ready'); sys.stdin.readline()"
    command = python(f"{OPEN}\n    {ENDS[how]}\n    {ready}", path)
    process = subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert b"ready" == process.stdout.read(5)
    if how == "in a transaction":  # it has the lock itself, and gives it back first
        process.communicate(b"\n")
    else:
        with locked(path):
            before = contents(os.path.dirname(path))
            process.communicate(b"\n")
            assert before == contents(os.path.dirname(path))
    assert 0 == process.returncode
    with Store.open(path) as store:
        assert (["a"], []) == (ids(store.list()), store.check())


def test_an_exit_does_not_wait_for_a_write_of_a_daemon_thread(path: str) -> None:
    """Its function does not return; nothing of it is stored."""
    code = """
    inside = threading.Event()

    def never(old):
        inside.set()
        threading.Event().wait()

    update = store.get("a").status.update
    threading.Thread(target=update, args=[never], daemon=True).start()
    inside.wait()
    """
    end(OPEN + code, path)
    with Store.open(path) as store:
        assert ([""], []) == ([each.status.get().reason for each in store.list()], store.check())


LATE = {
    "closed, after the import": """
    import registry
    atexit.register(lambda: use(sys.argv[1]).close())
    """,
    "closed, before the import": """
    atexit.register(lambda: use(sys.argv[1]).close())
    """,
    "left open, after the import": """
    import registry
    atexit.register(lambda: stores.append(use(sys.argv[1])))
    """,
    "left open, before the import": """
    atexit.register(lambda: stores.append(use(sys.argv[1])))
    """,
    "closed, in a thread that outlives main": """
    threading.Thread(target=lambda: (outlive(), use(sys.argv[1]).close())).start()
    """,
    "left open, in a thread that outlives main": """
    threading.Thread(target=lambda: (outlive(), stores.append(use(sys.argv[1])))).start()
    """,
}


@pytest.mark.parametrize("made", [False, True], ids=["new", "there"])
@pytest.mark.parametrize("how", LATE)
def test_a_store_may_be_opened_for_the_first_time_at_exit(path: str, how: str, made: bool) -> None:
    """Also where that creates the registry; stderr stays empty."""
    if made:
        Store.open(path).close()
    code = """
    import atexit, sys, threading, warnings
    stores, outlive = [], threading.main_thread().join
    warnings.simplefilter("ignore", ResourceWarning)

    def use(path):
        from registry import Metadata, State, Status, Store
        store = Store.open(path)
        store.add(Metadata("a", "a", None), Status(State.READY))
        return store
    """
    assert "" == end(code + LATE[how], path)
    with Store.open(path) as store:
        assert (["a"], []) == (ids(store.list()), store.check())


def test_an_open_at_exit_reports_another_writer(path: str) -> None:
    """From Python 3.12 on no thread can be started then, which must not be the error."""
    Store.open(path).close()
    code = """
    import atexit, sys
    from registry import Store, UnavailableError

    def late():
        try:
            Store.open(sys.argv[1], timeout=0.1)
        except UnavailableError:
            sys.stderr.write("unavailable")

    atexit.register(late)
    """
    with locked(path):
        assert "unavailable" == end(code, path)


def test_the_exit_of_a_forked_child_closes_nothing_of_its_parent(path: str) -> None:
    """The child's own store is closed; the parent goes on."""
    code = """
    child = os.fork()
    if child == 0:
        own = Store.open(sys.argv[1] + ".own")
        own.add(sandbox("c"), READY)
        sys.exit(0)
    os.waitpid(child, 0)
    assert not os.path.exists(sys.argv[1] + ".own-wal")
    assert os.path.exists(sys.argv[1] + "-wal")
    store.add(sandbox("b"), READY)
    store.close()
    """
    end(OPEN + code, path)
    with Store.open(path) as store:
        assert (["a", "b"], []) == (ids(store.list()), store.check())
    with Store.open(f"{path}.own") as store:
        assert ["c"] == ids(store.list())


def test_a_close_without_the_lock_leaves_the_wal(path: str) -> None:
    """It writes nothing and removes nothing; this process and others may open the registry."""
    store = Store.open(path, timeout=0.1)
    store.add(sandbox("a"), READY)
    with locked(path):
        before = contents(os.path.dirname(path))
        store.close()
        assert before == contents(os.path.dirname(path))
    with Store.open(path) as again:
        again.add(sandbox("b"), READY)
    end("import sys; from registry import Store; Store.open(sys.argv[1]).close()", path)
    with Store.open(path) as again:
        assert (["a", "b"], []) == (ids(again.list()), again.check())
