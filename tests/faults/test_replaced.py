"""The files change under the registry: what would be written into nowhere is not acknowledged.

Any `close()` of the database in the process, by whatever library, drops all locks that SQLite has
on it. Another process that then looks and leaves takes itself for the last one, and removes the
WAL.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress

import pytest

from registry import DataLossError, Store
from registry.tables.inspection import BESIDE
from tests.tools import READY, ids, query, run, sandbox, sqlite_shell


def stray_close(path: str) -> None:
    """Close the file as a library that hashes it does; then read it with a shell."""
    with open(path, "rb") as file:
        file.read(1)
    sqlite_shell(path, "SELECT id FROM sandboxes")
    assert not os.path.exists(f"{path}-wal")


def remove_wal(path: str) -> None:
    """Remove the WAL."""
    os.unlink(f"{path}-wal")


def replace_wal(path: str) -> None:
    """Replace the WAL by a copy of itself."""
    shutil.copy(f"{path}-wal", f"{path}-wal.copy")
    os.rename(f"{path}-wal.copy", f"{path}-wal")


def move(path: str) -> None:
    """Rename the database, and leave nothing at its path."""
    os.rename(path, f"{path}.moved")


def replace_database(path: str) -> None:
    """Move another registry to the path, as an operator who restores a backup does."""
    Store.open(f"{path}.other").close()
    os.rename(f"{path}.other", path)


def mend(path: str, fault: Callable[[str], None]) -> None:
    """Do what the error says that the next open raises, where it raises one."""
    if fault not in {move, replace_database}:
        return
    with pytest.raises(DataLossError, match="-wal") as caught:
        Store.open(path)
    assert path == caught.value.path
    if fault is move:
        os.rename(f"{path}.moved", path)
    else:
        for name in ("-wal", "-shm"):
            os.unlink(path + name)


ADD = """
    import sys
    from registry import Store
    from tests.tools import READY, ids, sandbox
    with Store.open(sys.argv[1], reconcile=False) as store:
        for id in sys.argv[2:]:
            store.add(sandbox(id), READY)
        print(ids(store.list()))
        print(store.check())
    """
"""Adds sandboxes in another process."""
FAULTS = [stray_close, remove_wal, replace_wal, move, replace_database]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_commit_into_nowhere_is_data_loss(
    path: str, fault: Callable[[str], None], tried: Callable[[str], None]
) -> None:
    """Every kind of write says so, each time; opened by another process, writes go on."""
    refused = 0
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
        handle = store.get("a")
        fault(path)
        for write in (
            lambda: store.add(sandbox("b"), READY),
            lambda: handle.status.update(lambda old: old),
            lambda: store.delete("a"),
            handle.delete,
        ):
            with pytest.raises(DataLossError, match="removed or replaced") as caught:
                write()
            assert path == caught.value.path
            refused += 1
        assert not handle.stopped.is_set()
    if fault is replace_wal:
        with pytest.raises(DataLossError, match="another process"):
            Store.open(path)
    mend(path, fault)
    there, wrong = run(ADD, path, "c").splitlines()
    assert "[]" == wrong
    # What was acknowledged is here, unless another database is.
    assert "'b'" not in there
    assert fault is replace_database or "'a'" in there
    assert ("c",) in query(path, "SELECT id FROM sandboxes")
    tried(f"files changed, {fault.__name__}: {refused} writes refused as DataLossError")


@pytest.mark.parametrize("fault", [stray_close, replace_wal], ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("written", [False, True], ids=["idle", "writing"])
def test_a_close_takes_nothing_from_those_who_came_after(
    path: str, fault: Callable[[str], None], written: bool
) -> None:
    """Their WAL is at the path where ours was: SQLite would remove it, and write ours down."""
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
        fault(path)
        run(ADD, path, "b0", "b1")
        killed = """
            import os, signal, sys
            from registry import Store
            from tests.tools import READY, sandbox
            store = Store.open(sys.argv[1], reconcile=False)
            store.add(sandbox("acknowledged"), READY)
            os.kill(os.getpid(), signal.SIGKILL)
            """
        run(killed, path, expected=-signal.SIGKILL)
        if written:
            with pytest.raises(DataLossError):
                store.add(sandbox("refused"), READY)
    there, wrong = run(ADD, path).splitlines()
    assert ("['a', 'acknowledged', 'b0', 'b1']", "[]") == (there, wrong)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_commit_that_meets_it_in_the_very_moment_does_not_come_back(
    path: str, fault: Callable[[str], None]
) -> None:
    """It is in a WAL that is not at its path, and nothing moves it from there into the database.

    Where only the database was replaced, the WAL is at its path, and the next open refuses it.
    """
    out = run(
        """
        import os, sys
        from registry import DataLossError, Store
        from tests.faults import test_replaced
        from tests.tools import READY, ids, sandbox
        path, fault = sys.argv[1], getattr(test_replaced, sys.argv[2])
        with Store.open(path) as store:
            store.add(sandbox("a"), READY)
            store._session.engine.writer.connection.set_trace_callback(
                lambda sql: fault(path) if sql == "COMMIT"
                else None
            )
            for _ in range(2):
                try:
                    store.add(sandbox("b"), READY)
                except DataLossError as error:
                    print("lost")
                store._session.engine.writer.connection.set_trace_callback(None)
        try:
            Store.open(path)
        except DataLossError as error:
            print("another process" in str(error))
        """,
        path,
        fault.__name__,
    )
    same_file = fault not in {move, replace_database}
    assert ["lost", "lost", str(same_file)] == out.splitlines()
    if fault in {remove_wal, move, replace_database}:
        with pytest.raises(DataLossError, match="-wal"):
            Store.open(path)
        for name in ("-wal", "-shm") if fault is replace_database else BESIDE:
            with suppress(FileNotFoundError):
                os.unlink(path + name)
    with Store.open(path) as store:
        assert "b" not in ids(store.list())
        store.add(sandbox("c"), READY)
        assert [] == store.check()


def test_a_registry_opened_at_the_path_later_is_closed_as_usual(path: str) -> None:
    """Only what was open when the files were replaced is left open, until the process ends."""
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
        replace_database(path)
        replace_wal(path)
    mend(path, replace_database)
    for _ in range(2):
        with Store.open(path) as store:
            assert [] == store.check()
        assert not os.path.exists(f"{path}-wal")
