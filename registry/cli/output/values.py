"""Values of fields, as people read them and as JSON has them.

Text from the database is data: none of its control characters reaches a terminal. JSON is ASCII.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from registry.model.status import State
from registry.tables.rows import as_text
from registry.visible import visible

TIMES: Final = frozenset({"created_at", "exited_at", "at", "since"})
"""Fields that hold nanoseconds since the Unix epoch."""
EXACT: Final = "_ns"
"""Added to the name of a time: the field with its integer, as text, since jq rounds integers."""
STATES: Final = {str(state): state.name for state in State}
"""States as tables show them, by their text in SQL and JSON."""
UNSET: Final = "-"
STATE_FIELDS: Final = frozenset({"state", "from_state", "to_state"})
IDS: Final = frozenset({"id", "sandbox_id", "holder"})
"""Fields that hold ids of sandboxes."""
WHOLE: Final = TIMES | STATE_FIELDS | {"seq"}
"""Fields whose cells a terminal never cuts: a part of a time or a number is another one."""
_SECOND, _DATE, _OF_YEAR = len("2026-11-27T09:12:03"), len("2026-11-27T"), len("2026-")
_YEAR, _DAY, _HOUR, _MINUTE = 365 * 86400, 86400, 3600, 60


def timestamp(ns: int) -> str:
    """Return the time *ns*, in ns since the Unix epoch, as RFC 3339 has it."""
    seconds, fraction = divmod(ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09}Z"


def age(ns: int, now: int) -> str:
    """Return the time from *ns* to *now*, both in ns since the Unix epoch, such as `3m` or `5d`."""
    seconds = (now - ns) // 10**9
    if seconds >= 2 * _DAY:
        return f"{seconds // _YEAR}y" if seconds >= 2 * _YEAR else f"{seconds // _DAY}d"
    if seconds >= 2 * _MINUTE:
        return f"{seconds // _HOUR}h" if seconds >= 2 * _HOUR else f"{seconds // _MINUTE}m"
    return f"{max(0, seconds)}s"


def clock_time(ns: int, now: int) -> str:
    """Return the time *ns* to the second, in UTC, without what it shares with *now*.

    That is the date of today, such as `09:12:03Z`; or the year, such as `11-26T23:55:03Z`.
    """
    text, today = timestamp(ns)[:_SECOND], timestamp(now)
    shared = next((n for n in (_DATE, _OF_YEAR) if text[:n] == today[:n]), 0)
    return f"{text[shared:]}Z"


DURATIONS: Final[Mapping[str, Callable[[float], str]]] = {
    "seen_ago": lambda seconds: age(0, int(seconds * 10**9)),
    "skew_ms": lambda milliseconds: f"{milliseconds}ms",
}
"""Texts with units of the fields that hold durations."""


def shown(name: str, value: object) -> str:
    """Return the value of the field *name* as people read it; "-" where it is not set."""
    if isinstance(value, str):
        if name in STATE_FIELDS:
            value = STATES.get(value, value)
        return visible(value) if value else UNSET
    if value is None or (name == "pid" and value == 0):
        return UNSET
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in TIMES and isinstance(value, int):
        return timestamp(value)
    if name in DURATIONS and isinstance(value, (int, float)):
        value = DURATIONS[name](value)
    if isinstance(value, bytes):  # damaged: it should be text
        return visible(as_text(value))
    is_nested = isinstance(value, (dict, list, tuple))
    return visible(to_json(value) if is_nested else str(value)) if value not in ({}, []) else UNSET


def age_of(name: str, value: object) -> str:
    """Return how long ago *value* was, such as ` (3m ago)`, if the field *name* is a time."""
    if name in TIMES and isinstance(value, int):
        return f" ({age(value, time.time_ns())} ago)"
    return ""


def for_programs(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of *row* for JSON: each time as text, and exactly under a second name."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if name in TIMES:
            found[name] = timestamp(value) if isinstance(value, int) else value
            found[name + EXACT] = None if value is None else str(value)
        else:
            found[name] = value
    return found


def to_json(value: object, *, indent: int | None = None, ascii: bool = True) -> str:
    """Return *value* as JSON text: on one line, or with *indent* spaces for each level.

    Values that JSON does not have, which only a damaged record holds, become text.
    """
    import json  # noqa: PLC0415 - most tables do without

    options: dict[str, Any] = {"indent": indent, "ensure_ascii": ascii, "allow_nan": False}
    try:
        return json.dumps(value, default=as_text, **options)
    except ValueError:
        return json.dumps(_finite(value), default=as_text, **options)


def _finite(value: object) -> object:
    """Return *value* with text in the place of infinite numbers."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
