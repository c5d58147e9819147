"""Values as JSON, and as people read them.

Text from the database is data: none of its control characters reaches a terminal. JSON is ASCII.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, Final

from registry.tables.rows import as_text
from registry.visible import visible

TIMES: Final = frozenset({"created_at", "exited_at", "at"})
"""Fields that hold nanoseconds since the Unix epoch."""


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


def shown(name: str, value: object) -> str:
    """Return the value of the field *name* as people read it; "-" where it is not set."""
    if value is None or value == "" or (name == "pid" and value == 0):
        return "-"
    if name in TIMES and isinstance(value, int):
        seconds, ns = divmod(value, 10**9)
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ns:09}Z"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return visible(to_json(value) if isinstance(value, (dict, tuple)) else str(value))
