"""What became of the sandboxes while nobody looked.

Three steps, each apart from the others:

    look    at every namespace and process of the rows read, holding no lock
    plan    what the rows and the observation mean: pure, one finding a sandbox
    apply   the changes, in one transaction, but for rows that somebody changed meanwhile;
            those are looked at again

Rules:

1. What cannot be seen is not dead. Only what is known to be gone makes a sandbox NOTREADY.
2. A look has no side effects, and one sandbox that cannot be judged never stops the rest.
3. What is not recorded (no pid, no path) is not judged.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain
from typing import Final, NamedTuple

from registry.host import namespaces, netns, process
from registry.host.context import HostContext
from registry.host.namespaces import NetNSObservation, Observer, Presence
from registry.host.process import Liveness, ProcessObservation
from registry.model.status import MESSAGE_MAX, State, Status
from registry.recovery.evidence import (
    BootEvidence,
    Evidence,
    HostInventory,
    Weight,
    netns_evidence,
    process_evidence,
)
from registry.sync.interrupts import reraise_interrupt
from registry.tables.rows import (
    AnyRow,
    Row,
    StatusRow,
    as_text,
    load_creator,
    load_netns,
    load_process,
)

_UNKNOWN, _NOTREADY = str(State.UNKNOWN), str(State.NOTREADY)


class Verdict(StrEnum):
    """What a sandbox was found to be."""

    HOST = "HOST"
    OPEN = "OPEN"
    CLOSED = "CLOSED"
    REPLACED = "REPLACED"
    EXITED = "EXITED"
    INTERRUPTED = "INTERRUPTED"
    UNREACHABLE = "UNREACHABLE"
    CREATING = "CREATING"
    UNVERIFIED = "UNVERIFIED"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one sandbox; *changed* if it was made NOTREADY for it.

    *reason* is empty unless the verdict is one for which a READY sandbox becomes NOTREADY.
    """

    sandbox_id: str
    verdict: Verdict
    reason: str
    message: str
    changed: bool

    def __str__(self) -> str:
        """Return one line for a log."""
        done = " (now NOTREADY)" if self.changed else ""
        return f"sandbox {self.sandbox_id!r}: {self.verdict}{done}: {self.message}"


@dataclass(frozen=True, slots=True)
class Report:
    """What a reconcile found.

    *findings*, ordered by created_at and id: one for each sandbox that is not simply OPEN or HOST;
    a NOTREADY one of which something still lives has one too. *counts*: by verdict over all
    sandboxes, each counted once. *orphans*: paths of namespaces that carry this registry's id and
    belong to no sandbox.
    """

    findings: tuple[Finding, ...]
    counts: Mapping[Verdict, int]
    orphans: tuple[str, ...]


class Observation(NamedTuple):
    """What was observed of one sandbox; None where there was nothing to observe."""

    netns: NetNSObservation | None = None
    process: ProcessObservation | None = None
    creator: ProcessObservation | None = None
    lives_in_netns: bool = False
    """The recorded process lives in the recorded namespace, wherever that is mounted; looked up
    only where the path does not tell what became of it."""
    lives_at_path: bool = False
    """The recorded process lives in the namespace that is at the path, which is not the recorded
    one."""
    attached: bool = False
    """*process* is the answer of an attached container."""
    evidence: tuple[Evidence, ...] = ()
    """For and against a reboot; looked up only for a sandbox recorded under another boot id."""
    failure: str = ""
    """Why nothing could be observed, the record being damaged for instance."""


class Decision(NamedTuple):
    """A finding before anything was done, and whether it asks for NOTREADY."""

    row: AnyRow
    verdict: Verdict
    reason: str = ""
    message: str = ""
    marks: bool = False
    clears_pid: bool = False
    reported: bool = False
    left: str = ""
    """What still lives of a sandbox that is not, or no longer, ready: no part of why it is so."""

    def applied_to(self, status: Status) -> Status:
        """Return *status* as it is to be stored."""
        return replace(
            status,
            state=State.NOTREADY,
            pid=0 if self.clears_pid else status.pid,
            reason=self.reason,
            message=_printable(self.message)[:MESSAGE_MAX],
        )

    def finding(self, *, changed: bool) -> Finding:
        """Return it as the report has it."""
        message = "; ".join(filter(None, (self.message, self.left)))
        return Finding(as_text(self.row.id), self.verdict, self.reason, message, changed)


def _printable(text: str) -> str:
    """Return *text*, parts of which may be what strangers wrote, as SQL can store it."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


# Looking.


def observe(
    row: AnyRow,
    inventory: HostInventory,
    observer: Observer,
    container: ProcessObservation | None,
) -> Observation:
    """Return what can be observed of the sandbox of *row*, which is not damaged.

    Args:
        row: as it was read.
        inventory: of the host.
        observer: at the paths of all.
        container: what an attached container says of its process; None when there is none.
    """
    context = inventory.context
    recorded = load_process(row)
    seen = None if recorded is None else process.observe(recorded, context)
    creator = load_creator(row) if isinstance(row, Row) else None
    seen_creator = None if creator is None else process.observe(creator, context)
    observed = None
    if row.netns_path and not row.host_network:
        observed = observer.observe(row.netns_path)
    observation = Observation(
        observed, container or seen, seen_creator, attached=container is not None
    )
    if observed is not None and not _is_certain(row, observed):
        observation = _observe_where_it_lives(observation, row, observed, context)
    if _names_other_boot(row, context):
        observation = observation._replace(
            evidence=tuple(_evidence(row, observation, seen, inventory))
        )
    return observation


def _is_certain(row: AnyRow, observed: NetNSObservation) -> bool:
    """Return whether the namespace at the path is the recorded one, by its kernel id."""
    number = row.netns_number
    return (
        number is not None and observed.identity is not None and observed.identity.number == number
    )


def _observe_where_it_lives(
    observation: Observation, row: AnyRow, observed: NetNSObservation, context: HostContext
) -> Observation:
    """Add in which network namespace the recorded process lives, where that could tell more."""
    recorded = load_netns(row)
    if recorded is None or row.pid == 0:
        return observation
    if observed.identity is not None:
        if recorded.same_as(observed.identity):
            return observation
        at_path = process.net_inode_of(row.pid) == observed.identity.inode
        observation = observation._replace(lives_at_path=at_path)
    if observed.presence is Presence.UNSEEN or not _recorded_here(row, context):
        observation = observation._replace(lives_in_netns=_lives_in_netns(row))
    return observation


def _recorded_here(row: AnyRow, context: HostContext) -> bool:
    """Return whether the path was recorded in our mount namespace, or it is unknown in which."""
    return row.netns_mount_ns in {None, context.mount_ns}


def _lives_in_netns(row: AnyRow) -> bool:
    number = row.netns_number
    return number is not None and process.net_namespace_of(row.pid) == number


def _names_other_boot(row: AnyRow, context: HostContext) -> bool:
    """Return whether anything of *row* was recorded under another boot id than ours."""
    ours = context.boot_id
    if row.boot_id == ours == row.netns_boot_id == row.process_boot_id and type(row) is StatusRow:
        return False  # as nearly all are
    return bool(_other_boots(row, context))


def _other_boots(row: AnyRow, context: HostContext) -> list[str]:
    """Return the boot ids that something of *row* was recorded under and that are not ours."""
    recorded: tuple[str | None, ...] = (row.netns_boot_id, row.process_boot_id, row.boot_id)
    if isinstance(row, Row):
        recorded = (*recorded, row.creator_boot_id)
    return [each for each in dict.fromkeys(recorded) if each and context.is_other_boot(each)]


def _evidence(
    row: AnyRow, observation: Observation, seen: ProcessObservation | None, inventory: HostInventory
) -> Iterator[Evidence]:
    """Yield the evidence for and against a reboot; *seen*: of the recorded process."""
    recorded, netns_recorded = load_process(row), load_netns(row)
    if (
        observation.attached
        and observation.process is not None
        and observation.process.liveness is Liveness.RUNNING
    ):
        yield Evidence("", Weight.SAME, observation.process.detail)
    if recorded is not None and seen is not None:
        yield from process_evidence(recorded, seen, inventory)
    if netns_recorded is not None:
        yield from netns_evidence(netns_recorded, observation.netns, inventory)
    creator = load_creator(row) if isinstance(row, Row) else None
    if creator is not None and observation.creator is not None:
        yield from process_evidence(creator, observation.creator, inventory)


# Judging.


class _Case:
    """What was found against one sandbox.

    Attributes:
        row: as it was read.
        observation: what was observed; of a boot that is over nothing runs.
        recorded: its network namespace, None if that is not recorded.
        dead: why it is not ready, each with its verdict and reason.
        unseen: what cannot be judged.
        notes: what else there is to say.
    """

    __slots__ = ("dead", "notes", "observation", "recorded", "row", "unseen")

    def __init__(self, row: AnyRow, observation: Observation) -> None:
        self.row, self.observation = row, observation
        self.recorded = load_netns(row)
        self.dead: list[tuple[Verdict, str, str]] = []
        self.unseen: list[str] = []
        self.notes: list[str] = []

    def say(self) -> str:
        return "; ".join([message for _, _, message in self.dead] + self.unseen + self.notes)


_ORDER: Final = (
    "HostRebooted",
    "NetNSClosed",
    "NetNSReplaced",
    "ProcessExited",
    "CreationInterrupted",
)


def decide(
    observed: Iterable[tuple[AnyRow, Observation]],
    context: HostContext,
    now: int,
    evidence: Iterable[Evidence] = (),
) -> Iterator[Decision]:
    """Yield what was observed means for each row; pure.

    Rows recorded under another boot id come last, since the evidence for one counts for all.

    Args:
        observed: each row with what was observed.
        context: from where.
        now: when, in ns since the Unix epoch.
        evidence: for and against a reboot beside that of the rows; iterated only if needed.
    """
    others = []
    for row, observation in observed:
        if not observation.failure and _names_other_boot(row, context):
            others.append((row, observation))
        else:
            yield _judge(row, observation, context, now, None)
    if others:
        boots = BootEvidence(
            chain((each for _, observation in others for each in observation.evidence), evidence)
        )
        for row, observation in others:
            yield _judge(row, observation, context, now, boots)


def _judge(
    row: AnyRow,
    observation: Observation,
    context: HostContext,
    now: int,
    boots: BootEvidence | None,
) -> Decision:
    """Return the decision; *boots*: if the row names another boot than ours, what is known."""
    if observation.failure:
        return _reported(row, Verdict.UNREACHABLE, observation.failure)
    if isinstance(row, Row) and row.creator_pid is None:
        return _reported(row, Verdict.UNVERIFIED, "it was adopted, and not updated since")
    case = _Case(row, observation)
    if boots is not None:
        _judge_boot(case, context, boots)
    creator = case.observation.creator
    if creator is not None and creator.liveness is not Liveness.GONE:
        return _creating(case, creator, now)
    _judge_netns(case, context)
    _judge_process(case)
    if creator is not None:
        message = f"its creation was interrupted: {creator.detail}"
        case.dead.append((Verdict.INTERRUPTED, "CreationInterrupted", message))
    return _conclude(case)


def _reported(row: AnyRow, verdict: Verdict, message: str) -> Decision:
    return Decision(row, verdict, message=message, reported=True)


def _creating(case: _Case, creator: ProcessObservation, now: int) -> Decision:
    if case.unseen or creator.liveness is Liveness.UNSEEN:
        case.unseen.append(f"its creator: {creator.detail}")
        return _reported(case.row, Verdict.UNREACHABLE, case.say())
    age = max(0, now - (case.row.changed_at or now)) / 1e9
    return _reported(case.row, Verdict.CREATING, f"being created for {age:.1f} s: {creator.detail}")


def _judge_boot(case: _Case, context: HostContext, boots: BootEvidence) -> None:
    others = _other_boots(case.row, context)
    message = f"recorded under boot {others[0]!r}, and this is boot {context.boot_id!r}"
    against = boots.against_reboot(others, case.observation.evidence)
    if against:
        case.unseen.append(f"{message}, but {against}")
    else:
        case.dead.append((Verdict.CLOSED, "HostRebooted", message))
        case.observation = _after_reboot(case.row, case.observation, context)


def _after_reboot(row: AnyRow, observation: Observation, context: HostContext) -> Observation:
    """Return *observation* without processes of an earlier boot, whose numbers mean others now."""
    if (
        observation.process
        and not observation.attached
        and context.is_other_boot(row.process_boot_id)
    ):
        observation = observation._replace(process=_ran_before(row.pid))
    if observation.creator and isinstance(row, Row) and context.is_other_boot(row.creator_boot_id):
        observation = observation._replace(creator=_ran_before(row.creator_pid))
    return observation


def _ran_before(pid: int | None) -> ProcessObservation:
    return ProcessObservation(Liveness.GONE, f"process {pid} ran before the host was booted")


def _judge_netns(case: _Case, context: HostContext) -> None:
    observed, recorded = case.observation.netns, case.recorded
    if observed is None:
        return
    if observed.presence is Presence.UNSEEN:
        case.unseen.append(f"network namespace {observed.detail}{_still_lives(case.observation)}")
    elif recorded is not None and observed.identity and recorded.same_as(observed.identity):
        if recorded.by_inode_only(observed.identity):
            case.notes.append("only the inode tells that the namespace is the recorded one")
    elif recorded is not None and not _recorded_here(case.row, context):
        other = ", another than the recorded one," if observed.identity else ""
        case.unseen.append(
            f"{observed.detail}{other} in our mount namespace, but it was recorded in another one"
            f"{_still_lives(case.observation)}"
        )
    else:
        _judge_other_netns(case, observed)


def _judge_other_netns(case: _Case, observed: NetNSObservation) -> None:
    """Judge what is not a namespace, or not the recorded one."""
    detail, path = observed.detail, case.row.netns_path
    if observed.presence is Presence.OTHER_TYPE:
        case.dead.append((Verdict.REPLACED, "NetNSReplaced", detail))
    elif observed.identity is not None and case.recorded is not None:
        message = f"{path!r} is another network namespace than the recorded one"
        if case.observation.lives_at_path and _runs(case.observation.process):
            case.unseen.append(f"{message}, but the recorded process lives in it")
        else:
            case.dead.append((Verdict.REPLACED, "NetNSReplaced", message))
    elif observed.identity is not None:
        pass  # it is not recorded which one it should be
    elif case.recorded is None and case.row.state == _UNKNOWN:
        case.notes.append(f"its network namespace was not made: {detail}")
    elif _was_never_made(case):
        pass
    else:
        case.dead.append((Verdict.CLOSED, "NetNSClosed", f"network namespace is closed: {detail}"))


def _was_never_made(case: _Case) -> bool:
    """Return whether the creation was given up before there was a namespace."""
    return case.recorded is None and case.row.state == _NOTREADY


def _runs(observed: ProcessObservation | None) -> bool:
    return observed is not None and observed.liveness is Liveness.RUNNING


def _still_lives(observation: Observation) -> str:
    if _runs(observation.process) and observation.lives_in_netns:
        return "; the recorded process still lives in the recorded namespace"
    return ""


def _judge_process(case: _Case) -> None:
    observed = case.observation.process
    if observed is None:
        return
    if observed.liveness is Liveness.UNSEEN:
        case.unseen.append(observed.detail)
    elif observed.liveness is Liveness.GONE:
        case.dead.append((Verdict.EXITED, "ProcessExited", observed.detail))


def _conclude(case: _Case) -> Decision:
    row = case.row
    if case.dead:
        case.dead.sort(key=lambda fact: _ORDER.index(fact[1]))
        verdict, reason, _ = case.dead[0]
        marks = row.state != _NOTREADY
        exited = any(reason == "ProcessExited" for _, reason, _ in case.dead)
        clears_pid = exited or reason == "HostRebooted"
        return Decision(
            row, verdict, reason, case.say(), marks, clears_pid, reported=True, left=_left(case)
        )
    left = _left(case) if row.state == _NOTREADY else ""
    if case.unseen:
        return _reported(row, Verdict.UNREACHABLE, case.say())._replace(left=left)
    verdict = Verdict.HOST if row.host_network else Verdict.OPEN
    if not (left or case.notes):
        return Decision(row, verdict)
    return _reported(row, verdict, case.say())._replace(left=left)


def _left(case: _Case) -> str:
    """Return what is still to be cleaned up of a sandbox that is not, or no longer, ready."""
    alive, observed = [], case.observation.netns
    if observed is not None and observed.identity is not None:
        if case.recorded is None:
            alive.append(f"{observed.detail}, though it is not recorded which one it should be")
        elif case.recorded.same_as(observed.identity):
            alive.append(f"network namespace {case.row.netns_path!r} is open")
    elif (
        observed is not None
        and observed.presence is Presence.NOT_A_NAMESPACE
        and _was_never_made(case)
    ):
        alive.append(observed.detail)
    if case.observation.process is not None and _runs(case.observation.process):
        alive.append(case.observation.process.detail)
    return "still to be cleaned up: " + "; ".join(alive) if alive else ""


def report(
    judged: Collection[Decision],
    verdicts: Iterable[Verdict],
    changed: Collection[int],
    orphans: Sequence[str],
) -> Report:
    """Return the report.

    Args:
        judged: those that are reported.
        verdicts: of all.
        changed: creations of those that were made NOTREADY.
        orphans: as `find_orphans` has them.
    """
    ordered = sorted(judged, key=_place)
    return Report(
        findings=tuple(each.finding(changed=each.row.creation in changed) for each in ordered),
        counts=dict(Counter(verdicts)),
        orphans=tuple(orphans),
    )


def _place(decision: Decision) -> tuple[int, str]:
    """Return by what a finding is ordered; the row may be damaged."""
    row = decision.row
    return row.created_at if isinstance(row.created_at, int) else 0, as_text(row.id)


# Orphans.


def find_namespaces(registry_id: str, directories: Iterable[str]) -> list[str]:
    """Return the paths that have this registry's own names, `sr-<registry id>-<uuid>`.

    Args:
        registry_id: of the registry.
        directories: to search, absolute. Skipped: what cannot be read, and /proc, which leads into
            the mount namespaces of other processes.
    """
    searched = dict.fromkeys(path for path in directories if not f"{path}/".startswith("/proc/"))
    return [
        os.path.join(directory, name)
        for directory in searched
        for name in sorted(_names(directory))
        if netns.is_own_path(name, registry_id)
    ]


def find_orphans(found: Iterable[str], owned: Iterable[str]) -> list[str]:
    """Return those of the paths *found* that are network namespaces and belong to no sandbox.

    A namespace that is found by two names of one directory (/var/run is /run) is returned once.

    Args:
        found: paths that have this registry's own names. A symlink there is no orphan.
        owned: the paths that sandboxes have, which may lead to a namespace by any other name.
    """
    owned, context = set(owned), HostContext.current()
    orphans: dict[tuple[int, str], str] = {}
    for path in found:
        identity = (
            None if path in owned else namespaces.observe(path, context, follow=False).identity
        )
        if identity is not None:
            orphans.setdefault((identity.inode, os.path.basename(path)), path)
    if not orphans:
        return []
    observer = Observer(owned, context)
    observations = [observer.observe(path) for path in owned]
    inodes = {observed.identity.inode for observed in observations if observed.identity is not None}
    # Where such a path leads cannot be told; the names are unique.
    unseen = {os.path.basename(at.path) for at in observations if at.presence is Presence.UNSEEN}
    return sorted(
        path
        for (inode, name), path in orphans.items()
        if inode not in inodes and name not in unseen
    )


def _names(directory: str) -> list[str]:
    """Return the names in *directory* that could be this registry's own, which are ASCII."""
    try:
        names = os.listdir(namespaces.encode(directory))
    except (OSError, ValueError) as error:
        reraise_interrupt(error)
        return []
    return [name.decode() for name in names if name.isascii()]
