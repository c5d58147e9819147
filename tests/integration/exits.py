"""Sandboxes whose init processes are watched, and a record of their ends."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace

from registry import (
    Exit,
    Exits,
    Process,
    Sandbox,
    Store,
)
from tests.tools import READY, sandbox

Start = Callable[..., subprocess.Popen[bytes]]


class Noted:
    """Record of the ends that an `Exits` has noted, and of its calls."""

    def __init__(self, fails_for: Callable[[str], BaseException | None] = lambda _: None) -> None:
        """Note everything but what *fails_for* has an exception for."""
        self.fails_for = fails_for
        self.calls: list[list[str]] = []
        self.statuses: dict[str, list[int | None]] = {}

    def __call__(self, ended: Sequence[Exit]) -> None:
        self.calls.append([found.id for found, _ in ended])
        for found, _ in ended:
            error = self.fails_for(found.id)
            if error is not None:
                raise error
        for found, status in ended:
            self.statuses.setdefault(found.id, []).append(status)

    def last(self, id: str) -> int | None:
        """Return the last exit status that was noted of a sandbox; None before that."""
        return self.statuses.get(id, [None])[-1]


def added(store: Store, id: str, pid: int) -> Sandbox:
    """Add a sandbox whose init process is *pid*."""
    return store.add(sandbox(id), replace(READY, pid=pid))


def watch(exits: Exits, found: Sandbox) -> Process:
    """Watch the init process of a sandbox, and return it."""
    process = found.open_process()
    assert process is not None
    exits.watch(found, process)
    return process
