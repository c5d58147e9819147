"""Finding out, on this host, what became of the sandboxes, and writing it down.

What a look means is judged in `reconcile`. Here is the rest: containers, the transaction that marks
what is gone, and namespaces that nobody owns.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from registry.errors import (
    FailedPreconditionError,
    MetadataError,
    NetNSError,
    ResourceExhaustedError,
)
from registry.handles.runtime_state import Container
from registry.handles.sandbox import Sandbox
from registry.handles.session import Session
from registry.host import namespaces, netns, process
from registry.host.context import HostContext
from registry.host.namespaces import Observer
from registry.host.process import Liveness, ProcessObservation
from registry.model.identity import NetNSIdentity
from registry.recovery import verdicts
from registry.recovery.evidence import Evidence, HostInventory, process_evidence
from registry.recovery.verdicts import Decision, Observation, Report, Verdict
from registry.sync.interrupts import is_interrupt, reraise_interrupt
from registry.tables import rows, sql, writes
from registry.tables.rows import AnyRow, Row, StatusRow

log = logging.getLogger("registry")

ROUNDS: Final = 5
"""How often a sandbox that others keep changing is looked at again."""

PORTION: Final = 50
"""Sandboxes that are marked at a time when not all of them fit on the disk at once."""

ContainerLoader = Callable[[Sandbox], Container | None]


def load_containers(session: Session, loader: ContainerLoader) -> None:
    """Give each sandbox the container that *loader* knows; one failure does not stop the rest."""
    with session.reading("load containers") as reading:
        found = reading.fetch(sql.ROWS, {})
    for row in found:
        sandbox = Sandbox(session, session.entry(Row(*row), reading.watermark))
        try:
            sandbox.attach(loader(sandbox))
        except Exception as error:
            if is_interrupt(error):
                raise
            log.exception("load container of sandbox %r", sandbox.id)


def run(session: Session, registry_id: str, *, dry_run: bool) -> Report:
    """Look at every sandbox, mark what is gone unless *dry_run*, and report.

    What somebody else changed between the look and the mark is looked at again.
    """
    doing = "reconcile"
    context = HostContext.current()
    commit = session.latest_commit(doing)
    with session.reading(doing) as reading:
        pending: Iterable[AnyRow] = _AsRead(
            unknown=reading.fetch(sql.UNKNOWNS, {}),
            others=reading.fetch(sql.PAST_UNKNOWN, {}),
        )
    directories: set[str] = set()
    found: dict[int, Verdict] = {}
    judged: dict[int, Decision] = {}
    changed: set[int] = set()
    inventory = HostInventory(context)
    for _ in range(ROUNDS):
        observed = _observe_all(session, pending, inventory, reading.watermark, directories)
        evidence = _evidence_of_creators(session, inventory)
        asked = []
        for decision in verdicts.decide(observed, context, session.author.clock(), evidence):
            creation = decision.row.creation
            found[creation] = decision.verdict
            if decision.reported:
                judged[creation] = decision
            else:  # of which there are many
                judged.pop(creation, None)
            if decision.marks:
                asked.append(decision)
        if dry_run or not asked:
            break
        marked = _mark_all(session, asked, commit, doing)
        changed |= marked.done
        for creation in marked.gone:
            del judged[creation], found[creation]
        for creation, why in marked.refused.items():
            message = f"{judged[creation].message}; it could not be marked: {why}"
            judged[creation] = judged[creation]._replace(message=message)
        if not marked.changed_meanwhile:
            break
        pending = marked.changed_meanwhile
    orphans = find_orphans(session, registry_id, directories)
    return verdicts.report(judged.values(), found.values(), changed, orphans)


@dataclass(frozen=True, slots=True)
class _AsRead:
    """All rows as SQLite gave them, each of which is named when its turn comes.

    The garbage collector leaves plain tuples of plain values alone, and only those: through tens of
    thousands of named ones it would go again and again.
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
    watermark: int,
    directories: set[str],
) -> Iterator[tuple[AnyRow, Observation]]:
    """Yield each row with what is observed of it; add the directories of namespaces."""
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
            yield row, _observe_one(session, row, inventory, observer, watermark)


def _observe_one(
    session: Session,
    row: AnyRow,
    inventory: HostInventory,
    observer: Observer,
    watermark: int,
) -> Observation:
    try:
        container = session.container_of(row, watermark)
        return verdicts.observe(row, inventory, observer, _observe_container(container))
    except Exception as error:
        reraise_interrupt(error)
        log.exception("look at sandbox %r", row.id)
        return Observation(failure=f"it could not be observed: {error!r}")


def _evidence_of_creators(session: Session, inventory: HostInventory) -> Iterator[Evidence]:
    """Yield what is observed of the creators that were recorded under another boot id.

    A sandbox past UNKNOWN is not judged by its creator, which tells of its boot all the same.
    """
    for row in session.fetch(sql.CREATORS, {}, "read creators"):
        creator = rows.creator_of(row)
        if creator is not None and inventory.context.is_other_boot(creator.boot_id):
            yield from process_evidence(
                creator, process.observe(creator, inventory.context), inventory
            )


def _observe_container(container: Container | None) -> ProcessObservation | None:
    """Return what an attached container says of its process: its word goes before /proc."""
    if container is None:
        return None
    name = f"container {getattr(container, 'id', '?')!r}"
    try:
        pid = container.pid()
    except Exception as error:  # the embedder's code may raise anything
        if is_interrupt(error):
            raise
        return ProcessObservation(Liveness.UNSEEN, f"{name} says nothing: {error!r}")
    if pid is None:
        return ProcessObservation(Liveness.GONE, f"{name} has no task")
    return ProcessObservation(Liveness.RUNNING, f"{name} runs as process {pid}")


class _Marked(NamedTuple):
    """What became of the changes that were asked for; creations."""

    done: set[int]
    changed_meanwhile: list[AnyRow]
    gone: set[int]
    refused: dict[int, str]
    """Why, where what a stranger has left in a row stands in the way, or the disk is full."""

    def add(self, other: _Marked) -> None:
        """Take in what became of others."""
        self.done.update(other.done)
        self.changed_meanwhile.extend(other.changed_meanwhile)
        self.gone.update(other.gone)
        self.refused.update(other.refused)


def _mark_all(session: Session, asked: list[Decision], commit: int | None, doing: str) -> _Marked:
    """Mark all of *asked* in one transaction, or in portions where the disk is too full for that.

    What does not fit even so is left as it is, and is in the report.
    """
    marked, left = _Marked(set(), [], set(), {}), asked
    size = PORTION if session.engine.writer.disk_space.is_low() else len(asked)
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
    """Mark all of *asked*, which were read after *commit* was the latest one."""
    marked = _Marked(set(), [], set(), {})
    nested = session.engine.own_transaction() is not None  # what it has done is in no commit
    with session.write(doing, exclusive=True) as transaction:
        session.engine.writer.disk_space.require_to_mark(doing)
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
                    writes.replace_status(transaction, row, status, session.author)
                except (ValueError, MetadataError, FailedPreconditionError) as error:
                    # It is no text, no state, or against the schema: this one is left as it is,
                    # and the others are not.
                    log.warning("mark sandbox %r: %s", row.id, error)
                    marked.refused[creation] = str(error)
                else:
                    session.stop(creation)
                    marked.done.add(creation)
    return marked


def find_orphans(session: Session, registry_id: str, directories: Iterable[str]) -> list[str]:
    """Return the paths of this registry's namespaces that no sandbox owns.

    Args:
        session: of the registry.
        registry_id: by which its namespaces are named.
        directories: to search beside /run/netns.
    """
    searched = [netns.BASE_DIR, *sorted(set(filter(os.path.isabs, directories)))]
    return _orphans(session, verdicts.find_namespaces(registry_id, searched))


def _orphans(session: Session, found: list[str]) -> list[str]:
    """Return those of *found*, which carry this registry's own names, that no sandbox owns."""
    if not found:
        return []
    # Read after the names were: a sandbox is added before its namespace is made.
    owned = session.fetch(sql.NETNS_PATHS, {}, "find orphans")
    return verdicts.find_orphans(found, [rows.as_text(path) for (path,) in owned])


def remove_orphans(session: Session, registry_id: str, paths: Iterable[str]) -> list[str]:
    """Remove those of *paths* that are orphans still, and return them.

    Raises:
        NetNSError: of the first that cannot be removed, after the others were.
    """
    removed, errors = [], []
    wanted = [path for path in sorted(set(paths)) if netns.is_own_path(path, registry_id)]
    with session.write("remove orphaned network namespaces", exclusive=True):
        for path in _orphans(session, wanted):
            try:
                if _remove_orphan(path):
                    removed.append(path)
            except NetNSError as error:
                errors.append(error)
    if errors:
        raise errors[0]
    return removed


def _remove_orphan(path: str) -> bool:
    """Remove the namespace at *path*, unless it is gone; return whether it was there.

    A copy of a registry, a backup say, takes for an orphan what the original has made after it.

    Raises:
        NetNSError: with `.errno`; EBUSY: a process lives in it.
    """
    identity = namespaces.observe(path, HostContext.current(), follow=False).identity
    if identity is None:
        return False
    living = _living_in(path, identity)
    if living:
        raise NetNSError(
            f"remove orphaned network namespace {path!r}: process {living[0]} lives in it; end it "
            "first if it is left over, and make sure that this registry is no copy of another",
            path=path,
            errno=errno.EBUSY,
        )
    netns.remove(path, identity)
    return True


def _living_in(path: str, identity: NetNSIdentity) -> list[int]:
    try:
        return process.living_in(identity.inode)
    except OSError as error:
        reraise_interrupt(error)
        doing = f"remove orphaned network namespace {path!r}: find the processes in it"
        message = f"{doing}: {error.strerror}"
        raise NetNSError(message, path=path, errno=error.errno or 0) from error
