"""Fixtures of tests that make real namespaces and processes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from registry import kernel

Sleeper = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def base_dir(tmp_path: Path) -> Iterator[str]:
    """Return a directory for namespaces; what is mounted there is unmounted at the end."""
    directory = tmp_path / "netns"
    directory.mkdir()
    yield str(directory)
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        points = [entry.split()[1] for entry in mounts]
    for point in reversed([point for point in points if point.startswith(str(directory))]):
        kernel.umount(point, kernel.MNT_DETACH)


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    """Return a function that starts a process which sleeps until the end of the test."""
    with ExitStack() as stack:

        def start() -> subprocess.Popen[bytes]:
            process = subprocess.Popen(["sleep", "1000"])
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield start
