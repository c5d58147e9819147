"""The files of a registry may be replaced, belong to another user, or be no lock files."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from registry import (
    DataLossError,
    FailedPreconditionError,
    RegistryError,
    Status,
    Store,
)
from tests import needs
from tests.conftest import OpenStore
from tests.tools import READY, run, sandbox


def test_a_replaced_database_is_data_loss_before_it_is_acknowledged(
    tmp_path: Path, path: str
) -> None:
    """A write into a file that is no longer at its path is not reported as done."""
    store = Store.open(path)
    store.add(sandbox("a"), READY)
    os.rename(path, f"{path}.moved")
    with pytest.raises(DataLossError) as caught:
        store.add(sandbox("b"), READY)
    assert path == caught.value.path
    store.close()


def test_a_replaced_database_is_not_opened_as_if_it_were_the_old_one(path: str) -> None:
    """A Store that comes later shares the file with those that are open, so it must be theirs."""
    first = Store.open(path)
    os.rename(path, f"{path}.moved")
    with pytest.raises(DataLossError, match="close all stores") as caught:
        Store.open(path)
    assert path == caught.value.path
    first.close()
    with pytest.raises(DataLossError, match="there was a registry"):
        Store.open(path)
    os.rename(f"{path}.moved", path)
    with Store.open(path) as store:
        assert [] == store.list()


def test_a_removed_wal_is_data_loss_before_it_is_acknowledged(path: str) -> None:
    """Its commits would go into a WAL that no other process reads."""
    store = Store.open(path)
    store.add(sandbox("a"), READY)
    os.unlink(f"{path}-wal")
    with pytest.raises(DataLossError):
        store.add(sandbox("b"), READY)
    store.close()


def test_an_error_that_is_raised_again_does_not_grow(path: str) -> None:
    """Nothing is written after a commit into nowhere; each try says so, by the same error."""
    store = Store.open(path)
    status = store.add(sandbox("a"), READY).status

    def remove_the_wal(old: Status) -> Status:
        os.unlink(f"{path}-wal")
        return old

    with pytest.raises(DataLossError):
        status.update(remove_the_wal)
    lengths = []
    for _ in range(3):
        with pytest.raises(DataLossError) as caught:
            status.update(lambda old: old)
        lengths.append(len(list(traceback.walk_tb(caught.value.__traceback__))))
    assert 1 == len(set(lengths))
    store.close()


SUFFIXES = ("", "-wal", "-shm", "-lock", "-queue", "-reserve", "-spare")


AS_UNPRIVILEGED = """
    import os, sys
    import ctypes, encodings.ascii  # now, since the interpreter may lie where only root can read
    from registry import RegistryError, Store
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    try:
        with Store.open(sys.argv[1], read_only=len(sys.argv) > 2) as store:
            print(len(store.list()))
    except RegistryError as error:
        print(type(error).__name__, error)
    """


@pytest.fixture
def everybodys(tmp_path: Path) -> Iterator[str]:
    """Return a path that another user can reach, below a directory that is his own."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        own = f"{directory}/own"
        os.mkdir(own, 0o755)
        os.chown(own, 65534, 65534)
        yield f"{own}/registry.db"


@needs.another_user
def test_a_file_that_may_not_be_read_is_no_driver_error(everybodys: str) -> None:
    """Not to the reader who may not write it either."""
    Store.open(everybodys).close()
    for mode in ((), ("read_only",)):
        assert run(AS_UNPRIVILEGED, everybodys, *mode).startswith(
            "FailedPreconditionError open registry"
        )


@needs.another_user
def test_without_a_right_to_its_directory_a_registry_is_read_while_it_is_open(
    everybodys: str,
) -> None:
    """Otherwise SQLite cannot make its WAL index, and it is said what to do."""
    with Store.open(everybodys) as store:
        store.add(sandbox("a"), READY)
        for suffix in ("", "-wal", "-shm"):
            os.chmod(everybodys + suffix, 0o644)
        os.chown(os.path.dirname(everybodys), 0, 0)
        assert "1\n" == run(AS_UNPRIVILEGED, everybodys, "read_only")
    told = run(AS_UNPRIVILEGED, everybodys, "read_only")
    assert "ReadOnlyError" in told
    assert "open it as a user who can write its directory" in told


@needs.another_user
def test_an_open_by_root_does_not_lock_the_owner_out(everybodys: str) -> None:
    """Files that root creates beside the database belong to its owner."""
    Store.open(everybodys).close()
    os.chown(everybodys, 65534, 65534)
    for suffix in ("-lock", "-queue", "-reserve", "-spare"):
        os.unlink(everybodys + suffix)
    with Store.open(everybodys) as store:
        store.add(sandbox("a"), READY)
        owners = {os.stat(f"{everybodys}{suffix}").st_uid for suffix in SUFFIXES}
    assert {65534} == owners
    assert "1\n" == run(AS_UNPRIVILEGED, everybodys)


def test_a_symlink_in_place_of_a_lock_file_is_not_followed(tmp_path: Path, path: str) -> None:
    """It could be anybody's file."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.symlink(victim, f"{path}-lock")
    with pytest.raises(RegistryError, match="lock"):
        Store.open(path)
    assert "precious" == victim.read_text()


def test_a_removed_lock_file_is_created_again(open_store: OpenStore, path: str) -> None:
    """Otherwise two writers would each hold a lock of their own."""
    store = open_store(timeout=5)
    store.add(sandbox("a"), READY)
    os.unlink(f"{path}-lock")
    os.unlink(f"{path}-queue")
    store.add(sandbox("b"), READY)
    assert os.path.exists(f"{path}-lock")
    with Store.open(path) as other:
        assert 2 == len(other.list())


def test_a_lock_file_that_cannot_be_opened_is_named_and_may_be_repaired(
    open_store: OpenStore, path: str
) -> None:
    """A symlink, a directory, a hard link; no lock is left, and the store works afterwards."""
    store = open_store()
    Path(f"{path}.other").touch()
    for make, unmake in (
        (partial(os.symlink, "x"), os.unlink),
        (os.mkdir, os.rmdir),
        (partial(os.link, f"{path}.other"), os.unlink),
    ):
        os.unlink(f"{path}-lock")
        make(f"{path}-lock")
        with pytest.raises(FailedPreconditionError, match=r"lock files beside|move it away"):
            store.add(sandbox("a"), READY)
        unmake(f"{path}-lock")
        store.add(sandbox("b"), READY).delete()
    os.unlink(f"{path}-queue")
    os.symlink("x", f"{path}-queue")
    store.close()
    os.unlink(f"{path}-queue")
