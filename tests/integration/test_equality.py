"""Handles are equal if they stand for the same creation in the same file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from registry import Store
from tests.conftest import OpenStore
from tests.tools import READY, UNKNOWN, query, sandbox


def test_handles_of_one_creation_are_equal_whenever_they_were_read(store: Store) -> None:
    """Changes of status and metadata make no difference; the hash stays the same."""
    added = store.add(sandbox("a"), UNKNOWN)
    other = store.add(sandbox("b"), UNKNOWN)
    changed = store.update_metadata("a", lambda old: replace(old, ip="10.0.0.9"))
    added.status.update(lambda _: READY)
    found = [added, changed, store.get("a"), store.get(name="name-a"), store.list(id="a")[0]]
    assert {added} == set(found)
    assert all(each == added and hash(each) == hash(added) for each in found)
    assert other not in found
    assert added != other
    assert found[2] in {added: "known"}
    store.delete("a")
    assert {added} == set(found)


def test_handle_differs_from_one_of_the_next_creation_of_its_id(store: Store) -> None:
    """Even with the same metadata and status."""
    first = store.add(sandbox("a"), READY)
    store.delete("a")
    second = store.add(sandbox("a"), READY)
    assert first != second
    assert 2 == len({first, second})


def test_handles_of_two_stores_of_one_file_are_equal(
    open_store: OpenStore, path: str, tmp_path: Path
) -> None:
    """Read-only, by a symlink, or opened after the other store was closed."""
    first = open_store()
    added = first.add(sandbox("a"), READY)
    os.symlink(path, tmp_path / "link.db")
    with Store.open(path, read_only=True) as reader, Store.open(tmp_path / "link.db") as linked:
        assert {added} == {reader.get("a"), linked.get("a"), open_store().get("a")}
    first.close()
    assert added == open_store().get("a")


def test_handles_of_different_registries_differ(store: Store, tmp_path: Path) -> None:
    """Also of a copy, whose creations have the same numbers."""
    added = store.add(sandbox("a"), READY)
    copy = f"{tmp_path}/copy.db"
    query(store.path, f"VACUUM INTO '{copy}'")
    with Store.open(copy, reconcile=False) as other:
        copied = other.get("a")
        assert added._entry.row == copied._entry.row
        assert added != copied
        assert 2 == len({added, copied})


@pytest.mark.parametrize("other", ["a", None, 1, ("a", 1)], ids=repr)
def test_handle_differs_from_all_else(store: Store, other: object) -> None:
    """Nothing is raised."""
    assert store.add(sandbox("a"), READY) != other
