"""Transitions as rows, and their tables, which `history`, `watch` and `why` share."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from registry.cli.output.views import View
from registry.tables.rows import Transition

VIEW: Final = View(
    tuple(Transition.__dataclass_fields__),
    table={
        "SEQ": "seq",
        "TIME": "at",
        "ID": "sandbox_id",
        "FROM": "from_state",
        "TO": "to_state",
        "POD": "pod",
        "REASON": "reason",
    },
    wide={
        "SEQ": "seq",
        "AT": "at",
        "ID": "sandbox_id",
        "FROM": "from_state",
        "TO": "to_state",
        "NAMESPACE": "namespace",
        "POD": "pod",
        "PID": "pid",
        "ACTOR": "actor",
        "REASON": "reason",
        "MESSAGE": "message",
    },
    name="name",
    id="sandbox_id",
    cuts=True,
    clock=True,
    paged=True,
    nothing="no transition matches",
)


def row_of(transition: Transition) -> dict[str, Any]:
    """Return the fields of *transition*, its states as text."""
    states = {"from_state": transition.from_state, "to_state": transition.to_state}
    text = {name: None if state is None else str(state) for name, state in states.items()}
    return asdict(transition) | text
