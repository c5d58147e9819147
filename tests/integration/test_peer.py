"""containerd's own cases (pkg/store/sandbox and pkg/truncindex), retold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from registry import (
    AlreadyExistsError,
    AmbiguousPrefixError,
    Metadata,
    NotFoundError,
    Sandbox,
    State,
    Status,
    Store,
)
from tests.conftest import OpenStore
from tests.tools import ids, pod

GIVEN = {
    "1": (
        Metadata("1", "Sandbox-1", pod("TestPod-1"), netns_path="/TestNetNS-1"),
        Status(State.READY),
    ),
    "2abcd": (
        Metadata("2abcd", "Sandbox-2abcd", pod("TestPod-2abcd"), netns_path="/TestNetNS-2"),
        Status(State.NOTREADY),
    ),
    "4a333": (
        Metadata("4a333", "Sandbox-4a333", pod("TestPod-4a333"), netns_path="/TestNetNS-3"),
        Status(State.NOTREADY),
    ),
    "4abcd": (
        Metadata("4abcd", "Sandbox-4abcd", pod("TestPod-4abcd"), netns_path="/TestNetNS-4"),
        Status(State.READY),
    ),
}
UNKNOWN = (
    Metadata("3defg", "Sandbox-3defg", pod("TestPod-3defg"), netns_path="/TestNetNS-5"),
    Status(State.UNKNOWN),
)


@pytest.fixture
def filled(store: Store) -> Store:
    """Return a store with the sandboxes of containerd's test."""
    for metadata, status in (*GIVEN.values(), UNKNOWN):
        store.add(metadata, status)
    return store


def same(found: Sandbox, id: str) -> bool:
    """Return whether *found* is the sandbox that was added under *id*."""
    metadata, status = GIVEN[id]
    return (metadata, status) == (found.metadata, found.status.get())


def truncate(id: str) -> str:
    """Return half of *id*."""
    return id[: (len(id) + 1) // 2 + (id[0] == "4")]


def test_get_by_half_an_id(filled: Store) -> None:
    """Each one, whole and truncated."""
    for id in GIVEN:
        for prefix in (id, truncate(id)):
            assert same(filled.get(prefix), id)


def test_unknown_is_not_found_by_get(filled: Store) -> None:
    """Whole or truncated; with include_unknown it is (the seed's GetAll)."""
    for prefix in ("3defg", "3d"):
        with pytest.raises(NotFoundError):
            filled.get(prefix)
        assert "3defg" == filled.get(prefix, include_unknown=True).id


def test_list_leaves_out_unknown(filled: Store) -> None:
    """The four others are there, by id since none has a time."""
    found = filled.list()
    assert list(GIVEN) == ids(found)
    assert all(same(each, each.id) for each in found)


def test_adding_twice_is_already_exists(filled: Store) -> None:
    """And changes nothing."""
    for metadata, _ in GIVEN.values():
        with pytest.raises(AlreadyExistsError) as caught:
            filled.add(metadata, Status(State.NOTREADY))
        assert metadata.id == caught.value.id
        assert same(filled.get(metadata.id), metadata.id)


def test_delete_by_truncated_id(filled: Store) -> None:
    """One after another; what is gone is not found, and deleting it again is no error."""
    left = list(GIVEN)
    for id in GIVEN:
        assert filled.delete(truncate(id))
        left.remove(id)
        assert left == ids(filled.list())
        with pytest.raises(NotFoundError):
            filled.get(id)
        assert not filled.delete(id)


def test_an_update_whose_function_fails_leaves_the_status(filled: Store) -> None:
    """And passes that very error on."""
    error = OSError("update error")

    def fail(old: Status) -> Status:
        raise error

    with pytest.raises(OSError, match="update error") as caught:
        filled.get("1").status.update(fail)
    assert caught.value is error
    assert same(filled.get("1"), "1")


def test_a_successful_update_is_seen_by_every_handle_and_after_a_restart(
    open_store: OpenStore,
) -> None:
    """The status that update returns is the one that get returns, also from another handle."""
    store = open_store()
    handle = store.add(*GIVEN["1"])
    before = store.get("1")
    expected = replace(GIVEN["1"][1], state=State.NOTREADY, created_at=7)
    assert expected == handle.status.update(lambda _: expected)
    assert expected == before.status.get() == store.get("1").status.get()
    store.close()
    assert expected == open_store(reconcile=False).get("1").status.get()


def test_truncated_ids_of_truncindex(store: Store) -> None:
    """Ambiguous while several match, unique again when the others are gone; exact ids win."""
    one, two, three = "19b36c2c326ccc11e726eee6ee78a0baf166ef96", "19b36c2c", "19b3aaaa"
    for id in (one, two, three):
        store.add(Metadata(id, f"name-{id}", None), Status(State.READY))
    assert two == store.get(two).id
    assert one == store.get(two + "3").id
    for prefix in ("1", "19b3"):
        with pytest.raises(AmbiguousPrefixError):
            store.get(prefix)
    with pytest.raises(NotFoundError):
        store.get("19b36c2c4")
    assert store.delete(two)
    assert one == store.get(two).id
    assert store.delete(three)
    assert one == store.get("1").id
