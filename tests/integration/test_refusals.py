"""SQLite says only that it cannot open a file: the error says what the system refused."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from registry import (
    DataLossError,
    FailedPreconditionError,
    NotFoundError,
    RegistryError,
    ResourceExhaustedError,
    Store,
)
from registry.engine.sqlite_errors import driver_errors
from tests import needs
from tests.tools import READY, ids, query, run, sandbox, small_file_system


@contextmanager
def no_descriptors(but: int = 0) -> Iterator[None]:
    """Let the process open no file more in the body, *but* some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                opened.append(os.open("/", os.O_PATH))
        for _ in range(but):
            os.close(opened.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in opened:
            os.close(fd)


def test_a_read_without_descriptors_says_so(path: str) -> None:
    """It is SQLITE_CANTOPEN; the next read succeeds, and nothing is lost of the reserve."""
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
        with ExitStack() as held:
            for _ in range(5):  # more than are kept idle
                held.enter_context(store._session.engine.snapshot("hold"))
            with no_descriptors(), pytest.raises(ResourceExhaustedError) as caught:
                store.list()
        assert (path, errno.EMFILE) == (caught.value.path, caught.value.errno)
        assert "raise the limit" in str(caught.value)
        assert ["a"] == ids(store.list())
        assert os.path.exists(f"{path}-reserve")


@pytest.mark.parametrize("failed_writes", [0, 1])
def test_writes_go_on_without_descriptors(path: str, failed_writes: int) -> None:
    """Nothing is imported for them, neither before a transaction nor after its COMMIT."""
    run(
        """
        import contextlib, os, resource, sys
        from dataclasses import replace
        from registry import Metadata, State, Status, Store
        from registry.engine.file_identity import STAT_CHECKS
        with Store.open(sys.argv[1], reconcile=False) as store:
            sandbox = store.add(Metadata("a", "name", None), Status(State.READY))
            sandbox.status.get()
            for _ in range(int(sys.argv[2])):  # each is checked before the transaction alone
                with contextlib.suppress(ZeroDivisionError):
                    sandbox.status.update(lambda old: 1 / 0)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
            with contextlib.suppress(OSError):
                while True:
                    os.open("/", os.O_PATH)
            assert "ctypes" not in sys.modules
            for n in range(STAT_CHECKS):
                sandbox.status.update(lambda old: replace(old, message=str(n)))
                assert sandbox.status.get().message == str(n)
            store.add(Metadata("b", "other", None), Status(State.READY))
            assert "ctypes" not in sys.modules
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            sandbox.status.update(lambda old: replace(old, message="end"))
            assert "ctypes" in sys.modules
        """,
        path,
        failed_writes,
    )


@pytest.mark.parametrize("read_only", [False, True])
def test_an_open_without_descriptors_says_so(path: str, read_only: bool) -> None:
    """And releases no disk space for it."""
    Store.open(path).close()
    with no_descriptors(), pytest.raises(ResourceExhaustedError, match="raise the") as caught:
        Store.open(path, read_only=read_only)
    assert errno.EMFILE == caught.value.errno
    assert os.path.exists(f"{path}-reserve")


@pytest.mark.parametrize("read_only", [False, True])
def test_an_open_with_too_few_descriptors_says_so(path: str, read_only: bool) -> None:
    """However few are left: SQLite has closed again those that it could open."""
    Store.open(path).close()
    refused = []
    for left in range(20):
        try:
            with no_descriptors(but=left):
                Store.open(path, read_only=read_only).close()
        except ResourceExhaustedError as error:
            refused.append(error.errno)
    assert {errno.EMFILE} == set(refused)
    assert len(refused) in range(3, 20)


def test_a_path_that_is_too_long_for_sqlite_says_so(tmp_path: Path) -> None:
    """SQLite opens paths of up to 512 bytes, which the system need not refuse."""
    directory = str(tmp_path)
    while len(directory) < 520:
        directory += "/" + "d" * 100
    with pytest.raises(FailedPreconditionError, match="use a shorter path"):
        Store.open(f"{directory}/registry.db")


def test_a_missing_directory_is_not_found(tmp_path: Path) -> None:
    """SQLite says that it cannot open the file."""
    path = str(tmp_path / "gone" / "registry.db")
    with pytest.raises(NotFoundError) as caught, driver_errors("read", path):
        query(path, "SELECT 1")
    assert path == caught.value.path


def test_a_read_of_a_database_that_was_removed_is_a_loss(path: str) -> None:
    """Also where SQLite has to open it once more, and cannot."""
    with Store.open(path) as store, ExitStack() as held:
        for _ in range(5):  # more than are kept idle
            held.enter_context(store._session.engine.snapshot("hold"))
        os.rename(path, f"{path}.gone")
        with pytest.raises(DataLossError) as caught:
            store.list()
        os.rename(f"{path}.gone", path)
    assert path == caught.value.path


UNPRIVILEGED = """
    import os, sys
    import ctypes, encodings.ascii
    from registry import RegistryError, Store
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    try:
        Store.open(sys.argv[1], read_only=True)
    except RegistryError as error:
        print(type(error).__name__, error)
    """


@needs.another_user
def test_a_file_of_another_user_is_a_matter_of_permission() -> None:
    """The message names the file, in a directory that every user may enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o777)
        path = f"{folder}/registry.db"
        Store.open(path).close()
        told = run(UNPRIVILEGED, path)
        assert told.startswith("FailedPreconditionError open registry")
        assert f"'{path}': Permission denied; run this as the user who owns it, or as root" in told


@needs.namespaces
def test_a_disk_without_inodes_is_told_of_where_sqlite_needs_one(tmp_path: Path) -> None:
    """The reserve has been used up by others."""
    with small_file_system(str(tmp_path / "disk"), 4, "nr_inodes=12") as disk:
        path = f"{disk}/registry.db"
        Store.open(path).close()
        for name in ("-reserve", "-spare"):
            os.unlink(path + name)
        with pytest.raises(OSError, match="No space left"):
            for n in range(20):
                os.close(os.open(f"{disk}/{n}", os.O_CREAT | os.O_EXCL))
        for read_only in (False, True):
            with pytest.raises(ResourceExhaustedError, match="no inode is free") as caught:
                Store.open(path, read_only=read_only)
            assert (path, errno.ENOSPC) == (caught.value.path, caught.value.errno)
            assert isinstance(caught.value, RegistryError)


def test_call_in_a_thread_ends_within_any_address_space() -> None:
    """Also if there is memory for the stack of the thread, and none for its first frame."""
    code = """
        import resource
        from registry.sync import threads

        def outcome(spare):
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            with open("/proc/self/statm") as file:
                size = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + spare, hard))
            try:
                return threads.run(lambda: "ended")
            except threads.NoThreadError as error:
                return error.strerror
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (hard, hard))

        print(threads.run(lambda: "ended"))  # libc keeps the stack of a thread that has ended
        stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
        for page in (0, 1, 2, 3, 4, 5, 64):
            for stacks in (0, 1, 2):
                print(outcome(stacks * max(stack, 0) + page * resource.getpagesize()))
    """
    first, *outcomes = run(code).splitlines()
    assert "ended" == first
    assert 21 == len(outcomes)
    assert {"Cannot allocate memory"} <= set(outcomes) <= {"Cannot allocate memory", "ended"}
