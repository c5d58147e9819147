"""JSON text of stored values; `json` is imported when the first such value is used (2 ms)."""

from __future__ import annotations

from functools import cache
from typing import Any

from registry.sync.imports import late_import


def dumps(value: object) -> str:
    """Return *value* as JSON without blanks.

    Raises:
        ResourceExhaustedError: no file descriptor is left to import `json`.
        TypeError: JSON cannot hold the value.
    """
    text: str = _json().dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text


def loads(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ResourceExhaustedError: no file descriptor is left to import `json`.
        ValueError: *text* is not JSON.
    """
    return _json().loads(text)


@cache
def _json() -> Any:
    with late_import("json"):
        import json  # noqa: PLC0415
    return json
