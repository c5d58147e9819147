"""A reader that keeps a snapshot while the log grows is named, in the log and by `check`."""

from __future__ import annotations

import logging

import pytest

from registry import Store
from registry.engine.driver import WAL_MAX
from registry.engine.locks import snapshot_keepers
from tests.convoy import more
from tests.tools import READY, line, pod, query, running, sandbox, say

READER = """
    import sqlite3, sys
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM sandboxes").fetchall()
    print("reading", flush=True)
    sys.stdin.readline()
    connection.execute("ROLLBACK")
    print("done", flush=True)
    sys.stdin.readline()
    """


def grow(store: Store, prefix: str) -> None:
    """Write more to the log than its bound."""
    config = pod()
    config.annotations["long"] = "x" * 1_000_000
    with store.transaction():
        for n in range(WAL_MAX // 2_000_000 + 1):  # as protobuf and as JSON
            store.add(sandbox(f"{prefix}{n}", config=config), READY)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings about the log."""
    messages = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    return [each for each in messages if "cannot be reset" in each]


def found(store: Store) -> list[str]:
    """Return what `check` says of it."""
    violations = store.check()
    assert {"log_can_be_reset"} >= {each.rule for each in violations}
    return [each.found for each in violations]


@pytest.mark.parametrize("log", ["with commits", "empty"])
def test_another_process_that_keeps_a_snapshot_is_named(
    store: Store, caplog: pytest.LogCaptureFixture, log: str
) -> None:
    """Once for each growth, until its transaction has ended; whether it reads the log or not."""
    store.add(sandbox("a"), READY)
    if log == "empty":
        assert [(0, 0, 0)] == query(store.path, "PRAGMA wal_checkpoint(TRUNCATE)")
    with running(READER, store.path) as reader:
        assert "reading" == line(reader)
        name = f"process {reader.pid} ("
        assert [] == found(store)  # while the log is short
        grow(store, "b")
        assert 1 == len(told(caplog))
        assert name in told(caplog)[0]
        assert store.path in told(caplog)[0]
        store.get("a").status.update(more)
        assert 1 == len(told(caplog))
        (violation,) = found(store)
        assert violation.startswith(name)
        grow(store, "c")
        assert 2 == len(told(caplog))
        say(reader, "")
        assert "done" == line(reader)
        grow(store, "d")
        assert 2 == len(told(caplog))
        assert [] == found(store)


def test_a_snapshot_of_this_process_is_named(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """The snapshot of the check itself does not count."""
    store.add(sandbox("a"), READY)
    with store._session.engine.snapshot("hold") as reader:
        assert reader.fetch("SELECT count(*) FROM sandboxes")
        grow(store, "b")
        assert "this process keeps a snapshot" in told(caplog)[0]
        (violation,) = found(store)
        assert violation.startswith("this process keeps a snapshot")
    grow(store, "c")
    assert [] == found(store)
    assert [] == snapshot_keepers(store.path)
