"""A registry whose schema is newer, or damaged, is read and written as far as it allows."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from registry import (
    DataLossError,
    RegistryError,
    SchemaVersionError,
    Store,
)
from registry.tables import version
from tests.tools import READY, execute, query, sandbox


def newer(path: str, *, min_reader: int, min_writer: int) -> None:
    """Make a registry look as one that a later version has upgraded."""
    Store.open(path).close()
    execute(
        path,
        f"UPDATE registry SET level = 7, min_reader = {min_reader}, min_writer = {min_writer}",
        "UPDATE alembic_version SET version_num = '0007'",
    )


def test_a_newer_schema_that_forbids_us_to_read_is_refused(path: str) -> None:
    """Both revisions are named, and the file is left as it was."""
    newer(path, min_reader=7, min_writer=7)
    for options in ({}, {"read_only": True}):
        with pytest.raises(SchemaVersionError, match="upgrade this program") as caught:
            Store.open(path, **options)  # type: ignore[arg-type]
        assert ("0007", version.REVISION, path) == (
            caught.value.found,
            caught.value.supported,
            caught.value.path,
        )
    assert [("0007",)] == query(path, "SELECT version_num FROM alembic_version")


def test_a_newer_schema_that_forbids_us_to_write_can_be_read(path: str) -> None:
    """Open reads, reconciles nothing, and every write is refused."""
    newer(path, min_reader=1, min_writer=7)
    with Store.open(path) as store:
        assert None is store.recovery
        assert [] == store.list()
        with pytest.raises(SchemaVersionError) as caught:
            store.add(sandbox("a"), READY)
        assert ("0007", version.REVISION) == (caught.value.found, caught.value.supported)
        assert [] == store.list(include_unknown=True)


def test_a_newer_schema_that_allows_us_is_used(path: str) -> None:
    """Old code beside new code."""
    newer(path, min_reader=1, min_writer=1)
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
        assert ["a"] == [found.id for found in store.list()]
    assert [("0007",)] == query(path, "SELECT version_num FROM alembic_version")


def test_every_write_sees_an_upgrade_that_came_meanwhile(store: Store, path: str) -> None:
    """Old processes live on beside upgraded ones."""
    handle = store.add(sandbox("a"), READY)
    execute(path, "UPDATE registry SET level = 7, min_writer = 7")
    with pytest.raises(SchemaVersionError):
        handle.status.update(lambda old: old)
    execute(path, f"UPDATE registry SET level = {version.LEVEL}, min_writer = 1")
    assert READY == handle.status.update(lambda old: old)


@pytest.mark.parametrize("read_only", [False, True])
def test_an_upgrade_that_came_meanwhile_is_seen_by_the_next_open(
    store: Store, path: str, read_only: bool
) -> None:
    """Also where another Store of this process has the file open already."""
    store.list()
    execute(path, "UPDATE registry SET level = 7, min_reader = 7, min_writer = 7")
    try:
        with pytest.raises(SchemaVersionError):
            Store.open(path, read_only=read_only)
    finally:
        restored = f"level = {version.LEVEL}, min_reader = 1, min_writer = 1"
        execute(path, f"UPDATE registry SET {restored}")


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        ("DELETE FROM registry", DataLossError),
        ("DROP TABLE registry", DataLossError),
        ("ALTER TABLE registry RENAME COLUMN level TO height", DataLossError),
        ("UPDATE registry SET level = 0; DELETE FROM alembic_version", DataLossError),
        ("UPDATE registry SET level = 0; UPDATE alembic_version SET version_num = 'x'", None),
        ("UPDATE registry SET level = 7, min_reader = 7; DELETE FROM alembic_version", None),
    ],
    ids=str,
)
def test_a_registry_without_its_own_row_is_refused(
    path: str, damage: str, error: type[RegistryError] | None
) -> None:
    """With an error of ours, which names the file, however it is opened; nothing is changed."""
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as shell:
        shell.executescript(f"DROP TRIGGER registry_stays; {damage};")
    before = query(path, "SELECT name, sql FROM sqlite_master")
    for options in ({}, {"read_only": True}, {"upgrade": False}):
        with pytest.raises((DataLossError, SchemaVersionError), match="registry") as caught:
            Store.open(path, **options)  # type: ignore[arg-type]
        assert path == getattr(caught.value, "path", None)
        if not options and error is not None:
            assert error is caught.type
    assert before == query(path, "SELECT name, sql FROM sqlite_master")
