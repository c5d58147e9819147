"""Cost of an import: steps, and what is done before the registry is locked."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import registry
from registry import Store
from registry.cli.containerd import import_export
from registry.cli.containerd.documents import Document
from tests.tools import (
    sandbox,
)


def traced(path: str, documents: int) -> tuple[int, set[str]]:
    """Return the lines of `import_export` executed for so many documents, and the files entered.

    A line of a comprehension counts once for each turn of it. Each of the documents but the first
    is refused, since all have one name.
    """
    found = [documents_of(f"s{n}", name="n") for n in range(documents)]
    candidates = import_export.prepare(found, {})
    steps, files = 0, set()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal steps
        files.add(frame.f_code.co_filename)
        if frame.f_code.co_filename != import_export.__file__:
            return None
        steps += event == "line"
        return trace

    with Store.open(path, reconcile=False) as store:
        sys.settrace(trace)
        try:
            outcomes = import_export.load(store, candidates, keep_going=True)
        finally:
            sys.settrace(None)
    assert [True] + [False] * (documents - 1) == [each.imported for each in outcomes]
    return steps, files


def documents_of(id: str, **fields: Any) -> Document:
    """Return the document of a sandbox."""
    return Document(f"file:{id}", sandbox(id, **fields))


def test_an_import_of_twice_as_many_documents_takes_twice_as_many_steps(tmp_path: Path) -> None:
    """Steps are counted, not timed; those for one document do not grow with their number."""
    few, _ = traced(str(tmp_path / "few.db"), 100)
    many, _ = traced(str(tmp_path / "many.db"), 400)
    assert 100 < few < many < 4.5 * few


def test_documents_are_encoded_and_observed_before_the_lock_is_taken(tmp_path: Path) -> None:
    """Under the lock nothing is decoded, validated or observed on the host."""
    _, files = traced(str(tmp_path / "registry.db"), 10)
    package = os.path.dirname(registry.__file__)
    modules = {os.path.relpath(file, package) for file in files if file.startswith(package)}
    assert "tables/writes.py" in modules
    assert modules.isdisjoint({"model/metadata.py", "model/cni.py"})
    assert not [each for each in modules if each.startswith(("cri/", "host/netns", "host/process"))]
