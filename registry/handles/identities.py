"""Identities of the network namespace and the process of a sandbox, and when they are recorded.

1. An identity is recorded once: at the first write at which the object exists and none is recorded.
2. The host is observed without the lock: before the write of an addition, and after the commit of
   any other write. The identities found after a commit are recorded in another transaction, which
   is one for all writes of a transaction.
3. While no namespace is at the path of a sandbox, each write of the sandbox costs one system call.
   The record is read again, and the path observed, only for an object in the file system of
   all namespaces: that takes 30 times as long.
4. If the recording fails, the next write of the sandbox tries again.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from registry.engine import Write
from registry.errors import RegistryError
from registry.handles.cache import Changed
from registry.host import namespaces, process
from registry.host.context import HostContext
from registry.sync.interrupts import reraise_interrupt
from registry.tables import rows, writes

if TYPE_CHECKING:
    from registry.engine import Transaction
    from registry.handles.session import Session
    from registry.model.identity import NetNSIdentity, ProcessIdentity
    from registry.tables.rows import AnyRow, Row

    _Found = tuple[Row, NetNSIdentity | None, ProcessIdentity | None]

log = logging.getLogger("registry")

DOING: Final = "record identities"


def netns_at(path: str, context: HostContext) -> NetNSIdentity | None:
    """Return the identity of the network namespace at *path*; None if it cannot be observed."""
    return namespaces.observe(path, context).identity if path else None


def record_later(session: Session, transaction: Transaction, row: AnyRow, pid: int) -> None:
    """Record, after the commit, the identities that *row* lacks.

    Args:
        session: session of the store.
        transaction: transaction of the write, whose deadline applies to the recording too.
        row: row of the sandbox before the write.
        pid: pid of the sandbox after the write.
    """
    of_process = pid != 0 and (pid != row.pid or not rows.process_noted(row))
    of_netns = row.netns_inode is None and row.netns_path != "" and not row.host_network
    if of_process or of_netns:
        one_path = not of_process and isinstance(row.netns_path, str)  # damaged: bytes
        path = row.netns_path if one_path else ""
        key = (_record, session)
        if key not in transaction.collected:
            transaction.collected[key] = []
            transaction.after_end(partial(_record, session, transaction))
        transaction.after_commit(partial(transaction.collected[key].append, (row.creation, path)))


def _record(session: Session, transaction: Transaction) -> None:
    """Record the identities of the sandboxes that *transaction* has collected, in one commit.

    Args:
        session: session of the store.
        transaction: transaction that has ended; its deadline applies to the recording too.
    """
    found = [
        identities
        for creation, path in transaction.collected.pop((_record, session))
        if (identities := _observe(session, creation, path)) is not None
    ]
    if found:
        remaining = max(0.0, transaction.deadline - time.monotonic())
        try:
            with Write(session.engine, DOING, remaining) as recording:
                for row, of_netns, of_process in found:
                    since = recording.connection.total_changes
                    columns = writes.note(recording, row, of_netns, of_process)
                    recording.report(since, Changed(row, columns))
        except (RegistryError, OSError) as error:
            reraise_interrupt(error)
            # The writes themselves are stored; the next write of each sandbox tries again.
            log.warning(
                "%s: %r",
                DOING,
                error,
                extra={
                    "event": "identities_not_recorded",
                    "path": session.engine.path,
                    "error": type(error).__name__,
                },
            )


def _observe(session: Session, creation: int, path: str) -> _Found | None:
    """Return the identities that can be recorded of the sandbox of *creation*, and its row.

    Args:
        session: session of the store.
        creation: creation of the sandbox.
        path: path of the only object that is not recorded; "": there are others.
    """
    try:
        if path and not namespaces.may_be_at(path):
            return None
        row = writes.find_creation(creation, lambda sql, params: session.fetch(sql, params, DOING))
        if row is None:
            return None
        rows.require_sound(row, DOING)
        context = HostContext.current()
        of_netns = None if row.host_network else netns_at(row.netns_path, context)
        of_process = process.identify(row.pid, context) if row.pid else None
    except (RegistryError, OSError) as error:
        reraise_interrupt(error)
        log.warning(
            "%s: %r",
            DOING,
            error,
            extra={
                "event": "identities_not_recorded",
                "path": session.engine.path,
                "error": type(error).__name__,
            },
        )
        return None
    return None if of_netns is None and of_process is None else (row, of_netns, of_process)
