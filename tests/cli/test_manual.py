"""The man page, which is generated from the commands and lies in docs/."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from docs.tools import man
from registry.__main__ import ABOVE
from registry.cli import program
from tests import needs
from tests.tools import ROOT

PAGE = Path(ROOT, "docs", "sandbox-registry.1")


def test_the_man_page_is_that_of_the_commands() -> None:
    """`python -m docs.tools.man` generates it."""
    assert man.page(program.group(ABOVE)) == PAGE.read_text(encoding="utf-8")


@needs.program("groff")
def test_groff_formats_the_man_page_without_a_warning() -> None:
    """All warnings are on."""
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", PAGE], capture_output=True, text=True, check=True
    )
    assert "" == done.stderr


@needs.program("man")
def test_man_shows_every_verb_and_exit_code() -> None:
    """As a reader sees it, 80 columns wide."""
    done = subprocess.run(
        ["man", "--warnings", "-l", PAGE],
        env={"MANWIDTH": "80", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANPAGER": "col -bx"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "" == done.stderr
    for name in ("NAME", "SYNOPSIS", "EXIT STATUS", "ENVIRONMENT", *program.VERBS, *ABOVE):
        assert f"\n{name}" in done.stdout or f"\n   {name} " in done.stdout, name
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (".TH x", r"\&.TH x"),
        ("'quoted'", r"\(aqquoted\(aq"),
        (r"a\nb", r"a\enb"),
        ("--db", r"\-\-db"),
        ("`x`", r"\(gax\(ga"),
    ],
)
def test_text_is_no_command_of_the_page(text: str, expected: str) -> None:
    """A text may begin with a dot."""
    assert expected == man._text(text)
