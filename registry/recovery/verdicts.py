"""What became of the sandboxes while nobody looked.

Three steps, each apart from the others:

    look    at every namespace and process of the rows read, holding no lock
    plan    what the rows and the looks mean: pure, one finding a sandbox
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
from registry.host.kernel import Vantage
from registry.host.namespaces import Looker, NetNSSight, Presence
from registry.host.process import Life, ProcessSight
from registry.model.status import MESSAGE_MAX, State, Status
from registry.recovery import evidence
from registry.recovery.evidence import Boots, Clue, Survey, Weight
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


class Looks(NamedTuple):
    """What was observed of one sandbox; None where there was nothing to observe."""

    netns: NetNSSight | None = None
    process: ProcessSight | None = None
    creator: ProcessSight | None = None
    lives_in_netns: bool = False
    """The recorded process lives in the recorded namespace, wherever that is mounted; looked up
    only where the path does not tell what became of it."""
    lives_at_path: bool = False
    """The recorded process lives in the namespace that is at the path, which is not the recorded
    one."""
    attached: bool = False
    """*process* is the answer of an attached container."""
    clues: tuple[Clue, ...] = ()
    """For and against a reboot; looked up only for a sandbox recorded under another boot id."""
    failure: str = ""
    """Why nothing could be observed, the record being damaged for instance."""


class Judgement(NamedTuple):
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


def look(
    row: AnyRow,
    survey: Survey,
    looker: Looker,
    container: ProcessSight | None,
) -> Looks:
    """Return what can be observed of the sandbox of *row*, which is not damaged.

    Args:
        row: as it was read.
        survey: of the host.
        looker: at the paths of all.
        container: what an attached container says of its process; None when there is none.
    """
    vantage = survey.vantage
    recorded = load_process(row)
    seen = None if recorded is None else process.look(recorded, vantage)
    creator = load_creator(row) if isinstance(row, Row) else None
    seen_creator = None if creator is None else process.look(creator, vantage)
    sight = None
    if row.netns_path and not row.host_network:
        sight = looker.look(row.netns_path)
    looks = Looks(sight, container or seen, seen_creator, attached=container is not None)
    if sight is not None and not _is_certain(row, sight):
        looks = _look_where_it_lives(looks, row, sight, vantage)
    if _names_other_boot(row, vantage):
        looks = looks._replace(clues=tuple(_clues(row, looks, seen, survey)))
    return looks


def _is_certain(row: AnyRow, sight: NetNSSight) -> bool:
    """Return whether the namespace at the path is the recorded one, by its kernel id."""
    number = row.netns_number
    return number is not None and sight.identity is not None and sight.identity.number == number


def _look_where_it_lives(looks: Looks, row: AnyRow, sight: NetNSSight, vantage: Vantage) -> Looks:
    """Add in which network namespace the recorded process lives, where that could tell more."""
    recorded = load_netns(row)
    if recorded is None or row.pid == 0:
        return looks
    if sight.identity is not None:
        if recorded.same_as(sight.identity):
            return looks
        at_path = process.net_inode_of(row.pid) == sight.identity.inode
        looks = looks._replace(lives_at_path=at_path)
    if sight.presence is Presence.UNSEEN or not _recorded_here(row, vantage):
        looks = looks._replace(lives_in_netns=_lives_in_netns(row))
    return looks


def _recorded_here(row: AnyRow, vantage: Vantage) -> bool:
    """Return whether the path was recorded in our mount namespace, or it is unknown in which."""
    return row.netns_mount_ns in {None, vantage.mount_ns}


def _lives_in_netns(row: AnyRow) -> bool:
    number = row.netns_number
    return number is not None and process.net_namespace_of(row.pid) == number


def _names_other_boot(row: AnyRow, vantage: Vantage) -> bool:
    """Return whether anything of *row* was recorded under another boot id than ours."""
    ours = vantage.boot_id
    if row.boot_id == ours == row.netns_boot_id == row.process_boot_id and type(row) is StatusRow:
        return False  # as nearly all are
    return bool(_other_boots(row, vantage))


def _other_boots(row: AnyRow, vantage: Vantage) -> list[str]:
    """Return the boot ids that something of *row* was recorded under and that are not ours."""
    recorded: tuple[str | None, ...] = (row.netns_boot_id, row.process_boot_id, row.boot_id)
    if isinstance(row, Row):
        recorded = (*recorded, row.creator_boot_id)
    return [each for each in dict.fromkeys(recorded) if each and vantage.is_other_boot(each)]


def _clues(row: AnyRow, looks: Looks, seen: ProcessSight | None, survey: Survey) -> Iterator[Clue]:
    """Yield the evidence for and against a reboot; *seen*: of the recorded process."""
    recorded, netns_recorded = load_process(row), load_netns(row)
    if looks.attached and looks.process is not None and looks.process.life is Life.RUNNING:
        yield Clue("", Weight.SAME, looks.process.detail)
    if recorded is not None and seen is not None:
        yield from evidence.of_process(recorded, seen, survey)
    if netns_recorded is not None:
        yield from evidence.of_netns(netns_recorded, looks.netns, survey)
    creator = load_creator(row) if isinstance(row, Row) else None
    if creator is not None and looks.creator is not None:
        yield from evidence.of_process(creator, looks.creator, survey)


# Judging.


class _Case:
    """What was found against one sandbox.

    Attributes:
        row: as it was read.
        looks: what was observed; of a boot that is over nothing runs.
        recorded: its network namespace, None if that is not recorded.
        dead: why it is not ready, each with its verdict and reason.
        unseen: what cannot be judged.
        notes: what else there is to say.
    """

    __slots__ = ("dead", "looks", "notes", "recorded", "row", "unseen")

    def __init__(self, row: AnyRow, looks: Looks) -> None:
        self.row, self.looks = row, looks
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


def plan(
    looked: Iterable[tuple[AnyRow, Looks]],
    vantage: Vantage,
    now: int,
    clues: Iterable[Clue] = (),
) -> Iterator[Judgement]:
    """Yield what was observed means for each row; pure.

    Rows recorded under another boot id come last, since the evidence for one counts for all.

    Args:
        looked: each row with what was observed.
        vantage: from where.
        now: when, in ns since the Unix epoch.
        clues: for and against a reboot, beside those of the rows; iterated only if they are needed.
    """
    others = []
    for row, looks in looked:
        if not looks.failure and _names_other_boot(row, vantage):
            others.append((row, looks))
        else:
            yield _judge(row, looks, vantage, now, None)
    if others:
        boots = Boots(chain((clue for _, looks in others for clue in looks.clues), clues))
        for row, looks in others:
            yield _judge(row, looks, vantage, now, boots)


def _judge(row: AnyRow, looks: Looks, vantage: Vantage, now: int, boots: Boots | None) -> Judgement:
    """Return the judgement; *boots*: if the row names another boot than ours, what is known."""
    if looks.failure:
        return _told(row, Verdict.UNREACHABLE, looks.failure)
    if isinstance(row, Row) and row.creator_pid is None:
        return _told(row, Verdict.UNVERIFIED, "it was adopted, and not updated since")
    case = _Case(row, looks)
    if boots is not None:
        _judge_boot(case, vantage, boots)
    creator = case.looks.creator
    if creator is not None and creator.life is not Life.GONE:
        return _creating(case, creator, now)
    _judge_netns(case, vantage)
    _judge_process(case)
    if creator is not None:
        message = f"its creation was interrupted: {creator.detail}"
        case.dead.append((Verdict.INTERRUPTED, "CreationInterrupted", message))
    return _conclude(case)


def _told(row: AnyRow, verdict: Verdict, message: str) -> Judgement:
    return Judgement(row, verdict, message=message, reported=True)


def _creating(case: _Case, creator: ProcessSight, now: int) -> Judgement:
    if case.unseen or creator.life is Life.UNSEEN:
        case.unseen.append(f"its creator: {creator.detail}")
        return _told(case.row, Verdict.UNREACHABLE, case.say())
    age = max(0, now - (case.row.changed_at or now)) / 1e9
    return _told(case.row, Verdict.CREATING, f"being created for {age:.1f} s: {creator.detail}")


def _judge_boot(case: _Case, vantage: Vantage, boots: Boots) -> None:
    others = _other_boots(case.row, vantage)
    message = f"recorded under boot {others[0]!r}, and this is boot {vantage.boot_id!r}"
    against = boots.against_reboot(others, case.looks.clues)
    if against:
        case.unseen.append(f"{message}, but {against}")
    else:
        case.dead.append((Verdict.CLOSED, "HostRebooted", message))
        case.looks = _after_reboot(case.row, case.looks, vantage)


def _after_reboot(row: AnyRow, looks: Looks, vantage: Vantage) -> Looks:
    """Return *looks* without processes of an earlier boot, whose numbers mean others now."""
    if looks.process and not looks.attached and vantage.is_other_boot(row.process_boot_id):
        looks = looks._replace(process=_ran_before(row.pid))
    if looks.creator and isinstance(row, Row) and vantage.is_other_boot(row.creator_boot_id):
        looks = looks._replace(creator=_ran_before(row.creator_pid))
    return looks


def _ran_before(pid: int | None) -> ProcessSight:
    return ProcessSight(Life.GONE, f"process {pid} ran before the host was booted")


def _judge_netns(case: _Case, vantage: Vantage) -> None:
    sight, recorded = case.looks.netns, case.recorded
    if sight is None:
        return
    if sight.presence is Presence.UNSEEN:
        case.unseen.append(f"network namespace {sight.detail}{_still_lives(case.looks)}")
    elif recorded is not None and sight.identity and recorded.same_as(sight.identity):
        if recorded.by_inode_only(sight.identity):
            case.notes.append("only the inode tells that the namespace is the recorded one")
    elif recorded is not None and not _recorded_here(case.row, vantage):
        other = ", another than the recorded one," if sight.identity else ""
        case.unseen.append(
            f"{sight.detail}{other} in our mount namespace, but it was recorded in another one"
            f"{_still_lives(case.looks)}"
        )
    else:
        _judge_other_netns(case, sight)


def _judge_other_netns(case: _Case, sight: NetNSSight) -> None:
    """Judge what is not a namespace, or not the recorded one."""
    detail, path = sight.detail, case.row.netns_path
    if sight.presence is Presence.OTHER_TYPE:
        case.dead.append((Verdict.REPLACED, "NetNSReplaced", detail))
    elif sight.identity is not None and case.recorded is not None:
        message = f"{path!r} is another network namespace than the recorded one"
        if case.looks.lives_at_path and _runs(case.looks.process):
            case.unseen.append(f"{message}, but the recorded process lives in it")
        else:
            case.dead.append((Verdict.REPLACED, "NetNSReplaced", message))
    elif sight.identity is not None:
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


def _runs(sight: ProcessSight | None) -> bool:
    return sight is not None and sight.life is Life.RUNNING


def _still_lives(looks: Looks) -> str:
    if _runs(looks.process) and looks.lives_in_netns:
        return "; the recorded process still lives in the recorded namespace"
    return ""


def _judge_process(case: _Case) -> None:
    sight = case.looks.process
    if sight is None:
        return
    if sight.life is Life.UNSEEN:
        case.unseen.append(sight.detail)
    elif sight.life is Life.GONE:
        case.dead.append((Verdict.EXITED, "ProcessExited", sight.detail))


def _conclude(case: _Case) -> Judgement:
    row = case.row
    if case.dead:
        case.dead.sort(key=lambda fact: _ORDER.index(fact[1]))
        verdict, reason, _ = case.dead[0]
        marks = row.state != _NOTREADY
        exited = any(reason == "ProcessExited" for _, reason, _ in case.dead)
        clears_pid = exited or reason == "HostRebooted"
        return Judgement(
            row, verdict, reason, case.say(), marks, clears_pid, reported=True, left=_left(case)
        )
    left = _left(case) if row.state == _NOTREADY else ""
    if case.unseen:
        return _told(row, Verdict.UNREACHABLE, case.say())._replace(left=left)
    verdict = Verdict.HOST if row.host_network else Verdict.OPEN
    if not (left or case.notes):
        return Judgement(row, verdict)
    return _told(row, verdict, case.say())._replace(left=left)


def _left(case: _Case) -> str:
    """Return what is still to be cleaned up of a sandbox that is not, or no longer, ready."""
    alive, sight = [], case.looks.netns
    if sight is not None and sight.identity is not None:
        if case.recorded is None:
            alive.append(f"{sight.detail}, though it is not recorded which one it should be")
        elif case.recorded.same_as(sight.identity):
            alive.append(f"network namespace {case.row.netns_path!r} is open")
    elif sight is not None and sight.presence is Presence.NOT_A_NAMESPACE and _was_never_made(case):
        alive.append(sight.detail)
    if case.looks.process is not None and _runs(case.looks.process):
        alive.append(case.looks.process.detail)
    return "still to be cleaned up: " + "; ".join(alive) if alive else ""


def report(
    judged: Collection[Judgement],
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


def _place(judgement: Judgement) -> tuple[int, str]:
    """Return by what a finding is ordered; the row may be damaged."""
    row = judgement.row
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
    owned, vantage = set(owned), Vantage.here()
    orphans: dict[tuple[int, str], str] = {}
    for path in found:
        identity = None if path in owned else namespaces.look(path, vantage, follow=False).identity
        if identity is not None:
            orphans.setdefault((identity.inode, os.path.basename(path)), path)
    if not orphans:
        return []
    looker = Looker(owned, vantage)
    sights = [looker.look(path) for path in owned]
    inodes = {sight.identity.inode for sight in sights if sight.identity is not None}
    # Where such a path leads cannot be told; the names are unique.
    unseen = {os.path.basename(at.path) for at in sights if at.presence is Presence.UNSEEN}
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
