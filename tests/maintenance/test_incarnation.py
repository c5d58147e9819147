"""A copy begins an incarnation of its own, and the history tells where it jumps."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import replace
from typing import Any

import pytest

from registry import CompactedError, SchemaVersionError, State, Store
from registry.tables import migrations, version
from registry.tables.incarnation import Incarnation
from registry.tables.version import BLOCK, HISTORY_MAX
from tests.conftest import OpenStore
from tests.tools import (
    READY,
    contents,
    execute,
    fill_history,
    make_old_registry,
    query,
    sandbox,
    tamper,
)

MARK = "UPDATE registry SET copied_at = 1"


def incarnation(path: str) -> Incarnation:
    """Return the incarnation of the registry at *path*."""

    def fetch(sql: str, params: object) -> list[tuple[Any, ...]]:
        return query(path, sql)

    return Incarnation.read(fetch)


def seqs(path: str) -> list[int]:
    """Return the seq of every transition that is kept."""
    return [seq for (seq,) in query(path, "SELECT seq FROM sandbox_transitions ORDER BY seq")]


@pytest.fixture
def copy(path: str) -> str:
    """Return a closed registry with two transitions, which is marked as a copy."""
    with Store.open(path) as store:
        for id in "ab":
            store.add(sandbox(id), READY)
    execute(path, MARK)
    return path


# The begin of an incarnation.


def test_a_copy_that_is_opened_for_writing_becomes_another_registry(
    copy: str, open_store: OpenStore
) -> None:
    """Once: the next open finds a registry like any other."""
    before = incarnation(copy)
    store = open_store()
    assert before.registry_id not in store.new_netns_path()
    store.add(sandbox("c"), READY)
    assert [] == store.check()
    after = incarnation(copy)
    assert before.registry_id != after.registry_id
    assert (2, None) == (after.number, after.copied_at)
    store.close()
    open_store().get("a").status.update(lambda old: replace(old, state=State.NOTREADY))
    assert after._replace(last_seq=after.last_seq + 1) == incarnation(copy)
    assert [1, 2, BLOCK + 1, BLOCK + 2] == seqs(copy)


def test_a_copy_that_is_only_read_stays_a_copy(copy: str) -> None:
    """It is read as it is, and no byte changes."""
    before = contents(os.path.dirname(copy))
    with Store.open(copy, read_only=True) as store:
        assert ["a", "b"] == [each.id for each in store.list()]
        assert [] == store.check()
    execute(copy, "PRAGMA wal_checkpoint")  # removes what the reader has left
    assert before == contents(os.path.dirname(copy))


def test_a_copy_of_a_newer_schema_that_may_not_be_written_stays_a_copy(copy: str) -> None:
    """This code opens it, and refuses each write."""
    execute(copy, "UPDATE registry SET level = 99, min_writer = 99")
    with Store.open(copy, reconcile=False) as store, pytest.raises(SchemaVersionError):
        store.delete("a")
    assert 1 == incarnation(copy).copied_at


def test_an_incarnation_that_fails_to_begin_leaves_the_copy(
    copy: str, monkeypatch: pytest.MonkeyPatch, open_store: OpenStore
) -> None:
    """It is one transaction, and the next open begins it."""
    before = incarnation(copy)

    def fail(*_: object) -> None:
        raise OSError("power is out")

    monkeypatch.setattr(migrations, "give_number", fail)
    with pytest.raises(OSError, match="power"):
        Store.open(copy)
    monkeypatch.undo()
    assert before == incarnation(copy)
    open_store()
    assert 2 == incarnation(copy).number


def test_an_empty_copy_begins_an_incarnation_too(path: str, open_store: OpenStore) -> None:
    """Its history begins behind the jump, which is no gap; each watch sees its first transition."""
    open_store().close()
    execute(path, MARK)
    store = open_store()
    watches = [store.watch(after=after, timeout=0) for after in (None, 0, BLOCK)]
    store.add(sandbox("a"), READY)
    assert [BLOCK + 1] * 3 == [next(watch).seq for watch in watches]
    assert [] == store.check()


# The history.


def test_a_reader_of_the_history_goes_on_over_a_jump_unless_it_has_read_what_is_lost(
    copy: str, open_store: OpenStore
) -> None:
    """Before the first transition of the new incarnation, and after it."""
    store = open_store()
    with pytest.raises(CompactedError, match="was lost when a backup was restored") as caught:
        next(store.watch(after=3, timeout=0))
    assert (3, 1) == (caught.value.after, caught.value.oldest)
    waiting = store.watch(timeout=0)
    store.add(sandbox("c"), READY)
    for lost in (3, BLOCK - 1):
        with pytest.raises(CompactedError, match="was lost"):
            next(store.watch(after=lost, timeout=0))
        with pytest.raises(CompactedError, match="was lost"):
            store.history(after=lost)
    with pytest.raises(CompactedError, match="of another registry, or of a later backup"):
        next(store.watch(after=BLOCK + 2, timeout=0))
    for kept in (2, BLOCK):
        assert ["c"] == [each.sandbox_id for each in store.watch(after=kept, timeout=0)]
        assert ["c"] == [each.sandbox_id for each in store.history(after=kept)]
    assert [BLOCK + 1] == [each.seq for each in waiting]
    assert [1, 2, BLOCK + 1] == [each.seq for each in store.watch(after=0, timeout=0)]


def test_earlier_incarnations_stay_until_the_present_one_has_the_bound(
    copy: str, open_store: OpenStore
) -> None:
    """Then the oldest ones go with each new transition, whichever incarnation they are of."""
    for _ in range(2):
        open_store().close()
        fill_history(copy, 100)
        execute(copy, MARK)
    store = open_store()
    before = len(seqs(copy))
    fill_history(copy, HISTORY_MAX)
    assert before + HISTORY_MAX == len(seqs(copy))
    assert [] == store.check()
    fill_history(copy, 2)
    assert before > len(seqs(copy)) - HISTORY_MAX > 0
    assert [] == store.check()
    fill_history(copy, 10)
    found = seqs(copy)
    assert HISTORY_MAX == len(found) == found[-1] - found[0] + 1
    assert [] == store.check()


INSERT = (
    "INSERT INTO sandbox_transitions SELECT {seq}, sandbox_id, name, pod, namespace, uid, event,"
    " from_state, to_state, pid, reason, message, actor, boot_id, at FROM sandbox_transitions"
    " WHERE seq = 1"
)
DELETE = "DELETE FROM sandbox_transitions WHERE seq "


@pytest.mark.parametrize(
    "statement", [INSERT, f"{DELETE} = 1", f"{DELETE} = 2", f"{DELETE} > 1000000000"]
)
def test_the_history_is_append_only_over_a_jump(
    copy: str, open_store: OpenStore, statement: str
) -> None:
    """A jump that no incarnation has begun is refused, and so is a deletion before one."""
    open_store().add(sandbox("c"), READY)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        execute(copy, statement.format(seq=2 * BLOCK + 1))
    assert [1, 2, BLOCK + 1] == seqs(copy)


@pytest.mark.parametrize(
    ("last_seq", "number", "is_whole"),
    [(BLOCK, 2, True), (BLOCK, 1, False), (BLOCK + 1, 2, False), (5 * BLOCK, 9, True)],
)
def test_check_accepts_a_jump_of_a_later_incarnation_alone(
    path: str, last_seq: int, number: int, is_whole: bool
) -> None:
    """To a multiple of the block plus 1, and at most one for each."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("a"), READY)
        tamper(
            path,
            f"UPDATE sqlite_sequence SET seq = {last_seq} WHERE name = 'sandbox_transitions'",
            f"UPDATE registry SET incarnation = {number}",
            "INSERT INTO sandbox_transitions (sandbox_id, name, pod, namespace, uid, event,"
            " from_state, to_state, pid, reason, message, actor, boot_id, at) SELECT 'x', 'x', pod,"
            " namespace, uid, 'created', NULL, 'SANDBOX_READY', 0, '', '', actor, boot_id, at"
            " FROM sandbox_transitions WHERE seq = 1",
        )
        rules = {violation.rule for violation in store.check()}
        assert ("history_is_whole" not in rules) == is_whole


def test_a_copy_of_an_older_revision_has_no_mark(path: str, open_store: OpenStore) -> None:
    """It is upgraded, and goes on as the registry that it is."""
    make_old_registry(path, "0002")
    (before,) = query(path, "SELECT registry_id FROM registry")
    open_store(reconcile=False)
    assert (before[0], 1, None) == incarnation(path)[:3]
    assert version.LEVEL == query(path, "SELECT level FROM registry")[0][0]
