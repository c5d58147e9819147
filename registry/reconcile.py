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
from typing import Final, NamedTuple

from registry import netns, process
from registry.interrupts import reraise_interrupt
from registry.kernel import Vantage
from registry.netns import Looker, NetNSSight, Presence
from registry.process import Life, ProcessSight
from registry.rows import AnyRow, Row, load_creator, load_netns, load_process
from registry.status import MESSAGE_MAX, State, Status

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
    """What was seen of one sandbox; None is what there was nothing to look at."""

    netns: NetNSSight | None = None
    process: ProcessSight | None = None
    creator: ProcessSight | None = None
    lives_in_netns: bool = False
    """The recorded process lives in the recorded namespace, wherever that is mounted; asked only
    where the path does not tell what became of it."""


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
        return Finding(self.row.id, self.verdict, self.reason, message, changed)


def _printable(text: str) -> str:
    """Return *text*, parts of which may be what strangers wrote, as SQL can store it."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


# Looking.


def look(
    row: AnyRow,
    vantage: Vantage,
    looker: Looker,
    container: ProcessSight | None,
) -> Looks:
    """Return what can be seen of the sandbox of *row*.

    Args:
        row: as it was read.
        vantage: from where.
        looker: at the paths of all.
        container: what an attached container says of its process; None when there is none.
    """
    recorded = load_process(row)
    seen = container
    if seen is None and recorded is not None:
        seen = process.look(recorded, vantage)
    sight, lives_in_netns = None, False
    if row.netns_path and not row.host_network:
        sight = looker.look(row.netns_path)
        seen_there = sight.identity is not None and sight.identity.number == row.netns_number
        told = sight.presence is not Presence.UNSEEN and _recorded_here(row, vantage)
        lives_in_netns = not (seen_there or told) and _lives_in_netns(row)
    creator = load_creator(row) if isinstance(row, Row) else None
    seen_creator = None if creator is None else process.look(creator, vantage)
    return Looks(sight, seen, seen_creator, lives_in_netns)


def _recorded_here(row: AnyRow, vantage: Vantage) -> bool:
    """Whether its path was recorded in our mount namespace, or, None, nobody noted in which."""
    return row.netns_mount_ns in {None, vantage.mount_ns}


def _lives_in_netns(row: AnyRow) -> bool:
    if row.pid == 0 or row.netns_number is None:
        return False
    return process.net_namespace_of(row.pid) == row.netns_number


# Judging.


class _Case:
    """What speaks against one sandbox, gathered."""

    __slots__ = ("dead", "notes", "unseen")

    def __init__(self) -> None:
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


def plan(looked: Iterable[tuple[AnyRow, Looks]], vantage: Vantage, now: int) -> Iterator[Judgement]:
    """Yield what the looks, made at *now* (ns since the Unix epoch), mean for each row; pure."""
    return (_judge(row, looks, vantage, now) for row, looks in looked)


def _judge(row: AnyRow, looks: Looks, vantage: Vantage, now: int) -> Judgement:
    creator = looks.creator if isinstance(row, Row) else None
    if isinstance(row, Row) and row.creator_pid is None:
        return _told(row, Verdict.UNVERIFIED, "imported; nobody has said more of it yet")
    if creator is not None and creator.life is not Life.GONE:
        return _creating(row, creator, now)
    case = _Case()
    _judge_boot(case, row, vantage)
    _judge_netns(case, row, looks, vantage)
    _judge_process(case, looks.process)
    if creator is not None:
        message = f"its creation was interrupted: {creator.detail}"
        case.dead.append((Verdict.INTERRUPTED, "CreationInterrupted", message))
    return _conclude(case, row, looks)


def _told(row: AnyRow, verdict: Verdict, message: str) -> Judgement:
    return Judgement(row, verdict, message=message, reported=True)


def _creating(row: AnyRow, creator: ProcessSight, now: int) -> Judgement:
    if creator.life is Life.UNSEEN:
        return _told(row, Verdict.UNREACHABLE, f"its creator cannot be judged: {creator.detail}")
    age = max(0, now - (row.changed_at or now)) / 1e9
    return _told(row, Verdict.CREATING, f"being created for {age:.1f} s: {creator.detail}")


def _judge_boot(case: _Case, row: AnyRow, vantage: Vantage) -> None:
    recorded: tuple[str | None, ...] = (row.netns_boot_id, row.process_boot_id, row.boot_id)
    if isinstance(row, Row):
        recorded = (*recorded, row.creator_boot_id)
    for other in recorded:
        if other and vantage.boot_id and other != vantage.boot_id:
            message = f"recorded under boot {other!r}, and this is boot {vantage.boot_id}"
            case.dead.append((Verdict.CLOSED, "HostRebooted", message))
            return


def _judge_netns(case: _Case, row: AnyRow, looks: Looks, vantage: Vantage) -> None:
    sight, recorded = looks.netns, load_netns(row)
    if sight is None:
        return
    if sight.presence is Presence.UNSEEN:
        case.unseen.append(f"network namespace {sight.detail}{_still_lives(looks)}")
    elif recorded is not None and sight.identity and recorded.same_as(sight.identity):
        if recorded.by_inode_only(sight.identity):
            case.notes.append("only the inode tells that the namespace is the recorded one")
    elif recorded is not None and not _recorded_here(row, vantage):
        other = ", another than the recorded one," if sight.identity else ""
        case.unseen.append(
            f"{sight.detail}{other} in our mount namespace, but it was recorded in another one"
            f"{_still_lives(looks)}"
        )
    else:
        _judge_other_netns(case, row, sight)


def _judge_other_netns(case: _Case, row: AnyRow, sight: NetNSSight) -> None:
    """Judge what is no namespace, or not the recorded one."""
    recorded, detail = load_netns(row), sight.detail
    if sight.presence is Presence.OTHER_TYPE:
        case.dead.append((Verdict.REPLACED, "NetNSReplaced", detail))
    elif sight.identity is not None and recorded is not None:
        message = f"{row.netns_path!r} is another network namespace than the recorded one"
        case.dead.append((Verdict.REPLACED, "NetNSReplaced", message))
    elif sight.identity is not None:
        pass  # nobody noted which it should be
    elif row.state == _UNKNOWN and recorded is None:
        case.notes.append(f"its network namespace was not made: {detail}")
    else:
        case.dead.append((Verdict.CLOSED, "NetNSClosed", f"network namespace is closed: {detail}"))


def _still_lives(looks: Looks) -> str:
    running = looks.process is not None and looks.process.life is Life.RUNNING
    if running and looks.lives_in_netns:
        return "; the recorded process still lives in the recorded namespace"
    return ""


def _judge_process(case: _Case, sight: ProcessSight | None) -> None:
    if sight is None:
        return
    if sight.life is Life.UNSEEN:
        case.unseen.append(sight.detail)
    elif sight.life is Life.GONE:
        case.dead.append((Verdict.EXITED, "ProcessExited", sight.detail))


def _conclude(case: _Case, row: AnyRow, looks: Looks) -> Judgement:
    if case.dead:
        case.dead.sort(key=lambda fact: _ORDER.index(fact[1]))
        verdict, reason, _ = case.dead[0]
        marks = row.state != _NOTREADY
        exited = any(reason == "ProcessExited" for _, reason, _ in case.dead)
        clears_pid = exited or reason == "HostRebooted"
        left = _left(row, looks)
        return Judgement(
            row, verdict, reason, case.say(), marks, clears_pid, reported=True, left=left
        )
    left = _left(row, looks) if row.state == _NOTREADY else ""
    if case.unseen:
        return _told(row, Verdict.UNREACHABLE, case.say())._replace(left=left)
    verdict = Verdict.HOST if row.host_network else Verdict.OPEN
    if not (left or case.notes):
        return Judgement(row, verdict)
    return _told(row, verdict, case.say())._replace(left=left)


def _left(row: AnyRow, looks: Looks) -> str:
    """Return what is still to be cleaned up of one that is not, or no longer, ready."""
    alive, recorded = [], load_netns(row)
    if looks.netns is not None and looks.netns.identity is not None:
        if recorded is None:
            alive.append(f"{looks.netns.detail}, though nobody noted which it should be")
        elif recorded.same_as(looks.netns.identity):
            alive.append(f"network namespace {row.netns_path!r} is open")
    if looks.process is not None and looks.process.life is Life.RUNNING:
        alive.append(looks.process.detail)
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
    ordered = sorted(judged, key=lambda each: (each.row.created_at or 0, each.row.id))
    return Report(
        findings=tuple(each.finding(changed=each.row.creation in changed) for each in ordered),
        counts=dict(Counter(verdicts)),
        orphans=tuple(orphans),
    )


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
        identity = None if path in owned else netns.look(path, vantage, follow=False).identity
        if identity is not None:
            orphans.setdefault((identity.inode, os.path.basename(path)), path)
    if not orphans:
        return []
    looker = netns.Looker(owned, vantage)
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
        names = os.listdir(netns.encode(directory))
    except (OSError, ValueError) as error:
        reraise_interrupt(error)
        return []
    return [name.decode() for name in names if name.isascii()]
