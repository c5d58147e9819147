"""A full disk, a real one: what is gone can be marked and deleted, and nothing is half done."""

from __future__ import annotations

import errno
import glob
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from registry import (
    FailedPreconditionError,
    ResourceExhaustedError,
    Sandbox,
    State,
    Status,
    Store,
    Verdict,
)
from registry.model.extensions import VALUE_MAX
from tests import needs
from tests.convoy import Call, convoy, more
from tests.tools import (
    READY,
    environment,
    ids,
    line,
    query,
    run,
    running,
    sandbox,
    small_file_system,
)

pytestmark = needs.namespaces


def fill(disk: str) -> None:
    """Fill the file system to the last byte."""
    with open(f"{disk}/filler", "ab", buffering=0) as filler:
        for size in (65_536, 4_096, 1):
            with suppress(OSError):
                while True:
                    filler.write(b"x" * size)
    assert 0 == os.statvfs(disk).f_bavail


def make_space(disk: str) -> None:
    """Give all of it back."""
    os.unlink(f"{disk}/filler")


def add_many(store: Store, count: int) -> None:
    """Add sandboxes whose namespaces are gone."""
    for n in range(count):
        store.add(sandbox(f"s{n}", netns_path=f"/run/netns/none-{n}"), READY)


def assert_readable(path: str, count: int) -> None:
    """Assert that the command line and plain SQL show all sandboxes."""
    for verb in ("list", "history", "inspect s1", "check", "export"):
        command = [sys.executable, "-m", "registry", "--db", path, *verb.split()]
        done = subprocess.run(command, env=environment(), capture_output=True, check=False)
        assert (0, b"") == (done.returncode, done.stderr)
    assert [(count,)] == query(path, "SELECT count(*) FROM sandbox_overview")


@pytest.mark.parametrize("greedy", [False, True], ids=["alone", "beside others"])
def test_dead_sandboxes_can_be_marked_and_deleted(
    small_disk: str, greedy: bool, tried: Callable[[str], None]
) -> None:
    """Even while others take every byte that is given up; adding is refused, and leaves nothing."""
    path = f"{small_disk}/registry.db"
    with Store.open(path, reconcile=False) as store:
        add_many(store, 30)
        fill(small_disk)
        assert (30, 30, []) == (len(store.list()), len(store.history()), store.check())
        assert_readable(path, 30)
        for n in range(15):
            with pytest.raises(ResourceExhaustedError, match="free some space") as caught:
                store.add(sandbox("more"), READY)
            assert path == caught.value.path
            handle = store.get(f"s{n}")
            asked: list[Status] = []

            def gone(old: Status, asked: list[Status] = asked) -> Status:
                asked.append(old)
                return replace(old, state=State.NOTREADY, reason="Gone")

            assert State.NOTREADY is handle.status.update(gone).state
            assert (1, True) == (len(asked), handle.stopped.is_set())
            if greedy:
                fill(small_disk)
        assert 15 == sum(store.delete(f"s{n}") for n in range(10)) + sum(
            store.get(f"s{n}").delete() for n in range(10, 15)
        )
        with pytest.raises(ResourceExhaustedError):
            store.get("s20").status.update(lambda old: replace(old, message="not ready is all"))
        with pytest.raises(ResourceExhaustedError):
            store.update_metadata("s20", lambda old: old)
        assert (15, []) == (len(store.list()), store.check())
        make_space(small_disk)
        store.add(sandbox("more"), READY)
        assert os.path.exists(f"{path}-reserve")
    tried(f"full disk, {'beside others' if greedy else 'alone'}: 15 marked, 15 deleted, 17 refused")


def test_any_write_allocates_the_released_reserve_again(small_disk: str) -> None:
    """Once there is space, and not only by one that needs more than is kept."""
    path = f"{small_disk}/registry.db"
    with Store.open(path, reconcile=False) as store:
        add_many(store, 30)
        fill(small_disk)
        n = 0
        while os.path.exists(f"{path}-reserve"):
            store.get(f"s{n}").status.update(lambda old: replace(old, state=State.NOTREADY))
            n += 1
        make_space(small_disk)
        assert store.delete("s0")
        assert os.path.exists(f"{path}-reserve")
        os.unlink(f"{path}-reserve")  # what others have given up is theirs to take again
        assert store.delete("s1")
        assert not os.path.exists(f"{path}-reserve")


def test_inside_a_transaction_a_full_disk_is_told_as_such(small_disk: str) -> None:
    """Its earlier changes are rolled back too."""
    gone = Status(State.NOTREADY, message="x" * 4096)
    with Store.open(f"{small_disk}/registry.db", reconcile=False) as store:
        add_many(store, 30)
        connection = store._session.engine.writer.connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        # SQLite asks the disk at the COMMIT only; this it asks at once.
        connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(ResourceExhaustedError), store.transaction():
            for n in range(30):
                store.get(f"s{n}").status.update(lambda _: gone)
        assert {State.READY} == {each.status_as_read.state for each in store.list()}


def test_a_closed_registry_can_be_read_on_a_full_disk(small_disk: str) -> None:
    """A read uses the disk reserve; the WAL and its index then stay for the next process."""
    path = f"{small_disk}/registry.db"
    with Store.open(path, reconcile=False) as store:
        add_many(store, 30)
    fill(small_disk)
    assert_readable(path, 30)
    with Store.open(path, read_only=True) as store:
        assert (30, []) == (len(store.list()), store.check())


def test_writes_inside_an_update_are_stored_with_it_or_not_at_all(small_disk: str) -> None:
    """Its function marks another sandbox: both are stored, until the reserve is used up."""
    path = f"{small_disk}/registry.db"
    with Store.open(path, reconcile=False) as store:
        add_many(store, 2)
        fill(small_disk)
        for n in range(40):

            def both(old: Status, n: int = n) -> Status:
                done = replace(old, state=State.NOTREADY, message=f"{n}")
                store.get("s1").status.update(lambda other: replace(done, pid=other.pid))
                return done

            store.get("s0").status.update(both)
            messages = {store.get(f"s{n}").status.get().message for n in range(2)}
            assert {f"{n}"} == messages
        assert [] == store.check()


def mark(old: Status) -> Status:
    """Return what an ended sandbox has."""
    return replace(old, state=State.NOTREADY, reason="ProcessExited", message="x" * 200)


def test_long_extensions_are_removed_and_deleted_on_a_full_disk(small_disk: str) -> None:
    """SQLite does not write the pages that become free, and none can be added."""
    path = f"{small_disk}/registry.db"
    with Store.open(path, reconcile=False) as store:
        for id in ("a", "b"):
            handle = store.add(sandbox(id), READY)
            for n in range(2):
                large = {f"n{n}": bytes(VALUE_MAX)}
                handle.extensions.update(lambda old, large=large: {**old, **large})  # type: ignore[misc]
    fill(small_disk)
    with Store.open(path, reconcile=False) as store:
        one, two = store.list()
        with pytest.raises(ResourceExhaustedError):
            one.extensions.update(lambda old: {**old, "more": b""})
        assert {"n1"} == set(one.extensions.update(lambda old: {"n1": old["n1"]}))
        assert one.delete()
        assert two.delete()
        assert [] == store.check()


@pytest.mark.parametrize("reopened", [False, True], ids=["open", "reopened"])
def test_a_transaction_marks_and_deletes(small_disk: str, reopened: bool) -> None:
    """Hundreds were added in one transaction, so the WAL has more than the reserve holds."""
    path = f"{small_disk}/registry.db"
    store = Store.open(path, reconcile=False)
    with store.transaction():
        add_many(store, 700)
    if reopened:
        store.close()
    fill(small_disk)
    if reopened:
        store = Store.open(path, reconcile=False)
    with store:
        with store.transaction():
            for n in range(100):
                store.get(f"s{n}").status.update(mark)
            with pytest.raises(ResourceExhaustedError, match="free some space"):
                store.add(sandbox("more"), READY)
            with pytest.raises(ResourceExhaustedError, match="free some space"):
                store.get("s300").status.update(lambda old: replace(old, message="not ready"))
            for n in range(100, 120):
                assert store.delete(f"s{n}")
        assert (100, 680) == (len(store.list(state=State.NOTREADY)), len(store.list()))
        assert [] == store.check()


@pytest.mark.parametrize("reopened", [False, True], ids=["open", "reopened"])
def test_marking_never_uses_up_what_deleting_needs(small_disk: str, reopened: bool) -> None:
    """Once marking is refused every sandbox can still be deleted."""
    path = f"{small_disk}/registry.db"
    store = Store.open(path, reconcile=False)
    with store.transaction():
        add_many(store, 700)
    if reopened:
        store.close()
    fill(small_disk)
    if reopened:
        store = Store.open(path, reconcile=False)
    with store:
        with pytest.raises(ResourceExhaustedError) as caught:
            for each in store.list():
                each.status.update(mark)
        assert (path, errno.ENOSPC) == (caught.value.path, caught.value.errno)
        assert len(store.list(state=State.NOTREADY)) >= 100
        assert all(each.delete() for each in store.list())
        make_space(small_disk)
        store.add(sandbox("more"), READY)
        assert (["more"], []) == (ids(store.list()), store.check())


def test_a_restart_marks_as_many_as_there_is_room_for(small_disk: str) -> None:
    """Open succeeds, so that some can be deleted; the report says which are not marked, and why."""
    path = f"{small_disk}/registry.db"
    with Store.open(path, reconcile=False) as store, store.transaction():
        add_many(store, 700)
    fill(small_disk)
    with Store.open(path) as store:
        assert store.recovery is not None
        told = [each for each in store.recovery.findings if not each.changed]
        marked = store.list(state=State.NOTREADY)
        assert (700, 700) == (len(store.recovery.findings), len(told) + len(marked))
        assert all("could not be marked" in each.message for each in told)
        assert len(marked) >= 100
        assert store.delete("s0")
        assert store.get("s1").delete()
        make_space(small_disk)
        store.reconcile()
        assert (698, []) == (len(store.list(state=State.NOTREADY)), store.check())


def test_a_reserve_that_cannot_be_made_is_no_full_disk(small_disk: str) -> None:
    """Whatever stands in its place, sandboxes are added while there is room."""
    path = f"{small_disk}/registry.db"
    os.mkdir(f"{path}-reserve")
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
        fill(small_disk)
        with pytest.raises(ResourceExhaustedError):
            store.add(sandbox("b"), READY)


@pytest.mark.parametrize("killed", [False, True], ids=["closed", "killed"])
def test_a_restart_on_the_full_disk_recovers(small_disk: str, killed: bool) -> None:
    """SQLite cannot even read without room for its WAL index."""
    path = f"{small_disk}/registry.db"
    code = """
        import sys, time
        from registry import Store
        from tests.faults.test_disk import add_many
        store = Store.open(sys.argv[1], reconcile=False)
        add_many(store, 30)
        print("added", flush=True)
        sys.stdin.readline()
        """
    with running(code, path) as process:
        assert "added" == line(process)
        if killed:
            fill(small_disk)
            process.send_signal(signal.SIGKILL)
        else:
            process.communicate("\n")
    if not killed:
        Store.open(path, reconcile=False).close()
    fill(small_disk)
    if killed:
        with Store.open(path, read_only=True) as store:
            assert 30 == len(store.list())
        assert_readable(path, 30)
        fill(small_disk)
    with Store.open(path) as store:
        assert store.recovery is not None
        assert 30 == store.recovery.counts[Verdict.CLOSED]
        assert 30 == len(store.list(state=State.NOTREADY))
        with pytest.raises(ResourceExhaustedError):
            store.add(sandbox("more"), READY)
        make_space(small_disk)
        store.add(sandbox("more"), READY)
        assert [] == store.check()


def test_nothing_of_a_refused_transaction_is_there(small_disk: str) -> None:
    """And once there is space the same store goes on."""
    path = f"{small_disk}/registry.db"
    with Store.open(path) as store:
        store.add(sandbox("first"), READY)
        fill(small_disk)
        with pytest.raises(ResourceExhaustedError), store.transaction():
            store.delete("first")
            store.add(sandbox("second"), READY)
        assert ["first"] == ids(store.list())
        make_space(small_disk)
        store.add(sandbox("second"), READY)
        assert (["first", "second"], []) == (ids(store.list()), store.check())


def test_an_error_that_ends_the_whole_transaction_fails_it_whole(small_disk: str) -> None:
    """SQLITE_FULL in a nested write that is caught: what follows is not committed alone."""
    path = f"{small_disk}/registry.db"
    with Store.open(path, reconcile=False) as store:
        add_many(store, 60)
        writer = store._session.engine.writer.connection
        assert writer is not None
        writer.execute("PRAGMA cache_size = 20")
        with pytest.raises(FailedPreconditionError, match="SQLITE_FULL"), store.transaction():
            store.delete("s0")
            fill(small_disk)
            with pytest.raises(ResourceExhaustedError), store.transaction():
                for n in range(1, 60):
                    store.get(f"s{n}").status.update(
                        lambda old: replace(old, state=State.NOTREADY, message="x" * 4000)
                    )
            store.delete("s1")
        assert (60, []) == (len(store.list(state=State.READY)), store.check())


def test_a_commit_that_fails_fails_its_group_and_nothing_else(small_disk: str) -> None:
    """All that shared it; the one that marks can do so in the next transaction."""
    with Store.open(f"{small_disk}/registry.db", reconcile=False) as store:
        blocker, *others, last = (store.add(sandbox(f"s{n}"), READY) for n in range(6))

        def fill_and_mark(old: Status) -> Status:
            fill(small_disk)
            return replace(old, state=State.NOTREADY)

        def update(handle: Sandbox) -> Call:
            return lambda: handle.status.update(lambda old: replace(more(old), message="x" * 9000))

        def mark() -> object:
            return last.status.update(fill_and_mark)

        with convoy(store, blocker, *map(update, others), mark) as futures:
            pass
        failed = [future.exception() for future in futures]
        assert [ResourceExhaustedError] * 6 == [type(each) for each in failed]
        for error, handle in zip(failed, (blocker, *others, last), strict=True):
            assert str(error).startswith(f"update status of sandbox {handle.id!r}: ")
        last.status.update(lambda old: replace(old, state=State.NOTREADY))
        assert [0] * 6 == [each.status_as_read.exited_at for each in store.list()]
        assert State.NOTREADY is last.status.get().state
        make_space(small_disk)
        with convoy(store, blocker, *map(update, others)):
            pass
        assert [1] * 5 == [each.status_as_read.exited_at for each in store.list(state=State.READY)]
        assert [] == store.check()


def test_without_lock_files_it_is_opened_from_what_is_kept(small_disk: str) -> None:
    """Not so a new one."""
    path = f"{small_disk}/registry.db"
    Store.open(path).close()
    for name in ("lock", "queue"):
        os.unlink(f"{path}-{name}")
    fill(small_disk)
    Store.open(path).close()
    fill(small_disk)
    with pytest.raises(ResourceExhaustedError, match="free some space") as caught:
        Store.open(f"{small_disk}/new.db")
    assert f"{small_disk}/new.db" == caught.value.path


def test_a_disk_too_small_for_the_reserve_is_used_without_it(small_disk: str) -> None:
    """Sandboxes can be marked and deleted as far as SQLite finds space."""
    path = f"{small_disk}/registry.db"
    with open(f"{small_disk}/other", "wb") as other:
        other.write(bytes(3_000_000))
    with Store.open(path, reconcile=False) as store:
        add_many(store, 3)
        for name in ("reserve", "spare"):
            os.unlink(f"{path}-{name}")
        fill(small_disk)
        with pytest.raises(ResourceExhaustedError):
            store.add(sandbox("more"), READY)
        assert ["s0", "s1", "s2"] == ids(store.list())
        assert not os.path.exists(f"{path}-reserve")


@pytest.fixture
def few_inodes(tmp_path: Path) -> Iterator[str]:
    """Return the path of a file system of 16 inodes."""
    with small_file_system(str(tmp_path / "disk"), 16, "nr_inodes=16") as disk:
        yield disk


def use_up_inodes(disk: str) -> None:
    """Make empty files until none can be made."""
    with pytest.raises(OSError, match="No space left"):
        for n in itertools.count():
            with open(f"{disk}/empty-{time.monotonic_ns()}-{n}", "x", encoding="utf-8"):
                pass
    assert 0 == os.statvfs(disk).f_favail


@pytest.mark.parametrize("killed", [False, True], ids=["closed", "killed"])
@pytest.mark.parametrize("read_only", [False, True], ids=["writable", "read_only"])
def test_without_free_inodes_a_registry_can_be_opened(
    few_inodes: str, killed: bool, read_only: bool
) -> None:
    """Again and again: a close that removes the WAL keeps its inodes for the next open."""
    path = f"{few_inodes}/registry.db"
    with Store.open(path) as store:
        store.add(sandbox("a", netns_path="/run/netns/none"), READY)
    if killed:
        run("import os, sys, registry; registry.Store.open(sys.argv[1]); os._exit(0)", path)
    use_up_inodes(few_inodes)
    for _ in range(3):
        with Store.open(path, read_only=read_only) as store:
            assert ["a"] == ids(store.list())
            if not read_only:
                assert store.recovery is not None
                assert 1 == sum(store.recovery.counts.values())
        use_up_inodes(few_inodes)
    with Store.open(path) as store:
        assert State.NOTREADY is store.get("a").status.get().state


def test_without_free_inodes_additions_are_refused(few_inodes: str) -> None:
    """The error says what to free; marking and deleting go on, and so do additions later."""
    path = f"{few_inodes}/registry.db"
    with Store.open(path) as store:
        for id in "abc":
            store.add(sandbox(id), READY)
        use_up_inodes(few_inodes)
        with pytest.raises(ResourceExhaustedError, match="no inode is free") as caught:
            store.add(sandbox("d"), READY)
        assert (path, errno.ENOSPC) == (caught.value.path, caught.value.errno)
        with store.transaction():
            store.get("a").status.update(mark)
            assert store.delete("b")
        os.unlink(next(glob.iglob(f"{few_inodes}/empty-*")))
        store.add(sandbox("d"), READY)
        assert ["a", "c", "d"] == sorted(ids(store.list()))


def test_a_new_registry_without_free_inodes_says_what_is_missing(few_inodes: str) -> None:
    """Where nothing is reserved yet."""
    use_up_inodes(few_inodes)
    with pytest.raises(ResourceExhaustedError, match="no inode is free") as caught:
        Store.open(f"{few_inodes}/registry.db")
    assert errno.ENOSPC == caught.value.errno


def test_a_file_system_without_limits_is_not_full(tmp_path: Path) -> None:
    """It tells of 0 blocks and 0 inodes, none of them free."""
    with small_file_system(str(tmp_path / "disk"), 0, "nr_inodes=0") as disk:
        found = os.statvfs(disk)
        assert (0, 0, 0, 0) == (found.f_blocks, found.f_bavail, found.f_files, found.f_favail)
        with Store.open(f"{disk}/registry.db") as store:
            store.add(sandbox("a"), READY)
            assert ["a"] == ids(store.list())
