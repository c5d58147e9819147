"""A creator other than the calling process: a short-lived program adds for a daemon."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from registry import (
    FailedPreconditionError,
    InvalidArgumentError,
    State,
    Status,
    Store,
    Verdict,
)
from tests.tools import READY, UNKNOWN, ids, query, run, sandbox

START = """
    import sys
    from registry import Metadata, State, Status, Store
    with Store.open(sys.argv[1]) as store:
        creator = int(sys.argv[2]) or None
        store.add(Metadata("a", "a", None), Status(State.UNKNOWN), creator=creator)
    """
"""The short-lived program."""


@contextmanager
def daemon() -> Iterator[subprocess.Popen[bytes]]:
    """Run a process until the end of the block, or until its stdin is closed."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process


def end(process: subprocess.Popen[bytes]) -> None:
    """End the daemon, and reap it."""
    process.communicate()


def test_creation_of_a_daemon_outlives_the_program_that_added_it(path: str) -> None:
    """It is CREATING in every reconcile while the daemon lives, and INTERRUPTED after its end."""
    with daemon() as process:
        run(START, path, process.pid)
        for _ in range(2):
            with Store.open(path) as store:
                assert store.recovery is not None
                (finding,) = store.recovery.findings
                assert (Verdict.CREATING, False) == (finding.verdict, finding.changed)
                assert str(process.pid) in finding.message
                assert [] == store.list()
        end(process)
        with Store.open(path) as store:
            assert store.recovery is not None
            (finding,) = store.recovery.findings
            assert Verdict.INTERRUPTED is finding.verdict
            assert "CreationInterrupted" == store.get("a").status.get().reason
            assert [] == store.check()


def test_creation_without_a_daemon_ends_with_the_program_that_added_it(path: str) -> None:
    """The default creator is the calling process."""
    run(START, path, 0)
    with Store.open(path) as store:
        assert ["a"] == ids(store.list(state=State.NOTREADY))


def test_creator_is_recorded_with_its_identity(store: Store, path: str) -> None:
    """Another process that gets its pid later is not the creator."""
    columns = "creator_pid, creator_boot_id IS NULL, creator_start_time"
    with daemon() as process:
        store.add(sandbox("a"), UNKNOWN, creator=process.pid)
        store.add(sandbox("b"), UNKNOWN, creator=os.getpid())
        store.add(sandbox("c"), READY, creator=process.pid)
        found = query(path, f"SELECT {columns} FROM sandboxes ORDER BY id")
        assert [process.pid, os.getpid(), process.pid] == [pid for pid, _, _ in found]
        assert {0} == {is_null for _, is_null, _ in found}
        assert found[0][2] == found[2][2] != found[1][2]
        end(process)


def test_creator_that_does_not_run_is_refused(store: Store) -> None:
    """It cannot be responsible; without it the sandbox would count as adopted."""
    with daemon() as process:
        end(process)
    with pytest.raises(FailedPreconditionError, match=f"process {process.pid}, does not run") as e:
        store.add(sandbox("a"), UNKNOWN, creator=process.pid)
    assert "a" == e.value.id
    assert [] == store.list(include_unknown=True)


@pytest.mark.parametrize("creator", [0, -1, 2**31, "1", 1.0, True], ids=repr)
def test_creator_that_is_no_pid_is_refused(store: Store, creator: Any) -> None:
    """0 included: `adopt` adds a sandbox without a creator."""
    with pytest.raises(InvalidArgumentError, match=r"^add sandbox 'a': creator ") as caught:
        store.add(sandbox("a"), Status(State.UNKNOWN), creator=creator)
    assert ("creator", creator) == (caught.value.field, caught.value.value)
