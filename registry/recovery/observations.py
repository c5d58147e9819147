"""Observation of the recorded objects of one sandbox: namespace, process, creator.

An observation has no side effects and holds no lock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Final

from registry.host import kernel, process
from registry.host.context import HostContext
from registry.host.inventory import HostInventory
from registry.host.namespaces import NetNSObservation, Observer, Presence
from registry.host.process import START_TIME, Liveness, ProcessObservation
from registry.model.identity import NetNSIdentity, ProcessIdentity
from registry.recovery.evidence import Evidence, Weight
from registry.recovery.verdicts import Observation, names_other_boot, recorded_here
from registry.tables.rows import AnyRow, Row, load_creator, load_netns, load_process

SLACK: Final = 1.0
"""Seconds by which a recorded start time must exceed the age of this boot to prove a reboot."""


def observe(
    row: AnyRow,
    inventory: HostInventory,
    observer: Observer,
    container: ProcessObservation | None,
) -> Observation:
    """Observe the sandbox of *row*, which must not be damaged.

    Args:
        row: row as read.
        inventory: inventory of the host.
        observer: observer of the namespaces of all sandboxes.
        container: answer of the attached container; None if there is none.
    """
    context = inventory.context
    recorded = load_process(row)
    init = None if recorded is None else process.observe(recorded, context)
    netns = None
    if row.netns_path and not row.host_network:
        netns = observer.observe(row.netns_path)
    observation = Observation(netns, container or init, attached=container is not None)
    creator = load_creator(row) if isinstance(row, Row) else None
    if creator is not None:
        observation = observation._replace(creator=process.observe(creator, context))
    if netns is not None and not _is_certain(row, netns):
        observation = _observe_where_it_lives(observation, row, netns, context)
    if names_other_boot(row, context):
        evidence = tuple(_evidence(row, observation, init, inventory))
        observation = observation._replace(evidence=evidence)
    return observation


def _is_certain(row: AnyRow, netns: NetNSObservation) -> bool:
    """Return whether the namespace at the path is the recorded one, by its kernel id."""
    number = row.netns_number
    return number is not None and netns.identity is not None and netns.identity.number == number


def _observe_where_it_lives(
    observation: Observation, row: AnyRow, netns: NetNSObservation, context: HostContext
) -> Observation:
    """Add the network namespace of the recorded process, if the path does not show it."""
    recorded = load_netns(row)
    if recorded is None or row.pid == 0:
        return observation
    if netns.identity is not None:
        if recorded.same_as(netns.identity):
            return observation
        at_path = process.net_inode_of(row.pid) == netns.identity.inode
        observation = observation._replace(lives_at_path=at_path)
    if netns.presence is Presence.UNSEEN or not recorded_here(row, context):
        observation = observation._replace(lives_in_netns=_lives_in_netns(row))
    return observation


def _lives_in_netns(row: AnyRow) -> bool:
    number = row.netns_number
    return number is not None and process.net_namespace_of(row.pid) == number


def _evidence(
    row: AnyRow, observation: Observation, init: ProcessObservation | None, inventory: HostInventory
) -> Iterator[Evidence]:
    """Yield the evidence for and against a reboot.

    Args:
        row: row as read.
        observation: observation of the sandbox.
        init: observation of the recorded process, whatever an attached container answers.
        inventory: inventory of the host.
    """
    answer = observation.process if observation.attached else None
    if answer is not None and answer.liveness is Liveness.RUNNING:
        yield Evidence("", Weight.SAME, answer.detail)
    recorded, netns_recorded = load_process(row), load_netns(row)
    if recorded is not None and init is not None:
        yield from process_evidence(recorded, init, inventory)
    if netns_recorded is not None:
        yield from netns_evidence(netns_recorded, observation.netns, inventory)
    creator = load_creator(row) if isinstance(row, Row) else None
    if creator is not None and observation.creator is not None:
        yield from process_evidence(creator, observation.creator, inventory)


def process_evidence(
    identity: ProcessIdentity, observed: ProcessObservation, inventory: HostInventory
) -> Iterator[Evidence]:
    """Yield the evidence of a process; *observed* is the result of `process.observe`."""
    context, boot_id = inventory.context, identity.boot_id
    runs, other = observed.liveness is Liveness.RUNNING, context.is_other_boot(boot_id)
    if runs and (START_TIME in observed.matched or not other):
        yield Evidence(boot_id, Weight.SAME, observed.detail)
    if not other:
        return
    if runs:
        yield Evidence(boot_id, Weight.MAYBE, observed.detail)
    elif _started_later(identity, context):
        text = f"process {identity.pid} had started later after its boot than this boot is old"
        yield Evidence(boot_id, Weight.OVER, text)
    if observed.liveness is Liveness.UNSEEN and _may_live_here(identity, context):
        yield Evidence(boot_id, Weight.MAYBE, observed.detail)
    if inventory.has("pid", identity.pid_ns):
        yield Evidence(boot_id, Weight.MAYBE, f"pid namespace {identity.pid_ns} still exists")
    elif _is_hidden(identity, context):
        text = f"process {identity.pid} was recorded outside of our pid namespace"
        yield Evidence(boot_id, Weight.MAYBE, text)


def _started_later(identity: ProcessIdentity, context: HostContext) -> bool:
    """Return whether the process started later after its boot than this boot is old."""
    if identity.start_time is None or identity.time_ns != context.time_ns:
        return False
    age = time.clock_gettime(time.CLOCK_BOOTTIME) + SLACK
    return identity.start_time > age * os.sysconf("SC_CLK_TCK")


def _may_live_here(identity: ProcessIdentity, context: HostContext) -> bool:
    """Return whether the process with the pid may be the recorded one, which was UNSEEN.

    From another time namespace the start time cannot be compared, and the pidfd inode can.
    """
    if identity.pid_ns not in {None, context.pid_ns}:
        return False
    comparable = identity._replace(time_ns=context.time_ns, start_time=None)
    if identity.time_ns in {None, context.time_ns}:
        comparable = identity
    return process.observe(comparable, context).liveness is not Liveness.GONE


def _is_hidden(identity: ProcessIdentity, context: HostContext) -> bool:
    """Return whether the process is one of the host, which a container cannot see."""
    recorded = identity.pid_ns
    of_host = recorded is not None and kernel.may_be_initial(recorded)
    return of_host and recorded != context.pid_ns and not context.in_initial_pid_ns


def netns_evidence(
    recorded: NetNSIdentity, observed: NetNSObservation | None, inventory: HostInventory
) -> Iterator[Evidence]:
    """Yield the evidence of a network namespace; *observed* is the observation of its path."""
    boot_id, other = recorded.boot_id, inventory.context.is_other_boot(recorded.boot_id)
    if observed is not None and observed.identity and recorded.same_as(observed.identity):
        weight = Weight.MAYBE if other else Weight.SAME
        yield Evidence(boot_id, weight, f"{observed.detail}, the recorded one")
    if not other:
        return
    if observed is not None and observed.presence is Presence.UNSEEN:
        yield Evidence(boot_id, Weight.MAYBE, observed.detail)
    if inventory.has_netns(recorded):
        yield Evidence(boot_id, Weight.MAYBE, f"network namespace {recorded.number} still exists")
    if inventory.has("mnt", recorded.mount_ns):
        yield Evidence(boot_id, Weight.MAYBE, f"mount namespace {recorded.mount_ns} still exists")
