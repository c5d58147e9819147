"""Writes to the tables, each inside the open transaction of its caller.

No function here observes the host, acquires a lock or has an effect outside the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from registry.engine import Transaction
from registry.engine.driver import Fetch
from registry.errors import (
    AlreadyExistsError,
    AmbiguousPrefixError,
    FailedPreconditionError,
    NameReservedError,
)
from registry.model.extensions import Extension
from registry.model.identity import NetNSIdentity, ProcessIdentity
from registry.model.metadata import Metadata
from registry.model.status import TIME_MAX, State, Status
from registry.model.validation import check_integer
from registry.tables import encoding, queries, rows, sql
from registry.tables.rows import AnyRow, Row, StatusRow

NAMED: Final = 10
"""Number of ids that a message names; it counts the others."""


class Author(NamedTuple):
    """Source of the audit columns: who wrote a row, when, and under which boot of the host."""

    actor: str
    """Name of the writer in the history."""
    clock: Callable[[], int]
    """Returns the time in ns since the Unix epoch."""
    boot_id: Callable[[], str]
    """Returns the boot id of the host; "" where it is hidden."""

    def audit_columns(self, previous: int | None) -> dict[str, object]:
        """Return the audit columns of a status row that is written now.

        `changed_at` differs from *previous*, its value before: if changed_at stays the same, the
        triggers treat the row as written by plain SQL.
        """
        now = check_integer("read the clock", "clock", self.clock(), 0, TIME_MAX - 1)
        return {
            "changed_at": now + 1 if now == previous else now,
            "actor": self.actor,
            "boot_id": self.boot_id() or None,
        }


class Identities(NamedTuple):
    """Identities that were observed before a sandbox is inserted; None: there is no such object."""

    netns: NetNSIdentity | None
    process: ProcessIdentity | None
    creator: ProcessIdentity | None


def find(prefix: str, doing: str, fetch: Fetch) -> Row | None:
    """Return the sandbox whose id is *prefix*, else the only one whose id begins with it.

    Raises:
        AmbiguousPrefixError: several ids begin with *prefix*.
    """
    exact = fetch(sql.ROW_BY_ID, {"id": prefix})
    if exact:
        return Row(*exact[0])
    known = fetch(sql.IDS_BY_PREFIX, queries.prefix_params(prefix))
    ids = tuple(str(id) for id, _ in known)
    if len(ids) > 1:
        named = ", ".join(repr(id) for id in ids[:NAMED])
        more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
        raise AmbiguousPrefixError(
            f"{doing}: {len(ids)} ids begin with it: {named}{more}; give a longer prefix",
            field="id",
            value=prefix,
            prefix=prefix,
            ids=ids,
        )
    return find_creation(known[0][1], fetch) if known else None


def find_creation(creation: int, fetch: Fetch) -> Row | None:
    """Return the sandbox of *creation*; None when it has been deleted."""
    found = fetch(sql.ROW_BY_CREATION, {"creation": creation})
    return Row(*found[0]) if found else None


def find_status(creation: int, fetch: Fetch) -> StatusRow | None:
    """Return the status of *creation*; None when it has been deleted."""
    found = fetch(sql.STATUS_BY_CREATION, {"creation": creation})
    return StatusRow._make(found[0]) if found else None


def find_changeable(creation: int, fetch: Fetch) -> AnyRow | None:
    """Return the part of *creation* that can be changed; None when it has been deleted."""
    row = find_status(creation, fetch)
    unknown = row is not None and row.state == str(State.UNKNOWN)
    return find_creation(creation, fetch) if unknown else row


def find_extensions(creation: int, id: str, fetch: Fetch) -> dict[str, Extension] | None:
    """Return the extensions of *creation*, whose id is *id*; None when it has been deleted.

    Raises:
        MetadataError: one of them is damaged.
    """
    found = fetch(sql.EXTENSIONS, {"creation": creation})
    if found == [(None, None, None)]:  # the sandbox exists, and has none
        return {}
    return dict(rows.load_extension(row, id) for row in found) if found else None


def insert(
    transaction: Transaction,
    metadata: dict[str, object],
    labels: list[dict[str, object]],
    status: Status,
    *,
    identities: Identities,
    author: Author,
) -> Row:
    """Insert both rows of a sandbox, and its labels.

    Args:
        transaction: the open transaction.
        metadata: columns of the metadata, encoded before the lock was acquired.
        labels: rows of the labels.
        status: status of the new sandbox.
        identities: identities that were observed before the lock was acquired.
        author: source of the audit columns.
    Raises:
        AlreadyExistsError, NameReservedError: the id or the name is taken.
    """
    _refuse_taken(transaction, str(metadata["id"]), str(metadata["name"]))
    # Random, 62 bits: a rollback would make a sequence reuse the number, and a handle that the
    # rollback left would refer to another sandbox.
    creation = int.from_bytes(os.urandom(8), "big") >> 2
    observed = encoding.netns_columns(identities.netns)
    observed |= encoding.creator_columns(identities.creator)
    transaction.execute(sql.INSERT_SANDBOX, {"creation": creation, **metadata, **observed})
    transaction.execute_many(sql.INSERT_LABEL, labels)
    columns = encoding.status_columns(status) | encoding.process_columns(identities.process)
    columns |= author.audit_columns(None)
    transaction.execute(sql.INSERT_STATUS, {"sandbox_id": metadata["id"], **columns})
    return _written(transaction, creation)


def _refuse_taken(transaction: Transaction, id: str, name: str) -> None:
    taken = dict(transaction.fetch(sql.TAKEN, {"id": id, "name": name}))
    if id in taken:
        raise AlreadyExistsError(
            f"{transaction.doing}: the id is taken; delete that sandbox first", id=id
        )
    for holder in taken:
        raise NameReservedError(
            f"{transaction.doing}: name {name!r} is reserved for {holder!r}; "
            "delete that sandbox first",
            id=id,
            name=name,
            holder=holder,
        )


def replace_metadata(transaction: Transaction, row: Row, metadata: Metadata) -> Row:
    """Store *metadata* for the sandbox of *row*; a new path clears the namespace identity."""
    recorded = rows.load_netns(row) if metadata.netns_path == row.netns_path else None
    transaction.execute(
        sql.UPDATE_METADATA,
        {
            **encoding.metadata_columns(metadata),
            **encoding.netns_columns(recorded),
            "of": row.creation,
        },
    )
    transaction.execute(sql.DELETE_LABELS, {"id": row.id})
    transaction.execute_many(sql.INSERT_LABEL, encoding.label_rows(metadata))
    return _written(transaction, row.creation)


def replace_status(
    transaction: Transaction, row: AnyRow, status: Status, author: Author
) -> dict[str, object]:
    """Store *status* for the sandbox of *row*; a new pid clears the identity of the process.

    Args:
        transaction: the open transaction, in which *row* was read.
        row: the stored row.
        status: the status to store.
        author: source of the audit columns.
    Returns:
        the columns that were written.
    Raises:
        FailedPreconditionError: *status* leads back to UNKNOWN.
    """
    if status.state is State.UNKNOWN and row.state != str(State.UNKNOWN):
        raise FailedPreconditionError(
            f"{transaction.doing}: no transition leads from {row.state} back to {status.state}",
            id=row.id,
        )
    before, columns = rows.status_of(row), encoding.status_columns(status)
    pairs = zip(columns.items(), before, strict=True)
    changed = {name: value for (name, value), old in pairs if value != old}
    if "pid" in changed:
        changed |= encoding.process_columns(None)
    changed |= author.audit_columns(row.changed_at)
    transaction.execute(queries.update_status(frozenset(changed)), {**changed, "of": row.creation})
    return changed


def replace_extensions(
    transaction: Transaction,
    id: str,
    before: Mapping[str, Extension],
    after: Mapping[str, Extension],
) -> None:
    """Store the extensions *after* for the sandbox *id*, which has those *before*."""
    for name in before:
        if before[name] != after.get(name):
            transaction.execute(sql.DELETE_EXTENSION, {"sandbox_id": id, "name": name})
    for name, extension in after.items():
        if extension != before.get(name):
            columns = {"type_url": extension.type_url, "value": extension.value}
            transaction.execute(sql.INSERT_EXTENSION, {"sandbox_id": id, "name": name, **columns})


def delete(transaction: Transaction, row: Row, author: Author) -> None:
    """Delete the sandbox of *row*, which exists; the audit columns go into the history."""
    audit = author.audit_columns(row.changed_at)
    transaction.execute(sql.ANNOUNCE_DELETION, {"of": row.creation, "leaving": 1, **audit})
    transaction.execute(sql.DELETE, {"creation": row.creation})


def note(
    transaction: Transaction,
    row: Row,
    netns: NetNSIdentity | None,
    process: ProcessIdentity | None,
) -> dict[str, object]:
    """Record identities where none is recorded, if path and pid are still those of *row*.

    Returns:
        the columns that were written.
    """
    written: dict[str, object] = {}
    if netns is not None:
        columns = encoding.netns_columns(netns)
        where = {"of": row.creation, "at_path": row.netns_path}
        if transaction.execute(sql.NOTE_NETNS, {**where, **columns}).rowcount:
            written |= columns
    if process is not None:
        columns = encoding.process_columns(process)
        where = {"of": row.creation, "of_pid": row.pid}
        if transaction.execute(sql.NOTE_PROCESS, {**where, **columns}).rowcount:
            written |= columns
    return written


def _written(transaction: Transaction, creation: int) -> Row:
    row = find_creation(creation, transaction.fetch)
    assert row is not None, "it was written in this transaction"
    return row
