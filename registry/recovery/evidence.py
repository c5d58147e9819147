"""Evidence for and against a reboot of the host.

A boot id that is not ours proves no reboot: containers (LXC, nspawn) show an id of their own, and a
mount may hide the host's. So it is weighed against everything else that is observed.

1. The recorded process, known by its start time, still runs: the host was not booted since.
2. A recorded process started later after its boot than this boot is old: the host was booted since.
3. Something exists that may be the recorded one: a process that cannot be compared, or a namespace
   with the recorded kernel id. Pids and kernel ids start again on each boot, so this may be chance.
   It counts unless 2 holds, since what cannot be told is not called dead.

What holds for one sandbox holds for all that were recorded under the same boot id.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import Enum
from functools import cached_property
from typing import Final, NamedTuple

from registry.host import kernel, namespaces, process
from registry.host.context import HostContext
from registry.host.namespaces import NetNSObservation, Presence
from registry.host.process import START_TIME, Liveness, ProcessObservation
from registry.model.identity import NetNSIdentity, ProcessIdentity
from registry.sync.interrupts import reraise_interrupt

SLACK: Final = 1.0
"""Seconds by which a start time must be later than this boot is old."""


class Weight(Enum):
    """Conclusion from an observation about the boot under whose id something was recorded."""

    SAME = "it is this boot"
    MAYBE = "it may be this boot"
    OVER = "it is over"


class Evidence(NamedTuple):
    """One observation of something that was recorded under *boot_id*."""

    boot_id: str
    weight: Weight
    text: str


class HostInventory:
    """Inventory of this host; each part is observed once, when it is first asked for."""

    def __init__(self, context: HostContext) -> None:
        """Observe from *context*."""
        self.context: Final = context

    @cached_property
    def uptime(self) -> float:
        """Clock ticks since the boot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")

    def has(self, kind: str, number: int | None) -> bool:
        """Return whether the namespace of *kind* (`pid` or `mnt`) with that kernel id exists.

        An initial namespace does not count, and an inode never does: they recur on every boot.
        """
        if number is None or kernel.recurs(number):
            return False
        return number in self._numbers[kind]

    def has_netns(self, recorded: NetNSIdentity) -> bool:
        """Return whether the network namespace *recorded*, whatever its boot, exists anywhere."""
        if recorded.number is None or recorded.inode in kernel.INITIAL_INODES:
            return False
        exists = kernel.namespace_exists(recorded.number, kernel.CLONE_NEWNET, recorded.inode)
        if exists is not None:
            return exists
        path = self._paths["net"].get(recorded.inode)
        found = None if path is None else namespaces.observe(path, self.context).identity
        return found is not None and found.number == recorded.number

    @cached_property
    def _numbers(self) -> dict[str, set[int]]:
        """Kernel ids of the namespaces in which processes live, by kind."""
        return {kind: set(_numbers_at(self._paths[kind])) for kind in ("pid", "mnt")}

    @cached_property
    def _paths(self) -> dict[str, dict[int, str]]:
        """A path of each namespace in which a process lives that can be seen, by kind and inode."""
        found: dict[str, dict[int, str]] = {"pid": {}, "mnt": {}, "net": {}}
        for pid in _processes():
            for kind, paths in found.items():
                path = f"/proc/{pid}/ns/{kind}"
                try:
                    paths.setdefault(os.stat(path).st_ino, path)
                except OSError as error:  # it has ended, or is not ours to see
                    reraise_interrupt(error)
        return found


def _processes() -> list[str]:
    try:
        return [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError as error:
        reraise_interrupt(error)
        return []


def _numbers_at(paths: Mapping[int, str]) -> Iterator[int]:
    """Yield the kernel ids of the namespaces at *paths*, by inode, but for the initial ones."""
    for inode, path in paths.items():
        number = None if inode in kernel.INITIAL_INODES else kernel.namespace_number_at(path)
        if number is not None:
            yield number


def process_evidence(
    identity: ProcessIdentity, observed: ProcessObservation, inventory: HostInventory
) -> Iterator[Evidence]:
    """Yield what is observed of a process, as `process.observe` has seen it."""
    context, boot_id = inventory.context, identity.boot_id
    runs, other = observed.liveness is Liveness.RUNNING, context.is_other_boot(boot_id)
    if runs and (START_TIME in observed.matched or not other):
        yield Evidence(boot_id, Weight.SAME, observed.detail)
    if not other:
        return
    if runs:
        yield Evidence(boot_id, Weight.MAYBE, observed.detail)
    elif _started_later(identity, inventory):
        text = f"process {identity.pid} had started later after the boot than it is now"
        yield Evidence(boot_id, Weight.OVER, text)
    if observed.liveness is Liveness.UNSEEN and _may_live_here(identity, context):
        yield Evidence(boot_id, Weight.MAYBE, observed.detail)
    if inventory.has("pid", identity.pid_ns):
        yield Evidence(boot_id, Weight.MAYBE, f"pid namespace {identity.pid_ns} still exists")
    elif _is_hidden(identity, context):
        text = f"process {identity.pid} was recorded outside of our pid namespace"
        yield Evidence(boot_id, Weight.MAYBE, text)


def _started_later(identity: ProcessIdentity, inventory: HostInventory) -> bool:
    """Return whether the process started later after its boot than this boot is old."""
    if identity.start_time is None or identity.time_ns != inventory.context.time_ns:
        return False
    return identity.start_time > inventory.uptime + SLACK * os.sysconf("SC_CLK_TCK")


def _may_live_here(identity: ProcessIdentity, context: HostContext) -> bool:
    """Return whether what has the pid may be the recorded process, which could not be seen.

    From another time namespace the start time cannot be compared, and the pidfd inode can.
    """
    if identity.pid_ns not in {None, context.pid_ns}:
        return False
    comparable = identity._replace(time_ns=context.time_ns, start_time=None)
    if identity.time_ns in {None, context.time_ns}:
        comparable = identity
    return process.observe(comparable, context).liveness is not Liveness.GONE


def _is_hidden(identity: ProcessIdentity, context: HostContext) -> bool:
    """Return whether it is a process of the host, whose processes a container cannot see."""
    recorded = identity.pid_ns
    of_host = recorded is not None and kernel.may_be_initial(recorded)
    return of_host and recorded != context.pid_ns and not context.in_initial_pid_ns


def netns_evidence(
    recorded: NetNSIdentity, observed: NetNSObservation | None, inventory: HostInventory
) -> Iterator[Evidence]:
    """Yield what is observed of a network namespace; *observed*: of the recorded path."""
    boot_id, other = recorded.boot_id, inventory.context.is_other_boot(recorded.boot_id)
    if observed is not None and observed.identity and recorded.same_as(observed.identity):
        yield Evidence(
            boot_id, Weight.MAYBE if other else Weight.SAME, f"{observed.detail}, the recorded one"
        )
    if not other:
        return
    if observed is not None and observed.presence is Presence.UNSEEN:
        yield Evidence(boot_id, Weight.MAYBE, observed.detail)
    if inventory.has_netns(recorded):
        yield Evidence(boot_id, Weight.MAYBE, f"network namespace {recorded.number} still exists")
    if inventory.has("mnt", recorded.mount_ns):
        yield Evidence(boot_id, Weight.MAYBE, f"mount namespace {recorded.mount_ns} still exists")


class BootEvidence:
    """Sum of all evidence about the boots under whose ids sandboxes were recorded."""

    def __init__(self, evidence: Iterable[Evidence]) -> None:
        """Weigh *evidence*, of all sandboxes; one of each weight is kept for a boot id."""
        self._texts: Final[dict[tuple[str, Weight], str]] = {}
        for each in evidence:
            self._texts.setdefault((each.boot_id, each.weight), each.text)

    def against_reboot(self, boot_ids: Collection[str], own: Collection[Evidence]) -> str:
        """Return what contradicts that the host was booted since; "" if nothing does.

        Args:
            boot_ids: under which one sandbox was recorded, other than ours.
            own: the evidence of that sandbox.
        """
        same = self._told(boot_ids, own, Weight.SAME)
        if same or any((boot_id, Weight.OVER) in self._texts for boot_id in boot_ids):
            return same
        return self._told(boot_ids, own, Weight.MAYBE)

    def _told(self, boot_ids: Collection[str], own: Collection[Evidence], weight: Weight) -> str:
        texts = [each.text for each in own if each.weight is weight]
        texts = texts or [
            f"under the same boot id was recorded: {self._texts[boot_id, weight]}"
            for boot_id in boot_ids
            if (boot_id, weight) in self._texts
        ]
        return "; ".join(dict.fromkeys(texts))
