"""Demos, as `make demo` and `make demo-shim` run them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from subprocess import PIPE

import pytest

from tests import needs
from tests.machine import Machine, new_machine
from tests.tools import ROOT, environment

pytestmark = [pytest.mark.netns, needs.namespaces]
DEMO = os.path.join(ROOT, "examples", "demo.py")


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Return a mount namespace for a demo, which must leave nothing in it."""
    with new_machine() as machine:
        yield machine


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
