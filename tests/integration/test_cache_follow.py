"""The cache follows the commits of this process, and never returns what is stale."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from registry import Exits, NotFoundError, Process, Sandbox, State, Status, Store
from registry.handles.cache import Cache, Entry
from tests.conftest import OpenStore
from tests.convoy import convoy, more
from tests.integration.fresh import assert_fresh
from tests.tools import NOTREADY, READY, ids, in_another_thread, pod, sandbox, until


@contextmanager
def queries(store: Store) -> Iterator[list[str]]:
    """Note the SQL of the connections that read, but for the data version."""
    engine, noted = store._session.engine, list[str]()
    engine.data_version.read("test")
    engine.fetch("SELECT 1", {}, "test")
    connections = [*engine._readers._idle, engine.data_version._connection]
    for each in connections:
        assert each is not None
        each.set_trace_callback(lambda sql: None if "data_version" in sql else noted.append(sql))
    yield noted
    for each in connections:
        assert each is not None
        each.set_trace_callback(None)


def test_a_commit_of_ours_leaves_all_else_cached(store: Store) -> None:
    """And what it wrote takes the place of what was cached: nothing is read again."""
    handles = [store.add(sandbox(id, config=pod(id)), READY) for id in ("a", "b", "c")]
    for _ in "12":
        handles[0].status.update(more)
        for id in "abc":
            store.get(id)
        store.list()
        store.list(pod="b")
    with queries(store) as noted:
        handles[0].status.update(lambda old: replace(old, message="new"))
        assert ["new", "", ""] == [store.get(id).status_as_read.message for id in "abc"]
        assert ["new", "", ""] == [each.status_as_read.message for each in store.list()]
        assert ["b"] == ids(store.list(pod="b"))
        assert "new" == handles[0].status.get().message
    assert [] == noted


def test_a_store_follows_the_commits_of_another_store(open_store: OpenStore) -> None:
    """Both share the connection that writes."""
    one, two = open_store(), open_store()
    one.add(sandbox("a"), READY)
    two.get("a")
    one.get("a").status.update(more)
    with queries(two) as noted:
        one.get("a").status.update(more)
        assert 2 == two.get("a").status_as_read.exited_at
    assert [] == noted


def test_a_sandbox_that_was_added_is_cached(store: Store) -> None:
    """Also when an earlier one had its id, and lists are read again."""
    store.add(sandbox("a"), READY)
    store.get("a")
    with queries(store) as noted:
        with store.transaction():
            store.delete("a")
            store.add(sandbox("a", ip="10.0.0.9"), READY)
        assert "10.0.0.9" == store.get("a").ip
        assert [] == noted
        assert ["a"] == ids(store.list())
    assert noted


@pytest.mark.parametrize(
    ("changes", "reads"),
    [
        ({"message": "x"}, [False, False]),
        ({"exited_at": 5, "exit_status": 1}, [False, False]),
        ({"state": State.NOTREADY}, [False, True]),
        ({"created_at": 7}, [True, True]),
    ],
)
def test_a_list_is_read_again_only_if_the_change_can_alter_which_or_in_what_order(
    store: Store, changes: dict[str, Any], reads: list[bool]
) -> None:
    """A list by state depends on more than one without; both have what the change wrote."""
    handle = store.add(sandbox("a"), READY)
    store.add(sandbox("b"), READY)
    filters: list[dict[str, Any]] = [{}, {"state": State.READY}]
    for each in filters:
        store.list(**each)
    handle.status.update(lambda old: replace(old, **changes))
    for each, expected in zip(filters, reads, strict=True):
        with queries(store) as noted:
            store.list(**each)
        assert expected is bool(noted)
    assert_fresh(store)


def test_a_process_that_only_writes_does_not_read_the_data_version(store: Store) -> None:
    """Only the first write after a read does."""
    handle = store.add(sandbox("a"), READY)
    version = store._session.engine.data_version
    handle.status.get()
    handle.status.update(more)
    assert not version.was_read
    connection = version._connection
    assert connection is not None
    noted = list[str]()
    connection.set_trace_callback(noted.append)
    for _ in range(5):
        handle.status.update(more)
    assert [] == noted
    assert 6 == handle.status.get().exited_at


def test_members_of_a_group_are_followed_but_for_one_that_fails(store: Store) -> None:
    """In the order in which they ran."""
    blocker, *handles = (store.add(sandbox(id), READY) for id in ("x", "a", "b", "c"))
    store.list()

    def fail(_old: Status) -> Status:
        store.get("c").status.update(more)
        raise LookupError

    calls: Sequence[Callable[[], object]] = [
        lambda: handles[0].status.update(more),
        lambda: handles[1].status.update(fail),
        lambda: handles[0].status.update(more),
        handles[2].delete,
    ]
    with convoy(store, blocker, *calls):
        pass
    with queries(store) as noted:
        assert [2, 0, 1] == [store.get(id).status_as_read.exited_at for id in "abx"]
    assert [] == noted
    assert_fresh(store)
    with pytest.raises(NotFoundError):
        store.get("c")


def test_update_metadata_is_followed(store: Store) -> None:
    """Lists by label are read again."""
    store.add(sandbox("a", config=pod("web", app="1")), Status(State.UNKNOWN))
    filters: dict[str, Any] = {"include_unknown": True, "labels": {"app": "1"}}
    assert ["a"] == ids(store.list(**filters))
    store.update_metadata("a", lambda old: replace(old, config=pod("web", app="2"), ip="::1"))
    assert [] == store.list(**filters)
    assert "::1" == store.get("a", include_unknown=True).ip
    store.get("a", include_unknown=True).status.update(lambda _: READY)
    assert ["a"] == ids(store.list())
    assert_fresh(store)


def test_cache_follows_a_reconcile_and_the_exit_watcher(store: Store) -> None:
    """A process that has ended; orphans are removed without any change of rows."""
    with subprocess.Popen(["sleep", "30"]) as child, subprocess.Popen(["sleep", "30"]) as other:
        one = store.add(sandbox("a"), Status(State.READY, pid=child.pid))
        two = store.add(sandbox("b"), Status(State.READY, pid=other.pid))
        store.list(state=State.READY)

        def note(ended: Sequence[tuple[object, int | None]]) -> None:
            with store.transaction():
                for sandbox, status in ended:
                    assert sandbox is two
                    two.status.update(lambda _: replace(NOTREADY, exit_status=status))  # noqa: B023

        exits = Exits(note)
        process = two.open_process()
        assert isinstance(process, Process)
        exits.watch(two, process)
        child.kill()
        other.kill()
        child.wait()
        until(two.stopped.is_set)
        exits.close()
        store.get("a")
        store.reconcile()
        store.remove_orphans([])
        assert [State.NOTREADY] * 2 == [store.get(id).status_as_read.state for id in "ab"]
        assert one.stopped.is_set()
        assert [] == store.list(state=State.READY)
        assert_fresh(store)


def test_an_entry_that_became_notready_has_its_stop_channel_set(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the call of the writer has returned, too."""
    handle = store.add(sandbox("a"), READY)
    store.get("a")
    original, found = Cache.follow, list[bool]()

    def pause(self: Cache, *args: Any) -> None:
        original(self, *args)
        found.append(in_another_thread(store.get("a").stopped.is_set))

    monkeypatch.setattr(Cache, "follow", pause)
    handle.status.update(lambda _: NOTREADY)
    assert [True] == found


# Identities, which are looked for at each write while none is recorded.


@pytest.mark.parametrize("there", [None, "file", "directory"])
def test_a_path_without_a_namespace_costs_a_write_no_query(
    store: Store, tmp_path: Any, there: str | None
) -> None:
    """Nothing is read again, and nothing written, while no namespace is there."""
    place = tmp_path / "netns"
    if there == "file":
        place.touch()
    elif there == "directory":
        place.mkdir()
    handle = store.add(sandbox("a", netns_path=str(place)), READY)
    with queries(store) as noted:
        handle.status.update(more)
    assert [] == noted
    assert handle.netns is None


def test_an_identity_is_recorded_at_the_first_write_at_which_the_namespace_exists(
    store: Store, tmp_path: Any
) -> None:
    """And at no later one; the cache has it then."""
    place = tmp_path / "netns"
    handle = store.add(sandbox("a", netns_path=str(place)), READY)
    handle.status.update(more)
    assert store.get("a")._entry.row.netns_inode is None
    os.symlink("/proc/self/ns/net", place)
    handle.status.update(more)
    inode = os.stat("/proc/self/ns/net").st_ino
    assert inode == store.get("a")._entry.row.netns_inode
    assert_fresh(store)
    with queries(store) as noted:
        handle.status.update(more)
    assert [] == noted


def test_status_get_before_the_commit_of_the_add_does_not_stop_the_sandbox(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread has the handle, and reads before the commit what it looks up after it."""
    session, has_read, committed = store._session, threading.Event(), threading.Event()
    find = session.find_creation

    def find_slowly(creation: int, doing: str) -> Entry | None:
        found = find(creation, doing)
        if not has_read.is_set():
            has_read.set()
            committed.wait()
        return found

    errors: list[BaseException] = []

    def read(handle: Sandbox) -> None:
        try:
            handle.status.get()
        except NotFoundError as error:
            errors.append(error)

    monkeypatch.setattr(session, "find_creation", find_slowly)
    with store.transaction():
        handle = store.add(sandbox("a"), READY)
        reader = threading.Thread(target=read, args=(handle,))
        reader.start()
        has_read.wait()
    committed.set()
    reader.join()
    assert 1 == len(errors)
    assert not handle.stopped.is_set()
    assert store.delete("a")
    assert handle.stopped.is_set()
