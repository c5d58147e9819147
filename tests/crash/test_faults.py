"""System calls that fail: an I/O error in the commit, a full disk, a read-only file system."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry import kernel
from tests.tools import environment, python, run

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.geteuid() != 0, reason="strace and mounts need root here"),
]

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


def fail(path: str, when: str) -> list[str]:
    """Run the writer, and let those of its fdatasync calls fail that *when* names."""
    process = subprocess.Popen(
        python(WRITER, path),
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


needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace, which makes the calls fail, is not installed"
)
READ = """
    import sys
    from registry import Store
    with Store.open(sys.argv[1]) as store:
        status = store.get("a").status.get()
        print(repr(status.message), repr(status.reason), store.check())
    """


@needs_strace
def test_a_commit_whose_sync_fails_is_not_there_after_a_crash(path: str) -> None:
    """SQLite leaves its frames in the log; the engine writes over them before it raises."""
    assert ["RegistryError", "''", "next"] == fail(path, "1")
    assert "'' 'Next' []" == run(READ, path).strip()


@needs_strace
def test_a_commit_that_nobody_can_make_sure_of_says_so(path: str) -> None:
    """And the engine writes no more."""
    assert ["CommitUnknownError", "''", "CommitUnknownError"] == fail(path, "1+")
    found = run(READ, path).strip()
    assert found in {"'' '' []", "'refused' '' []"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", disk], check=True)
    yield disk
    kernel.umount(str(disk), kernel.MNT_DETACH)


def test_a_full_disk_is_resource_exhausted_and_nothing_is_half_done(small_disk: Path) -> None:
    """Inside a transaction too; when there is space again the store goes on."""
    out = run(
        """
        import os, sys
        from registry import Metadata, ResourceExhaustedError, State, Status, Store
        folder = sys.argv[1]
        with Store.open(f"{folder}/registry.db") as store:
            store.add(Metadata("first", "first", None), Status(State.READY))
            with open(f"{folder}/filler", "wb") as filler:
                try:
                    while True:
                        filler.write(b"x" * 4096)
                        filler.flush()
                except OSError:
                    pass
                try:
                    filler.close()
                except OSError:
                    pass
            try:
                with store.transaction():
                    for n in range(100):
                        store.add(Metadata(f"s{n}", f"s{n}", None, ip="x" * 4000),
                                  Status(State.READY))
                print("no error")
            except ResourceExhaustedError as error:
                print(error.path == f"{folder}/registry.db", "free some space" in str(error))
            print([each.id for each in store.list()], store.check())
            os.unlink(f"{folder}/filler")
            store.add(Metadata("second", "second", None), Status(State.READY))
            print([each.id for each in store.list()], store.check())
        """,
        small_disk,
    )
    assert ["True True", "['first'] []", "['first', 'second'] []"] == out.splitlines()


def test_a_full_disk_without_lock_files_is_told_as_it_is(small_disk: Path) -> None:
    """They are made empty; who holds the lock is written when there is space."""
    out = run(
        """
        import os, sys
        from registry import ResourceExhaustedError, Store
        path = f"{sys.argv[1]}/registry.db"
        Store.open(path).close()
        for name in ("lock", "queue"):
            os.unlink(f"{path}-{name}")
        with open(f"{sys.argv[1]}/filler", "wb", buffering=0) as filler:
            for size in (4096, 1):
                try:
                    while True:
                        filler.write(b"x" * size)
                except OSError:
                    pass
        for each in (path, f"{sys.argv[1]}/new.db"):
            try:
                Store.open(each)
            except ResourceExhaustedError as error:
                print(error.path == each, "free some space" in str(error))
        """,
        small_disk,
    )
    assert ["True True"] * 2 == out.splitlines()


def test_an_error_that_ends_the_whole_transaction_fails_it_whole(small_disk: Path) -> None:
    """SQLITE_FULL in a nested write that is caught: what follows is not committed alone."""
    out = run(
        """
        import os, sys
        from registry import FailedPreconditionError, Metadata, ResourceExhaustedError
        from registry import State, Status, Store
        folder = sys.argv[1]
        with Store.open(f"{folder}/registry.db") as store:
            store.add(Metadata("first", "first", None), Status(State.READY))
            store._session.engine._writer.execute("PRAGMA cache_size = 20")
            try:
                with store.transaction():
                    store.add(Metadata("before", "before", None), Status(State.READY))
                    with open(f"{folder}/filler", "wb", buffering=0) as filler:
                        try:
                            while True:
                                filler.write(b"x" * 4096)
                        except OSError:
                            pass
                    try:
                        with store.transaction():
                            for n in range(100):
                                store.add(Metadata(f"s{n}", f"s{n}", None, ip="x" * 4000),
                                          Status(State.READY))
                    except ResourceExhaustedError:
                        print("full")
                    os.unlink(f"{folder}/filler")
                    store.add(Metadata("after", "after", None), Status(State.READY))
            except FailedPreconditionError as error:
                print("refused", "SQLITE_FULL" in str(error))
            print([each.id for each in store.list()], store.check())
        """,
        small_disk,
    )
    assert ["full", "refused True", "['first'] []"] == out.splitlines()


def test_a_read_only_file_system_can_be_read(small_disk: Path) -> None:
    """A clean registry opens read_only; opening it for writing says what to do."""
    out = run(
        """
        import subprocess, sys
        from registry import Metadata, ReadOnlyError, State, Status, Store
        folder = sys.argv[1]
        path = f"{folder}/registry.db"
        with Store.open(path) as store:
            store.add(Metadata("a", "a", None), Status(State.READY))
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        with Store.open(path, read_only=True) as store:
            print([each.id for each in store.list()], store.check())
        try:
            Store.open(path)
        except ReadOnlyError as error:
            print("read_only=True" in str(error))
        """,
        small_disk,
    )
    assert ["['a'] []", "True"] == out.splitlines()


def test_a_log_that_cannot_be_read_is_not_passed_over(small_disk: Path) -> None:
    """Killed with its last writes in the log, then mounted read-only: nothing old is shown."""
    out = run(
        """
        import os, signal, subprocess, sys
        from registry import Metadata, ReadOnlyError, State, Status, Store
        folder = sys.argv[1]
        path = f"{folder}/registry.db"
        child = os.fork()
        if child == 0:
            store = Store.open(path)
            store.add(Metadata("a", "a", None), Status(State.READY))
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        try:
            with Store.open(path, read_only=True) as store:
                print([each.id for each in store.list()])
        except ReadOnlyError as error:
            print("refused")
        """,
        small_disk,
    )
    assert out.strip() in {"refused", "['a']"}
