"""The verb `why`: the state of one sandbox, explained."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import click

from registry.cli import lookup, options
from registry.cli.failures import PROGRAM, complain_all
from registry.cli.output.formats import show
from registry.cli.output.values import for_programs
from registry.cli.output.views import Format, View
from registry.cli.verbs.explanation import Explanation, explain, pid_of
from registry.cli.verbs.facts import Facts
from registry.cli.verbs.summary import summary_of, unreadable
from registry.cli.verbs.transitions import row_of
from registry.engine.sqlite_errors import RESTORE
from registry.errors import DataLossError, MetadataError, NotFoundError, RegistryError
from registry.handles.sandbox import Sandbox
from registry.host import file_users, kernel, pidfd
from registry.host.context import HostContext
from registry.recovery import reconcile
from registry.store import Store, session_of
from registry.tables.rows import Transition, as_text
from registry.visible import visible

SLACK: Final = 2.0
"""Seconds by which a process must have started after a transition not to be its writer: the clock
of the host may have been set meanwhile."""


FIELDS: Final = (
    *("id", "name", "namespace", "pod", "state", "since", "reason", "message", "pid"),
    *("netns_path", "transition", "writer", "verdict", "finding", "marks", "left"),
    *("sentences", "next"),
)
VIEW: Final = View(FIELDS, table={"ID": "id"}, name="name")


@click.command(
    epilog=options.examples("sandbox-registry why 3f2a9c41", "sandbox-registry why shop/web")
)
@options.past_sandbox(metavar="SANDBOX", help=options.NAMES)
@options.output(VIEW)
@options.db
def why(*, sandbox: str, db: str, form: Format) -> int:
    """Explain the state of one sandbox, what is left of it, and what to do next.

    It says what is recorded, what a reconcile would find now, and which commands come next; it runs
    none of them. A deleted sandbox, and one whose record cannot be read, is explained by the
    history.
    """
    doing = f"explain sandbox {sandbox!r}"
    with options.open_to_show(db, warns=False) as store:
        try:
            facts, errors = _read(store, sandbox, doing)
        except (DataLossError, NotFoundError) as error:
            facts, errors = _read_past(store, sandbox, doing, error)
    if options.is_damaged():
        facts = replace(facts, damaged=db)
    found = explain(facts, now=time.time_ns(), program=options.command(db))
    code = complain_all(errors)
    fields = _fields(facts, found)
    show([fields], VIEW, form, whole=fields, text=_text(found))
    return code


# Reading.


def _read(store: Store, text: str, doing: str) -> tuple[Facts, list[str]]:
    """Return the data on the sandbox that *text* names, and what of it cannot be read."""
    handle = lookup.find(store, text, doing)
    return _facts(store, handle), list(unreadable(handle))


def _read_past(
    store: Store, text: str, doing: str, error: RegistryError
) -> tuple[Facts, list[str]]:
    """Return the data that the history has on a sandbox whose record was not read.

    Args:
        store: of the history.
        text: names the sandbox.
        doing: operation and object, for messages.
        error: why the record was not read.
    Raises:
        NotFoundError: the history has no such sandbox.
        DataLossError: the same, and *error* is one.
        InvalidArgumentError: *text* names several.
    """
    if isinstance(error, DataLossError) and not options.is_damaged():
        raise error
    try:
        id = lookup.find_in_history(store, text, doing)
    except (DataLossError, NotFoundError) as none:
        if isinstance(error, NotFoundError) and isinstance(none, NotFoundError):
            raise
        message = f"{doing}: the registry is damaged, and nothing of it can be read; {RESTORE}"
        raise DataLossError(message, path=store.path) from error
    found = _facts_of_past(store, id)
    if found.state is not None and not options.is_damaged():
        return _read(store, id, doing)  # it was added after the first look-up
    return found, []


def _facts(store: Store, sandbox: Sandbox) -> Facts:
    """Return the data on *sandbox*, with what is observed now."""
    found, past = summary_of(sandbox), list[Transition]()
    with suppress(MetadataError):  # a transition may be damaged
        past = store.history(sandbox.id)
    last = past[-1] if past else None
    if last is not None and found.state != str(last.to_state):
        last = None  # the transition to this state is not kept
    creation = sandbox._entry.row.creation  # noqa: SLF001 - the command line observes as the store
    seen = reconcile.decide_on(session_of(store), creation)
    if seen is None:
        raise NotFoundError(f"explain sandbox {sandbox.id!r}: it has been deleted", id=sandbox.id)
    return Facts(
        id=sandbox.id,
        name=sandbox.name,
        namespace=as_text(found.namespace),
        pod=as_text(found.pod),
        state=as_text(found.state),
        pid=found.pid,
        netns_path=sandbox.netns_path,
        host_network=bool(found.host_network),
        reason=as_text(found.reason),
        message=as_text(found.message),
        exited_at=found.exited_at or 0,
        exit_status=found.exit_status,
        changed_at=seen[1].row.changed_at or 0,
        transition=last,
        writer="" if last is None else _writer(last),
        shim=_shim(past),
        observation=seen[0],
        decision=seen[1],
    )


def _facts_of_past(store: Store, id: str) -> Facts:
    """Return the data that the last transition of sandbox *id* has.

    The sandbox was deleted if that transition is a deletion; else its record cannot be read.
    """
    last = store.history(id)[-1]
    return Facts(
        id=id,
        name=last.name,
        namespace=last.namespace,
        pod=last.pod,
        state=None if last.to_state is None else str(last.to_state),
        unreadable=last.to_state is not None,
        pid=last.pid,
        reason=last.reason,
        message=last.message,
        transition=last,
        writer=_writer(last),
    )


def _shim(past: Sequence[Transition]) -> str:
    """Return the last writer of *past* with a pid but this program, and whether it still runs."""
    for found in reversed(past):
        if pid_of(found.actor) and not found.actor.startswith(f"{PROGRAM}["):
            return f"the last shim in its history is {found.actor}, and {_writer(found)}"
    return ""


def _writer(transition: Transition) -> str:
    """Return whether the process in the name of the writer still runs; "" if it has none."""
    pid = pid_of(transition.actor)
    if not pid:
        return ""
    if HostContext.current().is_other_boot(transition.boot_id):
        return "that was before the host was booted"
    found = pidfd.read_stat(pid)
    if found is None and not kernel.is_absent(pid):
        return f"whether process {pid} still runs cannot be seen"
    if found is None or found.ended:
        return f"no process {pid} runs here now"
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - found.start_time / os.sysconf("SC_CLK_TCK")
    if time.time() - age > transition.at / 1e9 + SLACK:
        return f"process {pid} has ended, and another one has its pid"
    return f"process {pid} ({file_users.program(pid).name}) still runs"


# Output.


def _text(found: Explanation) -> str:
    """Return a paragraph for each sentence, and the commands, which are not broken.

    The purpose of a command is a comment above it, so that both can be pasted into a shell.
    """
    from registry.cli.output.terminal import folded  # noqa: PLC0415 - the help does without

    lines = [folded(visible(sentence)) for sentence in found.sentences]
    if found.steps:
        lines += ["", "Next:"]
    for step in found.steps:
        lines += [folded(visible(f"  # {step.purpose}"), "  # "), f"  {visible(step.command)}"]
    return "".join(f"{line}\n" for line in lines)


def _fields(facts: Facts, found: Explanation) -> dict[str, Any]:
    """Return `FIELDS`."""
    decision, last = facts.decision, facts.transition
    fields = {name: getattr(facts, name) for name in FIELDS if hasattr(facts, name)}
    return fields | {
        "since": facts.since or None,
        "transition": None if last is None else for_programs(row_of(last)),
        "verdict": None if decision is None else decision.verdict,
        "finding": "" if decision is None else decision.message,
        "marks": decision is not None and decision.marks,
        "left": found.left,
        "sentences": found.sentences,
        "next": [step._asdict() for step in found.steps],
    }
