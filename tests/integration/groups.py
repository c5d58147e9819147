"""Calls of a group, and what they have written."""

from __future__ import annotations

from registry import (
    Sandbox,
    Status,
)
from tests.convoy import Call, more


def fail(_: Status) -> Status:
    """Fail, as a caller's function may."""
    raise LookupError("its own")


def counts(handles: list[Sandbox]) -> list[int]:
    """Return how often each was counted up."""
    return [handle.status.get().exited_at for handle in handles]


def updates(handles: list[Sandbox]) -> list[Call]:
    """Return calls that count each up."""
    return [lambda handle=each: handle.status.update(more) for each in handles]  # type: ignore[misc]
