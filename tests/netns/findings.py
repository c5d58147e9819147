"""Sandboxes with namespaces, and the findings of a reconcile."""

from __future__ import annotations

from registry import Finding, NetNS, Report, State, Status, Store, Verdict
from tests.tools import (
    READY,
    sandbox,
)


def only(report: Report) -> Finding:
    """Return the one finding."""
    (finding,) = report.findings
    assert {finding.verdict: 1} == dict(report.counts)
    return finding


def marked(store: Store, verdict: Verdict, reason: str) -> Finding:
    """Reconcile, and expect the one sandbox to be made NOTREADY; a dry run says the same before."""
    before = store.list(include_unknown=True)[0].status.get()
    dry = only(store.reconcile(dry_run=True))
    assert (verdict, reason, False) == (dry.verdict, dry.reason, dry.changed)
    assert dry.would_change
    assert before == store.list(include_unknown=True)[0].status.get()
    finding = only(store.reconcile())
    assert (verdict, reason, True) == (finding.verdict, finding.reason, finding.changed)
    assert not finding.would_change
    (handle,) = store.list()
    status = handle.status.get()
    assert (State.NOTREADY, reason, finding.message) == (
        status.state,
        status.reason,
        status.message,
    )
    assert handle.stopped.is_set()
    assert (reason, "changed") == (store.history()[-1].reason, store.history()[-1].event)
    assert not any(again.changed for again in store.reconcile().findings)
    assert status == handle.status.get()
    return finding


def unmarked(store: Store, verdict: Verdict) -> Finding:
    """Reconcile, and expect a finding that changes nothing."""
    before = store.list(include_unknown=True)[0].status.get()
    seq = store.history()[-1].seq
    finding = only(store.reconcile())
    assert (verdict, "", False) == (finding.verdict, finding.reason, finding.changed)
    assert not finding.would_change
    assert before == store.list(include_unknown=True)[0].status.get()
    assert [] == store.history(after=seq)
    return finding


def add(store: Store, base_dir: str, status: Status = READY) -> NetNS:
    """Add a sandbox with a namespace of its own."""
    netns = NetNS.create(store.new_netns_path(base_dir))
    store.add(sandbox("a", netns_path=netns.path), status)
    return netns
