"""Invalid input is refused with an error of its own, and the database is unchanged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry import (
    CNIResult,
    InvalidArgumentError,
    ResourceExhaustedError,
    State,
    Status,
    Store,
)
from registry.cri import NamespaceOption, PodSandboxConfig
from tests.tools import READY, UNKNOWN, pod, query, run, sandbox

TABLES = ("sandboxes", "sandbox_statuses", "sandbox_labels", "sandbox_transitions")


@pytest.fixture(autouse=True)
def unchanged(store: Store, path: str) -> Iterator[None]:
    """Compare every row of the database before and after the test."""
    store.add(sandbox("there", config=pod(app="x")), READY)
    store.add(sandbox("begun"), UNKNOWN)
    before = [query(path, f"SELECT * FROM {table}") for table in TABLES]
    yield
    assert before == [query(path, f"SELECT * FROM {table}") for table in TABLES]


BAD_METADATA: list[tuple[str, dict[str, Any]]] = [
    ("id", {"id": ""}),
    ("id", {"id": "a/b"}),
    ("id", {"id": "a\0b"}),
    ("id", {"id": "a\nb"}),
    ("id", {"id": "."}),
    ("id", {"id": ".."}),
    ("id", {"id": "a" * 77}),
    ("id", {"id": 7}),
    ("id", {"id": b"a"}),
    ("id", {"id": None}),
    ("id", {"id": "\ud800"}),
    ("name", {"name": ""}),
    ("name", {"name": "a\x1b[31m"}),
    ("name", {"name": "a\tb"}),
    ("name", {"name": "a\x85b"}),
    ("name", {"name": None}),
    ("name", {"name": "n" * 4097}),
    ("netns_path", {"netns_path": "run/netns/x"}),
    ("netns_path", {"netns_path": "/run/netns/\0"}),
    ("netns_path", {"netns_path": None}),
    ("ip", {"ip": "10.0.0.1\n"}),
    ("ip", {"ip": None}),
    ("additional_ips", {"additional_ips": ["10.0.0.1"]}),
    ("additional_ips", {"additional_ips": ("10.0.0.1", 7)}),
    ("additional_ips", {"additional_ips": "10.0.0.1"}),
    ("additional_ips", {"additional_ips": ("10.0.0.1",) * 1001}),
    ("runtime_handler", {"runtime_handler": "\0"}),
    ("process_label", {"process_label": 1}),
    ("cni_result", {"cni_result": {"Interfaces": None}}),
    ("cni_result", {"cni_result": CNIResult(interfaces={"eth0": 7})}),  # type: ignore[dict-item]
    ("cni_result", {"cni_result": CNIResult(routes=("x",))}),  # type: ignore[arg-type]
    ("config", {"config": NamespaceOption()}),
    ("config", {"config": b"\x0a\x00"}),
    ("config", {"config": {"metadata": {"name": "x"}}}),
]
named = [f"{field}-{n}" for n, (field, _) in enumerate(BAD_METADATA)]


@pytest.mark.parametrize(("field", "fields"), BAD_METADATA, ids=named)
def test_metadata_that_cannot_be_stored_is_refused(
    store: Store, field: str, fields: dict[str, Any]
) -> None:
    """The error names the field and the object, on one line without control characters."""
    given = replace(sandbox("new"), **fields)
    with pytest.raises(InvalidArgumentError) as caught:
        store.add(given, READY)
    assert field == caught.value.field
    message = str(caught.value)
    assert message.startswith(f"add sandbox {given.id!r}: {field} ")
    assert message.isprintable()


@pytest.mark.parametrize(("field", "fields"), BAD_METADATA, ids=named)
def test_update_metadata_refuses_the_same(store: Store, field: str, fields: dict[str, Any]) -> None:
    """Completing a record is no way around the checks."""
    with pytest.raises(InvalidArgumentError) as caught:
        store.update_metadata("begun", lambda old: replace(old, **fields))
    assert field == caught.value.field


BAD_STATUSES: list[tuple[str, dict[str, Any]]] = [
    ("pid", {"pid": -1}),
    ("pid", {"pid": 2**31}),
    ("pid", {"pid": 1.0}),
    ("pid", {"pid": True}),
    ("pid", {"pid": "1"}),
    ("created_at", {"created_at": -1}),
    ("created_at", {"created_at": 2**63}),
    ("created_at", {"created_at": 1.5}),
    ("exited_at", {"exited_at": 2**64}),
    ("exit_status", {"exit_status": 2**32}),
    ("exit_status", {"exit_status": "0"}),
    ("reason", {"reason": "two words"}),
    ("reason", {"reason": "x" * 1025}),
    ("reason", {"reason": None}),
    ("message", {"message": "\0"}),
    ("message", {"message": "x" * 32769}),
    ("message", {"message": "\udc80"}),
    ("state", {"state": "SANDBOX_READY"}),
    ("state", {"state": 1}),
    ("state", {"state": None}),
]
STATUS_IDS = [f"{field}-{n}" for n, (field, _) in enumerate(BAD_STATUSES)]


@pytest.mark.parametrize(("field", "fields"), BAD_STATUSES, ids=STATUS_IDS)
def test_a_status_that_cannot_be_stored_is_refused(
    store: Store, field: str, fields: dict[str, Any]
) -> None:
    """By add and by update alike."""
    with pytest.raises(InvalidArgumentError) as added:
        store.add(sandbox("new"), replace(READY, **fields))
    assert field == added.value.field
    with pytest.raises(InvalidArgumentError) as updated:
        store.get("there").status.update(lambda old: replace(old, **fields))
    assert field == updated.value.field
    assert str(updated.value).startswith(f"update status of sandbox 'there': {field} ")


@pytest.mark.parametrize("status", [None, State.READY, {"state": State.READY}, 1, Status], ids=repr)
def test_a_status_that_is_no_status_is_refused(store: Store, status: Any) -> None:
    """An UpdateFunc that forgot its return among them."""
    calls: list[Callable[[], object]] = [
        lambda: store.add(sandbox("new"), status),
        lambda: store.get("there").status.update(lambda _: status),
    ]
    for call in calls:
        with pytest.raises(InvalidArgumentError) as caught:
            call()
        assert ("status", status) == (caught.value.field, caught.value.value)


def test_metadata_that_is_no_metadata_is_refused(store: Store) -> None:
    """Also what update_metadata's function forgot to return."""
    calls: list[Callable[[], object]] = [
        lambda: store.add({"id": "x"}, READY),  # type: ignore[arg-type]
        lambda: store.add(None, READY),  # type: ignore[arg-type]
        lambda: store.update_metadata("begun", lambda _: None),  # type: ignore[arg-type, return-value]
    ]
    for call in calls:
        with pytest.raises(InvalidArgumentError) as caught:
            call()
        assert "metadata" == caught.value.field


def test_a_config_over_4_mib_is_refused(store: Store) -> None:
    """With its size and the limit; one of just 4 MiB is taken."""
    config = PodSandboxConfig()
    config.annotations["big"] = "x" * 4 * 1024 * 1024
    with pytest.raises(ResourceExhaustedError) as caught:
        store.add(sandbox("new", config=config), READY)
    assert ("config", config.ByteSize(), 4 * 1024 * 1024) == (
        caught.value.field,
        caught.value.size,
        caught.value.limit,
    )


def test_labels_and_annotations_that_sql_text_cannot_hold_are_refused(store: Store) -> None:
    """A protobuf string may hold a NUL, at which SQL text ends."""
    for config in (pod(app="a\0b"), pod(namespace="a\0"), PodSandboxConfig(labels={"a\0": ""})):
        with pytest.raises(InvalidArgumentError) as caught:
            store.add(sandbox("new", config=config), READY)
        assert "config" == caught.value.field


@pytest.mark.parametrize(
    "filters",
    [
        {"labels": {"app": 1}},
        {"labels": {1: "x"}},
        {"labels": ["app=x"]},
        {"labels": "app=x"},
        {"state": "SANDBOX_READY"},
        {"state": 1},
        {"name": 7},
        {"pod": b"web"},
        {"namespace": ()},
        {"id": 7},
        {"id": ""},
    ],
    ids=str,
)
def test_a_filter_of_the_wrong_type_is_refused(store: Store, filters: dict[str, Any]) -> None:
    """It would match nothing, silently."""
    with pytest.raises(InvalidArgumentError) as caught:
        store.list(**filters)
    assert next(iter(filters)) == caught.value.field


@pytest.mark.parametrize("id", [None, 7, b"a", "a\0", "\ud800"], ids=repr)
def test_an_id_that_is_no_text_is_refused(store: Store, id: Any) -> None:
    """By every look-up."""
    calls: list[Callable[[Any], object]] = [store.get, store.delete]
    if id is not None:
        calls.append(store.history)
    for call in calls:
        with pytest.raises(InvalidArgumentError) as caught:
            call(id)
        assert "id" == caught.value.field


@pytest.mark.parametrize(
    "options", [{"after": -1}, {"after": "1"}, {"limit": -1}, {"limit": 1.5}], ids=str
)
def test_history_refuses_what_is_no_count(store: Store, options: dict[str, Any]) -> None:
    """Neither negative nor another type."""
    with pytest.raises(InvalidArgumentError) as caught:
        store.history(**options)
    assert next(iter(options)) == caught.value.field


def test_new_netns_path_refuses_a_relative_directory(store: Store) -> None:
    """And names fresh paths of this registry otherwise."""
    with pytest.raises(InvalidArgumentError) as caught:
        store.new_netns_path("netns")
    assert "base_dir" == caught.value.field
    first, second = store.new_netns_path(), store.new_netns_path("/tmp/x")
    assert first.startswith("/run/netns/sr-")
    assert second.startswith("/tmp/x/sr-")
    assert first.split("-")[1] == second.split("-")[1]
    assert first.split("/")[-1] != second.split("/")[-1]


@pytest.mark.parametrize("timeout", [-1, -0.1, float("inf"), float("nan"), "5", None, True, 1e10])
def test_a_timeout_that_is_no_time_is_refused(store: Store, path: str, timeout: Any) -> None:
    """Before anything is opened."""
    with pytest.raises(InvalidArgumentError, match="timeout") as caught:
        Store.open(path, timeout=timeout)
    assert "timeout" == caught.value.field


def test_update_refuses_an_object_that_is_no_function(store: Store) -> None:
    """A status instead of a function that returns one, say."""
    updates: list[Callable[[Any], object]] = [
        store.get("there").status.update,
        lambda value: store.update_metadata("begun", value),
    ]
    for update in updates:
        with pytest.raises(InvalidArgumentError, match="is not a function") as caught:
            update(READY)
        assert ("fn", READY) == (caught.value.field, caught.value.value)


@pytest.mark.parametrize("wrong", [5, None, b"registry.db", "", ":memory:", "a\0b", "\ud800"])
def test_open_refuses_an_invalid_path(store: Store, wrong: Any) -> None:
    """Bytes are refused too: messages and SQL have text."""
    with pytest.raises(InvalidArgumentError, match="not the path of a file") as caught:
        Store.open(wrong)
    assert ("path", wrong) == (caught.value.field, caught.value.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("actor", 5),
        ("actor", b"me"),
        ("actor", "two\nlines"),
        ("actor", "\ud800"),
        ("actor", "x" * 257),
        ("clock", 5),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_open_refuses_an_invalid_actor_or_clock(tmp_path: Path, field: str, value: Any) -> None:
    """Before anything is opened."""
    with pytest.raises(InvalidArgumentError) as caught:
        Store.open(tmp_path / "new.db", **{field: value})
    assert (field, value) == (caught.value.field, caught.value.value)
    assert not os.path.exists(tmp_path / "new.db")


@pytest.mark.parametrize("time", [None, -1, 1.5, "now", 2**63, True], ids=repr)
def test_a_clock_that_tells_no_time_stores_nothing(tmp_path: Path, time: Any) -> None:
    """Times are nanoseconds, and SQL holds 63 bits of them."""
    with Store.open(tmp_path / "new.db", clock=lambda: time) as odd:
        with pytest.raises(InvalidArgumentError, match="read the clock") as caught:
            odd.add(sandbox("a"), READY)
        assert ("clock", time) == (caught.value.field, caught.value.value)
        assert [] == odd.list()


@pytest.mark.parametrize("paths", [None, 5, "/run/netns/x", ["netns"], [b"/x"]], ids=repr)
def test_orphans_that_are_no_paths_are_refused(store: Store, paths: Any) -> None:
    """A string is one path and not several."""
    with pytest.raises(InvalidArgumentError) as caught:
        store.remove_orphans(paths)
    assert "paths" == caught.value.field


def test_a_program_without_a_name_opens_a_registry(tmp_path: Path) -> None:
    """As one that embeds Python may be; or with one that is no UTF-8."""
    out = run(
        """
        import sys
        from registry import Metadata, State, Status, Store
        path = sys.argv[1]
        for sys.argv in ([], ["a\\udcff"]):
            with Store.open(path) as store:
                store.add(Metadata("a", "a", None), Status(State.READY))
                print(ascii(store.history()[-1].actor.partition("[")[0]))
                store.delete("a")
        """,
        tmp_path / "new.db",
    )
    assert ["'python'", "'a?'"] == out.splitlines()
