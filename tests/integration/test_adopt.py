"""Adoption of sandboxes that another program has created: no creator is recorded."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from registry import (
    AlreadyExistsError,
    InvalidArgumentError,
    Metadata,
    NameReservedError,
    Sandbox,
    State,
    Status,
    Store,
    Verdict,
)
from tests.tools import NOTREADY, READY, UNKNOWN, ids, query, run, sandbox

CREATOR = (
    "SELECT creator_pid, creator_boot_id, creator_pid_ns, creator_time_ns, creator_inode,"
    " creator_start_time FROM sandboxes ORDER BY id"
)


def test_adopt_records_no_creator_and_add_does(store: Store, path: str) -> None:
    """All columns of the creator are NULL."""
    store.adopt(sandbox("a"), UNKNOWN)
    store.add(sandbox("b"), UNKNOWN)
    adopted, added = query(path, CREATOR)
    assert (None,) * 6 == adopted
    assert os.getpid() == added[0]


def test_adopted_sandbox_stays_unknown_when_its_adopter_has_ended(path: str) -> None:
    """It is UNVERIFIED; an added sandbox is INTERRUPTED then."""
    run(
        """
        import sys
        from registry import Metadata, State, Status, Store
        with Store.open(sys.argv[1]) as store:
            store.adopt(Metadata("a", "a", None), Status(State.UNKNOWN))
            store.add(Metadata("b", "b", None), Status(State.UNKNOWN))
        """,
        path,
    )
    with Store.open(path) as store:
        assert store.recovery is not None
        verdicts = {finding.sandbox_id: finding.verdict for finding in store.recovery.findings}
        assert {"a": Verdict.UNVERIFIED, "b": Verdict.INTERRUPTED} == verdicts
        assert State.UNKNOWN is store.get("a", include_unknown=True).status.get().state
        assert ["b"] == ids(store.list())
        assert [] == store.check()


def test_adopted_sandbox_can_be_updated(store: Store) -> None:
    """Its verdict is then that of any other sandbox."""
    adopted = store.adopt(sandbox("a"), UNKNOWN)
    adopted.status.update(lambda _: READY)
    assert {Verdict.OPEN: 1} == store.reconcile().counts


def test_adopt_records_the_identity_of_the_process(store: Store) -> None:
    """As `add` does: the process is recognized."""
    ready = Status(State.READY, pid=os.getpid(), created_at=1_000)
    with store.adopt(sandbox("a"), ready).open_process() or pytest.fail("it runs") as process:
        assert os.getpid() == process.pid
    assert store.adopt(sandbox("b"), NOTREADY).stopped.is_set()


@pytest.mark.parametrize(
    ("metadata", "status", "kind"),
    [
        (sandbox("a", name="new"), READY, AlreadyExistsError),
        (sandbox("b", name="name-a"), READY, NameReservedError),
        (sandbox("", name="x"), READY, InvalidArgumentError),
        (sandbox("c"), Status(State.READY, pid=-1), InvalidArgumentError),
    ],
    ids=["id", "name", "metadata", "status"],
)
def test_adopt_refuses_what_add_refuses(
    store: Store, metadata: Metadata, status: Status, kind: type[Exception]
) -> None:
    """With the same error, which says what was tried."""
    store.adopt(sandbox("a"), READY)
    calls: list[Callable[[Metadata, Status], Sandbox]] = [store.add, store.adopt]
    for call in calls:
        with pytest.raises(kind, match=f"{call.__name__} sandbox {metadata.id!r}: "):
            call(metadata, status)
    assert ["a"] == ids(store.list())
