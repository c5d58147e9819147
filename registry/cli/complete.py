"""Completion in a shell: files, and values of the registry, for options and arguments.

A shell runs the program with `VARIABLE` set each time that the user presses TAB. An error of any
kind yields no values: a message would stand in the middle of the command that is being typed.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import click

from registry.model.status import State
from registry.sync.interrupts import reraise_interrupt

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

VARIABLE: Final = "_SANDBOX_REGISTRY_COMPLETE"
"""Variable by which the script of `sandbox-registry completion` asks for completions."""
TIME_MAX: Final = 0.3
"""Seconds of processor time that the queries of the values may take: a machine that is busy with
other work is no reason to offer nothing."""
LIMIT: Final = 200
"""Values that are offered at most."""
SAFE: Final = re.compile(r"[\w.@/+=-]+", re.ASCII)
"""Values that are offered: a shell would split or expand others."""
SOURCES: Final = {
    "id": "SELECT id FROM sandboxes",
    "deleted": "SELECT DISTINCT sandbox_id FROM"
    " (SELECT sandbox_id FROM sandbox_transitions ORDER BY seq DESC LIMIT 20000)",
    "name": "SELECT name FROM sandboxes",
    "pod": "SELECT DISTINCT pod FROM sandboxes",
    "namespace/pod": "SELECT DISTINCT namespace || '/' || pod FROM sandboxes WHERE :text <> ''",
    "namespace": "SELECT DISTINCT namespace FROM sandboxes",
    "reason": "SELECT DISTINCT reason FROM sandbox_statuses",
    "past reason": "SELECT DISTINCT reason FROM"
    " (SELECT reason FROM sandbox_transitions ORDER BY seq DESC LIMIT 20000)",
}
"""Queries of the values, each of one column. Without a text the pods are offered once; the deleted
sandboxes are those of the latest transitions, whose number bounds the time."""

Completer = Callable[[click.Context, click.Parameter, str], list[str]]


def values(*sources: str) -> Completer:
    """Return a function that completes a parameter by the values of *sources*, in this order."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        found: dict[str, None] = {}
        with _silence():
            path = _registry(ctx)
            for value in () if path is None else _find(path, sources, incomplete):
                found[value] = None
        return list(found)[:LIMIT]

    return complete


sandboxes: Final = values("id", "name", "pod", "namespace/pod")
"""Completes what names a sandbox."""
past_sandboxes: Final = values("id", "name", "pod", "namespace/pod", "deleted")
"""Completes what names a sandbox, or a deleted one."""


def files(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Have the shell complete *incomplete* as the path of a file."""
    from click.shell_completion import CompletionItem  # noqa: PLC0415 - only here

    return [CompletionItem(incomplete, type="file")]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Ignore any error in the body, but no interrupt."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a shell that completes shows no error
        reraise_interrupt(error)


def states(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Return the states that begin with *incomplete*, in any case."""
    return [name for name in State.__members__ if name.startswith(incomplete.upper())]


def run(group: click.Group, program: str, instruction: str) -> int:
    """Print what a shell asks for by *instruction*, and return the exit code."""
    from click.shell_completion import shell_complete  # noqa: PLC0415 - only here

    with _silence():
        shell_complete(group, {}, program, VARIABLE, instruction)
    return 0


def _registry(ctx: click.Context) -> str | None:
    """Return the path of the registry that the command so far, or the environment, names."""
    while ctx is not None:
        path = ctx.params.get("db")
        if isinstance(path, str):
            return os.path.realpath(path)
        ctx = ctx.parent  # type: ignore[assignment]  # None ends the loop
    return None


def _find(path: str, sources: tuple[str, ...], incomplete: str) -> Iterator[str]:
    """Yield the values in the registry at *path* that begin with *incomplete*."""
    from registry.engine import driver  # noqa: PLC0415 - a completion of options does without
    from registry.host import file_locks  # noqa: PLC0415

    if file_locks.reader_blocker(path) is not None:
        return
    deadline = time.process_time() + TIME_MAX
    with contextlib.closing(
        driver.connect(path, "ro", driver.READER_SETUP, busy_timeout=0)
    ) as connection:
        connection.set_progress_handler(lambda: time.process_time() > deadline, 1000)
        for source in sources:
            query = (
                f"WITH found(value) AS ({SOURCES[source]}) SELECT value FROM found"  # noqa: S608
                " WHERE substr(value, 1, length(:text)) = :text AND value <> ''"
                " ORDER BY value LIMIT :limit"
            )
            with _silence():  # damage, or the deadline, takes the values of one source alone
                rows = connection.fetch(query, {"text": incomplete, "limit": LIMIT})
                yield from (value for (value,) in rows if SAFE.fullmatch(value))
