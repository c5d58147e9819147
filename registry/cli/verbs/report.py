"""The report of a reconcile: its findings as rows, the whole of it, and the lines after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Final

from registry.cli.output.formats import sentences
from registry.cli.output.views import View
from registry.recovery.findings import Report, Verdict

ORPHANS: Final = (
    "--remove-orphans removes orphans, unless a process lives in one; first make sure that this "
    "registry is no copy and was not restored from a backup: then pods may own them"
)
"""Line after the orphans: a copy, or a backup, does not record what was created later."""


VERDICTS: Final = {
    Verdict.HOST: "on the host network, which is not observed",
    Verdict.OPEN: "what is recorded of it is there, or nothing is recorded",
    Verdict.CLOSED: "its network namespace is gone, or of an earlier boot",
    Verdict.REPLACED: "another network namespace is at its path",
    Verdict.EXITED: "its process has ended",
    Verdict.INTERRUPTED: "the process that was creating it has ended",
    Verdict.UNREACHABLE: "it cannot be observed for certain, and is left as it is",
    Verdict.CREATING: "it is being created",
    Verdict.UNVERIFIED: "it was imported, and not updated since",
}
"""Meanings of the verdicts, for the help."""
MEANING: Final = (
    "\b\nVerdicts:\n"
    + "".join(f"  {verdict:11}  {meaning}\n" for verdict, meaning in VERDICTS.items())
    + "\n"
)
"""Part of the help that explains the verdicts."""
VIEW: Final = View(
    ("sandbox_id", "verdict", "reason", "message", "changed", "would_change"),
    table={
        "ID": "sandbox_id",
        "VERDICT": "verdict",
        "CHANGED": "changed",
        "REASON": "reason",
        "MESSAGE": "message",
    },
    name="sandbox_id",
    id="sandbox_id",
    folds=True,
)
DRY_RUN: Final = replace(
    VIEW,
    table={
        "ID": "sandbox_id",
        "VERDICT": "verdict",
        "WOULD_CHANGE": "would_change",
        "REASON": "reason",
        "MESSAGE": "message",
    },
)
"""View of the report of a dry run, which has changed nothing."""


def whole(report: Report) -> dict[str, object]:
    """Return *report* as one object, with the count of each verdict."""
    counts = {verdict: report.counts.get(verdict, 0) for verdict in Verdict}
    return asdict(report) | {"counts": counts}


def findings(report: Report) -> list[dict[str, object]]:
    """Return the findings of *report* as rows of `VIEW`."""
    return [asdict(finding) for finding in report.findings]


def lines_of(
    report: Report,
    removed: Sequence[str] = (),
    *,
    dry_run: bool = False,
    tried: bool = False,
) -> str:
    """Return the counts of *report*, and a line for each orphan.

    Args:
        report: of a reconcile.
        removed: paths of the orphans that were removed.
        dry_run: nothing was changed.
        tried: the orphans were to be removed.
    """
    counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(report.counts.items()))
    lines = [f"sandboxes: {counts or 'none'}"]
    if dry_run:
        lines.append("dry run: nothing was changed")
    left = "not removed" if tried else "no sandbox owns it"
    lines += [f"orphan {path}: {'removed' if path in removed else left}" for path in report.orphans]
    if report.orphans and not tried:
        lines.append(ORPHANS)
    return sentences(lines)
