"""Kill point of an example: Python imports this module first, if its folder is in PYTHONPATH.

Environment:

    KILL_EXAMPLE  path of the example
    KILL_FOLDER   folder of the files below

Files:

    point   "LINE CALLS": the process that reaches the line is killed after so many calls
    lines   numbers of the lines that were run, once for each process
    armed   "PID LINE CALLS" of each process that has reached its point
    killed  the same, just before the kill

The process that reaches the line removes `point`, so that no other one is killed. From there on it
counts the calls of all its threads, also of functions in C.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

EXAMPLE, FOLDER = os.environ["KILL_EXAMPLE"], os.environ["KILL_FOLDER"]
run: set[int] = set()
counter = itertools.count(1)
limit: list[int] = []


def note(name: str, text: str) -> None:
    """Append a line to a file, in one write."""
    fd = os.open(f"{FOLDER}/{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


def reach(line: int) -> None:
    """Begin to count, if this process is to be killed at *line*."""
    point = f"{FOLDER}/point"
    try:
        with open(point, encoding="ascii") as file:
            at, calls = map(int, file.read().split())
        if at != line:
            return
        os.unlink(point)
    except FileNotFoundError:
        return
    note("armed", f"{os.getpid()} {at} {calls}")
    limit.append(calls)
    if not calls:
        die()


def die() -> None:
    """Kill this process."""
    note("killed", f"{os.getpid()}")
    os.kill(os.getpid(), signal.SIGKILL)


def count(frame: FrameType, event: str, argument: Any) -> None:
    """Count a call, of any thread, once the line was reached."""
    if limit and event in {"call", "c_call"} and next(counter) == limit[0]:
        die()


def trace(frame: FrameType, event: str, argument: Any) -> Any:
    """Follow the functions of the example alone."""
    if frame.f_code.co_filename != EXAMPLE or frame.f_code.co_name == "<module>":
        return None
    if event == "line":
        line = frame.f_lineno
        if line not in run:
            if not run:
                sys.setprofile(count)  # not before, since the imports make many calls
            run.add(line)
            note("lines", str(line))
        reach(line)
    return trace


sys.settrace(trace)
threading.settrace(trace)
threading.setprofile(count)
