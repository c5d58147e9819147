"""What a part of the harness tried is printed at the end, and how long its form is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tools import small_file_system

LONG = os.environ.get("FAULTS") == "long"
"""Whether everything is tried, as by `make test-faults`, and not a selection."""

_tried: list[str] = []


@pytest.fixture
def long() -> bool:
    """Return whether everything is to be tried."""
    return LONG


@pytest.fixture
def tried() -> Callable[[str], None]:
    """Return what notes a line of what was tried, with its numbers."""
    return _tried.append


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[str]:
    """Return the path of a file system of 4 MiB."""
    with small_file_system(str(tmp_path / "disk"), 4) as disk:
        yield disk


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print it."""
    if _tried:
        terminalreporter.section("faults tried")
        for line in _tried:
            terminalreporter.write_line(line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the long form its time, and mark all as what they are."""
    for item in items:
        if "faults" in item.path.parts:
            item.add_marker(pytest.mark.faults)
            if LONG:
                item.add_marker(pytest.mark.timeout(1200))
