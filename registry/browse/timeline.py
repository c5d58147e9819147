"""States of sandboxes over time, from the changes in the history: values, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

ROWS_MAX: Final = 100
"""Sandboxes in one drawing."""


class Change(NamedTuple):
    """A change of the state of a sandbox, as the view of the history has it."""

    id: str
    namespace: str
    pod: str
    at: str
    from_state: str | None
    to_state: str | None
    reason: str
    actor: str


class Span(NamedTuple):
    """A time during which a sandbox was in one state; *begin* and *end* are Unix times."""

    begin: float
    end: float
    state: str
    reason: str = ""
    actor: str = ""


class Line(NamedTuple):
    """The states of one sandbox, oldest first; there is a gap where it did not exist."""

    id: str
    namespace: str
    pod: str
    spans: Sequence[Span]


def seconds(iso: str) -> float:
    """Return the Unix time of *iso*, a time of a view, or the beginning of one.

    Raises:
        ValueError: it is no time.
    """
    at = datetime.fromisoformat(iso.removesuffix("Z")[:26])
    return at.replace(tzinfo=at.tzinfo or UTC).timestamp()


def recorded(iso: str | None) -> float:
    """Return the Unix time of *iso*, a time of a view; 0 for one that no clock has made.

    Plain SQL can write a time before 1970, which the views render as no time.
    """
    try:
        return max(0.0, seconds(iso or ""))
    except ValueError:
        return 0.0


def iso(at: float) -> str:
    """Return the Unix time *at* as the views render times, which compares as text."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


def spans(changes: Sequence[Change], begin: float, end: float) -> list[Span]:
    """Return the states of one sandbox between *begin* and *end*.

    Args:
        changes: all its changes between the two, oldest first; at least one.
        begin: Unix time at which the drawing begins.
        end: Unix time at which it ends.
    """
    first = changes[0]
    found = []
    if first.from_state is not None:
        found.append(Span(begin, recorded(first.at), first.from_state))
    for change, after in zip(changes, [*changes[1:], None], strict=True):
        if change.to_state is not None:
            until = end if after is None else recorded(after.at)
            start = recorded(change.at)
            # A clock that was set back gives a state that ends before it begins.
            found.append(
                Span(start, max(start, until), change.to_state, change.reason, change.actor)
            )
    return found


def lines(
    changes: Iterable[Change], standing: Iterable[Change], begin: float, end: float
) -> list[Line]:
    """Return the states of all sandboxes between *begin* and *end*, by namespace, pod and time.

    Args:
        changes: those between the two, oldest first.
        standing: for each sandbox whose state did not change, an entry with that state as to_state.
        begin: Unix time at which the drawing begins.
        end: Unix time at which it ends.
    """
    by_id: dict[str, list[Change]] = {}
    for change in changes:
        by_id.setdefault(change.id, []).append(change)
    found = [
        Line(id, own[-1].namespace, own[-1].pod, spans(own, begin, end))
        for id, own in by_id.items()
    ]
    found += [
        Line(
            each.id,
            each.namespace,
            each.pod,
            [Span(begin, end, each.to_state or "", each.reason, each.actor)],
        )
        for each in standing
        if each.id not in by_id
    ]
    return sorted(found, key=lambda line: (line.namespace, line.pod, line.spans[0].begin, line.id))
