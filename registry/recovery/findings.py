"""Result of a reconcile, as a caller gets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from registry.visible import visible


class Verdict(StrEnum):
    """Conclusion about one sandbox; the table is in docs/reconcile.md."""

    HOST = "HOST"
    OPEN = "OPEN"
    CLOSED = "CLOSED"
    REPLACED = "REPLACED"
    EXITED = "EXITED"
    INTERRUPTED = "INTERRUPTED"
    UNREACHABLE = "UNREACHABLE"
    CREATING = "CREATING"
    UNVERIFIED = "UNVERIFIED"


class Reason(StrEnum):
    """Reason why a sandbox is made NOTREADY; the first that applies is that of the status."""

    HOST_REBOOTED = "HostRebooted"
    NETNS_CLOSED = "NetNSClosed"
    NETNS_REPLACED = "NetNSReplaced"
    PROCESS_EXITED = "ProcessExited"
    CREATION_INTERRUPTED = "CreationInterrupted"


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of a reconcile for one sandbox.

    Attributes:
        sandbox_id: full id of the sandbox.
        verdict: conclusion.
        reason: status reason of the verdict; "" if the verdict does not make a sandbox NOTREADY.
        message: observations that led to the verdict.
        changed: True if this reconcile made the sandbox NOTREADY.
        would_change: True if a reconcile would make the sandbox NOTREADY, and this one did not, as
            with `dry_run`.
    """

    sandbox_id: str
    verdict: Verdict
    reason: str
    message: str
    changed: bool
    would_change: bool = False

    def __str__(self) -> str:
        """Return one line for a log."""
        done = " (now NOTREADY)" if self.changed else ""
        return visible(f"sandbox {self.sandbox_id!r}: {self.verdict}{done}: {self.message}")


@dataclass(frozen=True, slots=True)
class Report:
    """Result of a reconcile.

    Attributes:
        findings: one for each sandbox whose verdict is neither OPEN nor HOST, and for each NOTREADY
            sandbox that has to be cleaned up; ordered by created_at and id.
        counts: number of sandboxes by verdict; each sandbox is counted once.
        orphans: paths of namespaces that carry this registry's id and belong to no sandbox.
        verdicts: conclusion about each sandbox, by its id.
    """

    findings: tuple[Finding, ...]
    counts: Mapping[Verdict, int]
    orphans: tuple[str, ...]
    verdicts: Mapping[str, Verdict]
