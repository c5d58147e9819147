"""CONTRIBUTING.md and the configuration of pre-commit name what exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.documents import text_of
from tests.tools import ROOT

yaml: Any = pytest.importorskip("yaml", reason="the extra docs is not installed")


def test_pre_commit_runs_the_programs_of_make_and_downloads_nothing() -> None:
    """Each hook is local, and runs a command of the targets lint and type."""
    config = yaml.safe_load(text_of(".pre-commit-config.yaml"))
    (repo,) = config["repos"]
    assert "local" == repo["repo"]
    makefile = text_of("Makefile")
    for hook in repo["hooks"]:
        assert "system" == hook["language"]
        command = hook["entry"].removesuffix(" --force-exclude")
        assert f"\t@{command.replace('.venv/bin/python', '$(python)')}\n" in makefile


def test_every_program_and_file_that_contributors_run_exists() -> None:
    """Modules of the project, and files of tests."""
    text = text_of("CONTRIBUTING.md")
    modules = re.findall(r"-m ((?:docs|tests|registry|benchmarks)[.\w]*)", text)
    files = re.findall(r"\b((?:tests|docs|registry|migrations)/[\w/.]*\w)", text)
    assert modules
    assert files
    for module in modules:
        path = Path(ROOT, module.replace(".", "/"))
        assert path.with_suffix(".py").exists() or path.is_dir(), module
    for file in files:
        assert Path(ROOT, file).exists() or file == "docs/NAME.md", file
