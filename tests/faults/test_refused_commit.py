"""A commit that was refused does not come back after a crash.

SQLite leaves its frames in the WAL, and by default a process that opens the file after a SIGKILL
takes them for committed.
"""

from __future__ import annotations

import subprocess

import pytest

from tests import needs
from tests.tools import environment, python, query, run

pytestmark = needs.strace

# Writes a status; then, when told to, another one whose commit fails, and is killed.
WRITER = """
    import os, signal, sys
    from dataclasses import replace
    from registry import Metadata, RegistryError, State, Status, Store
    store = Store.open(sys.argv[1])
    handle = store.add(Metadata("a", "a", None), Status(State.READY))
    os.write(1, b"ready\\n")
    sys.stdin.readline()
    try:
        handle.status.update(lambda old: replace(old, message="refused"))
    except RegistryError as error:
        print(type(error).__name__, flush=True)
    print(repr(handle.status.get().message), flush=True)
    try:
        handle.status.update(lambda old: replace(old, reason="Next"))
        print("next", flush=True)
    except RegistryError as error:
        print(type(error).__name__, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    """


# The same of three threads that share the commit.
WRITERS = """
    import os, signal, sys
    from dataclasses import replace
    from registry import Metadata, RegistryError, State, Status, Store
    from tests.convoy import convoy
    store = Store.open(sys.argv[1])
    a, b, c = (store.add(Metadata(id, id, None), Status(State.READY)) for id in "abc")
    calls = [
        lambda handle=each: handle.status.update(lambda old: replace(old, message="refused"))
        for each in (b, c)]
    with convoy(store, a, *calls) as futures:
        os.write(1, b"ready\\n")
        sys.stdin.readline()
    for future in futures:
        print(type(future.exception()).__name__)
    for _ in "12":  # strace counts the calls of each thread: the first one fails here too
        try:
            a.status.update(lambda old: replace(old, reason="Next"))
            print("next", flush=True)
        except RegistryError as error:
            print("again", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    """


# The same of two threads, of which the one that commits is interrupted in the function argv[2].
INTERRUPTED = """
    import os, signal, sys, threading
    from dataclasses import replace
    from registry import Metadata, State, Status, Store
    from tests.convoy import waiting
    from tests.interrupts import Interrupts
    from tests.tools import until

    store = Store.open(sys.argv[1])
    a, b = (store.add(Metadata(id, id, None), Status(State.READY)) for id in "ab")
    gate, said = threading.Event(), []

    def update(handle, ready=lambda: None):
        try:
            handle.status.update(lambda old: ready() or replace(old, message="refused"))
        except BaseException as error:
            said.append(type(error).__name__)

    def behind():
        until(lambda: waiting(store) == 1)
        gate.set()

    os.write(1, b"ready\\n")
    sys.stdin.readline()
    first = threading.Thread(target=update, args=[a, lambda: gate.wait(30) and None])
    first.start()
    until(lambda: store._session.engine.writes.transaction is not None)
    threading.Thread(target=behind).start()
    attempt = next(iter(Interrupts(within=sys.argv[2])))
    attempt.run(lambda: update(b))
    assert attempt.points
    first.join()
    print(*sorted(said), a.status.get().message + b.status.get().message or "neither", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    """


def fail(path: str, when: str, code: str = WRITER, *args: str) -> list[str]:
    """Run the writer, and let those of its fdatasync calls fail that *when* names."""
    process = subprocess.Popen(
        python(code, path, *args),
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert "ready\n" == process.stdout.readline()
    strace = subprocess.Popen(
        ["strace", "-f", "-p", str(process.pid), "-e", "trace=fdatasync,fsync", "-e",
         f"inject=fdatasync,fsync:error=EIO:when={when}"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert strace.stderr is not None
    assert "attached" in strace.stderr.readline()
    process.stdin.write("\n")
    process.stdin.flush()
    said = process.stdout.read().split()
    process.stdin.close()
    process.stdout.close()
    process.wait()
    strace.communicate()
    return said


READ = """
    import sys
    from registry import Store
    with Store.open(sys.argv[1]) as store:
        status = store.get("a").status.get()
        print(repr(status.message), repr(status.reason), store.check())
    """


def test_a_commit_whose_sync_fails_is_not_there_after_a_crash(path: str) -> None:
    """SQLite leaves its frames in the WAL; the engine writes over them before it raises."""
    assert ["RegistryError", "''", "next"] == fail(path, "1")
    assert "'' 'Next' []" == run(READ, path).strip()


def test_nothing_of_a_group_whose_sync_fails_is_there_after_a_crash(path: str) -> None:
    """Each of its members raises, and the next commit contains none of them."""
    assert ["RegistryError"] * 3 + ["again", "next"] == fail(path, "1", WRITERS)
    assert "'' 'Next' []" == run(READ, path).strip()
    found = query(path, "SELECT sandbox_id, message, exited_at FROM sandbox_statuses")
    assert [(id, "", None) for id in "abc"] == sorted(found)


@pytest.mark.parametrize("function", ["Writer.commit", "Writer._refused", "Writer.reset"])
def test_an_interrupt_beside_a_sync_that_fails_leaves_nothing_stored(
    path: str, function: str
) -> None:
    """Before the COMMIT, after it failed, and after the WAL was overwritten."""
    said = fail(path, "1", INTERRUPTED, function)
    assert ["Interrupt", "RegistryError", "neither"] == said
    found = query(path, "SELECT sandbox_id, message FROM sandbox_statuses")
    assert [("a", ""), ("b", "")] == sorted(found)


def test_a_commit_whose_outcome_is_unknown_raises_commit_unknown(path: str) -> None:
    """And the engine writes no more."""
    assert ["CommitUnknownError", "''", "CommitUnknownError"] == fail(path, "1+")
    found = run(READ, path).strip()
    assert found in {"'' '' []", "'refused' '' []"}
