"""Programs that use a registry and are closed or killed: they leave a WAL beside the database."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

from registry import State, Store
from tests.tools import READY, line, sandbox, say

ADD = "add('a', 40)"
"""Code that adds the sandboxes a0 to a39."""
SERVER = "from tests.faults.programs import serve; serve()"
"""Code of the process that forks the programs."""


class Programs:
    """Processes that each open a registry, use it, and are closed or killed.

    A process that has imported everything forks them, since an import takes most of their time.
    """

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server

    def close(self, path: str, code: str) -> None:
        """Run *code* on the registry at *path*, and close it."""
        self._run("close", path, code, expected=0)

    def kill(self, path: str, code: str) -> None:
        """Run *code* on the registry at *path*, and kill the process."""
        self._run("kill", path, code, expected=-signal.SIGKILL)

    def kill_shell(self, path: str, *statements: str) -> None:
        """Run SQL on a plain connection in a process that is killed."""
        self._run("shell", path, "\0".join(statements), expected=-signal.SIGKILL)

    def _run(self, how: str, path: str, code: str, expected: int) -> None:
        say(self._server, json.dumps([how, path, code]))
        assert f"ended {expected}" == line(self._server)


def serve() -> None:
    """Fork a process for each line: `[how, path, code]`."""
    while text := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            _do(*json.loads(text))
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(1, f"ended {status}\n".encode())


def _do(how: str, path: str, code: str) -> None:
    if how == "shell":
        shell = sqlite3.connect(path, isolation_level=None)
        for statement in code.split("\0"):
            shell.execute(statement)
        os.kill(os.getpid(), signal.SIGKILL)
    with Store.open(path, reconcile=False) as store:

        def add(prefix: str, *numbers: int) -> None:
            for n in range(*numbers):
                store.add(sandbox(f"{prefix}{n}"), READY)

        def end(state: State, *names: str) -> None:
            for name in names:
                store.get(name).status.update(lambda old: replace(old, state=state, message="end"))

        exec(code, {**globals(), **locals()})
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)


def backup(path: str, copy: str) -> None:
    """Copy the registry as the `.backup` of the shell does."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)


Make = Callable[[str, Programs], None]
"""Leaves a registry and a WAL at a path, by running programs."""
