"""The recipe in docs/embed.md: stopped, or killed and run again, before each of its lines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from registry import Sandbox, State, Status, Store
from tests import needs
from tests.documents import blocks
from tests.tools import run

pytestmark = [pytest.mark.netns, needs.namespaces]

DOCUMENT = "docs/embed.md"
(SOURCE,) = [block for name, block in blocks("python") if name.startswith(DOCUMENT)]
RECIPE = compile(SOURCE, DOCUMENT, "exec")


def lines_of(code: CodeType) -> set[int]:
    """Return the numbers of the lines that are run in *code* and in what it defines."""
    lines = {line for _, _, line in code.co_lines() if line}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            lines |= lines_of(constant)
    return lines


LINES = sorted(lines_of(RECIPE))


class Run:
    """One run of the recipe in which *action* is called before *line*, the first time it is run."""

    def __init__(self, line: int, action: Callable[[], bool]) -> None:
        """Run the recipe.

        Args:
            line: number of a line, from 1.
            action: returns whether it has done what it is there for; else it is called again when
                the line is reached the next time.
        """
        self.line, self.action = line, action
        self.reached = False
        self.raised: Exception | None = None
        self.pause: subprocess.Popen[bytes] | None = None
        """The process of the sandbox, once it was started."""
        sys.settrace(self.trace)
        try:
            exec(RECIPE, {"__name__": "recipe"})
        except Exception as error:
            self.raised = error
        finally:
            sys.settrace(None)

    def trace(self, frame: FrameType, event: str, _: object) -> Any:
        """Call the action before the line; follow the recipe's own calls only."""
        # Inside an UpdateFunc, which the library calls, a stop would wait for the transaction that
        # it interrupts.
        caller = frame.f_back
        is_called_by_recipe = caller is not None and caller.f_code.co_filename == DOCUMENT
        if frame.f_code is not RECIPE and not is_called_by_recipe:
            return None
        if frame.f_code.co_filename != DOCUMENT:
            return None
        self.pause = frame.f_locals.get("pause") or self.pause
        if event == "line" and frame.f_lineno == self.line and not self.reached:
            self.reached = self.action()
        return self.trace


def stopped(old: Status) -> Status:
    """Return NOTREADY, and keep the reason of a sandbox that is NOTREADY already."""
    if old.state is State.NOTREADY:
        return old
    return Status(State.NOTREADY, old.pid, old.created_at, reason="StoppedByTheTest")


def stop(sandbox: Sandbox) -> None:
    """Stop a sandbox as another process of the shim does: record it, then clean up."""
    sandbox.status.update(stopped)
    process = sandbox.open_process()
    if process is not None:
        with process:
            process.kill()
    sandbox.remove_netns()


def stop_all(store: Store) -> bool:
    """Stop every sandbox; return whether there was one."""
    found = store.list(include_unknown=True)
    for sandbox in found:
        stop(sandbox)
    return bool(found)


def kill_if_recorded() -> bool:
    """Kill this process if the registry of the recipe has a sandbox, else return False."""
    if os.path.exists("registry.db"):
        with Store.open("registry.db", reconcile=False, read_only=True) as store:
            if store.list(include_unknown=True):
                os.kill(os.getpid(), signal.SIGKILL)
    return False


def transitions(path: Path) -> list[tuple[State | None, State | None]]:
    """Require that the recipe has left nothing but the history, and return its transitions."""
    with Store.open(path, reconcile=False) as store:
        assert [] == store.list(include_unknown=True)
        changes = [(change.from_state, change.to_state) for change in store.history()]
        assert [] == store.check()
        assert () == store.reconcile(dry_run=True).orphans
    assert (None, State.UNKNOWN) == changes[0]
    assert (State.NOTREADY, State.READY) not in changes
    return changes


def test_the_recipe_never_overwrites_a_stop_before_any_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sandbox is not READY after it; process, namespace and record are gone at the end."""
    ended = []
    for line in LINES:
        folder = tmp_path / str(line)
        folder.mkdir()
        monkeypatch.chdir(folder)
        with Store.open(folder / "registry.db", reconcile=False) as store:
            tried = Run(line, partial(stop_all, store))
        if tried.pause is not None:
            assert tried.pause.returncode is not None  # it has ended, and was waited for
        was_ready = (State.UNKNOWN, State.READY) in transitions(folder / "registry.db")
        assert was_ready == (tried.raised is None), (line, tried.raised)
        if tried.reached:
            ended.append("" if tried.raised is None else type(tried.raised).__name__)
    # The lines were those of a creation and of an end, and not of nothing.
    assert {"StoppedError", "FailedPreconditionError", ""} <= set(ended)


def test_the_recipe_cleans_up_after_a_kill_before_any_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run goes to its end, and leaves no process, namespace or record of either run."""
    monkeypatch.chdir(tmp_path)
    out = run(
        """
        import os, sys
        from tests.docs.test_recipe import Run, kill_if_recorded

        Run(0, lambda: False)  # imports what the children need
        for line in sys.argv[1:]:
            os.mkdir(line)
            child = os.fork()
            if not child:
                os.chdir(line)
                os._exit(Run(int(line), kill_if_recorded).raised is not None)
            print(line, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        *LINES,
    )
    ended = [(line, int(code)) for line, code in map(str.split, out.splitlines())]
    assert {0, -signal.SIGKILL} == {code for _, code in ended}
    for line, code in ended:
        monkeypatch.chdir(tmp_path / line)
        if code:
            again = Run(0, lambda: False)
            assert again.raised is None, (line, again.raised)
        transitions(Path("registry.db"))
