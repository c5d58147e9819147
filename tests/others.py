"""A process that changes sandboxes as it is told."""

from __future__ import annotations

import subprocess
from contextlib import AbstractContextManager

from tests.tools import line, running, say

CODE = """
    import sys
    from dataclasses import replace
    from registry import State, Store
    from tests.tools import READY, UNKNOWN, sandbox

    with Store.open(sys.argv[1], reconcile=False) as store:
        print("up")
        for command in sys.stdin:
            what, id = command.split()
            if what == "add":
                store.add(sandbox(id), READY)
            elif what == "delete":
                store.delete(id)
            else:
                state = {"stop": State.NOTREADY, "start": State.READY}[what]
                store.get(id).status.update(lambda old: replace(old, state=state))
            print("done")
    """


def another(path: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run the process during the block; `tell` has it make a change."""
    return running(CODE, path)


def ready(process: subprocess.Popen[str]) -> None:
    """Wait until *process* has opened its store."""
    assert "up" == line(process)


def tell(process: subprocess.Popen[str], *commands: str) -> None:
    """Have *process* run *commands*, such as "stop a", each in a transaction; return afterwards."""
    for command in commands:
        say(process, command)
        assert "done" == line(process)
