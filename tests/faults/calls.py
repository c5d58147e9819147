"""System calls of a workload: which ones it makes, and one of them made to kill or to fail."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

from registry.maintenance.restore import PREPARED
from registry.tables.upgrade_backup import PART, SUFFIX
from tests.faults.workload import COPY, KEPT
from tests.tools import ROOT, environment, line, say

TRACED: Final = (
    *("openat", "write", "pwrite64", "ftruncate", "fallocate", "fsync", "fdatasync"),
    *("unlink", "rename", "mkdir", "fcntl", "flock"),
)
FILES: Final = (
    *("", "-wal", "-shm", "-journal", "-lock", "-queue", "-reserve", "-spare"),
    *(
        SUFFIX,
        PART,
        COPY,
        f"{COPY}.part",
        f"{KEPT}0",
        f"{KEPT}0.part",
        PREPARED,
        f"{PREPARED}.part",
    ),
)
"""What a registry consists of, by what is added to its path."""

FAULTS: Final = {"killed": "signal=SIGKILL", "EIO": "error=EIO", "ENOSPC": "error=ENOSPC"}
GUARANTEES: Final = Path(ROOT, "docs", "guarantees.md")
"""Says of each call that may fail without a word why nothing is lost."""
MISSED: Final = "it did not strike"
TRIES: Final = 20
"""A run has some calls more or less, for the creations are random numbers."""
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
def serving(folder: str, module: str = "tests.faults.workload") -> Iterator[Server]:
    """Run the server of *module*, which has *folder* for itself."""
    command = [sys.executable, "-m", module, folder]
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

        *verb* may be `careless`: then the commits are not synced; `upgrade`: then the registry,
        which is of an older revision, is opened and closed; `backup`; or `restore`.
        """
        child, tracer = self.trace(path, *strace, log=log, verb=verb)
        watch = threading.Timer(HANGING, lambda: os.kill(child, signal.SIGABRT))
        watch.start()
        run = self.ended()
        watch.cancel()
        tracer.communicate()
        return run

    def trace(
        self, path: str, *strace: str, log: str, verb: str
    ) -> tuple[int, subprocess.Popen[str]]:
        """Begin a workload as `work` does; return its pid and strace. Call `ended` afterwards."""
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
        return child, tracer

    def verify(self, path: str) -> dict[str, Any]:
        """Return what is in the registry, as another process finds it."""
        return self.ask("verify", path)

    def ask(self, verb: str, path: str) -> dict[str, Any]:
        """Return what *verb* finds at *path*; empty if it was killed."""
        say(self._process, f"{verb} {path}")
        found: dict[str, Any] = json.loads("".join(self.ended().said) or "{}")
        return found

    def ended(self) -> Run:
        """Wait for the end of what was begun, and return its output."""
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


@dataclass(frozen=True)
class Workload:
    """A workload, to be run once for each of its calls and each fault."""

    name: str
    """Begins the lines that the long form prints."""
    verb: str
    """As `Server.work` knows it."""
    files: set[str]
    """Files that its calls must concern, among others."""
    prepare: Callable[[str], object]
    """Makes the folder in which `registry.db` is, or will be."""
    faults_of: Callable[[Server, str, Run], list[str]]
    """Returns what is wrong with what a run said, and with what it left in the folder."""


def inject(
    server: Server, workload: Workload, folder: str, call: Call, fault: str
) -> tuple[list[str], bool]:
    """Return the faults found after *fault* in *call*, and whether a call raised.

    Args:
        server: runs the workload.
        workload: whose call it is.
        folder: that is made, and removed.
        call: the system call that kills or fails.
        fault: a key of `FAULTS`.
    """
    workload.prepare(folder)
    rule = f"inject={call.name}:{FAULTS[fault]}:when={call.nth}"
    path, log = f"{folder}/registry.db", f"{folder}.log"
    run = server.work(path, "-e", f"trace={call.name}", "-e", rule, log=log, verb=workload.verb)
    wrong = workload.faults_of(server, folder, run)
    with open(log, encoding="utf-8", errors="replace") as lines:
        if not (run.code == -9 if fault == "killed" else "(INJECTED)" in lines.read()):
            wrong.append(MISSED)
    os.unlink(log)
    shutil.rmtree(folder)
    told = run.code == -9 or any(text.startswith("error ") for text in run.said)
    return [f"{fault} at {call}: {each}" for each in wrong], told


def try_every_call(
    workload: Workload, folder: str, one_of: int, tried: Callable[[str], None]
) -> None:
    """Run *workload* once for each of its calls and each fault, or for one of *one_of* cases.

    A call that may fail without an error must be named in the page of the guarantees.
    """
    servers: SimpleQueue[Server] = SimpleQueue()
    wrong: list[str] = []
    swallowed: Counter[str] = Counter()

    def attempt(number: int, call: Call, fault: str) -> None:
        server = servers.get()
        try:
            for _ in range(TRIES):
                found, told = inject(server, workload, f"{folder}/{number}", call, fault)
                if MISSED not in "".join(found):
                    break
        finally:
            servers.put(server)
        wrong.extend(found)
        if not told:
            swallowed[f"{call.name} of {call.file}"] += 1

    with serving(folder) as one, serving(folder) as two:
        workload.prepare(f"{folder}/all")
        calls = one.calls(f"{folder}/all/registry.db", f"{folder}/log", workload.verb)
        assert workload.files < {call.file for call in calls}
        cases = [(call, fault) for call in calls for fault in FAULTS]
        chosen = cases[::one_of]
        servers.put(one)
        servers.put(two)
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(attempt, n, *case) for n, case in enumerate(chosen)]:
                done.result()
    tried(f"{workload.name}: {len(calls)} calls, {len(chosen)} of {len(cases)} faults injected")
    for what, times in sorted(swallowed.items()):
        tried(f"  {workload.name}, {what}: failed {times} times, and no call raised")
    assert [] == wrong, "\n".join(wrong)
    documented = set(re.findall(r"`(\w+)` of `([\w.-]+)`", GUARANTEES.read_text(encoding="utf-8")))
    assert set(swallowed) <= {f"{call} of {file}" for call, file in documented}
