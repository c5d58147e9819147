"""State of a sandbox, and its life cycle.

      add               update                  update
    ───────▶ UNKNOWN ──────────▶ READY ──────────────────▶ NOTREADY ──────▶ (deleted)
                │                                             ▲      delete
                └─────────────────────────────────────────────┘
                      update: the creation was undone

UNKNOWN: the sandbox is being created; namespace and process may or may not exist yet.
READY: the sandbox runs.
NOTREADY: the sandbox no longer runs. Its namespace may still have to be removed, and its name stays
reserved until the sandbox is deleted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Final, Protocol

from registry.model.validation import check_integer, check_text, invalid


class State(IntEnum):
    """State of a sandbox; `str()` is the CRI's name for it, which is also what SQL stores.

    The numbers are those of containerd/cri v1.0. containerd 2 renumbered its own, hence they are
    never stored.
    """

    UNKNOWN = 0
    READY = 1
    NOTREADY = 2

    def __str__(self) -> str:
        """Return `SANDBOX_UNKNOWN`, `SANDBOX_READY` or `SANDBOX_NOTREADY`."""
        return _TEXTS[self]

    @classmethod
    def parse(cls, text: str) -> State:
        """Return the state with the name *text*, as `str()` returns it.

        Raises:
            ValueError: no state has that name.
        """
        state = _BY_TEXT.get(text)
        if state is None:
            raise ValueError(f"{text!r} is not a sandbox state; pass one of {', '.join(_TEXTS)}")
        return state


_TEXTS: Final = tuple(f"SANDBOX_{state.name}" for state in State)
_BY_TEXT: Final[Mapping[str, State]] = {str(state): state for state in State}
_PREFIX: Final = "SANDBOX_"


def short_state(text: object) -> str:
    """Return the text of a state as people read it, such as `READY`; also of a damaged one."""
    return str(text).removeprefix(_PREFIX)


TRANSITIONS: Final[Mapping[State, frozenset[State]]] = MappingProxyType(
    {
        State.UNKNOWN: frozenset({State.READY, State.NOTREADY}),
        State.READY: frozenset({State.NOTREADY}),
        State.NOTREADY: frozenset(),
    }
)
"""The life cycle as data. The reconciler keeps to it; the store, like containerd's, accepts any
change but one back to UNKNOWN, and an UpdateFunc that wants strictness consults it."""


@dataclass(frozen=True, slots=True)
class Status:
    """State of a sandbox, and the other values that change during its life.

    Times are integer nanoseconds since the Unix epoch, UTC; 0 is unset. *state* has no default:
    containerd's zero value is READY, so an incomplete sandbox could be reported as ready.

    Source: containerd pkg/store/sandbox/status.go, Status; reason and message are ours.
    """

    state: State
    pid: int = 0
    """Process id of the init (pause) process; 0 when there is none."""
    created_at: int = 0
    exited_at: int = 0
    exit_status: int | None = None
    """Exit status of the init process; None while it runs or when it is not known."""
    reason: str = ""
    """Cause of the state as a CamelCase word, as in Kubernetes conditions."""
    message: str = ""
    """Cause of the state as text for people."""


UpdateFunc = Callable[[Status], Status]
"""Receives the latest committed status and returns the status to store, or raises."""


class StatusStorage(Protocol):
    """The status of one sandbox, read and changed atomically.

    Source: containerd pkg/store/sandbox/status.go, StatusStorage.
    """

    def get(self) -> Status:
        """Return the latest committed status."""

    def update(self, fn: UpdateFunc, /) -> Status:
        """Store the result of *fn* on the latest status, and return it once it is committed."""


PID_MAX: Final = 2**31 - 1
TIME_MAX: Final = 2**63 - 1
REASON_MAX: Final = 1024
MESSAGE_MAX: Final = 32 * 1024
"""Maximum characters; both are the limits of Kubernetes conditions."""
_REASON: Final = r"([A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?)?"


def is_reason(text: str) -> bool:
    """Return whether *text* is "", a CamelCase word or several of them, as the schema demands."""
    return re.fullmatch(_REASON, text) is not None


def validate(status: object, doing: str) -> Status:
    """Return *status* if every field can be stored.

    Args:
        status: argument of a caller, or result of an UpdateFunc.
        doing: the operation and its object; they begin the message.
    Raises:
        InvalidArgumentError: with `.field` and `.value`.
    """
    if not isinstance(status, Status):
        raise invalid(doing, "status", status, "is not a registry.Status")
    if not isinstance(status.state, State):
        raise invalid(doing, "state", status.state, "is not a registry.State")
    check_integer(doing, "pid", status.pid, 0, PID_MAX)
    check_integer(doing, "created_at", status.created_at, 0, TIME_MAX)
    check_integer(doing, "exited_at", status.exited_at, 0, TIME_MAX)
    if status.exit_status is not None:
        check_integer(doing, "exit_status", status.exit_status, -(2**31), 2**32 - 1)
    reason = check_text(doing, "reason", status.reason, REASON_MAX)
    if not is_reason(reason):
        raise invalid(doing, "reason", reason, "is not a CamelCase word")
    check_text(doing, "message", status.message, MESSAGE_MAX)
    return status
