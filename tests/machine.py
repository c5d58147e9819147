"""Mount namespace for programs that make namespaces and processes, and what they leave in it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any, TypeVar

from registry.host import kernel
from tests.tools import environment, until

T = TypeVar("T")


class Machine:
    """Mount namespace in which programs run, with its own /run and temporary files.

    It separates what they leave from the processes and mounts of other programs.
    """

    def __init__(self, inside: ThreadPoolExecutor, tmp: str) -> None:
        self._inside = inside
        self._env = {**environment(), "TMPDIR": tmp, MARK: tmp}
        self._mounts = inside.submit(_mounts).result()

    def call(self, fn: Callable[[], T]) -> T:
        """Call *fn* in the mount namespace, and return its result."""
        return self._inside.submit(fn).result()

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a program in the mount namespace."""
        env = {**self._env, **options.pop("env", {})}
        start = partial(subprocess.Popen, command, env=env, text=True, **options)
        return self._inside.submit(start).result()

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program in the mount namespace, and return its output."""
        with self.start(*command, stdout=PIPE, stderr=PIPE, **options) as process:
            out, err = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def left(self) -> dict[str, list[str]]:
        """Return the processes, namespaces, mounts and files that the programs have left."""
        return self._inside.submit(self._left).result()

    def _left(self) -> dict[str, list[str]]:
        here, mark = os.readlink("/proc/thread-self/ns/mnt"), f"{MARK}={self._env[MARK]}".encode()
        processes = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):  # the process has ended, or is a zombie
                marked = mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if marked or os.readlink(f"/proc/{pid}/ns/mnt") == here:
                    processes.append(f"{pid} {Path(f'/proc/{pid}/cmdline').read_text()!r}")
        return {
            "processes": processes,
            "namespaces": os.listdir("/run/netns"),
            # The directory has become a shared mount, and stays one.
            "mounts": sorted(_mounts() - self._mounts - {"/run/netns"}),
            "files": os.listdir(self._env["TMPDIR"]),
        }


MARK = "SANDBOX_REGISTRY_DEMO"
"""Environment variable that identifies processes outside of the mount namespace."""
NOTHING: dict[str, list[str]] = {"processes": [], "namespaces": [], "mounts": [], "files": []}


def _mounts() -> set[str]:
    """Return the mount points, copies of the host's included."""
    with open("/proc/thread-self/mounts", encoding="utf-8") as mounts:
        return {line.split()[1] for line in mounts}


def _enter_mount_namespace() -> None:
    kernel.unshare(0x20000 | 0x200)  # CLONE_NEWNS and, since other threads stay, CLONE_FS
    kernel.mount("none", "/", "none", 0x40000 | kernel.MS_REC)  # private
    kernel.mount("run", "/run", "tmpfs", 0)
    os.mkdir("/run/netns")


@contextmanager
def new_machine() -> Iterator[Machine]:
    """Make a mount namespace for programs, which must leave nothing in it."""
    with (
        ThreadPoolExecutor(1, initializer=_enter_mount_namespace) as inside,
        tempfile.TemporaryDirectory(dir="/tmp") as tmp,
    ):
        os.chmod(tmp, 0o1777)  # for another user, too
        machine = Machine(inside, tmp)
        assert NOTHING == machine.left()
        yield machine
        # A process that was killed takes a moment to end.
        until(lambda: NOTHING == machine.left(), machine.left)
