"""SQLite's integrity check at open, reads of a damaged registry, and damage while it is open."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from registry import DataLossError, InvalidArgumentError, ReadOnlyError, State, Store
from registry.tables import inspection
from tests.tools import READY, contents, ids, query, run, sandbox

COUNT = 600
SIZE = 4096
WIPE = """
    import sys
    path, offset, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\\xff" * length)
    """


@pytest.fixture
def full(path: str) -> str:
    """Return the path of a closed registry of 600 sandboxes, whose tables have several pages."""
    with Store.open(path) as store, store.transaction():
        for n in range(COUNT):
            store.add(sandbox(f"id{n:05}"), READY)
    return path


def leaves(path: str, name: str) -> list[int]:
    """Return the numbers of the leaf pages of a table or an index."""
    pages = f"SELECT pageno FROM dbstat WHERE name = '{name}' AND pagetype = 'leaf'"
    return [number for (number,) in query(path, f"{pages} ORDER BY path")]


def leaf_of(path: str, id: str) -> int:
    """Return the number of the leaf page of `sandboxes` with the record of *id*."""
    data = Path(path).read_bytes()
    pages = leaves(path, "sandboxes")
    return next(n for n in pages if id.encode() in data[(n - 1) * SIZE : n * SIZE])


def wipe(path: str, page: int) -> None:
    """Overwrite a page, in another process: this one may have the file open."""
    run(WIPE, path, (page - 1) * SIZE, SIZE)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("name", ["sandboxes", "sqlite_autoindex_sandboxes_1"])
def test_open_refuses_a_registry_in_which_sqlite_finds_damage(
    full: str, name: str, read_only: bool
) -> None:
    """The error has what SQLite says, and the way out; no byte has changed."""
    wipe(full, leaves(full, name)[1])
    before = contents(str(Path(full).parent))
    with pytest.raises(DataLossError) as caught:
        Store.open(full, read_only=read_only)
    assert before == contents(str(Path(full).parent))
    assert full == caught.value.path
    assert caught.value.damage[0] in str(caught.value)
    assert all(word in str(caught.value) for word in ("restore", "salvage"))


def test_open_refuses_an_index_that_lacks_a_row(full: str) -> None:
    """The id has another byte in the table than in its index: both are in order by themselves."""
    data = Path(full).read_bytes()
    page = next(
        n for n in leaves(full, "sandboxes") if b"id00300" in data[(n - 1) * SIZE : n * SIZE]
    )
    at = data.index(b"id00300", (page - 1) * SIZE)
    Path(full).write_bytes(data[:at] + b"ix" + data[at + 2 :])
    with pytest.raises(DataLossError, match="missing from index"):
        Store.open(full)


def test_open_of_a_large_registry_compares_no_indexes(
    full: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the bound it runs SQLite's quick check, which still reads every page."""
    monkeypatch.setattr(inspection, "WHOLE_CHECK_MAX", 0)
    Store.open(full, reconcile=False).close()
    wipe(full, leaves(full, "sandboxes")[1])
    with pytest.raises(DataLossError):
        Store.open(full)


def test_a_damaged_registry_is_read_around_the_damage(
    full: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Lists leave out unreadable sandboxes, with a warning; `check` tells all of the damage."""
    wipe(full, leaves(full, "sandboxes")[2])
    with Store.open(full, damaged="read") as store:
        with caplog.at_level(logging.WARNING, "registry"):
            found = ids(store.list())
        assert 0 < COUNT - len(found) < 100
        assert f"{COUNT - len(found)} sandboxes cannot be read" in caplog.text
        assert found == sorted(found)
        assert found[:3] == ids(store.list(limit=3))
        assert found[-2:] == ids(store.list(newest_first=True, limit=2))[::-1]
        assert found == ids(store.list(state=State.READY))
        assert [] == store.list(state=State.NOTREADY)
        lost = next(f"id{n:05}" for n in range(COUNT) if f"id{n:05}" not in found)
        with pytest.raises(DataLossError):
            store.get(lost)
        assert State.READY is store.get(found[-1]).status.get().state
        assert "file_is_whole" in {each.rule for each in store.check()}
        with pytest.raises(ReadOnlyError):
            store.delete(found[0])


def test_a_damaged_index_hides_no_record_of_a_damaged_registry(full: str) -> None:
    """The ids are read from the table."""
    for page in leaves(full, "sqlite_autoindex_sandboxes_1"):
        wipe(full, page)
    with Store.open(full, damaged="read") as store:
        assert COUNT == len(store.list())
        assert "id00300" == store.get("id00300").id


def test_the_history_of_a_damaged_registry_is_read_around_the_damage(full: str) -> None:
    """Transitions before and after the damaged page are returned, in order."""
    pages = leaves(full, "sandbox_transitions")
    wipe(full, pages[len(pages) // 2])
    with Store.open(full, damaged="read") as store:
        found = [each.seq for each in store.history()]
        assert (1, COUNT) == (found[0], found[-1])
        assert found == sorted(found)
        assert 0 < COUNT - len(found) < 100
        assert found[:5] == [each.seq for each in store.history(limit=5)]
        assert found[-1:] == [each.seq for each in store.history(after=COUNT - 1)]


def test_a_whole_registry_may_be_opened_as_damaged(full: str) -> None:
    """It is complete, and read-only; a store beside it may write."""
    with Store.open(full) as writer, Store.open(full, damaged="read") as store:
        writer.add(sandbox("new"), READY)
        assert COUNT + 1 == len(store.list())
        assert COUNT + 1 == len(store.history())
        with pytest.raises(ReadOnlyError):
            store.add(sandbox("newer"), READY)


def test_a_store_that_reads_damage_lends_it_to_no_other_store(full: str) -> None:
    """In one process too, a store that refuses damage is refused."""
    wipe(full, leaves(full, "sandboxes")[2])
    with Store.open(full, damaged="read"):
        for read_only in (False, True):
            with pytest.raises(DataLossError):
                Store.open(full, read_only=read_only)


@pytest.mark.parametrize("value", ["ignore", None, True])
def test_damaged_is_refuse_or_read(path: str, value: object) -> None:
    """Anything else is refused, and makes no file."""
    with pytest.raises(InvalidArgumentError) as caught:
        Store.open(path, damaged=value)  # type: ignore[arg-type]
    assert ("damaged", value) == (caught.value.field, caught.value.value)
    assert not Path(path).exists()


def test_damage_that_a_read_meets_ends_all_writes(full: str) -> None:
    """Reads that meet no damage go on."""
    page = leaf_of(full, "id00001")
    other = next(each for each in leaves(full, "sandboxes") if each != page)
    with Store.open(full, reconcile=False) as store:
        first = store.get("id00001")
        wipe(full, other)
        with pytest.raises(DataLossError):
            store.list()
        with pytest.raises(DataLossError, match="write refused, since damage was found"):
            first.status.update(lambda old: replace(old, message="later"))
        assert "" == store.get("id00001").status.get().message


def test_damage_that_a_write_meets_ends_all_writes(full: str) -> None:
    """The call that meets it stores nothing, and neither does any later one."""
    page = leaf_of(full, "id00500")
    with Store.open(full, reconcile=False) as store:
        first = store.get("id00001")
        wipe(full, page)
        with pytest.raises(DataLossError):
            store.delete("id00500")
        with pytest.raises(DataLossError, match="write refused, since damage was found"):
            first.status.update(lambda old: replace(old, message="later"))


@pytest.mark.parametrize("verb", ["get", "delete", "list"])
def test_a_call_that_meets_a_damaged_index_raises_no_driver_error(full: str, verb: str) -> None:
    """`check` goes on to the end, and tells the damage."""
    with Store.open(full, reconcile=False) as store:
        wipe(full, leaves(full, "sqlite_autoindex_sandboxes_1")[-1])
        with pytest.raises(DataLossError):
            store.list(id="id005") if verb == "list" else getattr(store, verb)("id005")
        assert "file_is_whole" in {each.rule for each in store.check()}
