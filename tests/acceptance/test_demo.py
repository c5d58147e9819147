"""Demos, as `make demo` and `make demo-shim` run them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from registry.host import kernel
from tests import needs
from tests.tools import ROOT, environment, until

pytestmark = [pytest.mark.netns, needs.namespaces]
DEMO = os.path.join(ROOT, "examples", "demo.py")


class Machine:
    """Mount namespace in which a demo runs, with its own /run and /tmp.

    It separates what a demo leaves from the processes and mounts of other programs.
    """

    def __init__(self, inside: ThreadPoolExecutor, tmp: str) -> None:
        self._inside = inside
        self._env = {**environment(), "TMPDIR": tmp, MARK: tmp}
        self._mounts = inside.submit(_mounts).result()

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


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Return a mount namespace for a demo, which must leave nothing in it."""
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


def check_output(output: str) -> None:
    """Check that the output has the states, the reasons and the query."""
    for line in (
        "web-0  SANDBOX_NOTREADY",
        "web-1  SANDBOX_NOTREADY",
        "proxy  SANDBOX_READY",
        "web-2  SANDBOX_UNKNOWN",
        "NetNSClosed",
        "ProcessExited",
        "CreationInterrupted",
        "$ sqlite3",
        "All of it is removed again.",
    ):
        assert line in output


def test_demo_shows_a_crash_and_the_recovery(machine: Machine) -> None:
    """It runs as root, in /run/netns."""
    done = machine.run(sys.executable, DEMO)
    assert (0, "") == (done.returncode, done.stderr)
    check_output(done.stdout)


def test_demo_runs_in_a_user_namespace_without_privileges(machine: Machine) -> None:
    """The user is 65534, who may read this Python."""
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    in_user_namespace = [*become, "unshare", "--user", "--map-root-user", "--mount", "--net"]
    if not shutil.which("setpriv"):
        pytest.skip("setpriv is not installed")
    if subprocess.run([*in_user_namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel does not let users make namespaces")
    env = environment()
    env["PYTHONPATH"] += f":{sysconfig.get_path('purelib')}"
    for python in (sys.executable, "/usr/bin/python3"):
        command = [*in_user_namespace, python, "-c", "import registry, pyroute2"]
        if subprocess.run(command, env=env, cwd="/", capture_output=True, check=False).returncode:
            continue
        done = machine.run(*become, python, DEMO, env=env, cwd="/")
        assert (0, "") == (done.returncode, done.stderr)
        check_output(done.stdout)
        return
    pytest.skip("another user may not read this Python or this checkout")


def test_demo_names_what_is_missing_when_namespaces_cannot_be_made(machine: Machine) -> None:
    """The message has one line; unshare is missing here."""
    done = machine.run(sys.executable, DEMO, env={"PATH": os.path.dirname(__file__)})
    assert 1 == done.returncode
    assert 1 == len(done.stderr.splitlines())
    assert "needs root" in done.stderr


DEMOS = {"demo": [DEMO], "demo-shim": ["-m", "examples.demo_shim"]}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])
@pytest.mark.parametrize("after", [0, 1, 3, 6])
@pytest.mark.parametrize("name", DEMOS)
def test_interrupted_demo_leaves_nothing(
    machine: Machine, name: str, after: int, number: int
) -> None:
    """SIGINT or SIGTERM arrives after some lines of its output."""
    with machine.start(sys.executable, "-u", *DEMOS[name], cwd=ROOT, stdout=PIPE) as demo:
        assert demo.stdout is not None
        for _ in range(after):
            demo.stdout.readline()
        demo.send_signal(number)
        demo.communicate()
    assert demo.returncode in ({128 + number} if after else {128 + number, -number, 1})


@pytest.mark.parametrize("name", DEMOS)
def test_demo_ends_silently_when_its_pipe_is_closed(machine: Machine, name: str) -> None:
    """`make demo | head -3` does so; the sandboxes do not keep the pipe open."""
    command = [sys.executable, "-u", *DEMOS[name]]
    with machine.start(*command, cwd=ROOT, stdout=PIPE, stderr=PIPE) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        for _ in range(3):
            demo.stdout.readline()
        demo.stdout.close()
        assert "" == demo.stderr.read()
    assert 141 == demo.returncode


def test_demo_of_shim_shows_a_killed_server(machine: Machine) -> None:
    """Two of three pods keep running."""
    done = machine.run(sys.executable, "-m", "examples.demo_shim", cwd=ROOT)
    assert (0, "") == (done.returncode, done.stderr)
    for line in (
        "web-0  SANDBOX_READY",
        "web-1  SANDBOX_NOTREADY",
        "proxy  SANDBOX_READY",
        "ProcessExited",
        "All of it is removed again.",
    ):
        assert line in done.stdout
