"""A registry of three sandboxes, and the command line on it."""

from __future__ import annotations

import pytest

from registry import Metadata, State, Status, Store
from registry.cli import program
from registry.cri import NamespaceMode
from tests.cli.program import (
    CREATED,
    HOSTILE,
    LONG,
    MARKUP,
    Call,
    Done,
)
from tests.tools import pod, sandbox


@pytest.fixture
def path(path: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a registry of three sandboxes: READY, NOTREADY with hostile texts, UNKNOWN."""
    monkeypatch.delenv("SANDBOX_REGISTRY_DB", raising=False)
    config = pod("web", "shop", app="web", tier="front")
    config.linux.security_context.namespace_options.network = NamespaceMode.NODE
    with Store.open(path, reconcile=False) as store:
        ready = Status(State.READY, created_at=CREATED)
        store.add(sandbox("3f2a", config=config, ip="10.0.0.7"), ready)
        bad = Status(State.NOTREADY, created_at=CREATED + 1, reason="Broken", message=HOSTILE)
        netns_path = "/run/netns/never-created"
        store.add(Metadata(LONG, MARKUP, pod(HOSTILE), netns_path=netns_path), bad)
        store.add(sandbox("5abc", config=None), Status(State.UNKNOWN))
    return path


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return a function that runs the command line in this process."""

    def main(*args: str, **variables: str) -> Done:
        monkeypatch.delenv("SANDBOX_REGISTRY_DB", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        code = program.main(args)
        return Done(code, *capsys.readouterr())

    return main


@pytest.fixture
def call(path: str, main: Call) -> Call:
    """Return a function that runs the command line on the registry, in this process."""
    return lambda *args: main("--db", path, *args)
