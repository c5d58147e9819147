"""Values that one scrape reads of a registry: one snapshot of the file, and sizes beside it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, NamedTuple

from registry.engine import Connection, Deadline
from registry.engine.disk_reserve import SIZES
from registry.errors import RegistryError, UnavailableError
from registry.handles.session import Session
from registry.host import file_locks, paths
from registry.metrics.table import NAMESPACES, OTHER, REASONS
from registry.model.status import State
from registry.sync import threads
from registry.sync.imports import late_import
from registry.sync.interrupts import reraise_interrupt
from registry.tables import sql
from registry.tables.incarnation import Incarnation
from registry.tables.rows import as_text
from registry.tables.version import BLOCK
from registry.visible import visible

DOING: Final = "read metrics"
AGAIN: Final = 0.05
"""Seconds after which a scrape that is over its time is interrupted again."""
STATES: Final = tuple(map(str, State))
NOTREADY: Final = str(State.NOTREADY)


class Reading(NamedTuple):
    """Values of one snapshot.

    Attributes:
        sandboxes: number of sandboxes by state and namespace.
        not_ready: number of NOTREADY sandboxes by reason.
        oldest: by state, the time since which the first of its sandboxes is in it, in ns since the
            Unix epoch.
        incarnation: number of the incarnation.
        transitions: number of transitions in it.
        level: of the schema.
        violations: by rule; None: not checked.
    """

    sandboxes: dict[tuple[str, str], int]
    not_ready: dict[str, int]
    oldest: dict[str, int]
    incarnation: int
    transitions: int
    level: int
    violations: dict[str, int] | None


class Files(NamedTuple):
    """Values of the files beside the database."""

    wal_bytes: int
    wal_readers: int
    """Processes whose snapshots keep the WAL from being reset."""
    reserve_is_whole: bool

    @classmethod
    def read(cls, path: str) -> Files:
        """Return the values for the database at *path*."""
        return cls(
            paths.estimated_size(f"{path}-wal"),
            len(file_locks.snapshot_holders(path)),
            all(paths.estimated_size(path + suffix) == size for suffix, size in SIZES.items()),
        )


def read(session: Session, seconds: float, *, check: bool) -> Reading:
    """Return the values of the latest commit.

    Args:
        session: of the store.
        seconds: that it may take, waits included.
        check: whether the invariants are checked, too.
    Raises:
        UnavailableError: it took longer.
        RegistryError: the registry cannot be read.
    """
    session.require_open(DOING)
    with _snapshot(session, seconds) as connection:
        kinds = connection.fetch(sql.COUNTS)
        line = Incarnation.read(connection.fetch)
        ((level, *_),) = connection.fetch(sql.VERSION)
        violations = _violations(connection) if check else None
    return Reading(
        *_by_label(kinds),
        incarnation=line.number,
        transitions=line.last_seq % BLOCK,
        level=level,
        violations=violations,
    )


def _by_label(
    kinds: Iterable[tuple[object, object, object, int, object]],
) -> tuple[dict[tuple[str, str], int], dict[str, int], dict[str, int]]:
    """Return the numbers by state and namespace and by reason, and the oldest time by state.

    Args:
        kinds: namespace, state, reason, number of sandboxes, oldest time; of each kind.
    """
    rows = [
        (_label(namespace), str(state) if state in STATES else OTHER, _label(reason), count, since)
        for namespace, state, reason, count, since in kinds
    ]
    namespaces, reasons = Counter[str](), Counter[str]()
    for namespace, state, reason, count, _ in rows:
        namespaces[namespace] += count
        if state == NOTREADY:
            reasons[reason] += count
    named, explained = _largest(namespaces, NAMESPACES), _largest(reasons, REASONS)
    sandboxes = Counter({(state, name): 0 for name in named or {""} for state in STATES})
    not_ready, oldest = Counter[str](), dict[str, int]()
    for namespace, state, reason, count, since in rows:
        sandboxes[state, namespace if namespace in named else OTHER] += count
        if state == NOTREADY:
            not_ready[reason if reason in explained else OTHER] += count
        if isinstance(since, int):  # damaged: another type
            oldest[state] = min(oldest.get(state, since), since)
    return dict(sandboxes), dict(not_ready), oldest


def _label(value: object) -> str:
    """Return a column as the value of a label, with escapes for bytes that are not UTF-8."""
    return visible(as_text(value))


def _largest(counts: Counter[str], most: int) -> set[str]:
    """Return the *most* names with the largest counts; of equal ones the first by name."""
    return set(sorted(counts, key=lambda name: (-counts[name], name))[:most])


def _violations(connection: Connection) -> dict[str, int]:
    """Return the number of violations of each rule, those without one included."""
    with late_import("registry.tables.integrity"):
        from registry.tables import integrity  # noqa: PLC0415 - a scrape rarely checks

    found = Counter({rule.__name__: 0 for rule in integrity.RULES})
    found.update(violation.rule for violation in integrity.run(connection))
    return dict(found)


@contextmanager
def _snapshot(session: Session, seconds: float) -> Iterator[Connection]:
    """Lend a snapshot of the latest commit, whose queries are interrupted after *seconds*.

    Raises:
        UnavailableError: they took longer.
    """
    path = session.engine.path
    limit = _Limit(seconds)
    try:
        with Deadline(path, seconds), session.engine.committed(DOING) as connection:
            limit.begin(connection)
            try:
                yield connection
            finally:
                limit.end()
    except RegistryError as error:
        reraise_interrupt(error)
        if not limit.has_passed:
            raise
        raise UnavailableError(
            f"{DOING} of {path!r}: timed out after {seconds:g} s; allow the scrape more time",
            path=path,
            timeout=seconds,
        ) from error


class _Limit:
    """Thread that interrupts the queries of a connection once their time has passed."""

    def __init__(self, seconds: float) -> None:
        self._seconds: Final = seconds
        self._guard: Final = threading.Lock()
        self._ended: Final = threading.Event()
        self.has_passed = False

    def begin(self, connection: Connection) -> None:
        """Start the thread; call `end` before *connection* is given back."""
        threads.start(partial(self._run, connection))

    def end(self) -> None:
        """Interrupt nothing any more; idempotent."""
        with self._guard:
            self._ended.set()

    def _run(self, connection: Connection) -> None:
        wait = self._seconds
        while not self._ended.wait(wait):
            with self._guard:
                if not self._ended.is_set():
                    self.has_passed = True
                    connection.interrupt()
            wait = AGAIN  # no query may have been running
