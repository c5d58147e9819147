"""The snippets of the documents and the public API, checked by mypy --strict and by pyright."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests import needs
from tests.documents import blocks
from tests.tools import ROOT

API: Final = Path(ROOT, "tests/docs/api_types.py")
PYRIGHT: Final = {
    # A comment `type: ignore` on a line without an error is an error, as it is for mypy.
    "reportUnnecessaryTypeIgnoreComment": "error",
    "pythonVersion": "3.11",
    "pythonPlatform": "Linux",
}
pyright_is_installed = pytest.mark.skipif(
    importlib.util.find_spec("pyright") is None, reason="pyright is not installed"
)


@pytest.fixture
def checked(tmp_path: Path) -> Path:
    """Return a folder with every Python snippet, and the module of the API, in a file each."""
    shutil.copy(API, tmp_path)
    for name, block in blocks("python"):
        (tmp_path / f"{re.sub(r'[^a-z0-9]+', '_', name.lower())}.py").write_text(block, "utf-8")
    return tmp_path


def run(folder: Path, *command: str, **variables: str) -> str:
    """Run a module in *folder*, with the installed package, and return its output."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return f"{done.stdout}exit {done.returncode}"


def run_mypy(folder: Path) -> str:
    """Check every file of *folder* as an embedder does, without the project's settings."""
    return run(folder, "mypy", "--strict", "--config-file=", f"--cache-dir={os.devnull}", ".")


def run_pyright(folder: Path) -> str:
    """Check every file of *folder*; nothing is downloaded."""
    config = folder / "pyrightconfig.json"
    config.write_text(json.dumps(PYRIGHT), "utf-8")
    # Else pyright asks the network whether there is a newer version of it.
    variables = {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    return run(folder, "pyright", "--pythonpath", sys.executable, **variables)


def test_snippets_and_api_pass_mypy_strict(checked: Path) -> None:
    """In one run, without the settings of the project."""
    assert "Success" in (out := run_mypy(checked)), out


@pyright_is_installed
@needs.program("node")
def test_snippets_and_api_pass_pyright(checked: Path) -> None:
    """In one run; a call that must be rejected is rejected."""
    out = run_pyright(checked)
    assert "0 errors, 0 warnings" in out, out
    assert out.endswith("exit 0"), out


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """Return a folder with a module that has two errors."""
    lines = ["from registry import Store", "store = Store.open('a')"]
    lines.append("print(store.recovery.findings)")  # an absent report is not handled
    lines.append("store.get('4a33')  # type: ignore[arg-type]")  # suppresses nothing
    (tmp_path / "wrong.py").write_text("\n".join(lines))
    return tmp_path


def test_mypy_finds_what_is_wrong(wrong: Path) -> None:
    """In a folder such as that of the snippets."""
    assert "Found 2 errors" in (out := run_mypy(wrong)), out


@pyright_is_installed
@needs.program("node")
def test_pyright_finds_what_is_wrong(wrong: Path) -> None:
    """In a folder such as that of the snippets."""
    assert "2 errors" in (out := run_pyright(wrong)), out
