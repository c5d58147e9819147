"""Verdict on each sandbox, from its row and what was observed; pure.

This module neither observes the host nor writes: `observations` observes, `reconcile` writes.

1. A sandbox is marked NOTREADY only if it is certainly gone, not if it cannot be observed.
2. A sandbox whose verdict is uncertain does not affect the others.
3. There is no verdict on an object that is not recorded (no pid, no path).
4. No observation marks a sandbox if another one contradicts it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Final, NamedTuple

from registry.host.context import HostContext
from registry.host.namespaces import NetNSObservation, Presence
from registry.host.process import Liveness, ProcessObservation
from registry.model.status import MESSAGE_MAX, State, Status
from registry.recovery.evidence import BootEvidence, Evidence
from registry.recovery.findings import Finding, Reason, Report, Verdict
from registry.tables.rows import (
    AnyRow,
    Row,
    StatusRow,
    as_text,
    load_netns,
)

_UNKNOWN, _READY, _NOTREADY = map(str, State)


_PROCESS_IS_GONE: Final = frozenset({Reason.HOST_REBOOTED, Reason.PROCESS_EXITED})
"""Reasons for which the pid of the status becomes 0."""


class Observation(NamedTuple):
    """Observation of one sandbox; None where there was nothing to observe.

    Attributes:
        netns: observation of the path of the network namespace.
        process: observation of the recorded process, or the answer of an attached container.
        creator: observation of the creating process, while the sandbox is UNKNOWN.
        lives_in_netns: the recorded process lives in the recorded namespace, wherever that is
            mounted; observed only if the path does not tell whether the namespace exists.
        lives_at_path: the recorded process lives in the namespace at the path, which is not the
            recorded one.
        attached: *process* is the answer of an attached container.
        evidence: evidence for and against a reboot; collected only for a sandbox that was recorded
            under another boot id.
        failure: reason why nothing could be observed, such as a damaged record.
    """

    netns: NetNSObservation | None = None
    process: ProcessObservation | None = None
    creator: ProcessObservation | None = None
    lives_in_netns: bool = False
    lives_at_path: bool = False
    attached: bool = False
    evidence: tuple[Evidence, ...] = ()
    failure: str = ""


class Decision(NamedTuple):
    """Verdict on one sandbox, and the change that follows from it.

    Attributes:
        row: row as read.
        verdict: conclusion.
        reason: status reason of the verdict.
        message: observations that led to the verdict.
        marks: the row is to be changed: to NOTREADY, or, if it is NOTREADY already, to pid 0.
        clears_pid: the pid is to become 0.
        reported: the report has a finding for the sandbox.
        left: what still exists of a sandbox that is not, or no longer, READY; not part of the
            status message.
    """

    row: AnyRow
    verdict: Verdict
    reason: str = ""
    message: str = ""
    marks: bool = False
    clears_pid: bool = False
    reported: bool = False
    left: str = ""

    def applied_to(self, status: Status) -> Status:
        """Return *status* with the change applied; a NOTREADY sandbox keeps its reason."""
        pid = 0 if self.clears_pid else status.pid
        if status.state is State.NOTREADY:
            return replace(status, pid=pid)
        return replace(
            status,
            state=State.NOTREADY,
            pid=pid,
            reason=self.reason,
            message=_printable(self.message)[:MESSAGE_MAX],
        )

    def finding(self, *, changed: bool) -> Finding:
        """Return the finding of the report."""
        message = "; ".join(filter(None, (self.message, self.left)))
        would_change = self.marks and self.row.state != _NOTREADY and not changed
        return Finding(
            as_text(self.row.id), self.verdict, self.reason, message, changed, would_change
        )


def _printable(text: str) -> str:
    """Return *text*, parts of which other programs may have written, as SQL can store it."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


# Boots.


def recorded_here(row: AnyRow, context: HostContext) -> bool:
    """Return whether the path was recorded in our mount namespace, or in an unknown one."""
    return row.netns_mount_ns in {None, context.mount_ns}


def names_other_boot(row: AnyRow, context: HostContext) -> bool:
    """Return whether anything in *row* was recorded under another boot id than ours."""
    ours = context.boot_id
    if row.boot_id == ours == row.netns_boot_id == row.process_boot_id and type(row) is StatusRow:
        return False  # the common case
    return bool(_other_boots(row, context))


def _other_boots(row: AnyRow, context: HostContext) -> list[str]:
    """Return the boot ids in *row* that are not ours."""
    recorded: tuple[str | None, ...] = (row.netns_boot_id, row.process_boot_id, row.boot_id)
    if isinstance(row, Row):
        recorded = (*recorded, row.creator_boot_id)
    return [each for each in dict.fromkeys(recorded) if each and context.is_other_boot(each)]


# Verdicts.


class _Case:
    """Conclusions about one sandbox, while they are drawn.

    Attributes:
        row: row as read.
        observation: observation, without processes of an earlier boot.
        recorded: identity of the network namespace; None if it is not recorded.
        dead: conclusions that make the sandbox NOTREADY: verdict, reason and message.
        unseen: observations that allow no conclusion.
        notes: further text for the finding.
    """

    __slots__ = ("dead", "notes", "observation", "recorded", "row", "unseen")

    def __init__(self, row: AnyRow, observation: Observation) -> None:
        self.row, self.observation = row, observation
        self.recorded = load_netns(row)
        self.dead: list[tuple[Verdict, Reason, str]] = []
        self.unseen: list[str] = []
        self.notes: list[str] = []

    @property
    def message(self) -> str:
        return "; ".join([message for _, _, message in self.dead] + self.unseen + self.notes)


def decide(
    observed: Iterable[tuple[AnyRow, Observation]],
    context: HostContext,
    now: int,
    evidence: Iterable[Evidence] = (),
) -> Iterator[Decision]:
    """Yield the decision on each row.

    Rows that were recorded under another boot id come last, since the evidence for one of them
    holds for all.

    Args:
        observed: rows with their observations.
        context: host context of the observations.
        now: time of the decision in ns since the Unix epoch.
        evidence: evidence beside that of the rows; iterated only if needed.
    """
    others = []
    for row, observation in observed:
        if not observation.failure and names_other_boot(row, context):
            others.append((row, observation))
        elif _is_as_recorded(row, observation):
            yield Decision(row, Verdict.OPEN)
        else:
            yield _decision(row, observation, context, now, None)
    if others:
        own = (each for _, observation in others for each in observation.evidence)
        boots = BootEvidence(chain(own, evidence))
        for row, observation in others:
            yield _decision(row, observation, context, now, boots)


def _is_as_recorded(row: AnyRow, observation: Observation) -> bool:
    """Return whether a READY sandbox has its recorded namespace, and its process runs.

    A shortcut for most rows: `_decision` gives them the verdict OPEN.
    """
    netns, process = observation.netns, observation.process
    return (
        type(row) is StatusRow
        and row.state == _READY
        and not observation.failure
        and netns is not None
        and netns.identity is not None
        and netns.identity.number is not None
        and netns.identity.number == row.netns_number
        and netns.identity.inode == row.netns_inode
        and (process is None or process.liveness is Liveness.RUNNING)
    )


def _decision(
    row: AnyRow,
    observation: Observation,
    context: HostContext,
    now: int,
    boots: BootEvidence | None,
) -> Decision:
    """Return the decision on one row; *boots* is None unless the row names another boot."""
    if observation.failure:
        return _reported(row, Verdict.UNREACHABLE, observation.failure)
    if isinstance(row, Row) and row.creator_pid is None:
        return _reported(row, Verdict.UNVERIFIED, "it was adopted, and not updated since")
    case = _Case(row, observation)
    if boots is not None:
        _examine_boot(case, context, boots)
    creator = case.observation.creator
    if creator is not None and creator.liveness is not Liveness.GONE:
        return _creating(case, creator, now)
    _examine_netns(case, context)
    _examine_process(case)
    if creator is not None:
        message = f"its creation was interrupted: {creator.detail}"
        case.dead.append((Verdict.INTERRUPTED, Reason.CREATION_INTERRUPTED, message))
    return _conclude(case)


def _reported(row: AnyRow, verdict: Verdict, message: str) -> Decision:
    return Decision(row, verdict, message=message, reported=True)


def _creating(case: _Case, creator: ProcessObservation, now: int) -> Decision:
    if case.unseen or creator.liveness is Liveness.UNSEEN:
        case.unseen.append(f"its creator: {creator.detail}")
        return _reported(case.row, Verdict.UNREACHABLE, case.message)
    age = max(0, now - (case.row.changed_at or now)) / 1e9
    return _reported(case.row, Verdict.CREATING, f"being created for {age:.1f} s: {creator.detail}")


def _examine_boot(case: _Case, context: HostContext, boots: BootEvidence) -> None:
    others = _other_boots(case.row, context)
    message = f"recorded under boot {others[0]!r}, and this is boot {context.boot_id!r}"
    against = boots.against_reboot(others, case.observation.evidence)
    if against:
        case.unseen.append(f"{message}, but {against}")
    else:
        case.dead.append((Verdict.CLOSED, Reason.HOST_REBOOTED, message))
        case.observation = _after_reboot(case.row, case.observation, context)


def _after_reboot(row: AnyRow, observation: Observation, context: HostContext) -> Observation:
    """Return *observation* without processes of an earlier boot, whose pids mean others now."""
    process, creator = observation.process, observation.creator
    if process and not observation.attached and context.is_other_boot(row.process_boot_id):
        observation = observation._replace(process=_ran_before(row.pid))
    if creator and isinstance(row, Row) and context.is_other_boot(row.creator_boot_id):
        observation = observation._replace(creator=_ran_before(row.creator_pid))
    return observation


def _ran_before(pid: int | None) -> ProcessObservation:
    return ProcessObservation(Liveness.GONE, f"process {pid} ran before the host was booted")


def _examine_netns(case: _Case, context: HostContext) -> None:
    observed, recorded = case.observation.netns, case.recorded
    if observed is None:
        return
    if observed.presence is Presence.UNSEEN:
        case.unseen.append(f"network namespace {observed.detail}{_still_lives(case.observation)}")
    elif recorded is not None and observed.identity and recorded.same_as(observed.identity):
        if recorded.by_inode_only(observed.identity):
            case.notes.append("only the inode tells that the namespace is the recorded one")
    elif recorded is not None and not recorded_here(case.row, context):
        other = ", another than the recorded one," if observed.identity else ""
        case.unseen.append(
            f"{observed.detail}{other} in our mount namespace, but it was recorded in another one"
            f"{_still_lives(case.observation)}"
        )
    else:
        _examine_other_netns(case, observed)


def _examine_other_netns(case: _Case, observed: NetNSObservation) -> None:
    """Conclude from a path without a network namespace, or with another than the recorded one."""
    detail, path = observed.detail, case.row.netns_path
    if observed.presence is Presence.OTHER_TYPE:
        case.dead.append((Verdict.REPLACED, Reason.NETNS_REPLACED, detail))
    elif observed.identity is not None and case.recorded is not None:
        message = f"{path!r} is another network namespace than the recorded one"
        if case.observation.lives_at_path and _runs(case.observation.process):
            case.unseen.append(f"{message}, but the recorded process lives in it")
        else:
            case.dead.append((Verdict.REPLACED, Reason.NETNS_REPLACED, message))
    elif observed.identity is not None:
        pass  # the identity is not recorded
    elif case.recorded is None and case.row.state == _UNKNOWN:
        case.notes.append(f"its network namespace was not made: {detail}")
    elif _was_never_made(case):
        pass
    else:
        message = f"network namespace is closed: {detail}"
        case.dead.append((Verdict.CLOSED, Reason.NETNS_CLOSED, message))


def _was_never_made(case: _Case) -> bool:
    """Return whether the creation ended before the namespace was made."""
    return case.recorded is None and case.row.state == _NOTREADY


def _runs(observed: ProcessObservation | None) -> bool:
    return observed is not None and observed.liveness is Liveness.RUNNING


def _still_lives(observation: Observation) -> str:
    if _runs(observation.process) and observation.lives_in_netns:
        return "; the recorded process still lives in the recorded namespace"
    return ""


def _examine_process(case: _Case) -> None:
    observed = case.observation.process
    if observed is None:
        return
    if observed.liveness is Liveness.UNSEEN:
        case.unseen.append(observed.detail)
    elif observed.liveness is Liveness.GONE:
        case.dead.append((Verdict.EXITED, Reason.PROCESS_EXITED, observed.detail))


def _conclude(case: _Case) -> Decision:
    row = case.row
    if case.dead:
        return _marked(case)
    left = _left(case) if row.state == _NOTREADY else ""
    if case.unseen:
        return _reported(row, Verdict.UNREACHABLE, case.message)._replace(left=left)
    verdict = Verdict.HOST if row.host_network else Verdict.OPEN
    if not (left or case.notes):
        return Decision(row, verdict)
    return _reported(row, verdict, case.message)._replace(left=left)


def _marked(case: _Case) -> Decision:
    """Return the decision on a sandbox that is not READY, or must not stay so."""
    order = list(Reason)
    case.dead.sort(key=lambda conclusion: order.index(conclusion[1]))
    verdict, reason, _ = case.dead[0]
    reasons = {reason for _, reason, _ in case.dead}
    # The pid of an earlier boot may be unobservable for ever, which would block the cleanup.
    exited = Reason.PROCESS_EXITED in reasons and case.row.pid != 0
    ran_before = reason is Reason.HOST_REBOOTED and exited
    return Decision(
        case.row,
        verdict,
        str(reason),
        case.message,
        marks=case.row.state != _NOTREADY or ran_before,
        clears_pid=bool(reasons & _PROCESS_IS_GONE),
        reported=True,
        left=_left(case),
    )


def _left(case: _Case) -> str:
    """Return the text about what is left to clean up of a sandbox that is not READY."""
    alive, observed = [], case.observation.netns
    if observed is not None and observed.identity is not None:
        if case.recorded is None:
            alive.append(f"{observed.detail}, though it is not recorded which one it should be")
        elif case.recorded.same_as(observed.identity):
            alive.append(f"network namespace {case.row.netns_path!r} is open")
    elif observed is not None and _is_leftover_file(case, observed):
        alive.append(observed.detail)
    if case.observation.process is not None and _runs(case.observation.process):
        alive.append(case.observation.process.detail)
    return "still to be cleaned up: " + "; ".join(alive) if alive else ""


def _is_leftover_file(case: _Case, observed: NetNSObservation) -> bool:
    """Return whether the creation left a file, and never made a namespace on it."""
    return observed.presence is Presence.NOT_A_NAMESPACE and _was_never_made(case)


# Report.


def report(
    decisions: Collection[Decision],
    verdicts: Sequence[tuple[str, Verdict]],
    changed: Collection[int],
    orphans: Sequence[str],
) -> Report:
    """Return the report.

    Args:
        decisions: decisions that are reported.
        verdicts: id of each sandbox, and the verdict on it.
        changed: creations of the sandboxes that were made NOTREADY.
        orphans: paths of orphaned namespaces.
    """
    ordered = sorted(decisions, key=_place)
    return Report(
        findings=tuple(each.finding(changed=each.row.creation in changed) for each in ordered),
        counts=dict(Counter(verdict for _, verdict in verdicts)),
        orphans=tuple(orphans),
        verdicts=dict(verdicts),
    )


def _place(decision: Decision) -> tuple[int, str]:
    """Return the key by which findings are ordered; the row may be damaged."""
    row = decision.row
    return row.created_at if isinstance(row.created_at, int) else 0, as_text(row.id)
