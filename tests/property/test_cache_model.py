"""Compare the caches of two stores with fresh reads, after many random operations."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from registry import Metadata, NotFoundError, RegistryError, State, Status, Store
from registry.cri import PodSandboxConfig
from tests.conftest import OpenStore

pytestmark = pytest.mark.property

SEEDS = [int(seed) for seed in os.environ.get("CACHE_SEED", "1 2 3 4").split()]
OPERATIONS = int(os.environ.get("CACHE_OPERATIONS", "250"))
Read = Callable[[], list[Any]]
IDS = ("a", "ab", "abc", "b", "ba", "c")
PREFIXES = (*IDS, "d", "x")
LISTS: tuple[dict[str, Any], ...] = (
    {},
    {"include_unknown": True},
    {"state": State.READY},
    {"state": State.NOTREADY},
    {"state": State.UNKNOWN, "include_unknown": True},
    {"labels": {"app": "1"}},
    {"pod": "web", "state": State.READY},
    {"id": "a"},
    {"limit": 2},
    {"limit": 1, "newest_first": True, "state": {State.READY, State.NOTREADY}},
    {"limit": 2, "selector": "app!=1", "include_unknown": True},
    {"name": "name-a"},
)


class TakenBackError(Exception):
    """Ends a transaction that is to be rolled back."""


class Machine:
    """Random operations on one registry by two stores and a `sqlite3` shell."""

    def __init__(self, path: str, stores: tuple[Store, Store], seed: int) -> None:
        """Begin with an empty registry."""
        self.random = random.Random(seed)
        self.stores = stores
        self.fresh = Store.open(path, reconcile=False)
        self.shell = sqlite3.connect(path, isolation_level=None)
        self.handles = [store.add(self.metadata("a"), self.status()) for store in stores[:1]]

    def close(self) -> None:
        """Close what this has opened."""
        self.shell.close()
        self.fresh.close()

    # Values.

    def metadata(self, id: str) -> Metadata:
        """Return random metadata for *id*."""
        config = PodSandboxConfig(labels={"app": self.random.choice("12")})
        config.metadata.name = self.random.choice(["web", "db"])
        ip = self.random.choice(["", "10.0.0.1"])
        path = self.random.choice(["", "/run/netns/absent", "/proc/self/ns/net"])
        return Metadata(id, f"name-{id}", config, ip=ip, netns_path=path)

    def status(self) -> Status:
        """Return a random status."""
        return Status(
            self.random.choice([State.READY, State.READY, State.NOTREADY, State.UNKNOWN]),
            pid=self.random.choice([0, 0, os.getpid(), 2**31 - 1]),
            created_at=self.random.choice([0, 1, 2]),
            message=self.random.choice(["", "x"]),
        )

    def changed(self, old: Status) -> Status:
        """Return *old* with one random field changed."""
        fields: list[dict[str, Any]] = [
            {"message": str(self.random.random())},
            {"exited_at": self.random.randrange(9)},
            {"created_at": self.random.randrange(9)},
            {"state": State.READY},
            {"state": State.NOTREADY, "reason": "ProcessExited"},
            {"pid": self.random.choice([0, os.getpid()]), "exit_status": None},
        ]
        return replace(old, **self.random.choice(fields))

    # Operations.

    def operate(self) -> None:
        """Call one random operation; one that is refused has changed nothing."""
        store, id = self.random.choice(self.stores), self.random.choice(IDS)
        with suppress(RegistryError, TakenBackError, sqlite3.Error):
            self.random.choice(self.operations())(store, id)

    def operations(self) -> tuple[Callable[[Store, str], object], ...]:
        """Return them; those that are there twice are called more often."""
        return (
            *(self.add, self.update, self.update, self.update_kept, self.delete),
            *(self.update_metadata, self.replace, self.many, self.fail, self.nested),
            *(self.shell_update, self.shell_delete, self.reconcile),
        )

    def add(self, store: Store, id: str) -> None:
        """Add it, and keep the handle."""
        self.handles.append(store.add(self.metadata(id), self.status()))

    def update(self, store: Store, id: str) -> None:
        """Read and update, as a server does."""
        store.get(id, include_unknown=True).status.update(self.changed)

    def update_kept(self, _store: Store, _id: str) -> None:
        """Update by a handle that was kept; it may be of a sandbox that is deleted."""
        self.random.choice(self.handles).status.update(self.changed)

    def delete(self, store: Store, id: str) -> None:
        """Delete it."""
        store.delete(id)

    def update_metadata(self, store: Store, id: str) -> None:
        """Change what is fixed once it is not UNKNOWN."""
        store.update_metadata(id, lambda old: replace(self.metadata(old.id), name=old.name))

    def replace(self, store: Store, id: str) -> None:
        """Delete it and add it again, in one commit."""
        with store.transaction():
            store.delete(id)
            self.add(store, id)

    def many(self, store: Store, id: str) -> None:
        """Several changes in one commit, of both stores."""
        with store.transaction():
            for other in self.stores:
                self.update(other, id)
            self.delete(store, self.random.choice(IDS))

    def fail(self, store: Store, id: str) -> None:
        """Change, and roll back."""
        with store.transaction():
            self.update(store, id)
            store.get(id)
            raise TakenBackError

    def nested(self, store: Store, id: str) -> None:
        """Change, and roll back a part."""
        with store.transaction():
            with suppress(TakenBackError), store.transaction():
                store.get(id).status.update(lambda old: replace(old, message="inner"))
                store.delete(self.random.choice(IDS))
                raise TakenBackError
            store.get(id).status.update(lambda old: replace(old, message="outer"))

    def shell_update(self, _store: Store, id: str) -> None:
        """Change it by SQL."""
        sql = "UPDATE sandbox_statuses SET message = 'shell' || ? WHERE sandbox_id = ?"
        self.shell.execute(sql, (self.random.random(), id))

    def shell_delete(self, _store: Store, id: str) -> None:
        """Delete it by SQL."""
        self.shell.execute("DELETE FROM sandboxes WHERE id = ?", (id,))

    def reconcile(self, store: Store, _id: str) -> None:
        """Mark what is gone."""
        store.reconcile()
        store.remove_orphans(["/run/netns/absent"])

    # Comparison.

    def compare(self) -> None:
        """Compare each read of both stores with a read that nothing was cached for."""
        for store in self.random.sample(self.stores, 2):
            order = self.random.sample(PREFIXES, len(PREFIXES))
            cached, fresh = self.reads(store, order), self.reads(self.fresh, order)
            for (question, read), (_, again) in zip(cached, fresh, strict=True):
                answer = read()
                self.fresh._session._cache.invalidate()
                expected = again()
                assert expected == answer, question
                assert [*map(type, expected)] == [*map(type, answer)], question

    def reads(self, store: Store, order: list[str]) -> Iterator[tuple[object, Read]]:
        """Yield reads of all kinds; of single sandboxes in *order*."""
        for prefix in order:
            yield prefix, partial(read, store, prefix)
        for filters in LISTS:
            yield filters, partial(read_list, store, filters)
        for handle in self.handles[-8:]:
            yield handle, partial(read_creation, store, handle._entry.row.creation)


def read(store: Store, prefix: str) -> list[Any]:
    """Return the columns of the sandbox that *prefix* names, or the class of the error."""
    try:
        return [*store.get(prefix, include_unknown=True)._entry.row]
    except RegistryError as error:
        return [type(error)]


def read_list(store: Store, filters: dict[str, Any]) -> list[Any]:
    """Return the rows of a list."""
    return [each._entry.row for each in store.list(**filters)]


def read_creation(store: Store, creation: int) -> list[Any]:
    """Return the columns of *creation*, or nothing."""
    entry = store._session.find_creation(creation, "test")
    return [] if entry is None else [*entry.row]


@pytest.mark.parametrize("seed", SEEDS)
def test_cached_reads_equal_fresh_reads(open_store: OpenStore, path: str, seed: int) -> None:
    """After each of many operations, or after several of them."""
    stores = open_store(), open_store()
    with closing(Machine(path, stores, seed)) as machine:
        for n in range(OPERATIONS):
            machine.operate()
            if machine.random.random() < 0.7:
                try:
                    machine.compare()
                except AssertionError as error:
                    raise AssertionError(f"CACHE_SEED={seed}, operation {n}") from error


def test_a_machine_finds_a_cache_that_is_stale(open_store: OpenStore, path: str) -> None:
    """The comparison itself is able to fail."""
    stores = open_store(), open_store()
    with closing(Machine(path, stores, 1)) as machine:
        machine.compare()
        for store in stores:
            store._session._cache._read_version = lambda _: 1  # type: ignore[misc]
            store._session._cache.invalidate()
        machine.compare()
        machine.shell_update(stores[0], "a")
        with pytest.raises(AssertionError):
            machine.compare()
    with pytest.raises(NotFoundError):
        stores[0].get("none")
