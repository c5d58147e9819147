"""Sandboxes to be added: encoded and observed before the lock is taken, inserted under it."""

from __future__ import annotations

from typing import NamedTuple

from registry.errors import FailedPreconditionError
from registry.handles.identities import netns_at
from registry.handles.runtime_state import Container
from registry.handles.sandbox import Sandbox
from registry.handles.session import Session
from registry.host import process
from registry.host.context import HostContext
from registry.model.identity import ProcessIdentity
from registry.model.metadata import Metadata
from registry.model.metadata import validate as validate_metadata
from registry.model.status import Status
from registry.model.status import validate as validate_status
from registry.tables import encoding, writes
from registry.tables.writes import Identities


class Addition(NamedTuple):
    """Valid sandbox that is not yet in the database.

    *doing* begins the messages of errors; *columns* and *labels* are rows; *identities* are those
    of the objects that exist already.
    """

    doing: str
    columns: dict[str, object]
    labels: list[dict[str, object]]
    status: Status
    identities: Identities


def prepare(
    verb: str, metadata: Metadata, status: Status, creator: int, context: HostContext
) -> Addition:
    """Return the addition of a sandbox, without acquiring a lock.

    Args:
        verb: verb of the operation, for messages.
        metadata: metadata of the sandbox.
        status: status of the sandbox.
        creator: pid of the process that is creating the sandbox; 0: there is none.
        context: host context of this process.
    Raises:
        InvalidArgumentError, ResourceExhaustedError: a value cannot be stored.
        FailedPreconditionError: the process *creator* does not run.
    """
    doing = f"{verb} sandbox {getattr(metadata, 'id', None)!r}"
    columns = encoding.metadata_columns(validate_metadata(metadata, doing))
    labels = encoding.label_rows(metadata)
    validate_status(status, doing)
    identities = Identities(
        netns=netns_at(metadata.netns_path, context) if not metadata.host_network else None,
        process=process.identify(status.pid, context) if status.pid else None,
        creator=_identify_creator(creator, doing, metadata.id, context) if creator else None,
    )
    return Addition(doing, columns, labels, status, identities)


def _identify_creator(pid: int, doing: str, id: str, context: HostContext) -> ProcessIdentity:
    """Return the identity of the process *pid*; without one the sandbox would count as adopted."""
    identity = process.identify(pid, context)
    if identity is None:
        raise FailedPreconditionError(
            f"{doing}: its creator, process {pid}, does not run; "
            "name the process that is responsible until the sandbox is created",
            id=id,
        )
    return identity


def insert(session: Session, addition: Addition, container: Container | None = None) -> Sandbox:
    """Insert *addition*, in the caller's transaction or one of its own, and attach *container*.

    Raises:
        AlreadyExistsError, NameReservedError: the id or the name is taken.
        ResourceExhaustedError: the disk is full.
        UnavailableError: the store's timeout passed before the write could begin.
    """
    id = str(addition.columns["id"])
    with session.write(addition.doing, sandbox_id=id) as transaction:
        session.require_space(addition.doing, grows=True)
        since = transaction.connection.total_changes
        row = writes.insert(
            transaction,
            addition.columns,
            addition.labels,
            addition.status,
            identities=addition.identities,
            author=session.author,
        )
        sandbox = Sandbox(session, session.created(transaction, row, since))
        sandbox.attach(container)
    return sandbox
