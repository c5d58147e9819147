"""Extensions: data of the embedding program, read and replaced with a sandbox."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration

from registry import (
    Extension,
    Extensions,
    FailedPreconditionError,
    InvalidArgumentError,
    MetadataError,
    NotFoundError,
    ReadOnlyError,
    ResourceExhaustedError,
    Sandbox,
    State,
    Store,
    StoreClosedError,
)
from registry.model.extensions import COUNT_MAX, NAME_MAX, TYPE_URL_MAX, VALUE_MAX
from tests.conftest import OpenStore
from tests.tools import (
    NOTREADY,
    READY,
    UNKNOWN,
    in_another_thread,
    query,
    sandbox,
    sqlite_shell,
    tamper,
)

ONE = Extension("example.com/One", b"\x00\xff1")
TWO = Extension("", b"2")


def setting(**extensions: Any) -> Callable[[Mapping[str, Extension]], Mapping[str, Any]]:
    """Return a function that adds *extensions* to the latest ones."""
    return lambda old: {**old, **extensions}


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    """Note the SQL that reads extensions."""
    engine, noted = store._session.engine, list[str]()
    engine.fetch("SELECT 1", {}, "test")
    connections = [*engine._readers._idle, engine.writer.connection]
    for each in connections:
        each.set_trace_callback(lambda sql: noted.append(sql) if "extensions" in sql else None)
    yield noted
    for each in connections:
        each.set_trace_callback(None)


# Reading.


def test_extensions_are_a_mapping_of_typed_bytes(open_store: OpenStore) -> None:
    """By name, in another Store and after a restart too; a new sandbox has none."""
    store = open_store()
    handle = store.add(sandbox("a"), READY)
    assert {} == handle.extensions
    assert (0, None) == (len(handle.extensions), handle.extensions.get("x"))
    assert {"one": ONE, "two": TWO} == handle.extensions.update(setting(two=TWO, one=ONE))
    store.close()
    found = open_store(read_only=True).get("a").extensions
    assert isinstance(found, Extensions)
    assert {"one": ONE, "two": TWO} == found
    assert (["one", "two"], ONE, True) == (list(found), found["one"], "two" in found)
    with pytest.raises(KeyError):
        found["three"]


def test_extension_is_a_plain_value() -> None:
    """Frozen, equal by its fields, hashable."""
    assert Extension("t", b"v") == Extension("t", b"v") != Extension("", b"v")
    assert 1 == len({Extension("t", b"v"), Extension("t", b"v")})
    with pytest.raises(FrozenInstanceError):
        ONE.value = b""  # type: ignore[misc]


def test_extensions_are_those_of_the_latest_commit(open_store: OpenStore) -> None:
    """As the status; an object that was used keeps its one reading."""
    store, other = open_store(), open_store()
    handle = store.add(sandbox("a"), READY)
    before = handle.extensions
    assert 0 == len(before)
    other.get("a").extensions.update(setting(one=ONE))
    assert {"one": ONE} == handle.extensions
    assert 0 == len(before)
    before.update(setting(two=TWO))
    assert {"one": ONE, "two": TWO} == before


def test_commits_of_another_process_are_seen(store: Store, path: str) -> None:
    """Of the sqlite3 shell, for example."""
    handle = store.add(sandbox("a"), READY)
    assert {} == handle.extensions
    tamper(path, "INSERT INTO sandbox_extensions VALUES ('a', 'x', 't', x'00')")
    assert {"x": Extension("t", b"\0")} == handle.extensions


def test_get_list_and_update_of_the_status_read_no_extension(store: Store) -> None:
    """They cost what they did, however large extensions are."""
    handle = store.add(sandbox("a"), READY)
    handle.extensions.update(setting(one=ONE))
    with statements(store) as noted:
        store.get("a").status.update(lambda old: replace(old, message="x"))
        store.list()
        store.reconcile()
        assert [] == noted
        assert {"one": ONE} == store.get("a").extensions
        assert 1 == len(noted)


def test_an_update_of_extensions_leaves_cached_sandboxes_valid(store: Store) -> None:
    """It changes no row of `sandboxes` and `sandbox_statuses`."""
    handle = store.add(sandbox("a"), READY)
    (listed,) = store.list()
    handle.extensions.update(setting(one=ONE))
    (again,) = store.list()
    assert listed._entry is again._entry


# Replacing.


@pytest.mark.parametrize("status", [UNKNOWN, READY, NOTREADY], ids=str)
def test_extensions_are_replaced_in_any_state(store: Store, status: Any) -> None:
    """The result of the function takes the place of all."""
    handle = store.add(sandbox("a"), status)
    handle.extensions.update(lambda _: {"one": ONE, "two": TWO})
    assert {"two": ONE} == handle.extensions.update(lambda _: {"two": ONE})
    assert {"two": ONE} == handle.extensions
    handle.extensions.update(lambda _: {})
    assert {} == handle.extensions


def test_values_may_be_bytes_extensions_or_messages_of_protobuf(store: Store) -> None:
    """Bytes have the type URL ""; an Any keeps its own."""
    handle = store.add(sandbox("a"), READY)
    message = AnyMessage()
    message.Pack(Duration(seconds=3))
    stored = handle.extensions.update(lambda _: {"any": message, "bytes": b"x", "one": ONE})
    assert Extension("type.googleapis.com/google.protobuf.Duration", b"\x08\x03") == stored["any"]
    assert (Extension("", b"x"), ONE) == (stored["bytes"], stored["one"])
    found, unpacked = handle.extensions["any"], Duration()
    assert AnyMessage(type_url=found.type_url, value=found.value).Unpack(unpacked)
    assert Duration(seconds=3) == unpacked


def test_the_function_runs_once_on_the_latest_extensions(open_store: OpenStore) -> None:
    """In a dict of its own: what it does to that alone changes nothing."""
    store, other = open_store(), open_store()
    handle = store.add(sandbox("a"), READY)
    other.get("a").extensions.update(setting(one=ONE))
    seen = []

    def change(old: Any) -> Mapping[str, Extension]:
        seen.append(dict(old))
        old.clear()
        return {"two": TWO}

    assert {"two": TWO} == handle.extensions.update(change)
    assert [{"one": ONE}] == seen
    assert {"two": TWO} == other.get("a").extensions


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_the_very_exception_of_the_function_comes_out(store: Store, error: BaseException) -> None:
    """Nothing is stored."""
    handle = store.add(sandbox("a"), READY)
    handle.extensions.update(setting(one=ONE))

    def fail(old: Any) -> Mapping[str, Extension]:
        old["two"] = TWO
        raise error

    with pytest.raises(type(error)) as caught:
        handle.extensions.update(fail)
    assert error is caught.value
    assert {"one": ONE} == handle.extensions


def test_an_update_joins_the_transaction_of_the_caller(open_store: OpenStore) -> None:
    """Read inside it, committed with it, rolled back with it, and alone when it alone fails."""
    store, other = open_store(), open_store()
    with store.transaction():
        handle = store.add(sandbox("a"), READY)
        handle.extensions.update(setting(one=ONE))
        assert {"one": ONE} == handle.extensions
        with pytest.raises(InvalidArgumentError):
            handle.extensions.update(setting(two="text"))
        with pytest.raises(NotFoundError):
            in_another_thread(lambda: other.get("a"))
    assert {"one": ONE} == other.get("a").extensions
    kept = handle.extensions
    with pytest.raises(ZeroDivisionError), store.transaction():
        kept.update(setting(two=TWO))
        raise ZeroDivisionError
    assert {"one": ONE} == kept == handle.extensions


def test_threads_that_update_at_once_lose_nothing(store: Store) -> None:
    """Each sees what the one before has stored."""
    handle = store.add(sandbox("a"), READY)
    barrier = threading.Barrier(8)

    def work(n: int) -> None:
        barrier.wait()
        handle.extensions.update(setting(**{f"n{n}": bytes([n])}))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert {f"n{n}": Extension("", bytes([n])) for n in range(8)} == handle.extensions


def test_an_update_that_changes_nothing_writes_no_row(store: Store, path: str) -> None:
    """And one that changes a name writes that alone."""
    handle = store.add(sandbox("a"), READY)
    handle.extensions.update(setting(one=ONE, two=TWO))
    rows = "SELECT rowid, name FROM sandbox_extensions ORDER BY name"
    before = query(path, rows)
    handle.extensions.update(lambda old: old)
    assert before == query(path, rows)
    handle.extensions.update(setting(two=ONE))
    assert before[0] == query(path, rows)[0]


@pytest.mark.parametrize("how", ["update", "delete"])
def test_a_function_that_itself_changes_them_is_refused(store: Store, how: str) -> None:
    """Its result would overwrite that change; neither of the two is stored."""
    handle = store.add(sandbox("a"), READY)
    handle.extensions.update(setting(one=ONE))

    def change(old: Mapping[str, Extension]) -> Mapping[str, Extension]:
        if how == "delete":
            handle.delete()
        else:
            handle.extensions.update(setting(two=TWO))
        return old

    with pytest.raises(FailedPreconditionError, match="its own function"):
        handle.extensions.update(change)
    assert {"one": ONE} == handle.extensions


def test_a_function_that_changes_the_status_is_stored_with_it(store: Store) -> None:
    """As one change."""
    handle = store.add(sandbox("a"), READY)

    def change(old: Mapping[str, Extension]) -> Mapping[str, Extension]:
        handle.status.update(lambda status: replace(status, state=State.NOTREADY))
        return {**old, "one": ONE}

    handle.extensions.update(change)
    assert {"one": ONE} == handle.extensions
    assert State.NOTREADY is handle.status.get().state


def test_a_function_that_closes_the_store_is_told_so(open_store: OpenStore) -> None:
    """Nothing is stored."""
    store = open_store()
    handle = store.add(sandbox("a"), READY)

    def close(old: Mapping[str, Extension]) -> Mapping[str, Extension]:
        store.close()
        return {"one": ONE}

    with pytest.raises(StoreClosedError):
        handle.extensions.update(close)
    assert {} == open_store().get("a").extensions


# What is refused.


@pytest.mark.parametrize(
    ("result", "field"),
    [
        (None, "extensions"),
        ([("a", b"")], "extensions"),
        ({"": b""}, "extension name"),
        ({b"a": b""}, "extension name"),
        ({"a\n": b""}, "extension name"),
        ({"a\0": b""}, "extension name"),
        ({"\ud800": b""}, "extension name"),
        ({"a" * (NAME_MAX + 1): b""}, "extension name"),
        ({"a": "text"}, "extension 'a'"),
        ({"a": bytearray(b"x")}, "extension 'a'"),
        ({"a": None}, "extension 'a'"),
        ({"a": Duration()}, "extension 'a'"),
        ({"a": Extension("t", "text")}, "extension 'a'"),  # type: ignore[arg-type]
        ({"a": Extension(b"t", b"")}, "extension 'a'"),  # type: ignore[arg-type]
        ({"a": Extension("t\n", b"")}, "extension 'a' type_url"),
        ({"a": Extension("t" * (TYPE_URL_MAX + 1), b"")}, "extension 'a' type_url"),
        ({f"n{n}": b"" for n in range(COUNT_MAX + 1)}, "extensions"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_update_refuses_what_cannot_be_stored(store: Store, result: Any, field: str) -> None:
    """The error names the field; the stored extensions stay."""
    handle = store.add(sandbox("a"), READY)
    handle.extensions.update(setting(one=ONE))
    with pytest.raises(InvalidArgumentError, match="update extensions of sandbox 'a'") as caught:
        handle.extensions.update(lambda _: result)
    assert field == caught.value.field
    assert {"one": ONE} == handle.extensions


def test_a_value_that_is_too_large_is_refused_with_both_sizes(store: Store) -> None:
    """One byte more than the limit, which itself is stored."""
    handle = store.add(sandbox("a"), READY)
    with pytest.raises(ResourceExhaustedError) as caught:
        handle.extensions.update(setting(big=bytes(VALUE_MAX + 1)))
    assert (VALUE_MAX + 1, VALUE_MAX) == (caught.value.size, caught.value.limit)
    assert "extension 'big'" == caught.value.field


def test_as_many_and_as_large_as_allowed_are_stored(store: Store) -> None:
    """With the longest names and type URLs; again with other values."""
    handle = store.add(sandbox("a"), READY)
    for _ in "12":
        full = {
            f"{n:02}{'é' * (NAME_MAX - 2)}": Extension("t" * TYPE_URL_MAX, os.urandom(VALUE_MAX))
            for n in range(COUNT_MAX)
        }
        handle.extensions.update(lambda _, full=full: full)  # type: ignore[misc]
        assert full == handle.extensions


def test_update_needs_a_function(store: Store) -> None:
    """A mapping is none: it would overwrite what is not known to it."""
    handle = store.add(sandbox("a"), READY)
    with pytest.raises(InvalidArgumentError):
        handle.extensions.update({"one": ONE})  # type: ignore[arg-type]


def test_a_read_only_store_reads_and_does_not_replace(open_store: OpenStore) -> None:
    """With the error that says so."""
    open_store().add(sandbox("a"), READY).extensions.update(setting(one=ONE))
    handle = open_store(read_only=True).get("a")
    assert {"one": ONE} == handle.extensions
    with pytest.raises(ReadOnlyError):
        handle.extensions.update(setting(two=TWO))


def test_a_closed_store_reads_none(open_store: OpenStore) -> None:
    """The latest commit cannot be read; what an object has read stays."""
    store = open_store()
    handle = store.add(sandbox("a"), READY)
    kept = handle.extensions
    assert {} == kept
    store.close()
    for call in (lambda: len(handle.extensions), lambda: handle.extensions.update(setting())):
        with pytest.raises(StoreClosedError):
            call()
    assert {} == kept
    assert "Extensions(sandbox='a')" == repr(handle.extensions)


# Deletion.


def deleted_here(handle: Sandbox, path: str) -> None:
    """Delete the sandbox by its handle."""
    handle.delete()


def deleted_by_sql(handle: Sandbox, path: str) -> None:
    """Delete the sandbox as the shell does, which leaves foreign keys off."""
    sqlite_shell(path, "DELETE FROM sandboxes WHERE id = 'a'")


@pytest.mark.parametrize("delete", [deleted_here, deleted_by_sql])
@pytest.mark.parametrize("added_again", [False, True])
def test_extensions_of_a_deleted_sandbox_are_not_found(
    store: Store, path: str, delete: Callable[[Sandbox, str], None], added_again: bool
) -> None:
    """They go with it, and one that is added again under its id inherits none."""
    handle = store.add(sandbox("a"), READY)
    handle.extensions.update(setting(one=ONE))
    delete(handle, path)
    assert [] == query(path, "SELECT * FROM sandbox_extensions")
    if added_again:
        assert {} == store.add(sandbox("a"), READY).extensions
    for call in (
        lambda: handle.extensions["one"],
        lambda: len(handle.extensions),
        lambda: "one" in handle.extensions,
        lambda: handle.extensions.update(setting(two=TWO)),
    ):
        with pytest.raises(NotFoundError) as caught:
            call()
        assert "a" == caught.value.id
    assert handle.stopped.is_set()


# Damage.


@pytest.mark.parametrize(
    "damage", ["name = CAST(x'ff' AS TEXT)", "type_url = CAST(x'ff' AS TEXT)"], ids=str
)
def test_a_damaged_extension_is_reported(path: str, damage: str) -> None:
    """By a read, an update and `check`; the sandbox itself can be deleted."""
    with Store.open(path) as store:
        handle = store.add(sandbox("a"), READY)
        handle.extensions.update(setting(one=ONE))
        tamper(path, f"UPDATE sandbox_extensions SET {damage}")
        for call in (lambda: len(handle.extensions), lambda: handle.extensions.update(setting())):
            with pytest.raises(MetadataError, match="read extensions of sandbox 'a'"):
                call()
        assert ["extensions_are_valid"] == [each.rule for each in store.check()]
        assert handle.delete()
        assert [] == store.check()
