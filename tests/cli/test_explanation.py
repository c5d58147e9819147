"""Sentences of `why`, as a table: from data on a sandbox to text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from registry import State, Transition
from registry.cli.verbs.explanation import explain, pid_of
from registry.cli.verbs.facts import Facts
from registry.recovery.verdicts import Observation, decide
from registry.tables.rows import AnyRow
from tests.unit.test_reconcile import (
    ABSENT,
    GONE,
    HERE,
    HIDDEN,
    OPEN,
    PLAIN,
    RUNS,
    UNSEEN,
    never_noted,
    row,
)

SECOND = 10**9
NOW = 1_760_000_300 * SECOND
"""Time of the explanation: 2025-10-09T08:58:20Z."""
AT = NOW - 180 * SECOND
BEGAN = "2025-10-09T08:55:20.000000000Z"


def transition(event: str = "changed", **fields: Any) -> Transition:
    """Return a transition of three minutes ago."""
    ends: dict[str, dict[str, State | None]] = {
        "created": {"from_state": None, "to_state": State.READY},
        "changed": {"from_state": State.READY, "to_state": State.NOTREADY},
        "deleted": {"from_state": State.NOTREADY, "to_state": None},
    }
    known: dict[str, Any] = {
        "seq": 7,
        "sandbox_id": "a",
        "name": "n",
        "pod": "web",
        "namespace": "shop",
        "uid": "u",
        "pid": 0,
        "reason": "",
        "message": "",
        "actor": "shim[812]",
        "boot_id": "boot-1",
        "event": event,
        "at": AT,
        **ends[event],
    }
    return Transition(**(known | fields))


def facts(found: AnyRow, observation: Observation, last: Transition | None, **more: Any) -> Facts:
    """Return the data on the sandbox of a row, with the decision that follows from it."""
    (decision,) = decide([(found, observation)], HERE, NOW)
    known: dict[str, Any] = {
        "state": found.state,
        "pid": found.pid,
        "netns_path": found.netns_path or "",
        "host_network": bool(found.host_network),
        "reason": found.reason,
        "message": found.message,
        "changed_at": AT,
    }
    return Facts(
        id="a1b2",
        name="web_shop",
        namespace="shop",
        pod="web",
        transition=last,
        observation=observation,
        decision=decision,
        **(known | more),
    )


NOTREADY = State.NOTREADY
READY = transition("created")
GONE_AWAY = {"reason": "NetNSClosed", "message": "nothing is at '/n'"}


@dataclass(frozen=True)
class Case:
    """Data on a sandbox, and parts of the expected explanation, in order."""

    facts: Facts
    says: tuple[str, ...]
    left: tuple[str, ...] = ()
    commands: tuple[str, ...] = ("history",)


CASES = {
    "ready, in order": Case(
        facts(row(pid=5), Observation(OPEN, RUNS), READY),
        (
            "Sandbox a1b2 (web_shop), pod web in namespace shop, has been READY for 3m",
            f", since {BEGAN}.",
            "Transition 7 added it as READY; shim[812] wrote it.",
            (
                "It is in order, as far as can be observed: '/n' is its network namespace; "
                "process 5 runs; a reconcile would change nothing."
            ),
        ),
    ),
    "ready, nothing recorded": Case(
        facts(never_noted(netns_path=""), Observation(), READY),
        ("no network namespace is recorded; no process is recorded",),
    ),
    "ready, on the host network": Case(
        facts(row(host_network=1, pid=5), Observation(None, RUNS), READY),
        ("it is on the host network, whose namespace is not observed; process 5 runs",),
    ),
    "ready, netns gone": Case(
        facts(row(pid=5), Observation(ABSENT, RUNS), READY),
        (
            (
                "A reconcile would mark it NOTREADY now (NetNSClosed): network namespace is "
                "closed: nothing is at '/n'."
            ),
            "Left to clean up: process 5 runs.",
        ),
        left=("process 5 runs",),
        commands=("reconcile", "kill 5", "delete", "history"),
    ),
    "ready, process gone": Case(
        facts(row(pid=5, netns_path="/run/netns/x"), Observation(OPEN, GONE), READY),
        ("A reconcile would mark it NOTREADY now (ProcessExited): process 5 is gone.",),
        left=("network namespace '/run/netns/x' is open",),
        commands=("reconcile", "ip netns delete x", "delete", "history"),
    ),
    "ready, not to be observed": Case(
        facts(row(pid=5), Observation(UNSEEN, HIDDEN), READY),
        ("It cannot be observed for certain, and a reconcile would change nothing: ",),
        commands=("why", "history"),
    ),
    "not ready, clean": Case(
        facts(row(NOTREADY, **GONE_AWAY), Observation(ABSENT), transition()),
        (
            f"has been NOTREADY for 3m, since {BEGAN}.",
            (
                "The recorded reason is NetNSClosed: its network namespace is gone; the message "
                "is: nothing is at '/n'."
            ),
            "Transition 7 changed it from READY to NOTREADY; shim[812] wrote it.",
            "Observed now: no process is recorded; network namespace is closed: ",
            "nothing is at '/n'; a reconcile would change nothing.",
            "Nothing is left to clean up but the record.",
        ),
        commands=("delete", "history"),
    ),
    "not ready, with a reason of the shim": Case(
        facts(row(NOTREADY, reason="Evicted"), Observation(ABSENT), transition()),
        ("The recorded reason is Evicted.",),
        commands=("delete", "history"),
    ),
    "not ready, without a reason": Case(
        facts(row(NOTREADY), Observation(ABSENT), transition()),
        ("No reason is recorded.",),
        commands=("delete", "history"),
    ),
    "not ready, everything left": Case(
        facts(row(NOTREADY, pid=5), Observation(OPEN, RUNS), transition()),
        ("Left to clean up: network namespace '/n' is open; process 5 runs.",),
        left=("network namespace '/n' is open", "process 5 runs"),
        commands=("kill 5", "umount /n && rm /n", "delete", "history"),
    ),
    "not ready, a file left": Case(
        facts(never_noted(NOTREADY), Observation(PLAIN), transition()),
        ("Left to clean up: '/n' is no namespace.",),
        left=("'/n' is no namespace",),
        commands=("delete", "history"),
    ),
    "not ready, not to be observed": Case(
        facts(row(NOTREADY), Observation(UNSEEN), transition()),
        ("It cannot be observed for certain",),
        commands=("why", "history"),
    ),
    "not ready, exited, seen by none": Case(
        facts(row(NOTREADY), Observation(ABSENT), transition(), exited_at=NOW - 7_200 * SECOND),
        ("its process exited 2h ago, at 2025-10-09T06:58:20.000000000Z, or earlier.",),
        commands=("delete", "history"),
    ),
    "not ready, exited": Case(
        facts(
            row(NOTREADY),
            Observation(ABSENT),
            transition(),
            exited_at=NOW - 7_200 * SECOND,
            exit_status=137,
        ),
        ("its process exited 2h ago, at 2025-10-09T06:58:20.000000000Z with status 137.",),
        commands=("delete", "history"),
    ),
    "unknown, its creator lives": Case(
        facts(row(State.UNKNOWN), Observation(creator=RUNS), READY),
        (
            f"is UNKNOWN: its creation began 3m ago, at {BEGAN}, and is not complete.",
            "process 5 runs; a reconcile would change nothing.",
        ),
        commands=("watch", "history"),
    ),
    "unknown, interrupted": Case(
        facts(row(State.UNKNOWN), Observation(ABSENT, creator=GONE), READY),
        ("A reconcile would mark it NOTREADY now (NetNSClosed)",),
        commands=("reconcile", "delete", "history"),
    ),
    "unknown, adopted": Case(
        facts(row(State.UNKNOWN, creator_pid=None), Observation(), READY),
        ("It was adopted, and not updated since; a reconcile would change nothing.",),
        commands=("delete", "history"),
    ),
    "the history no longer has the change": Case(
        facts(row(NOTREADY), Observation(ABSENT), None),
        (f"for 3m, since {BEGAN}, or longer: the history no longer has the change.",),
        commands=("delete", "history"),
    ),
    "no time is recorded": Case(
        facts(row(NOTREADY), Observation(ABSENT), None, changed_at=0),
        ("is NOTREADY; since when is not recorded.",),
        commands=("delete", "history"),
    ),
    "written again since": Case(
        facts(row(), Observation(OPEN), READY, changed_at=NOW - 60 * SECOND),
        ("Transition 7 added it as READY (its record was written again 60s ago)",),
    ),
    "written with SQL": Case(
        facts(row(NOTREADY), Observation(ABSENT), transition(actor="sql")),
        ("a client wrote it with SQL, such as the sqlite3 shell.",),
        commands=("delete", "history"),
    ),
    "deleted": Case(
        Facts(
            id="a1b2",
            name="web_shop",
            transition=transition("deleted", reason="Evicted"),
            reason="Evicted",
            writer="no process 812 runs here now",
        ),
        (
            f"Sandbox a1b2 (web_shop) was deleted 3m ago, at {BEGAN}.",
            "The recorded reason is Evicted.",
            (
                "Transition 7 deleted it; it was NOTREADY before; shim[812] wrote it; no process "
                "812 runs here now."
            ),
            "are no longer recorded, and may still exist",
        ),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_explanation_says_the_state_its_cause_and_the_next_steps(case: Case) -> None:
    """The parts come in this order; each sentence ends with one full stop."""
    found = explain(case.facts, now=NOW, program="sandbox-registry")
    text, place = "\n".join(found.sentences), 0
    for part in case.says:
        assert part in text[place:], text
        place = text.index(part, place)
    assert all(each.endswith(".") and not each.endswith("..") for each in found.sentences)
    assert case.left == found.left
    expected = [
        f"sandbox-registry {command} a1b2".replace("reconcile a1b2", "reconcile")
        if command.isalpha()
        else command
        for command in case.commands
    ]
    assert expected == [step.command for step in found.steps]


def test_a_command_quotes_what_a_shell_would_read() -> None:
    """An id and a path may hold any characters."""
    hostile = "$(rm -r /) 'x'"
    case = facts(row(NOTREADY, netns_path="/run/netns/a b"), Observation(OPEN), transition())
    found = explain(case, now=NOW, program="p")
    assert "ip netns delete 'a b'" == found.steps[0].command
    found = explain(Facts(id=hostile, transition=transition("deleted")), now=NOW, program="p")
    assert "p history '$(rm -r /) '\"'\"'x'\"'\"''" == found.steps[0].command


@pytest.mark.parametrize(
    ("actor", "pid"),
    [
        ("shim[812]", 812),
        ("a [1] b[22]", 22),
        ("sql", 0),
        ("shim[0]", 0),
        ("shim[812] x", 0),
        ("shim[99999999999]", 0),
        ("", 0),
    ],
)
def test_the_pid_of_a_writer_is_read_from_the_end_of_its_name(actor: str, pid: int) -> None:
    """As the default name of a writer has it."""
    assert pid == pid_of(actor)
