"""A handle on one sandbox, and its status."""

from __future__ import annotations

from typing import Any, Final

from registry import cri
from registry.errors import NotFoundError
from registry.handles import identities
from registry.handles.cache import Entry
from registry.handles.extensions import Extensions
from registry.handles.runtime_state import Container, StopCh
from registry.handles.session import Session, check_function
from registry.host import namespaces, netns, process
from registry.host.context import HostContext
from registry.host.held_process import Process
from registry.host.netns import NetNS
from registry.model.cni import CNIResult
from registry.model.metadata import Metadata
from registry.model.status import State, Status, StatusStorage, UpdateFunc, validate
from registry.tables import rows, sql, writes
from registry.tables.rows import Row
from registry.visible import visible

STORED: Final = (
    *rows.STATUS_FIELDS,
    *("host_network", "additional_ips", "process_label", "cni_result", "config"),
)
"""What `Sandbox.stored` has: columns that differ from the fields of the same names, or may."""


class Sandbox:
    """A handle on one creation of one sandbox.

    The metadata is that of the moment it was read. After a deletion it is still there, and the
    status raises `NotFoundError`, also when the id has been added again. Handles of one creation in
    one file are equal, and have the same hash, whenever and by whichever Store they were read.

    Source: containerd pkg/store/sandbox/sandbox.go, Sandbox.
    """

    __slots__ = ("__weakref__", "_entry", "_last", "_metadata", "_session")

    def __init__(self, session: Session, entry: Entry) -> None:
        """Stand for the sandbox that was *found*; use `Store.add` and the like."""
        self._session = session
        self._entry = entry
        self._last = entry.row
        """The last reading of this handle; `_latest` falls back to it after the deletion."""
        self._metadata: Metadata | None = None

    def __eq__(self, other: object) -> bool:
        """Return whether both stand for the same creation in the same file, of whichever Store."""
        return self._key == other._key if isinstance(other, Sandbox) else NotImplemented

    def __hash__(self) -> int:
        """Return the hash of the creation, which stays the same after close and deletion."""
        return hash(self._key)

    @property
    def _key(self) -> tuple[str, int]:
        return self._session.engine.path, self._entry.row.creation

    def __repr__(self) -> str:
        """Show id and name."""
        return visible(f"Sandbox({self.id!r}, name={self.name!r})")

    @property
    def id(self) -> str:
        """`metadata.id`."""
        return rows.as_text(self._entry.row.id)

    @property
    def name(self) -> str:
        """`metadata.name`."""
        return rows.as_text(self._entry.row.name)

    @property
    def netns_path(self) -> str:
        """`metadata.netns_path`."""
        return rows.as_text(self._entry.row.netns_path)

    @property
    def ip(self) -> str:
        """`metadata.ip`."""
        return rows.as_text(self._entry.row.ip)

    @property
    def runtime_handler(self) -> str:
        """`metadata.runtime_handler`."""
        return rows.as_text(self._entry.row.runtime_handler)

    @property
    def process_label(self) -> str:
        """`metadata.process_label`."""
        return rows.as_text(self._entry.row.process_label)

    @property
    def metadata(self) -> Metadata:
        """Metadata of the sandbox; the config is this handle's own copy.

        Raises:
            MetadataError: the stored bytes cannot be decoded.
        """
        if self._metadata is None:
            self._metadata = self._entry.row.metadata()
        return self._metadata

    @property
    def stored(self) -> dict[str, Any]:
        """The columns of `status_as_read` and `metadata`, for when they cannot be decoded."""
        row = self._entry.row
        columns = {name: getattr(row, name) for name in STORED}
        texts = {
            name: rows.as_text(value)
            for name, value in columns.items()
            if isinstance(value, bytes) and name != "config"  # damaged: they should be text
        }
        return columns | texts

    @property
    def config(self) -> cri.PodSandboxConfig | None:
        """`metadata.config`."""
        return self.metadata.config

    @property
    def additional_ips(self) -> tuple[str, ...] | None:
        """`metadata.additional_ips`."""
        return self.metadata.additional_ips

    @property
    def cni_result(self) -> CNIResult | None:
        """`metadata.cni_result`."""
        return self.metadata.cni_result

    @property
    def status(self) -> StatusStorage:
        """The status, to be read and changed."""
        return _StoredStatus(self._session, self._entry.row)

    @property
    def extensions(self) -> Extensions:
        """The extensions, to be read and replaced; those of the latest commit, as the status."""
        return Extensions(self._session, self._entry.row)

    @property
    def status_as_read(self) -> Status:
        """The status when this handle was read, at the same moment as its neighbours in a list.

        Raises:
            MetadataError: this version does not know its state.
        """
        return self._entry.status()

    @property
    def netns(self) -> NetNS | None:
        """The network namespace that the latest record names, as `open_process` follows it.

        None: on the host network, or the recorded namespace is closed. Never None for want of
        knowledge.

        Raises:
            NetNSError: with `.errno`; it cannot be seen, or, EXDEV, it was recorded in another
                mount namespace.
            StoreClosedError: the store is closed, so that the latest record cannot be read.
        """
        doing = f"inspect network namespace of sandbox {self.id!r}"
        row = self._latest(doing)
        if row.host_network or not row.netns_path:
            return None
        context = HostContext.current()
        sight = namespaces.observe(row.netns_path, context)
        found = namespaces.is_at(rows.load_netns(row), sight, context, doing)
        return NetNS(row.netns_path, sight.identity) if found and sight.identity else None

    def remove_netns(self) -> None:
        """Remove the network namespace that the latest record names; a second time does nothing.

        The recorded one and no other; or, while none was recorded, what its creator has left at a
        path that `Store.new_netns_path` has returned: a namespace, or the empty file for one. What
        is stored does not change.

        Raises:
            NetNSError: with `.errno`. EXDEV: it was recorded in another mount namespace. EEXIST:
                none was recorded, and what is at a path of another name may be a stranger's. ELOOP:
                a symlink is at the path, and leads to it. In each case nothing was removed.
            StoreClosedError: the store is closed, so that the latest record cannot be read.
        """
        doing = f"remove network namespace of sandbox {self.id!r}"
        row = self._latest(doing)
        if row.host_network or not row.netns_path:
            return
        ((registry_id,),) = self._session.fetch(sql.REGISTRY_ID, {}, doing)
        own = netns.is_own_path(row.netns_path, registry_id)
        netns.remove(row.netns_path, rows.load_netns(row), own=own)

    def open_process(self) -> Process | None:
        """Open the init process that the latest record names, to watch or kill it.

        Inside a transaction of the caller the latest record has the caller's own changes. After
        the deletion of the sandbox it is the last record that this handle has read.

        Returns:
            The process, to be closed by the caller. None: the recorded process has ended, or no
            pid is recorded (`status.get().pid` is 0). Never None for want of knowledge.
        Raises:
            FailedPreconditionError: the process cannot be seen from here, or its identity is not
                recorded.
            MetadataError: the record is damaged.
            StoreClosedError: the store is closed, so that the latest record cannot be read.
        """
        row = self._latest(f"open process of sandbox {self.id!r}")
        recorded = rows.load_process(row)
        if recorded is not None and self._session.has_set_pid(row):
            recorded = process.identify(row.pid, HostContext.current())
        return None if recorded is None else Process.of_identity(recorded)

    def _latest(self, doing: str) -> Row:
        """Return the latest committed row of this creation, or as the caller's transaction has it.

        Once the creation is deleted, return the last row that this handle has read.

        Raises:
            MetadataError: the record is damaged, so that nothing may be concluded from it; a state
                that is not known here is no such damage.
            StoreClosedError: the store is closed, or belongs to the process that forked this one.
        """
        entry = self._session.find_creation(self._entry.row.creation, doing)
        if entry is None:
            self._session.mark_missing_deleted(self._entry.row.creation, doing)
        else:
            self._last = entry.row
        row = self._last
        if isinstance(row.state, str):
            # A state of a newer program says nothing about process and namespace, which can still
            # be cleaned up.
            row = row._replace(state=str(State.UNKNOWN))
        rows.require_sound(row, doing)
        return self._last

    @property
    def container(self) -> Container | None:
        """The container that `add` or the container loader attached in this process."""
        return self._entry.runtime_state.container

    def attach(self, container: Container | None) -> None:
        """Give the sandbox its container, for all handles of this process; None changes nothing."""
        if container is not None:
            self._entry.runtime_state.container = container

    @property
    def stopped(self) -> StopCh:
        """Set once the sandbox is NOTREADY or deleted; shared by all handles of this process.

        What another process has done sets it at the next read of the sandbox here, or while a
        thread or a task waits for it. It stays set, also when the sandbox becomes READY again.
        """
        return self._entry.runtime_state.stopped

    def stop(self) -> None:
        """Set `stopped` without changing the status."""
        self.stopped.stop()

    def delete(self) -> bool:
        """Delete this creation of the sandbox; return False if it was already deleted."""
        doing = f"delete sandbox {self.id!r}"
        session, creation = self._session, self._entry.row.creation
        with session.write(doing, sandbox_id=self.id) as transaction:
            row = writes.find_creation(creation, transaction.fetch)
            if row is not None:
                self._last = row
                session.delete(transaction, row)
        if row is None:
            session.mark_missing_deleted(creation, doing)
        return row is not None


class _StoredStatus:
    """The StatusStorage of one creation."""

    def __init__(self, session: Session, handle: Row) -> None:
        self._session, self._handle = session, handle

    def get(self) -> Status:
        """Return the latest committed status, or the one of the caller's open transaction.

        Raises:
            NotFoundError: the sandbox has been deleted.
            MetadataError: this version does not know its state.
        """
        handle = self._handle
        doing = f"read status of sandbox {handle.id!r}"
        found = self._session.find_creation(handle.creation, doing)
        if found is None:
            self._session.mark_missing_deleted(handle.creation, doing)
            raise _deleted(doing, handle)
        return found.status()

    def update(self, fn: UpdateFunc, /) -> Status:
        """Store the result of *fn* for the latest status, and return it once it is committed.

        *fn* runs inside the transaction, exactly once, while no other writer runs: keep it short.
        Its exception is raised unchanged, and nothing is stored.

        Raises:
            NotFoundError: the sandbox has been deleted.
            InvalidArgumentError: what *fn* returned cannot be stored.
            MetadataError: this version does not know the latest state.
            FailedPreconditionError: it leads back to UNKNOWN, or *fn* changed this status itself.
            ResourceExhaustedError: the disk is full; NOTREADY is stored all the same, as long as
                what is kept for that goes.
            UnavailableError: the store's timeout passed before the write could begin, or a write of
                another thread, with which it shared the commit, has kept it or ended it.
        """
        doing = f"update status of sandbox {self._handle.id!r}"
        check_function(doing, fn)
        session, handle = self._session, self._handle
        with session.write(doing, sandbox_id=handle.id) as transaction:
            row = writes.find_changeable(handle.creation, transaction.fetch)
            if row is not None:
                status = validate(session.ask(transaction, row, fn, rows.load_status(row)), doing)
                if status.state is State.NOTREADY:
                    session.require_space_to_mark(doing)
                else:
                    session.require_space(doing)
                session.replace_status(transaction, row, status)
                identities.record_later(session, transaction, row, status.pid)
                return status
        session.mark_missing_deleted(handle.creation, doing)
        raise _deleted(doing, handle)


def _deleted(doing: str, row: Row) -> NotFoundError:
    return NotFoundError(f"{doing}: it has been deleted", id=row.id)
