"""Fixtures of several integration tests: processes that sleep, and sandboxes to write to."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from registry import Sandbox, Store
from tests.integration.exits import Start
from tests.tools import READY, sandbox


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a shell command, by default one that sleeps."""
    started = []

    def start_it(command: str = "exec sleep 1000") -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sh", "-c", command]))
        return started[-1]

    yield start_it
    for child in started:
        child.kill()
        child.wait()


@pytest.fixture
def handles(store: Store) -> list[Sandbox]:
    """Return eight sandboxes."""
    return [store.add(sandbox(f"s{n}"), READY) for n in range(8)]


@pytest.fixture
def blocker(store: Store) -> Sandbox:
    """Return a sandbox whose update keeps a convoy waiting."""
    return store.add(sandbox("blocker"), READY)
