"""Registry that is pushed: a snapshot of raw rows at a time, opened read-only.

Rows are read as they are stored, not decoded: a state that a newer program has written stops
nothing. They are converted here to what PostgreSQL can store, so that both sides compare equal.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from registry.engine.commits import ThreadWaiter
from registry.engine.driver import Fetch
from registry.errors import DataLossError, RegistryError
from registry.fleet.statements import TRANSITION
from registry.fleet.text import digest, key, number, text
from registry.host.paths import identity
from registry.store import Store
from registry.tables.incarnation import Incarnation

T = TypeVar("T")
Row = tuple[Any, ...]

DOING: Final = "push the registry to the fleet"
LOOK: Final = 5.0
"""Seconds between two checks that the path still has the file that is open."""
# S608: text from constants.
_SELECT: Final = f"SELECT {', '.join(TRANSITION)} FROM sandbox_transitions"  # noqa: S608
HISTORY: Final = f"{_SELECT} WHERE seq > :after ORDER BY seq LIMIT :limit"
ONE: Final = f"{_SELECT} WHERE seq = :seq"
COUNT: Final = "SELECT count(*) FROM sandbox_transitions WHERE seq > :after"
KEPT: Final = "SELECT min(seq), max(seq) FROM sandbox_transitions"
SANDBOXES: Final = """
SELECT s.id, s.name, s.namespace, s.pod, s.uid, t.state, t.pid, s.ip, s.netns_path, t.reason,
  t.message, t.created_at, t.changed_at, coalesce(h.at, t.changed_at), t.exited_at, t.exit_status,
  s.attempt, s.host_network, s.runtime_handler
FROM sandboxes AS s JOIN sandbox_statuses AS t ON t.sandbox_id = s.id
LEFT JOIN sandbox_transitions AS h ON h.seq = (
  SELECT max(seq) FROM sandbox_transitions WHERE sandbox_id = s.id)"""
LABELS: Final = "SELECT sandbox_id, key, value FROM sandbox_labels ORDER BY sandbox_id, key"

_KEYS: Final = {"sandbox_id", "namespace", "pod", "reason"}
_OPTIONAL: Final = {"from_state", "to_state", "boot_id"}


def _required(convert: Callable[[object], str | None]) -> Callable[[object], str]:
    return lambda value: convert(value) or ""


_CONVERT: Final[tuple[Callable[[object], object], ...]] = tuple(
    (lambda value: number(value) or 0)
    if name in {"seq", "pid", "at"}
    else text
    if name in _OPTIONAL
    else _required(key if name in _KEYS else text)
    for name in TRANSITION
)
_SANDBOX_CONVERT: Final[tuple[Callable[[object], object], ...]] = (
    *(_required(key), _required(text), _required(key), _required(key)),
    *(_required(text), _required(text), lambda value: number(value) or 0),
    *(_required(text), _required(text), _required(key), _required(text)),
    *(number, number, number, number, number),
    *(lambda value: number(value) or 0, lambda value: number(value) or 0, _required(text)),
)


class Snapshot(NamedTuple):
    """One commit of the registry, as far as a batch needs it."""

    registry_id: str
    incarnation: int
    """The registry's own number; a restore increments it."""
    oldest: int
    newest: int
    """Seqs of the transitions that are kept, from *oldest* to *newest*; 0: none is."""
    at_cursor: Row | None
    """The transition at the cursor; None: it is not kept."""
    transitions: list[Row]
    """Those after the cursor, in order of seq: all, or as many as fit into a batch."""
    left: int
    """Number of transitions after these."""
    sandboxes: dict[str, Row] | None
    """Present sandboxes by id; None: there are more transitions than fit into a batch, or none and
    the sandboxes are those of the latest snapshot that has them."""


class Source:
    """Registry at *path*, opened read-only when it is first read."""

    def __init__(self, path: str) -> None:
        """Prepare; nothing is opened."""
        self.path: Final = os.path.realpath(path)
        self._store: Store | None = None
        self._identity: object = None
        self._version: int | None = None
        """Data version of the latest snapshot."""
        self._listed: int | None = None
        """Data version of the latest snapshot with sandboxes; None: they are to be read. Each
        connection counts from the beginning."""

    def close(self) -> None:
        """Close the registry; idempotent."""
        store, self._store, self._listed = self._store, None, None
        if store is not None:
            store.close()

    def read(self, after: int, limit: int, *, again: bool = True) -> Snapshot:
        """Return a snapshot with at most *limit* transitions after the seq *after*.

        Args:
            after: the cursor.
            limit: transitions of a batch.
            again: read the sandboxes even if nothing was committed since they were read.
        Raises:
            RegistryError: the registry cannot be read.
        """

        def read(fetch: Fetch) -> Snapshot:
            is_same = self._version is not None and self._version == self._listed
            return _snapshot(fetch, after, limit, lists=again or not is_same)

        found = self._with_fetch(read)
        if found.sandboxes is not None:
            self._listed = self._version
        return found

    def id(self) -> tuple[str, int]:
        """Return the id of the registry and its incarnation; errors as `read`."""
        found = self._with_fetch(_incarnation)
        return found.registry_id, found.number

    def transition(self, seq: int) -> Row | None:
        """Return the transition *seq*, None if it is not kept; errors as `read`."""
        found = self._with_fetch(lambda fetch: fetch(ONE, {"seq": seq}))
        return converted(found[0]) if found else None

    def count(self, after: int) -> int:
        """Return the number of transitions after the seq *after*; errors as `read`."""
        found: int = self._with_fetch(lambda fetch: fetch(COUNT, {"after": after}))[0][0]
        return found

    def has_news(self) -> bool:
        """Return whether there may have been a commit since the latest snapshot."""
        try:
            if self._store is None or self._is_replaced():
                return True
            version = self._store._session.latest_commit(DOING)  # noqa: SLF001 - as `Watch` does
        except RegistryError:
            self.close()  # the next read reports why, or opens what has replaced the file
            return True
        return version is None or version != self._version

    def wait(self, seconds: float) -> bool:
        """Wait for a commit of any process, at most *seconds*; return whether there was one.

        It waits as `Store.watch` does, which returns changes of state alone: another pid, address
        or message is news too.
        """
        deadline = time.monotonic() + seconds
        while not self.has_news():
            left = deadline - time.monotonic()
            if left <= 0 or self._store is None:
                return False
            commits, waiter = self._store._session.engine.commits, ThreadWaiter()  # noqa: SLF001
            commits.watchers.append(waiter)
            try:
                commits.wait(waiter, self.has_news, time.monotonic() + min(left, LOOK))
            except RegistryError:
                self.close()  # as in `has_news`
            finally:
                commits.watchers.remove(waiter)
        return True

    def _is_replaced(self) -> bool:
        """Return whether another file is at the path; SQLite would go on reading the old one."""
        return identity(self.path) != self._identity

    def _with_fetch(self, read: Callable[[Fetch], T]) -> T:
        """Return what *read* returns for a function that queries one commit."""
        if self._store is not None and self._is_replaced():
            self.close()
        if self._store is None:
            self._identity = identity(self.path)
            self._store = Store.open(self.path, read_only=True, create=False)
        try:
            self._version = self._store._session.latest_commit(DOING)  # noqa: SLF001
            with self._store._session.snapshot(DOING) as fetch:  # noqa: SLF001
                return read(fetch)
        except BaseException:
            self.close()  # opened again next time: the file may have been replaced
            raise


def _incarnation(fetch: Fetch) -> Incarnation:
    """Return the identity of the registry.

    Raises:
        DataLossError: it is damaged, so that PostgreSQL could not store it, or count on from it.
    """
    with contextlib.suppress(IndexError, TypeError, ValueError):
        found = Incarnation.read(fetch)
        if re.fullmatch("[0-9a-f]{32}", found.registry_id) and 0 < found.number < 2**62:
            return found
    raise DataLossError(
        f"{DOING}: the table 'registry' has no valid id and incarnation; restore a backup with "
        "`sandbox-registry restore`"
    )


def _snapshot(fetch: Fetch, after: int, limit: int, *, lists: bool) -> Snapshot:
    incarnation = _incarnation(fetch)
    ((oldest, newest),) = fetch(KEPT, {})
    rows = fetch(HISTORY, {"after": after, "limit": limit + 1})
    lists = lists or bool(rows)  # of a commit after the data version was read
    at_cursor = fetch(ONE, {"seq": after})
    return Snapshot(
        incarnation.registry_id,
        incarnation.number,
        oldest or 0,
        max(0, newest or 0),
        converted(at_cursor[0]) if at_cursor else None,
        [converted(row) for row in rows[:limit]],
        fetch(COUNT, {"after": rows[limit - 1][0]})[0][0] if len(rows) > limit else 0,
        _sandboxes(fetch) if lists and len(rows) <= limit else None,
    )


def _sandboxes(fetch: Fetch) -> dict[str, Row]:
    """Return the present sandboxes with their labels as JSON, by id."""
    labels: dict[object, dict[str, str]] = {}
    for id, name, value in fetch(LABELS, {}):
        labels.setdefault(id, {})[text(name) or ""] = text(value) or ""
    found = {}
    for row in fetch(SANDBOXES, {}):
        values = [fn(value) for fn, value in zip(_SANDBOX_CONVERT, row, strict=True)]
        encoded = json.dumps(labels.get(row[0], {}), ensure_ascii=False, sort_keys=True)
        found[str(values[0])] = (*values, encoded)
    return found


def converted(row: Sequence[object]) -> Row:
    """Return a transition as PostgreSQL has it."""
    return tuple([fn(value) for fn, value in zip(_CONVERT, row, strict=True)])


def fingerprint(row: Row) -> str:
    """Return the hash of a row as PostgreSQL has it."""
    return digest(json.dumps(row).encode())
