"""Fixtures of tests that make real namespaces and processes."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from registry import NetNS
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


@pytest.fixture
def nothing_leaks() -> Iterator[None]:
    """Compare descriptors, threads and this thread's namespace before and after each test.

    What ends meanwhile is nothing that leaks: it may be left of another test.
    """

    def now() -> set[object]:
        found: set[object] = {inside(), *threading.enumerate()}
        for fd in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # the one by which the directory is read
                found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
        return found

    before = now()
    yield
    assert now() <= before


@pytest.fixture
def made(base_dir: str) -> NetNS:
    """Return a namespace of its own."""
    return NetNS.create(f"{base_dir}/made")


def inside() -> str:
    """Return which network namespace the calling thread is in."""
    return os.readlink("/proc/thread-self/ns/net")


@pytest.fixture
def victim(base_dir: str) -> Iterator[NetNS]:
    """Return a stranger's namespace, which has to be open at the end."""
    victim = NetNS.create(f"{base_dir}/victim")
    yield victim
    assert not victim.closed
    victim.remove()
