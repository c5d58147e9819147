"""The README's recipe for a shim, with a stop before each of its lines."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from registry import Sandbox, State, Status, Store
from tests import needs
from tests.tools import ROOT

pytestmark = [pytest.mark.netns, needs.namespaces]

SOURCE = next(
    block
    for block in re.findall(
        r"```python\n(.*?)```", Path(ROOT, "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    if "while_unknown" in block
)
RECIPE = compile(SOURCE, "README.md", "exec")
LINES = range(1, SOURCE.count("\n") + 1)


def stopped(old: Status) -> Status:
    """Stop a sandbox, and keep the reason of one that is NOTREADY already."""
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


def run_recipe(path: Path, line: int) -> tuple[bool, Exception | None]:
    """Run the recipe, and stop its sandbox before *line* of it is run for the first time.

    Returns:
        Whether that line was reached while the sandbox was there, and what the recipe raised.
    """
    reached, raised = False, None
    with Store.open(path, reconcile=False) as store:

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal reached
            # Inside of an UpdateFunc a stop would wait for the transaction that it interrupts.
            if frame.f_code is not RECIPE:
                return None
            if event == "line" and frame.f_lineno == line and not reached:
                for sandbox in store.list(include_unknown=True):
                    reached = True
                    stop(sandbox)
            return trace

        names: dict[str, Any] = {"__name__": "recipe"}
        sys.settrace(trace)
        try:
            exec(RECIPE, names)
        except Exception as error:
            raised = error
        finally:
            sys.settrace(None)
        pause = names.get("pause")
        if pause is not None:
            pause.stdin.close()
            assert pause.returncode is not None  # it has ended, and was waited for
    return reached, raised


def test_a_stop_before_any_line_is_never_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sandbox is not READY after it; process, namespace and record are gone at the end."""
    ended = []
    for line in LINES:
        folder = tmp_path / str(line)
        folder.mkdir()
        monkeypatch.chdir(folder)
        reached, raised = run_recipe(folder / "registry.db", line)
        was_ready = judge(folder / "registry.db")
        assert was_ready == (raised is None), (line, raised)
        if reached:
            ended.append("" if raised is None else type(raised).__name__)
    # The lines were those of a creation and of an end, and not of nothing.
    assert {"StoppedError", "FailedPreconditionError", ""} <= set(ended)


def judge(path: Path) -> bool:
    """Require that nothing is left and no stop was overwritten; return whether it was READY."""
    with Store.open(path, reconcile=False) as store:
        assert [] == store.list(include_unknown=True)
        changes = [(change.from_state, change.to_state) for change in store.history()]
        assert [] == store.check()
        assert () == store.reconcile(dry_run=True).orphans
    assert (None, State.UNKNOWN) == changes[0]
    assert (State.NOTREADY, State.READY) not in changes
    return (State.UNKNOWN, State.READY) in changes
