"""A sandbox that somebody else has made is taken over: nobody here is its creator."""

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


def test_an_adopted_sandbox_has_no_creator_and_an_added_one_has(store: Store, path: str) -> None:
    """All its columns are NULL."""
    store.adopt(sandbox("a"), UNKNOWN)
    store.add(sandbox("b"), UNKNOWN)
    adopted, added = query(path, CREATOR)
    assert (None,) * 6 == adopted
    assert os.getpid() == added[0]


def test_an_adopted_unknown_one_stays_so_when_its_adopter_has_ended(path: str) -> None:
    """An added one is INTERRUPTED then; of this one nobody knows, and it is UNVERIFIED."""
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


def test_somebody_can_say_more_of_an_adopted_one(store: Store) -> None:
    """Then it is a sandbox like any other."""
    adopted = store.adopt(sandbox("a"), UNKNOWN)
    adopted.status.update(lambda _: READY)
    assert {Verdict.OPEN: 1} == store.reconcile().counts


def test_the_process_of_an_adopted_one_is_noted(store: Store) -> None:
    """As that of an added one: it is known again."""
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
def test_what_add_refuses_is_refused(
    store: Store, metadata: Metadata, status: Status, kind: type[Exception]
) -> None:
    """With the same error, which says what was tried."""
    store.adopt(sandbox("a"), READY)
    calls: list[Callable[[Metadata, Status], Sandbox]] = [store.add, store.adopt]
    for call in calls:
        with pytest.raises(kind, match=f"{call.__name__} sandbox {metadata.id!r}: "):
            call(metadata, status)
    assert ["a"] == ids(store.list())
