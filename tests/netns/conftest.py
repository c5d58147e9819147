"""Fixtures of tests that make real namespaces and processes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from registry.host import kernel

Sleeper = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def base_dir(tmp_path: Path) -> Iterator[str]:
    """Return a directory for namespaces; what is mounted there is unmounted at the end."""
    directory = tmp_path / "netns"
    directory.mkdir()
    yield str(directory)
    unmount_all(str(directory))


def unmount_all(directory: str) -> None:
    """Unmount *directory* and what is mounted below it, in the mount namespace of the caller.

    A mount may have copies that others hide: those appear when the mounts above are gone.
    """
    while points := _mount_points(directory):
        unmounted = 0
        for point in sorted(points, key=len):
            with suppress(OSError):
                kernel.umount(point, kernel.MNT_DETACH)
                unmounted += 1
        assert unmounted, points


def _mount_points(directory: str) -> set[str]:
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        points = [
            re.sub(r"\\([0-7]{3})", lambda x: chr(int(x[1], 8)), each.split()[4]) for each in mounts
        ]
    return {point for point in points if f"{point}/".startswith(f"{directory}/")}


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
