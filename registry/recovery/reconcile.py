"""Reconcile: read all sandboxes, observe them, decide, and mark in one transaction.

No lock is held while the host is observed. A sandbox that another process changes between the
observation and the transaction is observed and decided on again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from registry.errors import (
    FailedPreconditionError,
    MetadataError,
    ResourceExhaustedError,
)
from registry.handles.runtime_state import Container
from registry.handles.sandbox import Sandbox
from registry.handles.session import Session
from registry.host import process
from registry.host.context import HostContext
from registry.host.inventory import HostInventory
from registry.host.namespaces import Observer
from registry.host.process import Liveness, ProcessObservation
from registry.model.status import State
from registry.recovery import observations, verdicts
from registry.recovery.evidence import Evidence
from registry.recovery.findings import Report, Verdict
from registry.recovery.observations import process_evidence
from registry.recovery.orphans import find_orphans
from registry.recovery.verdicts import Decision, Observation
from registry.sync.interrupts import is_interrupt, reraise_interrupt
from registry.tables import rows, sql, writes
from registry.tables.rows import AnyRow, Row, StatusRow

log = logging.getLogger("registry")

ROUNDS: Final = 5
"""Number of times that a sandbox is observed while other processes keep changing it."""

PORTION: Final = 50
"""Sandboxes marked per transaction if the disk has no space for all of them at once."""

ContainerLoader = Callable[[Sandbox], Container | None]


def load_containers(session: Session, loader: ContainerLoader) -> None:
    """Attach the container that *loader* returns to each sandbox; one failure stops no other."""
    with session.snapshot("load containers") as fetch:
        found = fetch(sql.ROWS, {})
    for row in found:
        sandbox = Sandbox(session, session.entry(Row(*row)))
        try:
            sandbox.attach(loader(sandbox))
        except Exception as error:
            if is_interrupt(error):
                raise
            log.exception(
                "load container of sandbox %r",
                sandbox.id,
                extra={
                    "event": "container_not_loaded",
                    "path": session.engine.path,
                    "sandbox_id": sandbox.id,
                },
            )


def run(session: Session, registry_id: str, *, dry_run: bool) -> Report:
    """Observe every sandbox, mark those that are gone unless *dry_run*, and report."""
    doing = "reconcile"
    inventory = HostInventory(HostContext.current())
    commit = session.latest_commit(doing)
    with session.snapshot(doing) as fetch:
        pending: Iterable[AnyRow] = _AsRead(
            unknown=fetch(sql.UNKNOWNS, {}), others=fetch(sql.PAST_UNKNOWN, {})
        )
    directories: set[str] = set()
    results = _Results({}, {}, set())
    for _ in range(ROUNDS):
        observed = _observe_all(session, pending, inventory, directories)
        evidence = _evidence_of_creators(session, inventory)
        asked = results.add(
            verdicts.decide(observed, inventory.context, session.author.clock(), evidence)
        )
        if dry_run or not asked:
            break
        marked = _mark_all(session, asked, commit, doing)
        results.apply(marked)
        if not marked.changed_meanwhile:
            break
        pending = marked.changed_meanwhile
    orphans = find_orphans(session, registry_id, directories)
    return verdicts.report(
        results.reported.values(), [*results.verdicts.values()], results.changed, orphans
    )


def decide_on(session: Session, creation: int) -> tuple[Observation, Decision] | None:
    """Observe one sandbox, and return what a reconcile would decide now.

    None: it was deleted. Nothing is written. If it was recorded under another boot id, all
    sandboxes are observed: the evidence for any of them holds for all of that boot.
    """
    doing = "observe a sandbox"
    inventory = HostInventory(HostContext.current())
    with session.snapshot(doing) as fetch:
        row = writes.find_changeable(creation, fetch)
        if row is None:
            return None
        pending: Iterable[AnyRow] = [row]
        if not rows.damage(row) and verdicts.names_other_boot(row, inventory.context):
            pending = _AsRead(unknown=fetch(sql.UNKNOWNS, {}), others=fetch(sql.PAST_UNKNOWN, {}))
    observed = list(_observe_all(session, pending, inventory, set()))
    evidence = _evidence_of_creators(session, inventory)
    decisions = verdicts.decide(observed, inventory.context, session.author.clock(), evidence)
    decision = next(each for each in decisions if each.row.creation == creation)
    return next(seen for row, seen in observed if row.creation == creation), decision


def log_report(path: str, report: Report, seconds: float, *, dry_run: bool) -> None:
    """Log the sandboxes that a reconcile has marked, and its result.

    Args:
        path: of the registry.
        report: of the reconcile.
        seconds: duration of the reconcile.
        dry_run: whether it wrote nothing.
    """
    marked = [finding for finding in report.findings if finding.changed]
    for finding in marked:
        log.info(
            "%s",
            finding,
            extra={
                "event": "sandbox_marked",
                "path": path,
                "sandbox_id": finding.sandbox_id,
                "verdict": str(finding.verdict),
                "reason": finding.reason,
            },
        )
    sandboxes = sum(report.counts.values())
    log.info(
        "reconciled %r: %d sandboxes, %d marked, %d orphans",
        path,
        sandboxes,
        len(marked),
        len(report.orphans),
        extra={
            "event": "reconciled",
            "path": path,
            "sandboxes": sandboxes,
            "marked": len(marked),
            "orphans": len(report.orphans),
            "seconds": seconds,
            "dry_run": dry_run,
        },
    )


class _Results(NamedTuple):
    """Decisions so far, by creation.

    Attributes:
        verdicts: id of each sandbox, and the verdict on it.
        reported: decisions that the report has a finding for.
        changed: creations of the sandboxes that were made NOTREADY.
    """

    verdicts: dict[int, tuple[str, Verdict]]
    reported: dict[int, Decision]
    changed: set[int]

    def add(self, decisions: Iterable[Decision]) -> list[Decision]:
        """Add *decisions*, and return those that mark a sandbox."""
        asked = []
        for decision in decisions:
            creation = decision.row.creation
            self.verdicts[creation] = rows.as_text(decision.row.id), decision.verdict
            if decision.reported:
                self.reported[creation] = decision
            else:
                self.reported.pop(creation, None)
            if decision.marks:
                asked.append(decision)
        return asked

    def apply(self, marked: _Marked) -> None:
        """Note which marks were written, which sandboxes are gone, and which marks failed."""
        for creation in marked.done:
            if self.reported[creation].row.state != str(State.NOTREADY):
                self.changed.add(creation)
        for creation in marked.gone:
            del self.reported[creation], self.verdicts[creation]
        for creation, why in marked.refused.items():
            decision = self.reported[creation]
            message = f"{decision.message}; it could not be marked: {why}"
            self.reported[creation] = decision._replace(message=message)


@dataclass(frozen=True, slots=True)
class _AsRead:
    """Rows as SQLite returned them; each becomes a named tuple when it is iterated.

    The garbage collector does not track plain tuples of plain values. It would traverse tens of
    thousands of named tuples again and again.
    """

    unknown: list[tuple[Any, ...]]
    others: list[tuple[Any, ...]]

    def __iter__(self) -> Iterator[AnyRow]:
        yield from map(Row._make, self.unknown)
        yield from map(StatusRow._make, self.others)


def _observe_all(
    session: Session,
    pending: Iterable[AnyRow],
    inventory: HostInventory,
    directories: set[str],
) -> Iterator[tuple[AnyRow, Observation]]:
    """Yield each row with its observation, and add the directories of its namespace."""
    damaged: dict[int, str] = {}
    paths = []
    for row in pending:
        damage = rows.damage(row)
        if damage:
            damaged[row.creation] = damage
        elif row.netns_path:
            paths.append(row.netns_path)
    directories.update(map(os.path.dirname, paths))
    observer = Observer(paths, inventory.context)
    for row in pending:
        if row.creation in damaged:
            yield row, Observation(failure=f"its record is damaged: {damaged[row.creation]}")
        else:
            yield row, _observe_one(session, row, inventory, observer)


def _observe_one(
    session: Session,
    row: AnyRow,
    inventory: HostInventory,
    observer: Observer,
) -> Observation:
    try:
        container = session.container_of(row)
        return observations.observe(row, inventory, observer, _ask_container(container))
    except Exception as error:
        reraise_interrupt(error)
        log.exception(
            "observe sandbox %r",
            row.id,
            extra={
                "event": "sandbox_not_observed",
                "path": session.engine.path,
                "sandbox_id": rows.as_text(row.id),
            },
        )
        return Observation(failure=f"it could not be observed: {error!r}")


def _evidence_of_creators(session: Session, inventory: HostInventory) -> Iterator[Evidence]:
    """Yield the evidence of creators that were recorded under another boot id.

    A sandbox past UNKNOWN has no verdict by its creator, which is evidence about its boot all the
    same.
    """
    for row in session.fetch(sql.CREATORS, {}, "read creators"):
        creator = rows.creator_of(row)
        if creator is not None and inventory.context.is_other_boot(creator.boot_id):
            observed = process.observe(creator, inventory.context)
            yield from process_evidence(creator, observed, inventory)


def _ask_container(container: Container | None) -> ProcessObservation | None:
    """Return the answer of an attached container, which takes precedence over /proc."""
    if container is None:
        return None
    name = f"container {getattr(container, 'id', '?')!r}"
    try:
        pid = container.pid()
    except Exception as error:  # code of the embedder may raise anything
        if is_interrupt(error):
            raise
        return ProcessObservation(Liveness.UNSEEN, f"{name} does not answer: {error!r}")
    if pid is None:
        return ProcessObservation(Liveness.GONE, f"{name} has no task")
    return ProcessObservation(Liveness.RUNNING, f"{name} runs as process {pid}")


class _Marked(NamedTuple):
    """Outcome of marks, by creation.

    Attributes:
        done: sandboxes that are marked.
        changed_meanwhile: latest rows of sandboxes that another process has changed.
        gone: sandboxes that were deleted.
        refused: sandboxes that could not be marked, with the cause: a value that another program
            has written, or a full disk.
    """

    done: set[int]
    changed_meanwhile: list[AnyRow]
    gone: set[int]
    refused: dict[int, str]

    def add(self, other: _Marked) -> None:
        """Add the outcome of further marks."""
        self.done.update(other.done)
        self.changed_meanwhile.extend(other.changed_meanwhile)
        self.gone.update(other.gone)
        self.refused.update(other.refused)


def _mark_all(session: Session, asked: list[Decision], commit: int | None, doing: str) -> _Marked:
    """Mark all of *asked* in one transaction, or in portions if the disk is too full for that.

    A portion that does not fit either stays unmarked, which the report says.
    """
    marked, left = _Marked(set(), [], set(), {}), asked
    size = PORTION if session.is_space_low() else len(asked)
    while left:
        portion = left[:size]
        try:
            marked.add(_mark(session, portion, commit, doing))
        except ResourceExhaustedError as error:
            if session.engine.own_transaction() is not None:
                raise  # SQLite may have ended it
            if size > PORTION:
                size = PORTION
                continue
            marked.refused.update((decision.row.creation, str(error)) for decision in portion)
        left = left[size:]
    return marked


def _mark(session: Session, asked: list[Decision], commit: int | None, doing: str) -> _Marked:
    """Mark all of *asked*, which were read when *commit* was the latest one."""
    marked = _Marked(set(), [], set(), {})
    nested = session.engine.own_transaction() is not None  # its changes are not committed yet
    with session.write(doing, exclusive=True) as transaction:
        session.require_space_to_mark(doing)
        as_read = not nested and commit is not None and session.latest_commit(doing) == commit
        for decision in asked:
            row: AnyRow | None = decision.row
            creation = decision.row.creation
            if not as_read:
                row = writes.find_changeable(creation, transaction.fetch)
            if row is None:
                marked.gone.add(creation)
            elif row != decision.row:
                marked.changed_meanwhile.append(row)
            else:
                try:
                    status = decision.applied_to(rows.load_status(row))
                    session.replace_status(transaction, row, status)
                except (ValueError, MetadataError, FailedPreconditionError) as error:
                    # The row has no text, no state, or contradicts the schema: only this sandbox
                    # stays unmarked.
                    log.warning(
                        "mark sandbox %r: %s",
                        row.id,
                        error,
                        extra={
                            "event": "sandbox_not_marked",
                            "path": session.engine.path,
                            "sandbox_id": rows.as_text(row.id),
                            "verdict": str(decision.verdict),
                            "error": type(error).__name__,
                        },
                    )
                    marked.refused[creation] = str(error)
                else:
                    marked.done.add(creation)
    return marked
