"""Fixtures of the fault tests: long or short form, and notes that are printed at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.programs import SERVER, Programs
from tests.tools import LONG, running, small_file_system


@pytest.fixture
def long() -> bool:
    """Return whether everything is to be tried."""
    return LONG


@pytest.fixture
def tried(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Return a function that notes a line about what was tried, with its numbers."""
    return lambda text: record_property("tried", text)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[str]:
    """Return the path of a file system of 4 MiB."""
    with small_file_system(str(tmp_path / "disk"), 4) as disk:
        yield disk


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    """Return a runner of programs that leave a WAL."""
    with running(SERVER) as server:
        yield Programs(server)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the notes, which come with the reports also when tests run in other processes."""
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    lines = [text for each in reports for name, text in each.user_properties if name == "tried"]
    if lines:
        terminalreporter.section("faults tried")
        for line in sorted(lines):
            terminalreporter.write_line(line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the long form its time, and mark all as what they are."""
    for item in items:
        if "faults" in item.path.parts:
            item.add_marker(pytest.mark.faults)
            if LONG:
                item.add_marker(pytest.mark.timeout(1200))
