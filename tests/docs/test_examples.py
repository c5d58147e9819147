"""The example shims as documents: they are short, use the public API alone, and poll nothing."""

from __future__ import annotations

import ast
import importlib
import io
import os
import sys
from pathlib import Path

import pytest

from examples import shim_threads
from registry import Metadata, NotFoundError, State, Status, Store
from tests.tools import ROOT

SHIMS = sorted(name for name in os.listdir(f"{ROOT}/examples") if name.startswith("shim_"))
LINES_MAX = 149
PUBLIC = {"registry", "registry.aio", "registry.errors"}
POLLING = {"sleep", "timeout", "wait_for", "call_later", "call_at", "Timer", "poll"}
"""Names and keywords of calls that wait for a time."""


def source(name: str) -> str:
    """Return the source of an example."""
    return Path(ROOT, "examples", name).read_text(encoding="utf-8")


def test_there_is_a_shim_of_each_kind() -> None:
    """Threads, asyncio, and one process for each pod."""
    assert ["shim_asyncio.py", "shim_per_pod.py", "shim_threads.py"] == SHIMS


@pytest.mark.parametrize("name", SHIMS)
def test_a_shim_fits_on_few_pages(name: str) -> None:
    """It is read from its first line to its last."""
    assert len(source(name).splitlines()) <= LINES_MAX


@pytest.mark.parametrize("name", SHIMS)
def test_a_shim_uses_public_names_only(name: str) -> None:
    """Each name that it imports is exported, and it uses no attribute with an underscore."""
    for node in ast.walk(ast.parse(source(name))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("registry"):
            assert node.module in PUBLIC
            exported = getattr(importlib.import_module(node.module), "__all__", None)
            for each in node.names:
                assert exported is None or each.name in exported, each.name
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_"), node.attr


@pytest.mark.parametrize("name", SHIMS)
def test_a_shim_waits_for_events_and_not_for_a_time(name: str) -> None:
    """It has no loop but those over sandboxes, requests, changes and exits, and no timeout."""
    for node in ast.walk(ast.parse(source(name))):
        assert not isinstance(node, ast.While), node.lineno
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            used = {called, *(each.arg for each in node.keywords)}
            assert not used & POLLING, (node.lineno, used & POLLING)


class Writes(io.StringIO):
    """Text file that keeps what each call writes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def write(self, text: str, /) -> int:
        """Keep *text*."""
        self.calls.append(text)
        return len(text)


def test_threads_print_whole_lines(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line is one write; `print` of several parts would let another thread write between."""

    def fail() -> None:
        raise NotFoundError("there is no such sandbox")

    monkeypatch.setattr(sys, "stdout", out := Writes())
    shim_threads.attempt(fail)
    store.add(Metadata("a", "a", None), Status(State.UNKNOWN)).delete()
    shim_threads.show(store.history())
    lines = [each for each in out.calls if each]
    assert ["error: there is no such sandbox\n", "a created \n", "a deleted \n"] == lines
