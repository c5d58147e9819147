"""A file that is refused stays as it was, byte for byte, and nothing is left beside it."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from registry import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    RegistryError,
    SchemaVersionError,
    Store,
)
from registry.cli import failures, program
from registry.host import kernel
from tests import needs
from tests.tools import READY, contents, execute, run, sandbox, tamper


def shell(path: str, *statements: str, killed: bool = True) -> None:
    """Run SQL on a plain connection in a process, and kill or close it."""
    code = """
        import os, signal, sqlite3, sys
        killed, path, *statements = sys.argv[1:]
        shell = sqlite3.connect(path, isolation_level=None)
        for statement in statements:
            shell.execute(statement)
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
        shell.close()
        """
    expected = -signal.SIGKILL if killed else 0
    run(code, "killed" * killed, path, *statements, expected=expected)


def registry(path: str) -> None:
    """Make a registry with some sandboxes."""
    with Store.open(path) as store, store.transaction():
        for n in range(50):
            store.add(sandbox(f"a{n}"), READY)


# What may be at the path.


def text(path: str) -> None:
    """Write a text that is longer than SQLite's header."""
    Path(path).write_bytes(b"something else, and longer than a header of SQLite" * 100)


def short_text(path: str) -> None:
    """Write a text that is shorter than SQLite's header."""
    Path(path).write_bytes(b"short")


def one_byte(path: str) -> None:
    """Write one byte: SQLite treats such a file as empty."""
    Path(path).write_bytes(b"\n")


def another_database(path: str, mode: str) -> None:
    """Make a database with tables of the same names, in one of SQLite's journal modes."""
    tables = ("CREATE TABLE registry (one)", "CREATE TABLE sandboxes (id)")
    shell(path, f"PRAGMA journal_mode = {mode}", *tables, killed=False)


def another_database_with_a_wal(path: str) -> None:
    """Kill the process of another database: most of it is in the WAL."""
    shell(path, "PRAGMA journal_mode = WAL", "CREATE TABLE t (a)", "INSERT INTO t VALUES (1)")


def another_database_with_a_wal_and_no_index(path: str) -> None:
    """Copy the database file and its WAL."""
    another_database_with_a_wal(path)
    os.unlink(f"{path}-shm")


def another_database_to_be_rolled_back(path: str) -> None:
    """Kill a process in a transaction, of which a part is in the file."""
    shell(path, "CREATE TABLE t (a)", "INSERT INTO t VALUES (zeroblob(100000))", killed=False)
    shell(path, "PRAGMA cache_size = 1", "BEGIN", "UPDATE t SET a = randomblob(100000)")
    assert os.path.getsize(f"{path}-journal") > 0


def newer_registry(path: str) -> None:
    """Set a schema that this code may not read."""
    registry(path)
    execute(path, "UPDATE registry SET level = 7, min_reader = 7, min_writer = 7")


def newer_registry_with_a_wal(path: str) -> None:
    """Set a newer schema by a process that is killed right after."""
    registry(path)
    shell(path, "UPDATE registry SET level = 7, min_reader = 7, min_writer = 7")


def older_registry(path: str) -> None:
    """Set a schema that needs an upgrade."""
    registry(path)
    execute(path, "UPDATE registry SET level = 0")


def registry_of_no_row(path: str) -> None:
    """Remove the revision of a registry."""
    registry(path)
    tamper(path, "DELETE FROM registry")


def registry_of_no_table(path: str) -> None:
    """Drop the table that holds the revision."""
    registry(path)
    execute(path, "DROP TABLE registry")


def damaged_header(path: str) -> None:
    """Write over the first bytes of SQLite's header."""
    registry(path)
    with open(path, "r+b") as file:
        file.write(bytes(16))


def damaged_page_size(path: str) -> None:
    """Write a page size that is no power of two."""
    registry(path)
    with open(path, "r+b") as file:
        file.seek(16)
        file.write(b"\x12\x34")


def truncated(path: str) -> None:
    """Remove half of the file."""
    registry(path)
    os.truncate(path, os.path.getsize(path) // 2)


def cut_in_the_first_page(path: str) -> None:
    """Remove nearly all of the file."""
    registry(path)
    os.truncate(path, 1000)


def dumped(path: str) -> None:
    """Load the output of `.dump`, which leaves out the application id."""
    registry(f"{path}.source")
    with closing(sqlite3.connect(f"{path}.source")) as source:
        script = "\n".join(source.iterdump())
    with closing(sqlite3.connect(path)) as target:
        target.executescript(script)
    for name in os.listdir(os.path.dirname(path)):
        if ".source" in name:
            os.unlink(os.path.join(os.path.dirname(path), name))


def directory(path: str) -> None:
    """Make a directory with a file in it."""
    os.mkdir(path)
    Path(path, "file").touch()


def fifo(path: str) -> None:
    """Make a FIFO, which an open would wait for without end."""
    os.mkfifo(path)


def unix_socket(path: str) -> None:
    """Leave the socket of a server that has ended."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def hard_link(path: str) -> None:
    """SQLite would keep a WAL for each name."""
    registry(path)
    os.link(path, f"{path}.too")


def symlink_to_another_database(path: str) -> None:
    """Make a symlink to a file that is refused."""
    another_database(f"{path}.target", "DELETE")
    os.symlink(f"{path}.target", path)


class Kind(NamedTuple):
    """Objects at the path, and the errors that refuse them."""

    make: Callable[[str], None]
    error: type[RegistryError]


KINDS = {
    each.make.__name__: each
    for each in [
        Kind(text, DataLossError),
        Kind(short_text, DataLossError),
        Kind(one_byte, DataLossError),
        Kind(another_database_with_a_wal, DataLossError),
        Kind(another_database_with_a_wal_and_no_index, DataLossError),
        Kind(another_database_to_be_rolled_back, DataLossError),
        Kind(newer_registry, SchemaVersionError),
        Kind(newer_registry_with_a_wal, SchemaVersionError),
        Kind(registry_of_no_row, DataLossError),
        Kind(registry_of_no_table, DataLossError),
        Kind(damaged_header, DataLossError),
        Kind(damaged_page_size, DataLossError),
        Kind(truncated, DataLossError),
        Kind(cut_in_the_first_page, DataLossError),
        Kind(dumped, DataLossError),
        Kind(directory, InvalidArgumentError),
        Kind(fifo, InvalidArgumentError),
        Kind(unix_socket, InvalidArgumentError),
        Kind(hard_link, FailedPreconditionError),
        Kind(symlink_to_another_database, DataLossError),
    ]
} | {
    f"another_database_in_mode_{mode.lower()}": Kind(
        partial(another_database, mode=mode), DataLossError
    )
    for mode in ("DELETE", "TRUNCATE", "PERSIST", "WAL")
}
OPTIONS: list[dict[str, bool]] = [
    {},
    {"create": False},
    {"read_only": True},
    {"upgrade": False},
    {"reconcile": False},
]
COMMANDS = [
    *("list", "inspect a1", "history", "check", "export", "delete a1"),
    *("reconcile", "reconcile --dry-run", "reconcile --remove-orphans"),
    *("import {document}", "import --create {document}"),
]


def files(folder: str) -> dict[str, str]:
    """Return what is in *folder*; of a WAL index, which SQLite rebuilds, the name only."""
    return {
        name: "" if name.endswith("-shm") else found for name, found in contents(folder).items()
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return an empty directory, which is the working directory."""
    found = tmp_path / "folder"
    found.mkdir()
    monkeypatch.chdir(found)
    return str(found)


@pytest.fixture
def document(tmp_path: Path) -> str:
    """Return the path of a sandbox to be imported."""
    path = tmp_path / "document.json"
    path.write_bytes(sandbox("new").marshal_json())
    return str(path)


@pytest.mark.parametrize("name", KINDS)
def test_a_refused_file_stays_as_it_was(
    folder: str, document: str, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Each way of opening and each command refuses it; lock files of a registry stay."""
    path, kind = f"{folder}/registry.db", KINDS[name]
    kind.make(path)
    before = files(folder)
    for options in OPTIONS:
        with pytest.raises(kind.error) as caught:
            Store.open(path, **options)  # type: ignore[arg-type]
        assert kind.error is type(caught.value)
        assert path in str(caught.value).replace(".target", "")
        assert before == files(folder), options
    for command in COMMANDS:
        words = command.format(document=document).split()
        expected = failures.USAGE if kind.error is InvalidArgumentError else failures.UNAVAILABLE
        assert expected == program.main(["--db", path, *words]), command
        assert "registry.db" in capsys.readouterr().err
        assert before == files(folder), command


@pytest.mark.parametrize("options", [{"create": False}, {"read_only": True}], ids=str)
@pytest.mark.parametrize("how", ["no bytes", "one page"])
def test_an_empty_database_in_which_no_registry_is_to_be_begun_stays_empty(
    folder: str, how: str, options: dict[str, bool]
) -> None:
    """An interrupted creation leaves one of them."""
    path = f"{folder}/registry.db"
    if how == "one page":
        shell(path, "PRAGMA journal_mode = WAL", "VACUUM", killed=False)
        assert os.path.getsize(path) > 0
    else:
        Path(path).touch()
    before = contents(folder)
    with pytest.raises(NotFoundError) as caught:
        Store.open(path, **options)  # type: ignore[arg-type]
    assert path == caught.value.path
    assert before == contents(folder)
    with Store.open(path) as store:
        assert [] == store.check()


@pytest.mark.parametrize("options", [{"upgrade": False}, {"read_only": True}], ids=str)
def test_an_older_registry_that_is_not_to_be_upgraded_stays_as_it_is(
    folder: str, options: dict[str, bool]
) -> None:
    """The WAL may be there or missing."""
    path = f"{folder}/registry.db"
    older_registry(path)
    for with_wal in (False, True):
        if with_wal:
            shell(path, "UPDATE sandbox_statuses SET reason = 'x'")
        before = files(folder)
        with pytest.raises(SchemaVersionError) as caught:
            Store.open(path, **options)  # type: ignore[arg-type]
        assert path == caught.value.path
        assert before == files(folder)


@needs.namespaces
def test_a_file_that_is_mounted_by_itself_stays_as_it_was(folder: str, tmp_path: Path) -> None:
    """Its WAL would be beside the file of the host."""
    registry(f"{tmp_path}/of-the-host.db")
    Path(folder, "registry.db").touch()
    path = f"{folder}/registry.db"
    subprocess.run(["mount", "--bind", f"{tmp_path}/of-the-host.db", path], check=True)
    try:
        before = contents(folder)
        for options in OPTIONS:
            with pytest.raises(FailedPreconditionError, match="mount its directory"):
                Store.open(path, **options)  # type: ignore[arg-type]
        assert before == contents(folder)
    finally:
        kernel.umount(path, kernel.MNT_DETACH)


def test_a_dumped_registry_is_told_how_to_go_on(folder: str) -> None:
    """The advice of the message makes it a registry."""
    path = f"{folder}/registry.db"
    dumped(path)
    with pytest.raises(DataLossError, match="PRAGMA application_id = 1397900354") as caught:
        Store.open(path)
    assert ".dump" in str(caught.value)
    execute(path, "PRAGMA application_id = 1397900354")
    with Store.open(path) as store:
        assert (50, []) == (len(store.list()), store.check())


def test_a_registry_whose_operator_left_wal_mode_is_rolled_back_and_opened(folder: str) -> None:
    """It is a registry: the transaction of the killed process is rolled back."""
    path = f"{folder}/registry.db"
    registry(path)
    message = "UPDATE sandbox_statuses SET message = hex(randomblob(20000))"
    shell(path, "PRAGMA journal_mode = DELETE", "PRAGMA cache_size = 1", "BEGIN", message)
    assert os.path.getsize(f"{path}-journal") > 0
    with Store.open(path) as store:
        assert (50, []) == (len(store.list()), store.check())
        assert {""} == {each.status.get().message for each in store.list()}
