"""System calls of a workload: which ones it makes, and one of them made to kill or to fail."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from registry.tables.upgrade_backup import PART, SUFFIX
from tests.tools import environment, line, say

TRACED: Final = (
    *("openat", "write", "pwrite64", "ftruncate", "fallocate", "fsync", "fdatasync"),
    *("unlink", "rename", "mkdir", "fcntl", "flock"),
)
FILES: Final = (
    *("", "-wal", "-shm", "-journal", "-lock", "-queue", "-reserve", "-spare"),
    *(SUFFIX, PART),
)
"""What a registry consists of, by what is added to its path."""

HANGING: Final = 60.0
"""Seconds after which a workload hangs, and is ended by SIGABRT."""


class Call(NamedTuple):
    """The *nth* call of this name, of one workload, to one of its files."""

    name: str
    nth: int
    file: str


@dataclass(frozen=True)
class Run:
    """Output of a workload, and its exit code: 0, or minus the signal."""

    said: list[str]
    code: int


@contextmanager
def serving(folder: str) -> Iterator[Server]:
    """Run the server of `workload`, which has *folder* for itself."""
    command = [sys.executable, "-m", "tests.faults.workload", folder]
    process = subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Server(process)
    finally:
        process.kill()
        process.communicate()


class Server:
    """Runs workloads, under strace, and looks at what they leave."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def work(self, path: str, *strace: str, log: str = os.devnull, verb: str = "work") -> Run:
        """Run a workload on *path* under strace with these options, which writes *log*.

        *verb* may be `careless`: then the commits are not synced; or `upgrade`: then the registry,
        which is of an older revision, is opened and closed.
        """
        say(self._process, f"{verb} {path}")
        child = int(line(self._process).removeprefix("pid "))
        folder = os.path.dirname(path)
        answers = os.readlink(f"/proc/{child}/fd/1")  # what it says has its place among the calls
        names = [folder, answers, *(path + name for name in FILES)]
        paths = [each for name in names for each in ("-P", name)]
        tracer = subprocess.Popen(
            ["strace", "-f", "-p", str(child), "-o", log, *paths, *strace],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert tracer.stderr is not None
        attached = tracer.stderr.readline()
        assert "attached" in attached, attached
        os.kill(child, signal.SIGCONT)
        watch = threading.Timer(HANGING, lambda: os.kill(child, signal.SIGABRT))
        watch.start()
        run = self._ended()
        watch.cancel()
        tracer.communicate()
        return run

    def verify(self, path: str) -> dict[str, Any]:
        """Return what is in the registry, as another process finds it."""
        say(self._process, f"verify {path}")
        found: dict[str, Any] = json.loads("".join(self._ended().said) or "{}")
        return found

    def _ended(self) -> Run:
        said = []
        while not (text := line(self._process)).startswith("ended "):
            said.append(text)
        return Run(said, int(text.removeprefix("ended ")))

    def calls(self, path: str, log: str, verb: str = "work") -> list[Call]:
        """Return every call that the workload makes, in order."""
        run = self.work(path, "-y", "-e", f"trace={','.join(TRACED)}", log=log, verb=verb)
        assert 0 == run.code
        counted: Counter[str] = Counter()
        found = []
        with open(log, encoding="utf-8") as lines:
            for text in lines:
                match = re.match(r"\d+ +(\w+)\((.*)", text)
                if match is None or match[1] not in TRACED:
                    continue
                counted[match[1]] += 1
                file = _file(match[2], path)
                if file:
                    found.append(Call(match[1], counted[match[1]], file))
        return found


def _file(arguments: str, path: str) -> str:
    """Return which file of the registry at *path* the call is about: `-wal` and so on."""
    for each in re.findall(r"[<\"](/[^>\"]*)[>\"]", arguments):
        if each.startswith(path):
            return str(each.removeprefix(path)) or "database"
        if each == os.path.dirname(path):
            return "directory"
    return ""  # what the workload says
