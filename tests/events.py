"""Events that the package logs, as its sources have them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.tools import ROOT

LEVELS = {"info": "INFO", "warning": "WARNING", "error": "ERROR", "exception": "ERROR"}
"""Level of a record by the method that logs it."""


class Event(NamedTuple):
    """One kind of record."""

    name: str
    logger: str
    level: str
    fields: tuple[str, ...]
    """Names of the fields, in order; without `event`."""


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Yield each call of a logger in the package, with its place."""
    for file in sorted(Path(ROOT, "registry").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Call) and called in {f"log.{each}" for each in LEVELS}:
                yield f"{file.relative_to(ROOT)}:{node.lineno}", node


def event(place: str, call: ast.Call) -> Event:
    """Return the event that *call* logs; fail if its fields do not stand there."""
    extra = [each.value for each in call.keywords if each.arg == "extra"]
    assert len(extra) == 1, f"{place} logs no fields"
    assert isinstance(extra[0], ast.Dict), f"{place} makes its fields elsewhere"
    keys = [each.value for each in extra[0].keys if isinstance(each, ast.Constant)]
    name = extra[0].values[0]
    assert keys[0] == "event", place
    assert isinstance(name, ast.Constant), place
    logger = "registry.shim" if place.startswith("registry/shim/") else "registry"
    level = LEVELS[ast.unparse(call.func).removeprefix("log.")]
    return Event(str(name.value), logger, level, tuple(map(str, keys[1:])))


def events() -> set[Event]:
    """Return all events of the package."""
    return {event(place, call) for place, call in calls()}
