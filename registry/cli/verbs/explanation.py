"""Explanation of one sandbox in sentences, from data that was read before; pure.

Each sentence is a fact that was recorded or observed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from registry.cli.output.values import age, shown
from registry.cli.verbs.facts import Facts
from registry.cli.verbs.steps import Step, steps_of
from registry.model.status import State, short_state
from registry.recovery.findings import Reason, Verdict
from registry.recovery.verdicts import Observation
from registry.tables.incarnation import SALVAGE

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
    return Explanation(tuple(filter(None, sentences)), left, tuple(steps_of(facts, program)))


def pid_of(actor: str) -> int:
    """Return the pid in the name of a writer; 0 if the name has none."""
    found = PROCESS.fullmatch(actor)
    return int(found[1]) if found else 0


# Sentences.


def _headline(facts: Facts, now: int) -> str:
    pod = f", pod {facts.pod} in namespace {facts.namespace}," if facts.pod else ""
    subject = f"Sandbox {facts.id} ({facts.name}){pod}"
    if facts.unreadable:
        state, moment = short_state(facts.state), shown("at", facts.since)
        return (
            f"{subject} has a record that cannot be read. "
            f"Its last known state is {state}, since {moment}."
        )
    if not facts.since:
        return f"{subject} is {short_state(facts.state)}; since when is not recorded."
    old, moment = age(facts.since, now), shown("at", facts.since)
    if facts.state is None and facts.is_salvaged:
        return (
            f"{subject} was lost by damage to the registry: "
            f"a salvage recorded its deletion {old} ago, at {moment}."
        )
    if facts.state is None:
        return f"{subject} was deleted {old} ago, at {moment}."
    if facts.state == UNKNOWN:
        return (
            f"{subject} is UNKNOWN: its creation began {old} ago, at {moment}, and is not complete."
        )
    longer = ""
    if facts.transition is None:
        longer = ", or longer: the history no longer has the change"
    elif facts.is_salvaged:
        longer = ", or longer: the change was lost by damage to the registry"
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
        # An end that no process has awaited is recorded when it is noticed.
        status = (
            ", or earlier" if facts.exit_status is None else f" with status {facts.exit_status}"
        )
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
        SALVAGE: "a salvage wrote it, for changes that were lost",
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
    elif facts.netns_is_open:
        yield f"{facts.netns_path!r} is its network namespace"
    else:
        yield seen.netns.detail
    yield "no process is recorded" if seen.process is None else seen.process.detail


def _cleanup(facts: Facts, left: tuple[str, ...]) -> str:
    if facts.unreadable:
        return "Whether its process and its network namespace still exist is not known."
    if facts.state is None:
        return (
            "Its process and its network namespace are no longer recorded, and may still exist: "
            "`reconcile --dry-run` lists the namespaces that no sandbox owns."
        )
    if left:
        return _sentence(f"left to clean up: {'; '.join(left)}")
    if facts.state == NOTREADY and not facts.is_uncertain:
        return "Nothing is left to clean up but the record."
    return ""


def _left(facts: Facts) -> Iterator[str]:
    """Yield what still exists of a sandbox that is not READY, or would not stay READY."""
    if facts.decision is not None and facts.decision.left:
        yield from facts.decision.left.removeprefix("still to be cleaned up: ").split("; ")


def _sentence(text: str) -> str:
    """Return *text* with a capital letter and a full stop; "" if there is none."""
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}" if text else ""
