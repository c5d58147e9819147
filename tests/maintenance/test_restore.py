"""A backup in the place of a registry: in use, newer, damaged, gone, or another one."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry import (
    CompactedError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    SchemaVersionError,
    State,
    Store,
    UnavailableError,
    restore,
)
from registry.engine.process_lock import ProcessLock
from registry.maintenance import restore as module
from registry.tables.version import BLOCK
from tests import needs
from tests.tools import (
    READY,
    contents,
    execute,
    ids,
    line,
    make_old_registry,
    query,
    run,
    running,
    sandbox,
    say,
    small_file_system,
)


@pytest.fixture
def backup(path: str, tmp_path: Path) -> Iterator[str]:
    """Return a backup of a registry at *path*, which is closed: sandbox `a`, one transition.

    At the end what is at *path* is checked.
    """
    target = str(tmp_path / "backup.db")
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
        store.backup(target)
    yield target
    with Store.open(path) as store:
        assert [] == store.check()


def add(path: str, id: str) -> None:
    """Add a sandbox in a session of its own."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox(id), READY)


def one(path: str, column: str) -> object:
    """Return a column of the one row of `registry`."""
    return query(path, f"SELECT {column} FROM registry")[0][0]


def seqs(path: str) -> list[int]:
    """Return the seq of every transition that is kept."""
    return [seq for (seq,) in query(path, "SELECT seq FROM sandbox_transitions ORDER BY seq")]


def beside(path: str) -> set[str]:
    """Return what is added to *path* to name the files beside it."""
    folder, name = os.path.split(path)
    return {each.removeprefix(name) for each in os.listdir(folder) if each.startswith(name)}


# The place of a registry.


def test_a_restored_registry_has_the_backup_its_own_id_and_a_new_incarnation(
    backup: str, path: str
) -> None:
    """Nothing was committed since, so nothing is lost; what it replaces is a backup beside it."""
    id, source = one(path, "registry_id"), contents(os.path.dirname(backup))["backup.db"]
    done = restore(backup, path)
    assert (path, backup, 2, ()) == (done.path, done.backup, done.incarnation, done.lost)
    assert 1 == sum(done.recovery.counts.values())
    assert (id, 2, None) == query(path, "SELECT registry_id, incarnation, copied_at FROM registry")[
        0
    ]
    assert [("a",)] == query(done.replaced, "SELECT id FROM sandboxes")
    assert 0 != one(done.replaced, "copied_at")
    add(path, "b")
    assert [1, BLOCK + 1] == seqs(path)
    assert source == contents(os.path.dirname(backup))["backup.db"]
    assert not {suffix for suffix in beside(path) if "restore" in suffix or "part" in suffix}


def test_newer_history_is_replaced_by_force_alone(backup: str, path: str) -> None:
    """The refusal says how much would be lost, and changes nothing."""
    for id in "bc":
        add(path, id)
    before = contents(os.path.dirname(path))
    with pytest.raises(
        FailedPreconditionError, match=r"does not have 2 transitions .seq 2 to 3."
    ) as caught:
        restore(backup, path)
    assert path == caught.value.path
    assert before == contents(os.path.dirname(path))
    done = restore(backup, path, force=True)
    assert (range(2, 4),) == done.lost
    assert [("a",)] == query(path, "SELECT id FROM sandboxes")
    assert [("a",), ("b",), ("c",)] == query(done.replaced, "SELECT id FROM sandboxes ORDER BY id")


def test_a_second_restore_of_one_backup_loses_the_first_incarnation(backup: str, path: str) -> None:
    """No seq is used twice, and each incarnation has a number of its own."""
    restore(backup, path)
    add(path, "b")
    with pytest.raises(FailedPreconditionError, match=f"1 transition .seq {BLOCK + 1}"):
        restore(backup, path)
    done = restore(backup, path, force=True)
    assert ((range(BLOCK + 1, BLOCK + 2),), 3) == (done.lost, done.incarnation)
    add(path, "c")
    assert [1, 2 * BLOCK + 1] == seqs(path)


def test_a_replaced_registry_can_be_restored_again(backup: str, path: str) -> None:
    """A restore by mistake is undone by another one."""
    add(path, "b")
    done = restore(backup, path, force=True)
    undone = restore(done.replaced, path, force=True)
    assert (3, ()) == (undone.incarnation, undone.lost)
    assert [("a",), ("b",)] == query(path, "SELECT id FROM sandboxes ORDER BY id")


def test_another_registry_is_replaced_by_force_alone(
    path: str, backup: str, tmp_path: Path
) -> None:
    """The refusal names both ids; the loss is unknown."""
    other = str(tmp_path / "other.db")
    add(other, "x")
    with pytest.raises(FailedPreconditionError, match="it is another registry") as caught:
        restore(backup, other)
    for each in (path, other):
        assert str(one(each, "registry_id")) in str(caught.value)
    done = restore(backup, other, force=True)
    assert done.lost is None
    assert one(path, "registry_id") == one(other, "registry_id")
    with Store.open(other) as store:
        assert (["a"], []) == (ids(store.list()), store.check())


def test_a_page_size_of_its_own_is_kept(backup: str, path: str, tmp_path: Path) -> None:
    """SQLite cannot change that of a database that is in use."""
    other = str(tmp_path / "small.db")
    with closing(sqlite3.connect(backup, isolation_level=None)) as connection:
        connection.execute("PRAGMA page_size = 1024")
        connection.execute(f"VACUUM INTO '{other}'")
    restore(other, path)
    assert [(4096,)] == query(path, "PRAGMA page_size")
    assert [("a",)] == query(path, "SELECT id FROM sandboxes")


def test_a_backup_of_an_older_revision_is_upgraded(path: str, tmp_path: Path) -> None:
    """As an open would; the backup stays as it is."""
    old = str(tmp_path / "old" / "registry.db")
    make_old_registry(old)
    restore(old, path)  # the reconcile marks the one whose creator has ended
    with Store.open(path) as store:
        assert ["s0", "s1", "s2"] == ids(store.list())
        assert [] == store.check()
    assert 1 == one(old, "level")
    restore(path, old, force=True)  # and so is a registry of an older revision replaced
    assert 3 == one(old, "incarnation")


# A registry in use.

USER = """
    import sys
    from dataclasses import replace
    from registry import Metadata, RegistryError, State, Status, Store

    with Store.open(sys.argv[1], reconcile=False) as store:
        kept, lost = store.get("a"), store.get("b")
        watch = store.watch(after=store.history()[-1].seq, timeout=0)

        def update():
            kept.status.update(lambda old: replace(old, message=old.message + "+"))
            return kept.status.get().message

        steps = {
            "list": lambda: [each.id for each in store.list()],
            "update": update,
            "add": lambda: store.add(Metadata("c", "c", None), Status(State.READY)).id,
            "stopped": lambda: (kept.stopped.is_set(), lost.stopped.wait(60)),
            "watch": lambda: next(watch),
            "id": lambda: store.new_netns_path()[:43],
            "lost": lost.status.get,
        }
        print("open", flush=True)
        for text in sys.stdin:
            try:
                print(steps[text.strip()](), flush=True)
            except RegistryError as error:
                print(type(error).__name__, flush=True)
    """


def test_a_process_that_has_the_registry_open_goes_on_with_the_restored_one(
    backup: str, path: str
) -> None:
    """Its caches, handles, StopChs and watches notice, and its writes go into the new one."""

    def ask(step: str) -> str:
        say(other, step)
        return line(other)

    add(path, "b")
    with running(USER, path) as other:
        assert "open" == line(other)
        id = ask("id")
        assert ["['a', 'b']", "+"] == [ask("list"), ask("update")]
        done = restore(backup, path, force=True)
        assert (range(2, 3),) == done.lost
        assert "['a']" == ask("list")
        assert "+" == ask("update")
        assert "(False, True)" == ask("stopped")
        assert "NotFoundError" == ask("lost")
        assert "c" == ask("add")
        assert "CompactedError" == ask("watch")
        assert id == ask("id")
    assert [1, BLOCK + 1] == seqs(path)


WRITER = """
    import sys
    from registry import Metadata, State, Status, Store
    with Store.open(sys.argv[1], reconcile=False) as store:
        for n in range(200):
            name = f"{sys.argv[2]}-{n}"
            store.add(Metadata(name, name, None), Status(State.READY))
            print(n, flush=True)
    """


def test_writers_go_on_during_restores(backup: str, path: str) -> None:
    """Each sandbox is in the registry if no restore has followed; the registry is in order."""
    with running(WRITER, path, "x") as one_writer, running(WRITER, path, "y") as other_writer:
        assert ["0", "0"] == [line(one_writer), line(other_writer)]
        with Store.open(path, reconcile=False) as store:
            for n in range(3):
                restore(backup, path, force=True)
                store.add(sandbox(f"own-{n}"), READY)
            for writer in (one_writer, other_writer):
                while line(writer) != "199":
                    pass
            assert {"a", "own-2"} <= set(ids(store.list()))
            assert not {"own-0", "own-1"} & set(ids(store.list()))
            assert [] == store.check()
    assert 4 == one(path, "incarnation")


def test_a_reader_with_a_snapshot_neither_waits_nor_holds_up_a_restore(
    backup: str, path: str
) -> None:
    """It goes on reading what was replaced, until its transaction ends."""
    add(path, "b")
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        shell.execute("BEGIN")
        names = "SELECT id FROM sandboxes ORDER BY id"
        assert [("a",), ("b",)] == shell.execute(names).fetchall()
        restore(backup, path, force=True)
        assert [("a",), ("b",)] == shell.execute(names).fetchall()
        shell.execute("COMMIT")
        assert [("a",)] == shell.execute(names).fetchall()


def test_this_process_goes_on_too(backup: str, path: str) -> None:
    """A wait for a sandbox that vanishes ends, also when its seq was passed by the new history."""
    with Store.open(path) as store:
        handle = store.add(sandbox("b"), READY)
        assert not handle.stopped.wait(0)
        restore(backup, path, force=True)
        store.add(sandbox("c"), READY)
        assert handle.stopped.wait(60)
        with pytest.raises(NotFoundError):
            handle.status.get()
        with pytest.raises(CompactedError):
            store.history(after=2)
        assert [] == store.check()


def test_the_id_of_another_registry_counts_at_once(backup: str, path: str, tmp_path: Path) -> None:
    """For the names of namespaces, in stores that were open before."""
    other = str(tmp_path / "other.db")
    with Store.open(other) as store:
        restore(backup, other, force=True)
        assert str(one(path, "registry_id")) in store.new_netns_path()


def test_a_restore_waits_for_no_process_for_ever(
    backup: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the process lock, and of a client that bypasses it: nothing is changed."""
    monkeypatch.setattr(module, "TIMEOUT", 0.0)
    lock = ProcessLock(path)
    try:
        assert lock.acquire(float("inf"))
        with pytest.raises(UnavailableError, match="restore registry"):
            restore(backup, path)
    finally:
        lock.release()
        lock.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(module, "BUSY_TIMEOUT", 0.0)
        with pytest.raises(UnavailableError):
            restore(backup, path)
    assert not [suffix for suffix in beside(path) if "replaced" in suffix or "restore" in suffix]


def test_a_restore_that_has_to_wait_for_no_process_needs_no_timeout(
    backup: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline is for waiting: a commit that has been made is never taken for a failure."""
    monkeypatch.setattr(module, "TIMEOUT", 0.0)
    assert 2 == restore(backup, path).incarnation


def test_an_error_after_the_commit_leaves_what_was_replaced(
    backup: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an interrupt may be: the replaced registry is the only one with the lost transitions."""
    add(path, "b")
    replace_pages = module._replace_pages

    def fail(*args: Any) -> None:
        replace_pages(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_replace_pages", fail)
    with pytest.raises(KeyboardInterrupt):
        restore(backup, path, force=True)
    assert [("a",)] == query(path, "SELECT id FROM sandboxes")
    (kept,) = (f"{path}{suffix}" for suffix in beside(path) if suffix.startswith(".replaced"))
    assert [("a",), ("b",)] == query(kept, "SELECT id FROM sandboxes ORDER BY id")
    monkeypatch.undo()
    assert 3 == restore(kept, path, force=True).incarnation


def test_the_log_of_a_restore_is_not_taken_for_that_of_another_database(
    backup: str, path: str, tmp_path: Path
) -> None:
    """A kill after the restore leaves its WAL beside the old file: both are opened together."""
    other = str(tmp_path / "other.db")
    add(other, "x")
    for source, target in ((backup, path), (backup, other)):
        run(
            """
            import os, sys
            from registry import Store, restore
            from registry.engine import driver
            vars(driver).update(WAL_PAGES=100_000)
            keep = Store.open(sys.argv[2], reconcile=False)
            keep.list()
            restore(sys.argv[1], sys.argv[2], force=True)
            os._exit(0)
            """,
            source,
            target,
        )
        assert os.path.getsize(f"{target}-wal")
        with Store.open(target) as store:
            assert (["a"], []) == (ids(store.list()), store.check())


# No registry, or none that can be read.


def _interrupted(path: str) -> None:
    """Leave the rollback journal of a killed shell."""
    code = """
        import os, signal, sqlite3, sys
        shell = sqlite3.connect(sys.argv[1], isolation_level=None)
        for statement in (
            "PRAGMA journal_mode = DELETE",
            "PRAGMA cache_size = 1",
            "BEGIN",
            "UPDATE sandbox_statuses SET message = hex(randomblob(20000))",
            "CREATE TABLE t (a)",
        ):
            shell.execute(statement)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    run(code, path, expected=-signal.SIGKILL)
    assert os.path.getsize(f"{path}-journal")


def test_a_registry_whose_journal_is_rolled_back_is_in_order(backup: str, path: str) -> None:
    """It is kept as it was before the write that was cut short."""
    _interrupted(path)
    done = restore(backup, path)
    assert () == done.lost
    assert [("",)] == query(done.replaced, "SELECT message FROM sandbox_statuses")


def _gone(path: str) -> None:
    os.unlink(path)


def _gone_with_all(path: str) -> None:
    for suffix in beside(path):
        if "backup" not in suffix:
            os.unlink(f"{path}{suffix}")


def _empty(path: str) -> None:
    os.truncate(path, 0)


def _one_byte(path: str) -> None:
    os.truncate(path, 1)


def _cut(path: str) -> None:
    os.truncate(path, os.path.getsize(path) // 2 // 4096 * 4096)


def _text(path: str) -> None:
    Path(path).write_text("not a database\n" * 1000)


def _damaged_page(path: str) -> None:
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xaa" * 4096)


def _first_page(path: str) -> None:
    with open(path, "r+b") as file:
        file.write(bytes(4096))


def _log_of_another(path: str) -> None:
    """Leave the WAL of a killed process of another registry."""
    other = f"{path}-x"
    run(
        """
        import os, sys
        from registry import Metadata, State, Status, Store
        store = Store.open(sys.argv[1], reconcile=False)
        store.add(Metadata("x", "x", None), Status(State.READY))
        os._exit(0)
        """,
        other,
    )
    shutil.copyfile(f"{other}-wal", f"{path}-wal")
    for suffix in beside(other):
        os.unlink(f"{other}{suffix}")


BROKEN = [_gone, _gone_with_all, _empty, _one_byte, _cut, _text, _damaged_page, _log_of_another]


@pytest.mark.parametrize("make", BROKEN)
def test_a_registry_that_is_gone_or_damaged_is_replaced(
    backup: str, path: str, make: Callable[[str], None]
) -> None:
    """Its files are moved away together, as they are; the loss is unknown."""
    id = one(path, "registry_id")
    make(path)
    folder = os.path.dirname(path)
    before = contents(folder)
    done = restore(backup, path)
    assert (2, None) == (done.incarnation, done.lost)
    assert (id, 2) == (one(path, "registry_id"), one(path, "incarnation"))
    name = os.path.basename(path)
    moved = {each: each.replace(name, os.path.basename(done.replaced)) for each in before}
    left = [each for each in before if each in {name, f"{name}-wal", f"{name}-shm"}]
    assert [before[each] for each in left] == [contents(folder)[moved[each]] for each in left]
    assert bool(left) == bool(done.replaced)
    add(path, "b")
    assert [1, 1] == [seq % BLOCK for seq in seqs(path)]


def test_the_history_skips_blocks_that_a_registry_that_is_gone_may_have_used(
    backup: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number at random: two restores of one backup would use the next block both times."""
    monkeypatch.setattr(secrets, "randbelow", lambda below: below - 1)
    os.unlink(path)
    restore(backup, path)
    add(path, "b")
    assert [1, module._BLOCKS * BLOCK + 1] == seqs(path)
    assert seqs(path)[1] < 2**53  # exact in JSON for programs that know no other numbers


def test_a_restore_to_another_host_makes_the_directory(
    backup: str, tmp_path: Path, path: str
) -> None:
    """The file belongs to the owner of the backup, with mode 0600, and so do its lock files."""
    if os.geteuid() == 0:
        os.chown(backup, 65534, 65534)
    owner = os.stat(backup)
    target = str(tmp_path / "new" / "shim" / "registry.db")
    done = restore(backup, target)
    assert ("", None, 2) == (done.replaced, done.lost, done.incarnation)
    for suffix in beside(target):
        found = os.stat(f"{target}{suffix}")
        assert (owner.st_uid, owner.st_gid) == (found.st_uid, found.st_gid), suffix
        assert 0o600 == stat.S_IMODE(found.st_mode), suffix


def test_a_process_that_has_a_damaged_registry_open_is_told(backup: str, path: str) -> None:
    """It finds other files at the paths, and writes nothing any more."""
    code = """
        import sys
        from dataclasses import replace
        from registry import DataLossError, Store
        with Store.open(sys.argv[1], reconcile=False) as store:
            handle = store.get("a")
            print("open", flush=True)
            sys.stdin.readline()
            try:
                handle.status.update(lambda old: replace(old, message="late"))
            except DataLossError as error:
                print("removed or replaced" in str(error), flush=True)
            sys.stdin.readline()
        """
    with running(code, path) as other:
        assert "open" == line(other)
        os.rename(path, f"{path}.lost")
        restore(backup, path)
        say(other)
        assert "True" == line(other)
    assert [("",)] == query(path, "SELECT message FROM sandbox_statuses")


def test_a_damaged_registry_that_this_process_has_open_is_left(backup: str, path: str) -> None:
    """SQLite would mix up the old and the new file."""
    with Store.open(path) as store:
        assert ["a"] == ids(store.list())
        os.rename(path, f"{path}.lost")
        with pytest.raises(FailedPreconditionError, match="close its stores first"):
            restore(backup, path)
        os.rename(f"{path}.lost", path)


# What is refused.


def test_a_database_of_another_program_is_never_replaced(backup: str, tmp_path: Path) -> None:
    """There is no evidence beside it."""
    other = str(tmp_path / "theirs.db")
    execute(other, "CREATE TABLE t (a)")
    before = contents(str(tmp_path))
    with pytest.raises(DataLossError, match="nothing shows that it was a registry"):
        restore(backup, other, force=True)
    after = contents(str(tmp_path))
    assert before == {name: after[name] for name in before}


@pytest.mark.parametrize("make", [_text, _first_page])
def test_an_unreadable_file_without_evidence_is_replaced_by_force_alone(
    backup: str, path: str, tmp_path: Path, make: Callable[[str], None]
) -> None:
    """A copy whose first page is destroyed looks like any other file; it is kept as it is."""
    copy = str(tmp_path / "copy" / "registry.db")
    os.mkdir(os.path.dirname(copy))
    shutil.copyfile(path, copy)
    make(copy)
    before = Path(copy).read_bytes()
    with pytest.raises(DataLossError, match="give --force") as caught:
        restore(backup, copy)
    assert (copy, before) == (caught.value.path, Path(copy).read_bytes())
    done = restore(backup, copy, force=True)
    assert before == Path(done.replaced).read_bytes()
    assert [("a",)] == query(copy, "SELECT id FROM sandboxes")


def _missing(backup: str) -> None:
    os.unlink(backup)


def _theirs(backup: str) -> None:
    os.unlink(backup)
    execute(backup, "CREATE TABLE t (a)")


def _newer(backup: str) -> None:
    execute(backup, "UPDATE registry SET level = 99, min_reader = 99")


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (_missing, NotFoundError),
        (_empty, NotFoundError),
        (_text, DataLossError),
        (_theirs, DataLossError),
        (_cut, DataLossError),
        (_damaged_page, DataLossError),
        (_newer, SchemaVersionError),
        (_interrupted, DataLossError),
    ],
)
def test_a_backup_that_cannot_be_used_is_refused_before_anything_is_touched(
    backup: str, path: str, spoil: Callable[[str], None], error: type[Exception]
) -> None:
    """Whatever is at the path; also where nothing is."""
    spoil(backup)
    before = contents(os.path.dirname(path))
    with pytest.raises(error):
        restore(backup, path, force=True)
    with pytest.raises(error):
        restore(backup, f"{os.path.dirname(path)}/new.db")
    assert before == contents(os.path.dirname(path))


def test_a_backup_of_itself_is_refused(backup: str, path: str, tmp_path: Path) -> None:
    """Also by a symlink, which is resolved; and what a killed restore has left is no backup."""
    (tmp_path / "link").symlink_to(path)
    shutil.copyfile(backup, f"{path}-restore")
    for source in (path, tmp_path / "link", f"{path}-restore"):
        with pytest.raises(InvalidArgumentError, match="both are the same file") as caught:
            restore(source, path, force=True)
        assert "backup" == caught.value.field


@needs.namespaces
def test_a_full_disk_leaves_the_registry_as_it_is(tmp_path: Path) -> None:
    """Whether it is in use, or gone."""
    with small_file_system(str(tmp_path / "small"), 4) as small:
        path, source = f"{small}/registry.db", str(tmp_path / "backup.db")
        with Store.open(path) as store:
            store.add(sandbox("a"), READY)
            store.backup(source)
            execute(
                source,
                "CREATE TABLE large AS SELECT randomblob(3000000) AS data",
                "PRAGMA user_version",
            )
            with pytest.raises(ResourceExhaustedError):
                restore(source, path, force=True)
            store.get("a").status.update(lambda old: replace(old, state=State.NOTREADY))
            assert [] == store.check()
        assert not [name for name in os.listdir(small) if "replaced" in name or "restore" in name]
