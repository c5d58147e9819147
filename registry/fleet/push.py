"""One batch of a registry, pushed in one transaction.

    UPDATE fleet_registries   the cursor, if the row is as this pusher left it; else roll back
    INSERT                    a gap, this boot, transitions
    INSERT, DELETE            present sandboxes that differ, with the batch that reaches the head
    COMMIT

Rows and cursor are committed together or not at all. So the transaction need not be synced: if the
server loses it, the next heartbeat finds the old row, and what follows its cursor is sent again. A
violated key is therefore an error of this code, and is raised.

A batch without transitions, such as one with another pid, leaves the cursor where it was. Therefore
each batch writes a random number into the row: the next batch of a pusher finds that another pusher
has written since, or that the server, behind a pooler that outlived it, has lost the latest batch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import psycopg

from registry.errors import RegistryError, UnavailableError
from registry.fleet import lease, lines, postgres, statements
from registry.fleet.lines import Registered
from registry.fleet.postgres import Target
from registry.fleet.source import Row, Snapshot, Source, fingerprint
from registry.fleet.text import array, text
from registry.sync.interrupts import reraise_interrupt

T = TypeVar("T")

BATCH: Final = 2000
"""Transitions of a transaction; half as many are a third slower."""
DOING: Final = "push the registry to the fleet"


class SourceError(Exception):
    """The registry cannot be read; the cause is an error of the package."""


class Pushed(NamedTuple):
    """Outcome of one round."""

    transitions: int = 0
    """Number of transitions that were pushed."""
    is_head: bool = False
    """Whether all transitions and all present sandboxes were pushed."""
    behind: int = 0
    """Number of transitions up to the head."""


class Pusher:
    """Pushes one registry. Any call may fail: the next one finds out what is due."""

    def __init__(
        self, source: Source, to: Target, *, node: str = "", machine_id: str = "", every: float = 30
    ) -> None:
        """Prepare; nothing is opened.

        Args:
            source: the registry.
            to: database of the fleet.
            node: name of the node; default: the role that connects, which row level security
                requires.
            machine_id: stable id of the machine; default: derived from /etc/machine-id.
            every: seconds between two heartbeats.
        """
        self.source: Final = source
        self.every: Final = every
        self.to: Final = to
        self._node, self._machine_id = node, machine_id
        self._connection: psycopg.Connection | None = None
        self._place: lease.Place | None = None
        self._known: Registered | None = None
        """The registry as the database has it; None: to be read again."""
        self._sent: dict[str, str] | None = None
        """Hash of each present sandbox that was sent, by id; None: unknown, all are compared."""
        self._boot_id = ""
        """Boot that the database knows."""
        self._cursor: int | None = None
        """Latest cursor of the database, also after its connection was lost; None: unknown."""

    def behind(self) -> int | None:
        """Return the number of transitions after the latest cursor, without the database.

        Returns:
            None if the cursor is unknown or the registry cannot be read.
        """
        try:
            return None if self._cursor is None else self.source.count(self._cursor)
        except (RegistryError, OSError) as error:
            reraise_interrupt(error)
            return None

    def close(self) -> None:
        """Close the connection and the registry; idempotent."""
        self.disconnect()
        self.source.close()

    def disconnect(self) -> None:
        """Close the connection: the server may have been demoted, or may be another one now."""
        connection, self._connection = self._connection, None
        self._known = self._sent = self._place = None
        self._boot_id = ""
        if connection is not None:
            connection.close()

    def round(self) -> Pushed:
        """Push one batch, or a heartbeat if there is nothing new; as often as one likes.

        Raises:
            SourceError: the registry cannot be read.
            UnavailableError: PostgreSQL cannot be reached, or another place pushes the registry.
            RegistryError: PostgreSQL refuses.
        """
        try:
            with postgres.errors(DOING, postgres.NODE):
                return self._round()
        except SourceError:
            raise
        except BaseException:
            self.disconnect()  # a server that was demoted would refuse the next batch too
            raise

    def report(self, problem: str) -> None:
        """Send a heartbeat that says why the registry cannot be read; errors as `round`."""
        try:
            with postgres.errors(DOING, postgres.NODE):
                connection, at = self._connect()
                params = {"problem": text(problem), "machine_id": at.machine_id, "path": at.path}
                connection.execute(statements.PROBLEM, params)
        except BaseException:
            self.disconnect()
            raise

    def _connect(self) -> tuple[psycopg.Connection, lease.Place]:
        if self._connection is None or self._place is None:
            self.disconnect()
            self._connection = postgres.connect(self.to)
            node = self._node or self._connection.info.user
            self._place = lease.place(self.source.path, node, self._machine_id)
        return self._connection, self._place

    def _round(self) -> Pushed:
        connection, at = self._connect()
        known = self._known
        if known is None:
            id, incarnation = _read(self.source.id)
            known = lease.register(connection, at, id, incarnation, self.every)
            self._known, self._cursor = known, known.cursor
        again = self._sent is None  # else the sandboxes that were read last were sent
        found: Snapshot = _read(lambda: self.source.read(known.cursor, BATCH, again=again))
        if found.registry_id != known.registry_id:
            self._known = self._sent = None
            return Pushed()
        if not lines.continues(known, found):
            self._sent = None
            self._known = self._begin_line(connection, at, known, found)
            return Pushed()
        return self._send(connection, at, known, found)

    def _begin_line(
        self, connection: psycopg.Connection, at: lease.Place, known: Registered, found: Snapshot
    ) -> Registered:
        """Begin the next incarnation where the registry parts from what was pushed."""
        last = _read(lambda: lines.common(connection, known, self.source, found.oldest))
        if found.at_cursor is not None and fingerprint(found.at_cursor) == known.fingerprint:
            last = found.at_cursor  # PostgreSQL may keep no rows of it any more
        new = Registered(
            known.registry_id,
            max(known.incarnation + 1, found.incarnation),
            found.incarnation,
            last[0] if last else 0,
            _random(),
            fingerprint(last) if last else "",
        )
        edges = {"after": new.cursor, "before": known.cursor, "kind": "restored"}
        with connection.transaction():
            _require_one(connection.execute(statements.BEGIN_LINE, _params(at, known, new)))
            connection.execute(statements.INSERT_BREAK, new._asdict() | edges)
        return new

    def _send(
        self, connection: psycopg.Connection, at: lease.Place, known: Registered, found: Snapshot
    ) -> Pushed:
        """Send *found* in one transaction."""
        last = found.transitions[-1] if found.transitions else found.at_cursor
        new = known._replace(batch=_random())
        if last is not None:
            new = new._replace(cursor=last[0], fingerprint=fingerprint(last))
        params = _params(at, known, new)
        params |= {"newest": found.newest, "every": self.every, "now_ms": time.time_ns() // 10**6}
        hashes = None
        with connection.transaction():
            connection.execute("SET LOCAL synchronous_commit = off")
            _require_one(connection.execute(statements.ADVANCE, params))
            missing = lines.gap(known, found) if found.transitions else None
            if missing is not None:
                edges = {"after": missing[0], "before": missing[1], "kind": "gap"}
                connection.execute(statements.INSERT_BREAK, params | edges)
            if self._boot_id != at.boot_id:
                connection.execute(statements.INSERT_BOOT, params)
            if found.transitions:
                connection.execute(
                    statements.INSERT_TRANSITIONS, params | _history(found.transitions)
                )
            if found.sandboxes is not None:
                hashes = self._send_sandboxes(connection, known.registry_id, found.sandboxes)
        self._known, self._cursor, self._boot_id = new, new.cursor, at.boot_id
        if hashes is not None:
            self._sent = hashes
        return Pushed(len(found.transitions), not found.left, found.left)

    def _send_sandboxes(
        self, connection: psycopg.Connection, registry_id: str, present: dict[str, Row]
    ) -> dict[str, str]:
        """Send what differs from what was sent, or from what is stored; return the new hashes."""
        hashes = {id: fingerprint(row) for id, row in present.items()}
        sent = self._sent
        old = {} if sent is None else sent
        changed = [present[id] for id, each in hashes.items() if old.get(id) != each]
        params: dict[str, Any] = {"registry_id": registry_id}
        if sent is None:
            connection.execute(statements.DELETE_OTHERS, params | {"ids": array(present)})
        elif gone := old.keys() - present.keys():
            connection.execute(statements.DELETE_SANDBOXES, params | {"ids": array(gone)})
        for start in range(0, len(changed), BATCH):
            rows = _arrays(statements.SANDBOX, changed[start : start + BATCH])
            connection.execute(statements.UPSERT_SANDBOXES, params | rows)
        return hashes


def _read(read: Callable[[], T]) -> T:
    """Return what *read* returns of the registry.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        return read()
    except RegistryError as error:
        raise SourceError(str(error)) from error
    except OSError as error:
        reraise_interrupt(error)
        raise SourceError(f"{DOING}: {error}") from error


def _random() -> int:
    """Return a random number for a batch."""
    return int.from_bytes(os.urandom(8), signed=True)


def _params(at: lease.Place, known: Registered, new: Registered) -> dict[str, Any]:
    """Return the parameters of a statement that turns the row *known* into *new*."""
    changed = {f"new_{name}": value for name, value in new._asdict().items()}
    return {**known._asdict(), **at._asdict(), **changed}


def _require_one(cursor: psycopg.Cursor[Any]) -> None:
    """Raise unless the statement of *cursor* has changed its row: the transaction is rolled back.

    Raises:
        UnavailableError: another pusher has moved the cursor, or the server has gone back.
    """
    if cursor.rowcount != 1:
        raise UnavailableError(
            f"{DOING}: its row is not as this pusher left it: another pusher has changed it, "
            "or the server has lost its latest commits"
        )


def _arrays(names: Sequence[str], rows: Iterable[Row]) -> dict[str, str]:
    """Return one array for each column of *rows*."""
    return {
        name: array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }


def _history(rows: Sequence[Row]) -> dict[str, str]:
    """Return the arrays of transitions, with the time in microseconds and the rest of it."""
    micros, rest = zip(*(divmod(row[-1], 1000) for row in rows), strict=True)
    arrays = _arrays(statements.TRANSITION, rows)
    del arrays["at"]
    return arrays | {"micros": array(micros), "rest": array(rest)}
