"""The demo, as `make demo` runs it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator

import pytest

from tests.tools import ROOT, environment

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the demo is tried as root and as another user"),
]
DEMO = os.path.join(ROOT, "examples", "demo.py")


def left_behind() -> set[str]:
    """Return what a demo may have left: processes, namespaces, mounts, files."""
    processes = {
        f"{pid} {command}"
        for pid, command in (
            line.split(maxsplit=1)
            for line in subprocess.check_output(["ps", "-eo", "pid=,args="], text=True).splitlines()
        )
        if "sleep infinity" in command or "demo.py" in command
    }
    with open("/proc/mounts", encoding="utf-8") as mounts:
        mounted = {line.split()[1] for line in mounts if "/sr-" in line}
    namespaces = {name for name in os.listdir("/run/netns") if name.startswith("sr-")}
    files = {name for name in os.listdir(tempfile.gettempdir()) if "sandbox-registry-demo" in name}
    return processes | mounted | namespaces | files


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Compare the machine before and after."""
    os.makedirs("/run/netns", exist_ok=True)
    before = left_behind()
    yield
    assert before == left_behind()


def check_output(output: str) -> None:
    """Compare what the demo says with what happened."""
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


def test_the_demo_shows_a_crash_and_the_recovery() -> None:
    """As root, in /run/netns."""
    done = subprocess.run(
        [sys.executable, DEMO], env=environment(), capture_output=True, text=True, check=False
    )
    assert (0, "") == (done.returncode, done.stderr)
    check_output(done.stdout)


def test_without_privileges_the_demo_runs_in_a_user_namespace() -> None:
    """The same as nobody, in a Python that nobody may read."""
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
        done = subprocess.run(
            [*become, python, DEMO], env=env, cwd="/", capture_output=True, text=True, check=False
        )
        assert (0, "") == (done.returncode, done.stderr)
        check_output(done.stdout)
        return
    pytest.skip("another user may not read this Python or this checkout")


def test_where_no_namespace_can_be_made_the_demo_says_what_is_missing() -> None:
    """In one line: root without rights, and no unshare."""
    done = subprocess.run(
        [sys.executable, DEMO],
        env={**environment(), "PATH": os.path.dirname(__file__)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 1 == done.returncode
    assert 1 == len(done.stderr.splitlines())
    assert "needs root" in done.stderr


DEMOS = {"demo": [DEMO], "demo-shim": ["-m", "examples.demo_shim"]}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])
@pytest.mark.parametrize("after", [0, 1, 3, 6])
@pytest.mark.parametrize("name", DEMOS)
def test_an_interrupted_demo_leaves_nothing_behind(name: str, after: int, number: int) -> None:
    """Ctrl-C or SIGTERM after so many lines of its output."""
    with subprocess.Popen(
        [sys.executable, "-u", *DEMOS[name]],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        for _ in range(after):
            demo.stdout.readline()
        demo.send_signal(number)
        demo.communicate()
    assert demo.returncode in ({128 + number} if after else {128 + number, -number, 1})


@pytest.mark.parametrize("name", DEMOS)
def test_a_demo_whose_output_nobody_reads_any_more_ends_in_silence(name: str) -> None:
    """As by `make demo | head -3`; its sandboxes do not keep the pipe open."""
    with subprocess.Popen(
        [sys.executable, *DEMOS[name]],
        cwd=ROOT,
        env={**environment(), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        for _ in range(3):
            demo.stdout.readline()
        demo.stdout.close()
        assert "" == demo.stderr.read()
    assert 141 == demo.returncode


def test_the_demo_of_the_shim_shows_a_server_that_is_killed() -> None:
    """Three pods, of which the two whose process lives go on."""
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo_shim"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    for line in (
        "web-0  SANDBOX_READY",
        "web-1  SANDBOX_NOTREADY",
        "proxy  SANDBOX_READY",
        "ProcessExited",
        "All of it is removed again.",
    ):
        assert line in done.stdout
