"""Salvage of registries that are damaged by seeds: what the damage does not touch comes back.

The truth is what the whole registry holds. A sandbox is touched if a page with a part of one of its
records was changed, by an own reading of the whole file.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import astuple
from typing import Any, NamedTuple

import pytest

from registry import RegistryError, Salvage, Store, salvage
from tests.damage import kinds
from tests.damage.build import id_of
from tests.damage.kinds import FRAME, WAL_HEADER, Kind, Target
from tests.damage.layout import LEAF, SIZE, Layout, number, offset
from tests.damage.outcomes import changes, contents
from tests.damage.trials import Registries

NAMES = ("closed", "hot", "large")
ROUNDS = 1
"""Times that each kind of damage is done, by other seeds, to the registries in turn."""
TABLES = ("sandboxes", "sandbox_statuses", "sandbox_extensions", "sandbox_transitions")
IDS = [id_of(n) for n in range(300)]


class Truth(NamedTuple):
    """A whole registry."""

    sandboxes: dict[str, Any]
    history: dict[int, Any]
    touched: dict[int, set[str]]
    """Ids whose records have a part on a page, by its number; a seq stands for a transition."""
    in_wal: frozenset[int]
    """Pages whose latest state is in the WAL."""


class Damaged(NamedTuple):
    """A salvage of a damaged copy."""

    title: str
    found: Salvage | RegistryError
    sandboxes: dict[str, Any]
    history: dict[int, Any]
    pages: set[int]
    """Pages that the damage has changed, of those in use."""
    is_ok: bool
    """Whether SQLite's integrity check finds nothing."""
    truth: Truth


def sandboxes_of(store: Store) -> dict[str, Any]:
    """Return all that is recorded of each sandbox, by its id."""
    return {
        each.id: (
            each.name,
            each.metadata.marshal_json(),
            each.config.SerializeToString(deterministic=True) if each.config else b"",
            each.stored,
            each.status.get(),
            dict(each.extensions),
            store.list(labels=dict(each.config.labels), id=each.id, include_unknown=True) == [each]
            if each.config
            else True,
        )
        for each in store.list(include_unknown=True)
    }


def history_of(store: Store) -> dict[int, Any]:
    """Return the transitions by their seq."""
    return {each.seq: astuple(each) for each in store.history()}


def wal_pages(path: str) -> frozenset[int]:
    """Return the pages in the frames of the WAL up to its last commit."""
    if not os.path.exists(f"{path}-wal"):
        return frozenset()
    with open(f"{path}-wal", "rb") as file:
        wal = file.read()
    pages: list[int] = []
    committed = 0
    for at in range(WAL_HEADER, len(wal) - FRAME + 1, FRAME):
        page, commit = struct.unpack_from(">II", wal, at)
        if wal[at + 8 : at + 16] != wal[16:24]:
            break
        pages.append(page)
        committed = len(pages) if commit else committed
    return frozenset(pages[:committed])


def touched_by(path: str) -> dict[int, set[str]]:
    """Return the ids, and seqs, of the records that have a part on each page of the whole file."""
    with closing(sqlite3.connect(path)) as shell:
        roots = dict(shell.execute("SELECT name, rootpage FROM sqlite_master WHERE rootpage > 0"))
        owners = dict(shell.execute("SELECT pageno, name FROM dbstat"))
    with open(path, "rb") as file:
        layout = Layout(file.read(), list(roots.values()))
    found: dict[int, set[str]] = {}
    for page, owner in owners.items():
        if owner not in TABLES or layout.data[offset(page)] not in {2, *LEAF}:
            continue
        for cell in layout.cells(page):
            data = layout.data[cell.start : cell.start + 400]
            ids = {id for id in IDS if id.encode() in data}
            chain = layout_chain(layout, cell)
            for part in (page, *chain):
                found.setdefault(part, set()).update(ids)
    return found


def layout_chain(layout: Layout, cell: Any) -> Iterator[int]:
    """Yield the pages of the overflow chain of *cell*."""
    before = dict(layout.uses)
    layout.uses = {}
    layout._walk_overflow(cell, layout.data[offset(cell.page)])
    chain, layout.uses = list(layout.uses), before
    yield from chain


@pytest.fixture(scope="module")
def registries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registries]:
    """Return whole registries to copy and damage."""
    made = Registries(str(tmp_path_factory.mktemp("damage")))
    yield made
    made.close()


@pytest.fixture(scope="module")
def truths(registries: Registries) -> dict[str, Truth]:
    """Return the truth about each registry."""
    found = {}
    for name in NAMES:
        with registries.copy(name) as folder:
            path = f"{folder}/registry.db"
            in_wal = wal_pages(path)
            with Store.open(path, reconcile=False) as store:
                sandboxes, history = sandboxes_of(store), history_of(store)
            found[name] = Truth(sandboxes, history, touched_by(path), in_wal)
    return found


def trial(registries: Registries, truth: Truth, name: str, kind: Kind, seed: int) -> Damaged:
    """Damage a copy, salvage it, and read the result."""
    with registries.copy(name) as folder:
        path, new = f"{folder}/registry.db", f"{folder}/new.db"
        with open(path, "rb") as file:
            whole = file.read()
        target = Target(random.Random(seed), folder, registries.layouts[name], registries.folder)
        title = f"{kind.name} of {name}, seed {seed} ({kind.make(target)})"
        hurt = bytes(target.read()) if os.path.exists(path) else b""
        before = contents(folder)
        try:
            found: Salvage | RegistryError = salvage(path, new)
        except RegistryError as error:
            found = error
        after = {file: state for file, state in contents(folder).items() if file != "new.db"}
        assert [] == changes(before, after), title
        sandboxes: dict[str, Any] = {}
        history: dict[int, Any] = {}
        if isinstance(found, Salvage):
            with Store.open(new, reconcile=False) as store:
                assert [] == store.check(), title
                sandboxes, history = sandboxes_of(store), history_of(store)
        pages = {
            page
            for page in range(1, len(whole) // SIZE + 1)
            if whole[offset(page) : offset(page + 1)] != hurt[offset(page) : offset(page + 1)]
        }
        is_ok = passes_integrity_check(path)
    return Damaged(title, found, sandboxes, history, pages - truth.in_wal, is_ok, truth)


def passes_integrity_check(path: str) -> bool:
    """Return whether SQLite finds the damaged registry in order."""
    try:
        with closing(sqlite3.connect(path)) as shell:
            return [("ok",)] == shell.execute("PRAGMA integrity_check").fetchall()
    except (sqlite3.Error, UnicodeDecodeError):  # the message has damaged names
        return False


@pytest.fixture(scope="module")
def trials(registries: Registries, truths: dict[str, Truth]) -> list[Damaged]:
    """Return a salvage for each kind of damage to the database file, and each registry."""
    made = [kind for kind in kinds.KINDS if set(NAMES) <= set(kind.variants)]
    names = itertools.cycle(NAMES)
    cases = zip(names, made * ROUNDS, range(len(made) * ROUNDS), strict=False)
    return [trial(registries, truths[name], name, kind, seed) for name, kind, seed in cases]


def test_records_outside_the_damage_are_in_the_copy(trials: list[Damaged]) -> None:
    """Equal in metadata, status, labels and extensions; none is there that was not."""
    bad = []
    for each in trials:
        touched = set().union(*(each.truth.touched.get(page, set()) for page in each.pages))
        outside = {id: state for id, state in each.truth.sandboxes.items() if id not in touched}
        if isinstance(each.found, RegistryError):
            bad += [f"{each.title}: {each.found}"] if outside else []
            continue
        if any(loss.source == "-wal" for loss in each.found.losses):
            continue  # a damaged header may leave open whether the WAL belongs to the file
        wrong = [id[:8] for id in outside if each.sandboxes.get(id) != outside[id]]
        more = each.sandboxes.keys() - each.truth.sandboxes.keys() - touched
        if wrong or more:
            bad.append(f"{each.title}: wrong {wrong}, more {more}, {len(outside)} outside")
    assert not bad, "\n".join(bad)


def test_damage_that_integrity_check_finds_is_reported(trials: list[Damaged]) -> None:
    """A salvage that says it is complete has all, unless SQLite finds nothing either."""
    bad = [
        each.title
        for each in trials
        if isinstance(each.found, Salvage)
        and each.found.complete
        and (each.sandboxes, each.history) != (each.truth.sandboxes, each.truth.history)
        and not each.is_ok
    ]
    assert not bad, "\n".join(bad)


def test_transitions_are_copied_or_reported(trials: list[Damaged]) -> None:
    """Each one outside the damage, with its seq, or else as a record of a loss."""
    bad = []
    for each in trials:
        touched = set().union(*(each.truth.touched.get(page, set()) for page in each.pages))
        if isinstance(each.found, RegistryError):
            continue
        told = {loss.sandbox_id for loss in each.found.losses if "seq" in loss.record}
        if any(loss.source == "-wal" for loss in each.found.losses):
            continue
        for seq, transition in each.truth.history.items():
            id = transition[1]
            if id not in touched | told and each.history.get(seq) != transition:
                bad.append(f"{each.title}: transition {seq} of {id[:8]}")
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("kind", [kind for kind in kinds.KINDS if kind.variants == ("hot",)])
def test_a_damaged_wal_or_a_strange_file_raises_only_errors_of_the_package(
    registries: Registries, truths: dict[str, Truth], kind: Kind
) -> None:
    """The copy passes `check`, and the old files are as they were."""
    for seed in range(3):
        trial(registries, truths["hot"], "hot", kind, seed)


def test_one_damaged_frame_costs_only_its_page(
    registries: Registries, truths: dict[str, Truth]
) -> None:
    """SQLite would drop all commits from there on; here the later ones are read."""
    truth = truths["hot"]
    with registries.copy("hot") as folder:
        path = f"{folder}/registry.db"
        with open(f"{path}-wal", "rb") as file:
            wal = file.read()
        for frame in range(0, 40, 3):
            at = WAL_HEADER + frame * FRAME
            page = number(wal, at)
            hurt = bytearray(wal)
            hurt[at + 24 + 2000] ^= 1
            with open(f"{path}-wal", "wb") as file:
                file.write(hurt)
            shutil.rmtree(f"{folder}/out", ignore_errors=True)
            os.mkdir(f"{folder}/out")
            found = salvage(path, f"{folder}/out/new.db")
            assert [f"-wal, frame {frame + 1}"] == [
                loss.source for loss in found.losses if loss.source.startswith("-wal")
            ]
            with Store.open(found.new, reconcile=False) as store:
                copied = sandboxes_of(store)
            touched = truth.touched.get(page, set())
            assert copied.keys() - touched == truth.sandboxes.keys() - touched
            for id in copied.keys() - touched:
                assert copied[id] == truth.sandboxes[id]
