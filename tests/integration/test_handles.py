"""Handles: one creation of a sandbox, its metadata and its status."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace

import pytest

from registry import (
    FailedPreconditionError,
    InvalidArgumentError,
    Metadata,
    NotFoundError,
    State,
    Status,
    Store,
)
from tests.conftest import OpenStore
from tests.tools import (
    NOTREADY,
    READY,
    UNKNOWN,
    Stop,
    pod,
    query,
    sandbox,
)


def test_after_deletion_metadata_is_readable_and_the_status_is_not_found(store: Store) -> None:
    """Also when the id has been added again."""
    old = store.add(sandbox("a", ip="10.0.0.1"), READY)
    store.delete("a")
    for _ in range(2):
        assert "10.0.0.1" == old.metadata.ip == old.ip
        with pytest.raises(NotFoundError) as caught:
            old.status.get()
        assert "a" == caught.value.id
        with pytest.raises(NotFoundError):
            old.status.update(lambda status: status)
        assert not old.delete()
        if not store.list():
            new = store.add(sandbox("a", ip="10.0.0.2"), READY)
    assert READY == new.status.get()
    assert not new.stopped.is_set()


def test_a_handle_of_a_rolled_back_add_never_becomes_another_sandbox(store: Store) -> None:
    """Though the id is added again at once."""
    with pytest.raises(Stop), store.transaction():
        stale = store.add(sandbox("a"), NOTREADY)
        raise Stop
    fresh = store.add(sandbox("a"), READY)
    with pytest.raises(NotFoundError):
        stale.status.get()
    assert not fresh.stopped.is_set()


# Write-ahead creation.


def test_metadata_is_completed_while_unknown_and_fixed_afterwards(store: Store) -> None:
    """By update_metadata only, and never id or name."""
    store.add(sandbox("abc", netns_path="/run/netns/planned"), UNKNOWN)
    done = store.update_metadata(
        "ab", lambda old: replace(old, ip="10.0.0.9", config=pod(name="db", tier="back"))
    )
    assert ("10.0.0.9", "/run/netns/planned", "db") == (
        done.ip,
        done.netns_path,
        done.config.metadata.name if done.config else "",
    )
    for field in ("id", "name"):
        with pytest.raises(InvalidArgumentError) as caught:
            store.update_metadata("abc", lambda old, field=field: replace(old, **{field: "x"}))  # type: ignore[misc]
        assert field == caught.value.field
    done.status.update(lambda old: replace(old, state=State.READY))
    with pytest.raises(FailedPreconditionError) as fixed:
        store.update_metadata("abc", lambda old: replace(old, ip="10.0.0.1"))
    assert "abc" == fixed.value.id
    assert "10.0.0.9" == store.get("abc").ip
    assert ["abc"] == [found.id for found in store.list(labels={"tier": "back"}, pod="db")]


@pytest.mark.parametrize("how", ["update", "delete"])
def test_a_function_that_itself_changes_the_sandbox_is_refused(store: Store, how: str) -> None:
    """Its result would overwrite that change; neither is stored."""
    handle = store.add(sandbox("a"), UNKNOWN)

    def meddle() -> None:
        if how == "delete":
            store.delete("a")
        else:
            store.update_metadata("a", lambda old: replace(old, ip="1.2.3.4"))

    def metadata(old: Metadata) -> Metadata:
        meddle()
        return old

    def status(old: Status) -> Status:
        meddle()
        return old

    with pytest.raises(FailedPreconditionError, match="its own function") as caught:
        store.update_metadata("a", metadata)
    assert "a" == caught.value.id
    with pytest.raises(FailedPreconditionError, match="its own function"):
        handle.status.update(status)
    assert "" == store.get("a", include_unknown=True).ip


def test_a_clock_that_stands_still_hides_no_nested_update(open_store: OpenStore) -> None:
    """Two updates inside an UpdateFunc are seen, though the times may be the same."""
    handle = open_store(clock=lambda: 1_000).add(sandbox("a"), READY)

    def twice(old: Status) -> Status:
        handle.status.update(lambda inner: replace(inner, message="one"))
        handle.status.update(lambda inner: replace(inner, message="two"))
        return old

    with pytest.raises(FailedPreconditionError, match="its own function"):
        handle.status.update(twice)
    assert "" == handle.status.get().message


def test_the_functions_error_leaves_the_metadata(store: Store) -> None:
    """The very exception comes out."""
    store.add(sandbox("a", ip="10.0.0.1"), UNKNOWN)
    error = Stop()

    def fail(_: Metadata) -> Metadata:
        raise error

    with pytest.raises(Stop) as caught:
        store.update_metadata("a", fail)
    assert caught.value is error
    assert "10.0.0.1" == store.get("a", include_unknown=True).ip


def test_the_store_records_the_creator(store: Store, path: str) -> None:
    """The pid of this process, in the row."""
    store.add(sandbox("a"), UNKNOWN)
    assert [(os.getpid(),)] == query(path, "SELECT creator_pid FROM sandboxes")


def test_a_path_or_pid_that_does_not_exist_is_accepted_without_identity(
    store: Store, path: str
) -> None:
    """It may be made later."""
    store.add(sandbox("a", netns_path="/run/netns/not-yet"), Status(State.UNKNOWN, pid=2**22 + 1))
    assert [(None, None, None)] == query(
        path,
        "SELECT netns_inode, process_inode, process_start_time FROM sandboxes"
        " JOIN sandbox_statuses ON sandbox_id = id",
    )


# Handles.


def test_identities_of_one_transaction_are_recorded_in_one_commit(store: Store, path: str) -> None:
    """After its own commit; a part that is rolled back has none."""
    handles = [store.add(sandbox(f"s{n}"), READY) for n in range(20)]
    (before,) = query(path, "PRAGMA user_version")[0]
    with store.transaction():
        for each in handles:
            with suppress(ZeroDivisionError), store.transaction():
                each.status.update(lambda old: replace(old, pid=os.getpid()))
                if each is handles[0]:
                    raise ZeroDivisionError
    (after,) = query(path, "PRAGMA user_version")[0]
    assert 2 == after - before
    recorded = query(path, "SELECT process_start_time IS NOT NULL FROM sandbox_statuses")
    assert [(0,), *[(1,)] * 19] == sorted(recorded)


def test_a_handle_has_the_fields_of_its_metadata(store: Store) -> None:
    """As Go's embedding gives them."""
    given = sandbox(
        "a",
        netns_path="/run/netns/x",
        ip="10.0.0.1",
        additional_ips=("fd00::1",),
        runtime_handler="runc",
        process_label="system_u",
    )
    handle = store.add(given, READY)
    for found in (handle, store.get("a")):
        assert given == found.metadata
        for field in ("id", "name", "config", "netns_path", "ip", "additional_ips"):
            assert getattr(given, field) == getattr(found, field)
        for field in ("runtime_handler", "cni_result", "process_label"):
            assert getattr(given, field) == getattr(found, field)


def test_changing_a_handles_config_changes_nothing_stored(store: Store) -> None:
    """Each handle has a copy of its own, and so has the store."""
    given = pod()
    handle = store.add(sandbox("a", config=given), READY)
    given.metadata.name = "changed"
    assert handle.config is not None
    handle.config.metadata.namespace = "changed"
    kept = store.get("a").config
    assert kept is not None
    assert ("web", "default") == (kept.metadata.name, kept.metadata.namespace)


def test_none_and_an_empty_collection_stay_different(store: Store) -> None:
    """As nil and empty in Go."""
    store.add(sandbox("a", additional_ips=None, config=None), READY)
    store.add(sandbox("b", additional_ips=()), READY)
    assert (None, None) == (store.get("a").additional_ips, store.get("a").config)
    assert () == store.get("b").additional_ips


class Task:
    """Container with a given answer."""

    def __init__(self, pid: int | None) -> None:
        self.id = "c1"
        self._pid = pid

    def pid(self) -> int | None:
        return self._pid


def test_a_handle_has_the_status_with_which_it_was_read(open_store: OpenStore) -> None:
    """Of one moment in a list, and no other even when it has changed since."""
    store, other = open_store(), open_store()
    added = store.add(sandbox("a"), READY)
    store.add(sandbox("b"), READY)
    listed = store.list()
    other.get("a").status.update(lambda old: replace(old, state=State.NOTREADY))
    assert [READY, READY] == [each.status_as_read for each in listed]
    assert READY == added.status_as_read
    assert State.NOTREADY is listed[0].status.get().state
    assert [State.NOTREADY, State.READY] == [each.status_as_read.state for each in store.list()]


def test_a_container_is_shared_by_the_handles_and_loaded_after_a_restart(
    open_store: OpenStore,
) -> None:
    """By add, and by the loader of open, which one failure does not stop."""
    store = open_store()
    task = Task(1)
    assert task is store.add(sandbox("a"), READY, container=task).container
    assert task is store.get("a").container
    store.add(sandbox("b"), READY)
    assert None is store.get("b").container
    store.close()

    def load(found: object) -> Task:
        if getattr(found, "id", "") == "a":
            raise ValueError("no such container")
        return Task(2)

    again = open_store(container_loader=load)
    assert None is again.get("a").container
    assert isinstance(again.get("b").container, Task)
