"""Decision on one sandbox, which is that of a reconcile of all."""

from __future__ import annotations

import os

import pytest

from registry import NetNS, State, Status, Store, Verdict
from registry.recovery.reconcile import decide_on
from tests import needs
from tests.tools import READY, UNKNOWN, execute, running, sandbox, tamper

OTHER_BOOT = "00000000-0000-4000-8000-000000000000"


def decisions(store: Store) -> dict[str, tuple[Verdict, str]]:
    """Return the verdict on each sandbox, and its message, each observed alone."""
    found = {}
    for each in store.list(include_unknown=True):
        decided = decide_on(store._session, each._entry.row.creation)
        assert decided is not None
        finding = decided[1].finding(changed=False)
        found[each.id] = (finding.verdict, finding.message)
    return found


def findings(store: Store) -> dict[str, tuple[Verdict, str]]:
    """Return the same of a dry run, without sandboxes that need no finding."""
    report = store.reconcile(dry_run=True)
    return {each.sandbox_id: (each.verdict, each.message) for each in report.findings}


def test_the_decision_on_one_sandbox_is_that_of_a_dry_run(path: str) -> None:
    """A process that runs, one that is gone, a namespace that is missing, a damaged record."""
    with running("import sys; sys.stdin.read()") as process, Store.open(path) as store:
        store.add(sandbox("runs"), Status(State.READY, os.getpid()))
        store.add(sandbox("gone"), Status(State.READY, process.pid))
        store.add(sandbox("closed", netns_path="/run/netns/never-made"), READY)
        store.add(sandbox("damaged"), READY)
        store.add(sandbox("creating"), UNKNOWN)
        process.kill()
        process.wait()
        tamper(path, "UPDATE sandbox_statuses SET pid = -4 WHERE sandbox_id = 'damaged'")
        found = decisions(store)
        assert (Verdict.OPEN, "") == found.pop("runs")
        expected = findings(store)
        assert expected.keys() == found.keys()
        assert Verdict.CREATING == found.pop("creating")[0]  # its message has its age
        assert found == {id: expected[id] for id in found}
        execute(path, "UPDATE sandbox_statuses SET pid = 0 WHERE sandbox_id = 'damaged'")


def test_evidence_for_another_sandbox_of_the_same_boot_counts(path: str) -> None:
    """A process that still runs proves that the host was not rebooted; so for the other one too."""
    with Store.open(path) as store:
        store.add(sandbox("runs"), Status(State.READY, os.getpid()))
        store.add(sandbox("other"), READY)
    tamper(
        path,
        f"UPDATE sandbox_statuses SET boot_id = '{OTHER_BOOT}'",
        f"UPDATE sandbox_statuses SET process_boot_id = '{OTHER_BOOT}' WHERE pid > 0",
        f"UPDATE sandboxes SET creator_boot_id = '{OTHER_BOOT}'",
    )
    with Store.open(path, reconcile=False) as store:
        found = decisions(store)
        assert {Verdict.UNREACHABLE} == {verdict for verdict, _ in found.values()}
        assert findings(store) == found


def test_a_deleted_sandbox_has_no_decision(path: str) -> None:
    """It was deleted after it had been found."""
    with Store.open(path) as store:
        added = store.add(sandbox("a"), READY)
        added.delete()
        assert decide_on(store._session, added._entry.row.creation) is None


@pytest.mark.netns
@needs.namespaces
def test_an_open_namespace_is_observed_alone(path: str, made: NetNS) -> None:
    """The observation has its identity."""
    with Store.open(path) as store:
        added = store.add(sandbox("a", netns_path=made.path), READY)
        decided = decide_on(store._session, added._entry.row.creation)
        assert decided is not None
        observation, decision = decided
        assert observation.netns is not None
        assert observation.netns.identity is not None
        assert (Verdict.OPEN, False) == (decision.verdict, decision.marks)
    made.remove()
