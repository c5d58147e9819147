"""Explanation of one sandbox in sentences, from data that was read before; pure.

Each sentence is a fact that was recorded or observed. The commands are those that the operator may
run next, in this order; none of them is run here.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from registry.cli.failures import PROGRAM
from registry.cli.output.values import age, shown
from registry.host.process import Liveness
from registry.model.status import State, short_state
from registry.recovery.findings import Reason, Verdict
from registry.recovery.verdicts import Decision, Observation
from registry.tables.rows import Transition, load_netns

UNKNOWN, READY, NOTREADY = map(str, State)
MEANINGS: Final = {
    Reason.HOST_REBOOTED: "the host was booted since the sandbox was recorded",
    Reason.NETNS_CLOSED: "its network namespace is gone",
    Reason.NETNS_REPLACED: "another network namespace is at its path",
    Reason.PROCESS_EXITED: "its process has ended",
    Reason.CREATION_INTERRUPTED: "the process that was creating it has ended",
}
"""Meanings of the reasons that a reconcile records; other reasons are the shim's own."""
PROCESS: Final = re.compile(r"(?s).*\[([1-9][0-9]{0,9})\]")
"""Name of a writer that ends with a pid, as the default one does."""
NETNS_DIRECTORIES: Final = {"/run/netns", "/var/run/netns"}
"""Directories in which `ip netns` finds a namespace by its name."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Data on one sandbox.

    Attributes:
        id: full id.
        name: of the sandbox.
        namespace: Kubernetes namespace of the pod; "" if it is not known.
        pod: name of the pod; "" if it is not known.
        state: stored state; None: the sandbox was deleted.
        pid: recorded pid; 0 without one.
        netns_path: recorded path of the network namespace; "" without one.
        host_network: it is on the host network.
        reason: cause of the state, one word.
        message: cause of the state.
        exited_at: end of the sandbox, in ns since the Unix epoch; 0: not set.
        exit_status: None if it is not known.
        changed_at: time of the last write to the status, in ns since the Unix epoch; 0: not known.
        transition: the last one that is kept.
        writer: whether the process that wrote the transition still runs; "" if that is not known.
        shim: the last writer other than this program, and whether its process still runs; "" if
            that is not known.
        damaged: path of the registry if it is damaged; else "".
        observation: observation of now; None of a deleted sandbox.
        decision: what a reconcile would decide now; None of a deleted sandbox.
    """

    id: str
    name: str = ""
    namespace: str = ""
    pod: str = ""
    state: str | None = None
    pid: int = 0
    netns_path: str = ""
    host_network: bool = False
    reason: str = ""
    message: str = ""
    exited_at: int = 0
    exit_status: int | None = None
    changed_at: int = 0
    transition: Transition | None = None
    writer: str = ""
    shim: str = ""
    damaged: str = ""
    observation: Observation | None = None
    decision: Decision | None = None

    @property
    def since(self) -> int:
        """Time of the change to this state in ns since the Unix epoch; 0: not known."""
        return self.changed_at if self.transition is None else self.transition.at


class Step(NamedTuple):
    """Command that the operator may run next, and its purpose."""

    command: str
    purpose: str


class Explanation(NamedTuple):
    """Sentences on one sandbox, and the next steps.

    Attributes:
        sentences: each is one paragraph.
        left: what is left to clean up.
        steps: commands, in the order in which they make sense.
    """

    sentences: tuple[str, ...]
    left: tuple[str, ...]
    steps: tuple[Step, ...]


def explain(facts: Facts, *, now: int, program: str) -> Explanation:
    """Return the explanation of a sandbox.

    Args:
        facts: data on the sandbox.
        now: time in ns since the Unix epoch.
        program: beginning of the commands, with the option that names the registry.
    """
    left = tuple(_left(facts))
    sentences = (
        _headline(facts, now),
        _cause(facts, now),
        _change(facts, now),
        _observed(facts),
        _cleanup(facts, left),
    )
    steps = tuple(_steps(facts, f"{program} ", shlex.quote(facts.id)))
    return Explanation(tuple(filter(None, sentences)), left, steps)


def pid_of(actor: str) -> int:
    """Return the pid in the name of a writer; 0 if the name has none."""
    found = PROCESS.fullmatch(actor)
    return int(found[1]) if found else 0


# Sentences.


def _headline(facts: Facts, now: int) -> str:
    pod = f", pod {facts.pod} in namespace {facts.namespace}," if facts.pod else ""
    subject = f"Sandbox {facts.id} ({facts.name}){pod}"
    if not facts.since:
        return f"{subject} is {short_state(facts.state)}; since when is not recorded."
    old, moment = age(facts.since, now), shown("at", facts.since)
    if facts.state is None:
        return f"{subject} was deleted {old} ago, at {moment}."
    if facts.state == UNKNOWN:
        return (
            f"{subject} is UNKNOWN: its creation began {old} ago, at {moment}, and is not complete."
        )
    longer = "" if facts.transition else ", or longer: the history no longer has the change"
    return f"{subject} has been {short_state(facts.state)} for {old}, since {moment}{longer}."


def _cause(facts: Facts, now: int) -> str:
    """Return the sentence on the recorded reason, the message and the exit."""
    parts = []
    if facts.reason:
        meaning = {str(reason): text for reason, text in MEANINGS.items()}.get(facts.reason)
        parts.append(f"the recorded reason is {facts.reason}" + (f": {meaning}" if meaning else ""))
    elif facts.state in {NOTREADY, None}:
        parts.append("no reason is recorded")
    if facts.message:
        parts.append(f"the message is: {facts.message}")
    if facts.exited_at:
        status = "" if facts.exit_status is None else f" with status {facts.exit_status}"
        ended = f"{age(facts.exited_at, now)} ago, at {shown('at', facts.exited_at)}"
        parts.append(f"its process exited {ended}{status}")
    return _sentence("; ".join(parts))


def _change(facts: Facts, now: int) -> str:
    """Return the sentence on the transition and its writer."""
    found = facts.transition
    if found is None:
        return ""
    before = short_state(found.from_state)
    event = {
        "created": f"added it as {short_state(found.to_state)}",
        "deleted": f"deleted it; it was {before} before",
    }.get(found.event, f"changed it from {before} to {short_state(found.to_state)}")
    writer = {
        "sql": "a client wrote it with SQL, such as the sqlite3 shell",
        "": "its writer is not recorded",
    }.get(found.actor, f"{found.actor} wrote it")
    if facts.changed_at > found.at:
        event += f" (its record was written again {age(facts.changed_at, now)} ago)"
    parts = f"transition {found.seq} {event}", writer, facts.writer
    return _sentence("; ".join(filter(None, parts)))


def _observed(facts: Facts) -> str:
    """Return the sentence on what a reconcile observes, and what it would do."""
    decision, unchanged = facts.decision, "a reconcile would change nothing"
    if decision is None:
        return ""
    parts = [part for part in _seen(facts) if part not in decision.message]
    seen = "; ".join(filter(None, (*parts, decision.message)))
    if decision.marks:
        would = f"mark it NOTREADY now ({decision.reason})"
        if facts.state == NOTREADY:
            would = "set its pid to 0"
        text = f"a reconcile would {would}: {decision.message}"
    elif decision.verdict is Verdict.UNREACHABLE:
        text = f"it cannot be observed for certain, and {unchanged}: {decision.message}"
    elif decision.verdict in {Verdict.CREATING, Verdict.UNVERIFIED}:
        text = f"{decision.message}; {unchanged}"
    elif facts.state == READY:
        text = f"it is in order, as far as can be observed: {seen}; {unchanged}"
    else:
        text = f"observed now: {seen}; {unchanged}"
    return _sentence(text)


def _seen(facts: Facts) -> Iterator[str]:
    """Yield what is observed of the network namespace and of the process."""
    seen = facts.observation or Observation()
    if facts.host_network:
        yield "it is on the host network, whose namespace is not observed"
    elif seen.netns is None:
        yield "no network namespace is recorded"
    elif _netns_is_open(facts):
        yield f"{facts.netns_path!r} is its network namespace"
    else:
        yield seen.netns.detail
    yield "no process is recorded" if seen.process is None else seen.process.detail


def _cleanup(facts: Facts, left: tuple[str, ...]) -> str:
    if facts.state is None:
        return (
            "Its process and its network namespace are no longer recorded, and may still exist: "
            "`reconcile --dry-run` lists the namespaces that no sandbox owns."
        )
    if left:
        return _sentence(f"left to clean up: {'; '.join(left)}")
    if facts.state == NOTREADY and not _is_uncertain(facts):
        return "Nothing is left to clean up but the record."
    return ""


def _left(facts: Facts) -> Iterator[str]:
    """Yield what still exists of a sandbox that is not READY, or would not stay READY."""
    if facts.decision is not None and facts.decision.left:
        yield from facts.decision.left.removeprefix("still to be cleaned up: ").split("; ")


def _is_uncertain(facts: Facts) -> bool:
    return facts.decision is not None and facts.decision.verdict is Verdict.UNREACHABLE


def _netns_is_open(facts: Facts) -> bool:
    """Return whether the network namespace at the path is the recorded one."""
    if facts.decision is None or facts.observation is None or facts.observation.netns is None:
        return False
    recorded, found = load_netns(facts.decision.row), facts.observation.netns.identity
    return recorded is not None and found is not None and recorded.same_as(found)


def _process_runs(facts: Facts) -> bool:
    seen = None if facts.observation is None else facts.observation.process
    return seen is not None and seen.liveness is Liveness.RUNNING


def _sentence(text: str) -> str:
    """Return *text* with a capital letter and a full stop; "" if there is none."""
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}" if text else ""


# Next steps.


def _steps(facts: Facts, program: str, id: str) -> Iterator[Step]:
    decision = facts.decision
    if facts.damaged:  # it refuses every change
        yield from _rescues(facts.damaged, program)
        yield Step(f"{program}history {id}", "shows the changes of it that can be read")
        return
    if decision is not None and decision.marks:
        yield Step(f"{program}reconcile", "records this, for each sandbox that is gone")
    if decision is not None and _is_uncertain(facts):
        yield Step(f"{program}why {id}", "as root on the host, sees what is hidden here")
    if decision is not None and decision.verdict is Verdict.CREATING:
        yield Step(f"{program}watch {id}", "waits for its creator")
    if decision is not None and _is_over(facts, decision):
        yield from _removals(facts)
        how = facts.shim or f"`{program}who` shows which processes use the registry"
        yield Step(f"{program}delete {id}", f"deletes the record, if its shim is gone: {how}")
    yield Step(f"{program}history {id}", "shows every change of it")


def _rescues(path: str, program: str) -> Iterator[Step]:
    """Yield what helps with the damaged registry at *path*."""
    yield Step(f"{program}check", "shows the damage")
    paths = shlex.join([path, os.path.join(os.path.dirname(path), "salvaged.db")])
    yield Step(f"{PROGRAM} salvage {paths}", "copies what can be read to a new registry")
    yield Step(f"{program}restore BACKUP", "puts a backup in its place")


def _is_over(facts: Facts, decision: Decision) -> bool:
    """Return whether the sandbox may be removed."""
    if decision.verdict is Verdict.UNVERIFIED:
        return True
    return not _is_uncertain(facts) and (facts.state == NOTREADY or decision.marks)


def _removals(facts: Facts) -> Iterator[Step]:
    """Yield how to remove by hand what is left, as its shim does if it runs."""
    path = shlex.quote(facts.netns_path)
    if _process_runs(facts):
        yield Step(f"kill {facts.pid}", "ends its process, if its shim is gone")
    if _netns_is_open(facts):
        directory, name = os.path.split(facts.netns_path)
        by_hand = f"umount {path} && rm {path}"
        if directory in NETNS_DIRECTORIES:
            by_hand = f"ip netns delete {shlex.quote(name)}"
        yield Step(by_hand, "removes its network namespace, if its shim is gone")
