"""The program as the tests run it: in a process of its own, or in a pipeline."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.golden import DATA
from tests.tools import environment

SAMPLES = sorted(
    file for file in (DATA / "containerd").glob("*.json") if file.name != "MANIFEST.json"
)
MANIFEST = DATA / "containerd" / "MANIFEST.json"
KNOWN: dict[str, Any] = json.loads(MANIFEST.read_text(encoding="utf-8"))
"""Documents that containerd has stored, and the ids and statuses of their sandboxes."""

LONG = "4f2a" * 16
MARKUP = "[bold]b[/bold]"
HOSTILE = "one\ntwo \x1b[31mred\x1b[0m \x9b1m \u202e\u3164 tail"
SHOWN = r"one\ntwo \x1b[31mred\x1b[0m \x9b1m \u202e\u3164 tail"
CREATED = 1_700_000_000_123_456_789
SHOWN_CREATED = "2023-11-14T22:13:20.123456789Z"


class Done(NamedTuple):
    """Exit code and output of a program that has ended."""

    code: int
    out: str
    err: str


def real(*args: str, unbuffered: bool = False) -> list[str]:
    """Return the command that runs the real program."""
    return [sys.executable, *(["-u"] if unbuffered else []), "-m", "registry", *args]


def clean(**variables: str) -> dict[str, str]:
    """Return the environment of a shell, with *variables*."""
    left_out = ("PYTHONUNBUFFERED", "SANDBOX_REGISTRY_DB")
    known = {name: value for name, value in environment().items() if name not in left_out}
    return known | variables


def run(*args: str, **variables: str) -> Done:
    """Run the real program."""
    done = subprocess.run(
        real(*args), env=clean(**variables), capture_output=True, text=True, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


def shell(command: str, *args: str, unbuffered: bool = False) -> Done:
    """Run the real program in a pipeline: *command*, in which it is called "$@"."""
    done = subprocess.run(
        ["bash", "-c", command, "bash", *real(*args, unbuffered=unbuffered)],
        env=clean(),
        capture_output=True,
        text=True,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


Call = Callable[..., Done]


def ids(done: Done) -> list[str]:
    """Return the ids in an array of sandboxes."""
    return [each["id"] for each in json.loads(done.out)]
