"""Identities of the network namespace and the process of a sandbox, and when they are recorded.

1. An identity is recorded once: at the first write at which the object exists and none is recorded.
2. The host is observed without the lock: before the write of an addition, and after the commit of
   any other write. The identities found after a commit are recorded in another transaction.
3. While no namespace is at the path of a sandbox, each write of the sandbox costs one system call.
   The record is read again, and the path observed, only for an object in the file system of
   all namespaces: that takes 30 times as long.
4. If the recording fails, the next write of the sandbox tries again.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING

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
    from registry.model.identity import NetNSIdentity
    from registry.tables.rows import AnyRow

log = logging.getLogger("registry")


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
        record = partial(_record, session, row.creation, path, transaction.deadline)
        transaction.after_commit(record)


def _record(session: Session, creation: int, path: str, deadline: float) -> None:
    """Record the identities of the sandbox of *creation*.

    Args:
        session: session of the store.
        creation: creation of the sandbox.
        path: path of the only object that is not recorded; "": there are others.
        deadline: monotonic time in seconds after which waiting stops.
    """
    doing = "record identities"
    try:
        if path and not namespaces.may_be_at(path):
            return
        row = writes.find_creation(creation, lambda sql, params: session.fetch(sql, params, doing))
        if row is None:
            return
        rows.require_sound(row, doing)
        context = HostContext.current()
        of_netns = None if row.host_network else netns_at(row.netns_path, context)
        of_process = process.identify(row.pid, context) if row.pid else None
        if of_netns is not None or of_process is not None:
            remaining = max(0.0, deadline - time.monotonic())
            with Write(session.engine, doing, remaining) as transaction:
                since = transaction.connection.total_changes
                columns = writes.note(transaction, row, of_netns, of_process)
                transaction.report(since, Changed(row, columns))
    except (RegistryError, OSError) as error:
        reraise_interrupt(error)
        # The write itself is stored; the next write of the sandbox tries again.
        log.warning("%s: %r", doing, error)
