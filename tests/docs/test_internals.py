"""docs/internals.md names files, and functions in them, that exist."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest

from tests.tools import ROOT

TEXT = Path(ROOT, "docs", "internals.md").read_text(encoding="utf-8")
FILES = sorted(set(re.findall(r"`((?:registry|tests|migrations|docs|benchmarks)/[\w./]*)`", TEXT)))
NAMED = sorted(
    {
        (file, name)
        for file, names in re.findall(r"`(registry/[\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", TEXT)
        for name in re.findall(r"`([\w.]+)`", names)
    }
)
"""Each file and the qualified name of a function, class or constant in it."""


def defined(file: str) -> set[str]:
    """Return the qualified names of the functions, classes and annotated constants in *file*."""
    tree = ast.parse(Path(ROOT, file).read_text(encoding="utf-8"))
    definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    names = set()
    for node in tree.body:
        if isinstance(node, definitions):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (each for each in node.body if isinstance(each, definitions))
            names |= {f"{node.name}.{method.name}" for method in methods}
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


@pytest.mark.parametrize("file", FILES)
def test_a_file_named_in_internals_exists(file: str) -> None:
    """Relative to the root of the project."""
    assert os.path.exists(f"{ROOT}/{file}")


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_function_named_in_internals_exists(file: str, name: str) -> None:
    """In the file that is named before it."""
    assert name in defined(file)


def test_the_write_path_has_at_most_twelve_steps() -> None:
    """Each with the file and the function that takes it."""
    steps = re.findall(r"^\| (\d+) \| .* \| (.*) \|$", TEXT, re.MULTILINE)
    assert [str(n + 1) for n in range(len(steps))] == [number for number, _ in steps]
    assert 0 < len(steps) <= 12
    assert all(re.search(r"`registry/[\w/]+\.py`", where) for _, where in steps)
    assert len(NAMED) >= len(steps)
