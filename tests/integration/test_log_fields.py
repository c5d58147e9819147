"""Fields of the records that the package logs, as a formatter of the embedder gets them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from registry import DataLossError, State, Store, restore, salvage
from registry.handles import session
from registry.tables.version import LEVEL
from tests.conftest import OpenStore
from tests.convoy import more
from tests.events import events
from tests.tools import READY, make_old_registry, sandbox

STANDARD = logging.makeLogRecord({}).__dict__.keys() | {"message", "asctime"}
FIELDS = {each.name: (each.level, each.fields) for each in events()}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Return the records of the package, INFO included."""
    caplog.set_level(logging.INFO, "registry")
    return caplog


def fields(log: pytest.LogCaptureFixture, event: str) -> dict[str, Any]:
    """Return the fields of the one record of *event*, which JSON can write."""
    (record,) = (each for each in log.records if vars(each).get("event") == event)
    found = {name: value for name, value in vars(record).items() if name not in STANDARD}
    level, names = FIELDS[event]
    assert (level, ("event", *names)) == (record.levelname, tuple(found))
    assert found == json.loads(json.dumps(found))
    return found


def test_nothing_is_written_unless_the_program_configures_it(
    path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The logger has a NullHandler, and the level that Python gives it."""
    with Store.open(path) as store:
        store.add(sandbox("a", netns_path="/nowhere"), READY)
        store.reconcile()
    assert ("", "") == capfd.readouterr()
    assert logging.NOTSET == logging.getLogger("registry").level
    handlers = logging.getLogger("registry").handlers
    assert [logging.NullHandler] == [type(each) for each in handlers]


def test_a_reconcile_is_logged_with_each_sandbox_that_it_marks(
    path: str, open_store: OpenStore, log: pytest.LogCaptureFixture
) -> None:
    """A dry run marks none; a record has the path, since a program may have several registries."""
    store = open_store(reconcile=False)
    assert {"event": "registry_created", "path": path, "schema_level": LEVEL} == fields(
        log, "registry_created"
    )
    store.add(sandbox("a", netns_path="/nowhere"), READY)
    log.clear()
    store.reconcile(dry_run=True)
    found = fields(log, "reconciled")
    assert isinstance(found.pop("seconds"), float)
    expected = {"event": "reconciled", "path": path, "sandboxes": 1, "marked": 0, "orphans": 0}
    assert {**expected, "dry_run": True} == found
    log.clear()
    store.reconcile()
    assert {"marked": 1, "dry_run": False}.items() <= fields(log, "reconciled").items()
    assert {
        "event": "sandbox_marked",
        "path": path,
        "sandbox_id": "a",
        "verdict": "CLOSED",
        "reason": "NetNSClosed",
    } == fields(log, "sandbox_marked")


def test_a_slow_function_is_logged_with_its_sandbox_and_its_duration(
    store: Store, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is a number, and the operation that of the errors."""
    monkeypatch.setattr(session, "SLOW", -1.0)
    store.add(sandbox("a"), READY).status.update(more)
    found = fields(log, "slow_function")
    assert isinstance(found.pop("seconds"), float)
    assert {
        "event": "slow_function",
        "path": store.path,
        "operation": "update status of sandbox 'a'",
        "sandbox_id": "a",
    } == found


def test_an_upgrade_is_logged_with_both_levels(path: str, log: pytest.LogCaptureFixture) -> None:
    """Of an older registry; one that is up to date logs none."""
    make_old_registry(path)
    Store.open(path, reconcile=False).close()
    Store.open(path, reconcile=False).close()
    expected = {"event": "schema_upgraded", "path": path, "from_schema_level": 1}
    assert {**expected, "schema_level": LEVEL} == fields(log, "schema_upgraded")


def test_a_restore_and_a_copy_that_is_opened_are_logged(
    path: str, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    """With what was lost, and where the replaced registry is."""
    copy = str(tmp_path / "copy.db")
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
        store.backup(copy)
        store.delete("a")
    done = restore(copy, path, force=True)
    assert {
        "event": "registry_restored",
        "path": path,
        "backup": copy,
        "incarnation": 2,
        "replaced": done.replaced,
        "lost": 1,
    } == fields(log, "registry_restored")
    Store.open(copy).close()
    assert {"event": "incarnation_begun", "path": copy, "incarnation": 2} == fields(
        log, "incarnation_begun"
    )


def test_a_salvage_is_logged_with_what_it_has_copied(
    path: str, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    """Also of a registry that is whole."""
    copy = str(tmp_path / "copy.db")
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
    salvage(path, copy)
    expected = {"event": "registry_salvaged", "path": path, "copy": copy, "sandboxes": 1}
    assert {**expected, "losses": 0} == fields(log, "registry_salvaged")


def test_the_disk_reserve_is_logged_when_it_is_released_and_allocated_again(
    store: Store, log: pytest.LogCaptureFixture
) -> None:
    """Once each: a release of what is gone already, and an allocation of what is there, are not."""
    reserve = store._session.engine.writer.disk_space.reserve
    for _ in "12":
        reserve.release("-reserve")
    assert {"event": "disk_reserve_released", "path": store.path} == fields(
        log, "disk_reserve_released"
    )
    for _ in "12":
        assert reserve.allocate()
    fields(log, "disk_reserve_allocated")


def test_damage_that_ends_the_writes_of_a_process_is_logged_once(
    path: str, log: pytest.LogCaptureFixture
) -> None:
    """Each further write raises; only the first damage is news."""
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
        for _ in "12":
            store._session.engine.state.note(DataLossError("broken", path=path, sqlite_code=11))
        assert {"event": "writes_refused", "path": path, "error": "DataLossError"} == fields(
            log, "writes_refused"
        )
        assert State.READY is store.get("a").status.get().state
