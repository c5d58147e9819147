"""A registry on a read-only file system is read whole, or the read raises.

SQLite needs a writable WAL index to read it. Without one it can read the database alone,
which then must hold everything and must not change.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry import FailedPreconditionError, ReadOnlyError, RegistryError, Store
from registry.host import kernel
from tests import needs
from tests.conftest import RunInLocale
from tests.tools import READY, ids, line, running, sandbox

pytestmark = needs.namespaces

WRITER = """
    import sys
    from registry import Metadata, State, Status, Store
    store = Store.open(sys.argv[1], reconcile=False)
    store.add(Metadata("a", "a", None), Status(State.READY))
    print("added", flush=True)
    for line in sys.stdin:
        store.add(Metadata(line.strip(), line.strip(), None), Status(State.READY))
        print("added", flush=True)
    """


@pytest.fixture
def path(small_disk: str) -> str:
    """Return the path of a registry on a file system of its own."""
    return f"{small_disk}/registry.db"


@pytest.fixture
def seen(path: str, tmp_path: Path) -> Iterator[str]:
    """Return the path of the same registry through a read-only mount."""
    place = f"{tmp_path}/seen"
    os.mkdir(place)
    for options in (["--bind", os.path.dirname(path)], ["-o", "remount,bind,ro"]):
        subprocess.run(["mount", *options, place], check=True)
    yield f"{place}/registry.db"
    kernel.umount(place, kernel.MNT_DETACH)


def remount(path: str, how: str) -> None:
    """Make the file system writable (`rw`) or not (`ro`)."""
    subprocess.run(["mount", "-o", f"remount,{how}", os.path.dirname(path)], check=True)


def test_a_closed_registry_can_be_read_and_nothing_is_made_beside_it(path: str) -> None:
    """Opening it for writing says what to do."""
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
    before = sorted(os.listdir(os.path.dirname(path)))
    remount(path, "ro")
    with Store.open(path, read_only=True) as store:
        assert (["a"], []) == (ids(store.list()), store.check())
        assert 1 == len(store.history())
    with pytest.raises(ReadOnlyError, match="read_only=True"):
        Store.open(path)
    assert before == sorted(os.listdir(os.path.dirname(path)))


def test_a_log_that_cannot_be_read_is_not_passed_over(path: str) -> None:
    """Its writer was killed: the last writes are in the WAL alone, and its index may be left."""
    with running(WRITER, path) as process:
        assert "added" == line(process)
        process.send_signal(signal.SIGKILL)
    remount(path, "ro")
    with Store.open(path, read_only=True) as store:
        assert ["a"] == ids(store.list())
    remount(path, "rw")
    os.unlink(f"{path}-shm")
    remount(path, "ro")
    with pytest.raises(ReadOnlyError, match="holds commits"):
        Store.open(path, read_only=True)
    remount(path, "rw")
    with Store.open(path) as store:
        assert ["a"] == ids(store.list())


def test_a_write_through_another_mount_is_seen_at_once(path: str, seen: str) -> None:
    """While its writer has it open, its WAL index is there to be read."""
    with running(WRITER, path) as process:
        assert "added" == line(process)
        with Store.open(seen, read_only=True) as store:
            for n in range(20):
                assert process.stdin is not None
                process.stdin.write(f"b{n}\n")
                process.stdin.flush()
                assert "added" == line(process)
                assert n + 2 == len(store.list())
            assert [] == store.check()


def test_a_file_that_changes_though_it_was_closed_is_not_taken_for_fixed(
    path: str, seen: str
) -> None:
    """A read during a write through another mount raises, and returns no old row."""
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
    with Store.open(seen, read_only=True) as reader:
        assert ["a"] == ids(reader.list())
        with Store.open(path) as store:
            store.add(sandbox("b"), READY)
            for read in (reader.list, reader.history, reader.check, lambda: reader.get("a")):
                with pytest.raises(FailedPreconditionError, match="open it again"):
                    read()
        with pytest.raises(RegistryError):
            reader.list()
    with Store.open(seen, read_only=True) as reader:
        assert ["a", "b"] == ids(reader.list())


def test_a_file_that_is_mounted_by_itself_is_refused(path: str, tmp_path: Path) -> None:
    """Its WAL is beside the file of the host, and here there is another, or none."""
    alone = tmp_path / "alone name.db"
    alone.touch()
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
        subprocess.run(["mount", "--bind", path, alone], check=True)
        try:
            for read_only in (False, True):
                with pytest.raises(FailedPreconditionError, match="mount its directory"):
                    Store.open(alone, read_only=read_only)
        finally:
            kernel.umount(str(alone), kernel.MNT_DETACH)
    assert ["alone name.db"] == [name for name in os.listdir(tmp_path) if "alone" in name]


def test_a_file_that_is_mounted_by_itself_is_refused_in_latin_1(
    path: str, tmp_path: Path, latin1: RunInLocale
) -> None:
    """The kernel lists mounts by the bytes of their paths."""
    Store.open(path).close()
    alone = os.path.join(os.fsencode(tmp_path), b"\xe4lone.db")
    os.close(os.open(alone, os.O_CREAT))
    subprocess.run([b"mount", b"--bind", path.encode(), alone], check=True)
    code = """
        import sys
        from registry import FailedPreconditionError, Store
        try:
            Store.open(sys.argv[1])
        except FailedPreconditionError as error:
            print("mount its directory" in str(error))
        """
    try:
        assert ["True"] == latin1(code, os.fsdecode(alone))
    finally:
        kernel.umount(os.fsdecode(alone), kernel.MNT_DETACH)
