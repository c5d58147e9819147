"""Commands that an operator may run next on one sandbox, by the data on it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from typing import Final, NamedTuple

from registry.cli.failures import PROGRAM
from registry.cli.verbs.facts import Facts
from registry.model.status import State
from registry.recovery.findings import Verdict
from registry.recovery.verdicts import Decision

NOTREADY: Final = str(State.NOTREADY)
SERVER: Final = f"{PROGRAM} serve["
"""Beginning of the name of a server of the CRI as a writer in the history."""
NETNS_DIRECTORIES: Final = {"/run/netns", "/var/run/netns"}
"""Directories in which `ip netns` finds a namespace by its name."""


class Step(NamedTuple):
    """Command that the operator may run next, and its purpose."""

    command: str
    purpose: str


def steps_of(facts: Facts, program: str) -> Iterator[Step]:
    """Yield the commands, in the order in which they make sense; none of them is run.

    Args:
        facts: data on the sandbox.
        program: beginning of the commands, with the option that names the registry.
    """
    program, id = f"{program} ", shlex.quote(facts.id)
    decision = facts.decision
    if facts.damaged:  # it refuses every change
        yield from _rescues(facts.damaged, program)
        yield Step(f"{program}history {id}", "shows the changes of it that can be read")
        return
    if decision is not None and decision.marks:
        yield Step(f"{program}reconcile", "records this, for each sandbox that is gone")
    if decision is not None and facts.is_uncertain:
        yield Step(f"{program}why {id}", "as root on the host, sees what is hidden here")
    if decision is not None and decision.verdict is Verdict.CREATING:
        yield Step(f"{program}watch {id}", "waits for its creator")
    if decision is not None and _is_over(facts, decision):
        if SERVER in facts.shim:
            yield Step(f"crictl rmp --force {id}", "removes it by its server, with its addresses")
        yield from _removals(facts)
        how = facts.shim or f"`{program}who` shows which processes use the registry"
        yield Step(f"{program}delete {id}", f"deletes the record, if its shim is gone: {how}")
    yield Step(f"{program}history {id}", "shows every change of it")


def _rescues(path: str, program: str) -> Iterator[Step]:
    """Yield what helps with the damaged registry at *path*."""
    yield Step(f"{program}check", "shows the damage")
    paths = shlex.join([path, os.path.join(os.path.dirname(path), "salvaged.db")])
    yield Step(f"{PROGRAM} salvage {paths}", "copies what can be read to a new registry")
    yield Step(f"{program}restore BACKUP", "puts a backup in its place")


def _is_over(facts: Facts, decision: Decision) -> bool:
    """Return whether the sandbox may be removed."""
    if decision.verdict is Verdict.UNVERIFIED:
        return True
    return not facts.is_uncertain and (facts.state == NOTREADY or decision.marks)


def _removals(facts: Facts) -> Iterator[Step]:
    """Yield how to remove by hand what is left, as its shim does if it runs."""
    path = shlex.quote(facts.netns_path)
    if facts.process_runs:
        yield Step(f"kill {facts.pid}", "ends its process, if its shim is gone")
    if facts.netns_is_open:
        directory, name = os.path.split(facts.netns_path)
        by_hand = f"umount {path} && rm {path}"
        if directory in NETNS_DIRECTORIES:
            by_hand = f"ip netns delete {shlex.quote(name)}"
        yield Step(by_hand, "removes its network namespace, if its shim is gone")
