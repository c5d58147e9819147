"""`open` accepts a path, refuses it, or leaves its files unchanged."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ReadOnlyError,
    Store,
    StoreClosedError,
    UnavailableError,
)
from tests.conftest import OpenStore, RunInLocale
from tests.tools import READY, environment, execute, ids, line, query, run, running, sandbox, say

SUFFIXES = ("", "-wal", "-shm", "-lock", "-queue", "-reserve", "-spare")


def mode(path: str) -> int:
    """Return the permissions of *path*."""
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777], ids=oct)
def test_new_files_get_0600_and_new_directories_0700(tmp_path: Path, umask: int) -> None:
    """Under any umask; a directory that was there keeps its mode."""
    tmp_path.chmod(0o755)
    path = str(tmp_path / "a" / "b" / "registry.db")
    before = os.umask(umask)
    try:
        with Store.open(path) as store:
            store.add(sandbox("a"), READY)
            modes = {name: mode(f"{path}{name}") for name in SUFFIXES}
    finally:
        os.umask(before)
    assert {0o600} == set(modes.values())
    assert [0o700, 0o700] == [mode(str(tmp_path / "a")), mode(os.path.dirname(path))]
    assert 0o755 == mode(str(tmp_path))


def test_a_missing_file_is_not_found_unless_it_may_be_created(tmp_path: Path) -> None:
    """Nothing is left behind, no directory either."""
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(NotFoundError) as caught:
            Store.open(tmp_path / "a" / "registry.db", **options)  # type: ignore[arg-type]
        assert str(tmp_path / "a" / "registry.db") == caught.value.path
    assert [] == list(tmp_path.iterdir())


def test_an_empty_file_is_not_a_registry_until_it_may_be_created(path: str) -> None:
    """An interrupted creation leaves one."""
    Path(path).touch()
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(NotFoundError):
            Store.open(path, **options)  # type: ignore[arg-type]
    assert ["registry.db"] == os.listdir(os.path.dirname(path))
    Store.open(path).close()
    assert [(1,)] == query(path, "SELECT count(*) FROM registry")


def test_a_file_that_is_no_database_is_refused(path: str) -> None:
    """And left as it was."""
    Path(path).write_bytes(b"something else, and longer than a header of SQLite" * 100)
    for options in ({}, {"read_only": True}):
        with pytest.raises(DataLossError) as caught:
            Store.open(path, **options)  # type: ignore[arg-type]
        assert path == caught.value.path
        assert sqlite3.SQLITE_NOTADB == caught.value.sqlite_code
    assert Path(path).read_bytes().startswith(b"something else")
    assert ["registry.db"] == os.listdir(os.path.dirname(path))


def test_a_database_that_is_no_registry_is_refused(path: str) -> None:
    """Told by its application_id, whatever its tables are called; it is left as it was."""
    execute(path, "CREATE TABLE registry (one)", "CREATE TABLE sandboxes (id)")
    for options in ({}, {"read_only": True}, {"create": False}):
        with pytest.raises(DataLossError, match="no registry") as caught:
            Store.open(path, **options)  # type: ignore[arg-type]
        assert path == caught.value.path
    assert ["registry", "sandboxes"] == [
        name for (name,) in query(path, "SELECT name FROM sqlite_master ORDER BY name")
    ]


def test_a_directory_is_refused(tmp_path: Path) -> None:
    """With a file name to use instead."""
    with pytest.raises(InvalidArgumentError, match=r"registry\.db") as caught:
        Store.open(tmp_path)
    assert ("path", str(tmp_path)) == (caught.value.field, caught.value.value)
    assert [] == list(tmp_path.iterdir())


NAMES = [b"d\xe4ta", "näme 一".encode(), b"\xff\xfe", b"%41 ?#&=\\'"]
OPEN_BESIDE = """
    import os, subprocess, sys
    from registry import Store
    from tests.tools import READY, sandbox
    path = os.path.join(sys.argv[1], "r.db")
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
    with Store.open(path, read_only=True) as store:
        print(sys.getfilesystemencoding(), len(store.list()))
    command = [sys.executable, "-m", "registry", "--db", path, "list", "--json"]
    print(b'"id": "a"' in subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    """


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_path_of_any_bytes_is_opened_in_latin_1(
    tmp_path: Path, latin1: RunInLocale, name: bytes
) -> None:
    """All files of the registry are in the directory with those bytes, and none elsewhere."""
    folder = os.path.join(os.fsencode(tmp_path), name)
    os.mkdir(folder)
    assert ["iso8859-1 1", "True"] == latin1(OPEN_BESIDE, os.fsdecode(folder))
    assert {b"r.db", b"r.db-lock", b"r.db-queue"} <= set(os.listdir(folder))
    assert [name] == os.listdir(os.fsencode(tmp_path))


@pytest.mark.parametrize("name", NAMES, ids=repr)
@pytest.mark.parametrize("utf8", ["0", "1"])
def test_a_path_of_any_bytes_is_opened_in_the_c_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes, utf8: str
) -> None:
    """Of which the encoding is ASCII, unless Python takes UTF-8 for it."""
    folder = os.path.join(os.fsencode(tmp_path), name)
    os.mkdir(folder)
    for variable, value in {"LC_ALL": "C", "PYTHONUTF8": utf8, "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(variable, value)
    out = run(OPEN_BESIDE, os.fsdecode(folder))
    assert [f"{'utf-8' if utf8 == '1' else 'ascii'} 1", "True"] == out.splitlines()
    assert [name] == os.listdir(os.fsencode(tmp_path))


def test_a_path_that_the_locale_cannot_encode_is_refused(latin1: RunInLocale) -> None:
    """As an invalid argument."""
    out = latin1(
        """
        from registry import InvalidArgumentError, Store
        try:
            Store.open("/tmp/\\u4e00/r.db")
        except InvalidArgumentError as error:
            print(error.field, ascii(error.value))
        """
    )
    assert ["path '/tmp/\\u4e00/r.db'"] == out


@pytest.mark.parametrize("path", ["", ":memory:", "a\0b", "/dev/null", b"/tmp/x"], ids=repr)
def test_a_value_that_is_not_the_path_of_a_file_is_refused(path: Any) -> None:
    """A registry outlives the process."""
    with pytest.raises(InvalidArgumentError):
        Store.open(path)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """With the reason, as an error of ours."""
    (tmp_path / "file").touch()
    with pytest.raises(FailedPreconditionError, match="Not a directory"):
        Store.open(tmp_path / "file" / "registry.db")


def test_an_sqlite_that_is_too_old_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it makes a file; both versions are named."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 0))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.36.0")
    with pytest.raises(FailedPreconditionError, match=r"3\.36\.0 is too old, 3\.37"):
        Store.open(path)
    assert not os.path.exists(path)


def test_opening_an_up_to_date_registry_imports_neither_alembic_nor_pyroute2(path: str) -> None:
    """Nor what else is slow; reading and writing neither."""
    Store.open(path).close()
    out = run(
        """
        import sys
        from registry import Metadata, State, Status, Store
        with Store.open(sys.argv[1]) as store:
            store.add(Metadata("a", "a", None), Status(State.READY))
            store.list()
            store.get("a").status.update(lambda old: old)
        slow = ("alembic", "pyroute2", "google.protobuf.json_format", "registry.cli.program")
        print([name for name in slow if name in sys.modules])
        """,
        path,
    )
    assert "[]" == out.strip()


def test_the_hosts_logging_is_not_touched(path: str) -> None:
    """Neither its handlers nor its levels, when a registry is created and upgraded by Alembic."""
    root, theirs = logging.getLogger(), logging.getLogger("theirs")
    theirs.setLevel(logging.DEBUG)
    before = (root.level, list(root.handlers), theirs.disabled)
    Store.open(path).close()
    execute(path, "UPDATE registry SET level = 0")
    Store.open(path).close()
    assert "alembic" in sys.modules
    assert before == (root.level, list(root.handlers), theirs.disabled)
    handlers = [type(each) for each in logging.getLogger("alembic").handlers]
    assert [] == [each for each in handlers if each is not logging.NullHandler]
    assert logging.NOTSET == logging.getLogger("alembic").level


def test_a_read_only_store_reads_and_never_writes(store: Store, path: str) -> None:
    """It reconciles nothing, and each write says why not."""
    store.add(sandbox("a", netns_path="/run/netns/gone"), READY)
    with Store.open(path, read_only=True) as reader:
        assert None is reader.recovery
        handle = reader.get("a")
        assert READY == handle.status.get()
        assert [] == reader.check()
        assert ["NetNSClosed"] == [
            finding.reason for finding in reader.reconcile(dry_run=True).findings
        ]
        for call in (
            lambda: reader.add(sandbox("b"), READY),
            lambda: reader.delete("a"),
            reader.reconcile,
            lambda: handle.status.update(lambda old: old),
            reader.transaction().__enter__,
        ):
            with pytest.raises(ReadOnlyError) as caught:
                call()
            assert path == caught.value.path
        store.get("a").status.update(lambda old: old)
        assert READY == handle.status.get()


def test_a_read_only_store_sees_the_commits_of_others(store: Store, path: str) -> None:
    """At the next read."""
    with Store.open(path, read_only=True) as reader:
        store.add(sandbox("a"), READY)
        assert ["a"] == [found.id for found in reader.list()]


def test_a_locked_registry_is_unavailable_past_the_timeout(path: str) -> None:
    """Open waits no longer than it was told to, and leaves the file alone."""
    Store.open(path).close()
    code = """
        import sys
        from registry import Store
        store = Store.open(sys.argv[1])
        with store.transaction():
            print("inside", flush=True)
            sys.stdin.readline()
        store.close()
        print("done", flush=True)
        """
    with running(code, path) as child:
        assert "inside" == line(child)
        with pytest.raises(UnavailableError) as caught:
            Store.open(path, timeout=0.2)
        assert f"process {child.pid}" in caught.value.holder
        with Store.open(path, read_only=True) as reader:
            assert [] == reader.list()
        say(child)
        assert "done" == line(child)
    Store.open(path).close()


def test_threads_that_open_and_close_one_file_at_once(path: str) -> None:
    """Every one gets a store that works."""
    errors: list[BaseException] = []

    def use(n: int) -> None:
        try:
            for round_ in range(10):
                with Store.open(path, reconcile=False) as store:
                    store.add(sandbox(f"s{n}-{round_}"), READY)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=[n]) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == errors
    with Store.open(path) as store:
        assert 60 == len(store.list())
        assert [] == store.check()


def test_a_store_that_is_not_closed_is_warned_of(path: str) -> None:
    """As Python warns of an unclosed file."""
    store = Store.open(path)
    session = store._session
    with pytest.warns(ResourceWarning, match="unclosed Store"):
        del store
    session.close()


def test_a_store_closed_in_its_own_transaction(open_store: OpenStore) -> None:
    """The transaction is rolled back with the last Store of the file, and goes on with another."""
    one, two = open_store(), open_store()
    with one.transaction():
        one.add(sandbox("kept"), READY)
        one.close()
    assert ["kept"] == ids(two.list())
    with pytest.raises(StoreClosedError), two.transaction():
        two.add(sandbox("lost"), READY)
        two.close()
    assert ["kept"] == ids(open_store().list())


def test_a_store_without_open_is_refused(path: str) -> None:
    """A Store is not made from a path."""
    with pytest.raises(TypeError, match=r"use Store.open\(path\)"):
        Store(path)  # type: ignore[arg-type]


def test_a_closed_store_cannot_be_entered(path: str) -> None:
    """It stays closed, which a `with` says at its beginning."""
    store = Store.open(path)
    store.close()
    with pytest.raises(StoreClosedError), store:
        pass


def test_bytes_that_are_no_text_hide_nothing_else(store: Store, path: str) -> None:
    """Another program wrote them; the sandbox is listed, reconciled, reported and deleted."""
    store.add(sandbox("a"), READY)
    store.add(sandbox("b"), READY)
    store.add(sandbox("c"), READY)
    execute(
        path,
        "UPDATE sandbox_statuses SET message = CAST(x'41ff' AS TEXT)",
        "UPDATE sandbox_statuses SET boot_id = CAST(x'ff' AS TEXT) WHERE sandbox_id = 'c'",
    )
    with Store.open(path) as again:
        assert again.recovery is not None
        assert ["c"] == [finding.sandbox_id for finding in again.recovery.findings]
        again.delete("c")
        assert ["a", "b"] == ids(again.list())
        assert "A\udcff" == again.get("a").status.get().message
        assert {"a", "b"} == {violation.sandbox_id for violation in again.check()}
        assert again.delete("a")
        again.get("b").status.update(lambda old: replace(old, message=""))


def test_two_paths_of_one_file_are_one_engine(tmp_path: Path, store: Store, path: str) -> None:
    """A symlink to the database is the database."""
    os.symlink(path, tmp_path / "link.db")
    with Store.open(tmp_path / "link.db") as linked:
        assert linked._session.engine is store._session.engine


def test_threads_that_make_several_registries_at_once(tmp_path: Path) -> None:
    """They are upgraded at once too; Alembic, which does that, is one for the process."""
    for _ in range(2):
        with ThreadPoolExecutor(4) as pool:
            opened = [
                pool.submit(lambda n: Store.open(tmp_path / f"{n}.db").close(), n)
                for n in range(16)
            ]
            for each in opened:
                each.result()
        for n in range(16):
            execute(str(tmp_path / f"{n}.db"), "UPDATE registry SET level = 0")
    for n in range(16):
        execute(str(tmp_path / f"{n}.db"), "UPDATE registry SET level = 1")
        with Store.open(tmp_path / f"{n}.db") as store:
            assert [] == store.check()


def test_an_interrupted_close_closes(path: str) -> None:
    """Ctrl-C while it waits for a writer: it waits no longer, and the writer closes."""
    out = run(
        """
        import os, signal, sys, threading
        from registry import Metadata, State, Status, Store, StoreClosedError
        from tests.convoy import waiting
        from tests.tools import until
        store = Store.open(sys.argv[1])
        handle = store.add(Metadata("a", "a", None), Status(State.READY))
        begun, go = threading.Event(), threading.Event()
        def slow(old):
            begun.set()
            go.wait()
            return old
        def write():
            try:
                handle.status.update(slow)
            except StoreClosedError:
                print("closed")
        writer = threading.Thread(target=write)
        writer.start()
        begun.wait()
        def interrupt():
            until(lambda: waiting(store) == 1)  # the close waits for the writer
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        threading.Thread(target=interrupt).start()
        try:
            store.close()
        except KeyboardInterrupt:
            print("interrupted")
        go.set()
        writer.join()
        print(os.path.exists(f"{sys.argv[1]}-wal"))
        """,
        path,
    )
    assert ["interrupted", "closed", "False"] == out.splitlines()


def test_a_file_of_two_names_is_refused(store: Store, path: str) -> None:
    """SQLite would keep a WAL for each of them."""
    store.list()
    os.link(path, f"{path}.too")
    try:
        with pytest.raises(FailedPreconditionError, match="hard links") as caught:
            Store.open(f"{path}.too")
        assert f"{path}.too" == caught.value.path
    finally:
        os.unlink(f"{path}.too")


def test_an_operators_shell_reads_the_same(store: Store, path: str) -> None:
    """Through the views, beside the open store."""
    store.add(sandbox("a", ip="10.0.0.1"), READY)
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as shell:
        row = shell.execute("SELECT id, state, ip, created_at FROM sandbox_overview").fetchone()
    assert ("a", "SANDBOX_READY", "10.0.0.1", "1970-01-01T00:00:00.000001000Z") == row


def test_a_package_that_python_runs_by_its_name_writes_under_that_name(tmp_path: Path) -> None:
    """Its script is `__main__.py`, which would tell an operator nothing."""
    package = tmp_path / "podshim"
    package.mkdir()
    package.joinpath("__main__.py").write_text(
        "import sys\n"
        "from registry import Metadata, State, Status, Store\n"
        "with Store.open(sys.argv[1]) as store:\n"
        "    store.add(Metadata('a', 'a', None), Status(State.READY))\n"
        "    print(store.history()[-1].actor)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "podshim", str(tmp_path / "registry.db")],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.fullmatch(r"podshim\[\d+\]\n", done.stdout)
