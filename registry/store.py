"""Store of sandboxes in one file: by id, name and label.

    Store               the sandboxes of one registry file
    └── Sandbox         a handle on one creation of one sandbox
        └── .status     its StatusStorage

Rules:

1. Each call is one transaction, or a part of the open transaction of its owner. Threads that call
   at the same time share a commit; a call that fails is rolled back alone.
2. Slow steps (observing namespaces and processes, validating, encoding) run before the lock is
   acquired or after it is released.
3. Runtime state (`StopCh`, containers) changes after the commit and before the call returns.
"""

from __future__ import annotations

import builtins
import os
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self, overload

from registry.engine import SchemaHooks, attach, detach
from registry.engine.sqlite_errors import RESTORE
from registry.errors import DataLossError, FailedPreconditionError, NotFoundError
from registry.handles import additions, identities
from registry.handles.cache import Entry
from registry.handles.runtime_state import Container
from registry.handles.sandbox import Sandbox
from registry.handles.session import Session, check_function
from registry.host import context, netns
from registry.host.context import HostContext
from registry.model.metadata import Metadata, check_prefix
from registry.model.metadata import validate as validate_metadata
from registry.model.status import PID_MAX, State, Status
from registry.model.validation import (
    check_integer,
    check_line,
    check_path,
    check_seconds,
    check_text,
    invalid,
)
from registry.recovery.findings import Report
from registry.sync.imports import late_import
from registry.tables import filters, migrations, queries, sql, writes
from registry.tables.inspection import inspect
from registry.tables.rows import Row, Transition
from registry.tables.writes import Author
from registry.visible import visible

if TYPE_CHECKING:
    from registry.handles.watch import Watch
    from registry.recovery.reconcile import ContainerLoader
    from registry.tables.integrity import Violation

TIMEOUT: Final = 30.0
"""Seconds that a call waits unless the caller says less."""
ACTOR_MAX: Final = 256
"""Characters of an actor."""
MAIN: Final = "__main__.py"
"""File that `python -m PACKAGE` runs; the name of the program is that of the package."""
HIDDEN: Final = str(State.UNKNOWN)
"""The stored state of a sandbox that is being created."""


class Reconciled(NamedTuple):
    """Reconcile of a store, for its metrics.

    Attributes:
        report: result of the reconcile.
        seconds: duration of the reconcile.
        at: time of its end, in ns since the Unix epoch.
    """

    report: Report
    seconds: float
    at: int


class Store:
    """Sandboxes of one registry file, for any thread and any number of processes.

    Source: containerd pkg/store/sandbox/sandbox.go, Store; differs: this one is a file.
    """

    recovery: Report | None
    """The report of the reconcile that `open` ran; None if it ran none."""

    def __init__(self, session: Session) -> None:
        """Use `Store.open`."""
        if not isinstance(session, Session):
            raise TypeError(f"Store({session!r}): use Store.open(path)")
        self._session = session
        self._reconciled: Reconciled | None = None
        self.recovery = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        create: bool = True,
        upgrade: bool = True,
        reconcile: bool = True,
        read_only: bool = False,
        damaged: Literal["refuse", "read"] = "refuse",
        timeout: float = TIMEOUT,
        actor: str = "",
        container_loader: ContainerLoader | None = None,
        clock: Callable[[], int] | None = None,
    ) -> Store:
        """Open the registry at *path*, and reconcile its sandboxes with the host.

        Args:
            path: the file; beside it lie its WAL, two lock files and the disk reserve.
            create: create a missing file and its directories; if False, a missing file is an error,
                so that a disk that is not mounted yet is not taken for an empty node.
            upgrade: upgrade an older schema.
            reconcile: mark sandboxes that are gone as NOTREADY; see `recovery`.
            read_only: never write; implies `reconcile=False`.
            damaged: what happens if SQLite finds damage in the file: "refuse" raises DataLossError;
                "read" implies *read_only*, and reads leave out what cannot be read. What they
                return may be wrong: SQLite checks the structure, but has no checksums.
            timeout: seconds that a write waits at most; 0 or more.
            actor: name of the writer in the history; default: program name and pid.
            container_loader: returns the container of a recovered sandbox, or None.
            clock: returns ns since the Unix epoch; default `time.time_ns`.
        Raises:
            NotFoundError: the file is missing, and *create* is False.
            DataLossError: the file is damaged or not a registry.
            SchemaVersionError: the schema is newer than this code, or older and not upgraded.
            ResourceExhaustedError: the disk is full, and the disk reserve is used up.
            UnavailableError: another process held the write lock past *timeout*.
        """
        doing = f"open registry {path!r}"
        timeout = check_seconds(doing, "timeout", timeout)
        author = _author(actor, clock, doing)
        if damaged not in {"refuse", "read"}:
            raise invalid(doing, "damaged", damaged, "is not 'refuse' or 'read'")
        read_only = read_only or damaged == "read"
        create, upgrade = create and not read_only, upgrade and not read_only
        user, session = object(), None
        try:
            session = _open_session(
                path,
                user,
                author,
                timeout,
                create=create,
                upgrade=upgrade,
                read_only=read_only,
                damaged=damaged == "read",
            )
            return cls._of(session, container_loader, reconcile=reconcile and not read_only)
        except BaseException:
            if session is None:
                detach(user, timeout)  # an interrupt may have come after it was attached
            else:
                session.close()
            raise

    @classmethod
    def _of(
        cls, session: Session, container_loader: ContainerLoader | None, *, reconcile: bool
    ) -> Store:
        """Return the store of *session*, with its containers loaded, and reconciled if asked."""
        # Another process may have upgraded the schema since this one first opened the file.
        may_write = _admit(session)
        store = cls(session)
        if container_loader is not None:
            with late_import("registry.recovery.reconcile"):
                from registry.recovery.reconcile import load_containers  # noqa: PLC0415
            load_containers(session, container_loader)
        if reconcile and may_write:
            store.recovery = store.reconcile()
        return store

    def __enter__(self) -> Self:
        self._session.require_open("enter store")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self, warn: Callable[..., None] = warnings.warn) -> None:
        # *warn* is bound here since Python clears the module when it exits.
        session = getattr(self, "_session", None)
        if session is not None and not session.closed:
            warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        """Show the path and whether it is open."""
        state = "closed" if self._session.closed else "open"
        return visible(f"Store({self._session.engine.path!r}, {state})")

    def close(self) -> None:
        """Close the store; idempotent.

        The call waits for other writers, at most for the store's timeout. A store that is still
        open at the exit of the interpreter is closed then, with a wait of at most 1 second.

        An open transaction of the caller is rolled back, unless another Store of this process has
        the file open: the transaction then continues on that store.
        """
        self._session.close()

    @property
    def path(self) -> str:
        """Real path of the file, without symlinks."""
        return self._session.engine.path

    @property
    def _registry_id(self) -> str:
        """Id of the registry, which a restore of another one in its place changes."""
        doing, path = "read the id of the registry", self.path
        found = self._session.fetch(sql.REGISTRY_ID, {}, doing)
        id = found[0][0] if found else None
        if not isinstance(id, str) or not netns.is_registry_id(id):  # a part of paths
            why = f"it is {id!r:.80}, not 32 hexadecimal digits" if found else "table is empty"
            raise DataLossError(f"{doing} {path!r}: {why}; {RESTORE}", path=path)
        return id

    # Reading.

    @overload
    def get(self, id: str, *, include_unknown: bool = False) -> Sandbox: ...
    @overload
    def get(self, *, name: str, include_unknown: bool = False) -> Sandbox: ...
    def get(
        self, id: str | None = None, *, name: str | None = None, include_unknown: bool = False
    ) -> Sandbox:
        """Return the sandbox with *id*, or the one with *name*; give one of both.

        Args:
            id: whole or a unique prefix; an exact id wins.
            name: of the sandbox, whole.
            include_unknown: also return a sandbox that is being created.
        Raises:
            NotFoundError: there is no such sandbox, or it is UNKNOWN and not *include_unknown*.
            AmbiguousPrefixError: several ids begin with *id*, including those of UNKNOWN sandboxes.
            InvalidArgumentError: *id* is empty or not a string, or not exactly one of *id* and
                *name* is given.
        """
        if name is not None:
            found, doing = self._find_named(id, name)
        elif id is None:
            raise invalid("get sandbox", "id", id, "is no id; give an id or a name")
        else:
            doing = f"get sandbox {id!r}"
            found = self._session.find(check_prefix(doing, id), doing)
        if found is None:
            raise NotFoundError(f"{doing}: there is no such sandbox", id=id or "", name=name or "")
        if found.row.state == HIDDEN and not include_unknown:
            message = f"{doing}: it is being created; wait until it is READY, or include UNKNOWN"
            raise NotFoundError(message, id=found.row.id, name=name or "")
        return Sandbox(self._session, found)

    def _find_named(self, id: str | None, name: str) -> tuple[Entry | None, str]:
        """Return the sandbox with *name*, and the operation for messages."""
        doing = f"get sandbox named {name!r}"
        if id is not None:
            raise invalid(doing, "id", id, "is given beside a name; give one of both")
        params = {"name": check_text(doing, "name", name, sys.maxsize)}
        query = queries.list_sandboxes(frozenset(params))
        found = self._session.list(query, params, doing, by_state=False)
        return (found[0] if found else None), doing

    def list(
        self,
        *,
        include_unknown: bool = False,
        id: str | None = None,
        name: str | None = None,
        state: State | Collection[State] | None = None,
        labels: Mapping[str, str] | None = None,
        selector: str | None = None,
        pod: str | None = None,
        namespace: str | None = None,
        newest_first: bool = False,
        limit: int | None = None,
    ) -> list[Sandbox]:
        """Return the sandboxes that match every filter, ordered by created_at and id.

        Args:
            include_unknown: include sandboxes that are being created.
            id: beginning of the id; *name*, *labels*, *pod* and *namespace* are exact.
            name: name of the sandbox.
            state: state of the sandbox, or a collection of states of which it has one. No sandbox
                has one of no states.
            labels: labels that the config must have; it may have others. Any text is accepted.
            selector: label selector of Kubernetes, such as `app=web,tier!=db,env in (a,b),!canary`.
            pod: name of the pod.
            namespace: Kubernetes namespace of the pod.
            newest_first: reverse the order.
            limit: maximum number of sandboxes, the first ones in the order; 1 or more.
        Raises:
            InvalidArgumentError: a filter has the wrong type, *id* is empty, *selector* cannot be
                read (`.position` is the character), or it and *labels* are too many for one query.
        """
        query, params = filters.list_query(
            include_unknown=include_unknown,
            id=id,
            name=name,
            state=state,
            labels=labels,
            selector=selector,
            pod=pod,
            namespace=namespace,
            newest_first=newest_first,
            limit=limit,
        )
        session, by_state = self._session, state is not None
        found = session.list(query, params, filters.LISTING, by_state=by_state)
        return [Sandbox(session, each) for each in found]

    def history(
        self, id: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> builtins.list[Transition]:
        """Return the committed changes of state, oldest first, of all sandboxes or of one.

        The list is empty if no transition is kept. An update that keeps the state adds none. The
        seq of a transition is that of the one before plus 1. The first one after a backup was put
        to use has a multiple of 10**9 plus 1: those between them were lost.

        Args:
            id: full id, also of a deleted sandbox.
            after: return transitions with a greater seq; 0: from the oldest that is kept.
            limit: maximum number of transitions.
        Raises:
            CompactedError: the transition after *after* is no longer kept, or *after* was lost when
                a backup was restored.
            MetadataError: a transition has an unknown state; the message has its seq.
        """
        doing = "read history" if id is None else f"read history of sandbox {id!r}"
        check_integer(doing, "after", after, 0, 2**63 - 1)
        params: dict[str, object] = {"after": after}
        if id is not None:
            params["id"] = check_prefix(doing, id)
        if limit is not None:
            params["limit"] = check_integer(doing, "limit", limit, 0, 2**63 - 1)
        query = queries.history(frozenset(params) - {"after"})
        found = self._session.history(query, params, doing)
        return [Transition.load(row) for row in found]

    def watch(self, *, after: int | None = None, timeout: float | None = None) -> Watch:
        """Return an iterator of the transitions that any process commits, in order of seq.

        It is an asynchronous iterator too. Each transition is returned once. The iteration ends
        when this store is closed, or `Watch.close` is called.

            for transition in store.watch(): ...
            async for transition in store.watch(): ...

        Args:
            after: only those with a greater seq, to resume where a watch has ended; 0 is the
                beginning of what is kept. None: those that are committed after this call.
            timeout: seconds without a transition after which the iteration ends; None: never.
        Raises:
            CompactedError: while iterating; the transition after *after* is no longer kept, or
                *after* was lost when a backup was restored.
            InvalidArgumentError: *after* or *timeout* is no such number.
        """
        with late_import("registry.handles.watch"):
            from registry.handles.watch import Watch  # noqa: PLC0415 - few processes watch

        doing = "watch the history"
        self._session.require_open(doing)
        if after is not None:
            check_integer(doing, "after", after, 0, 2**63 - 1)
        if timeout is not None:
            timeout = check_seconds(doing, "timeout", timeout)
        return Watch(self._session, after, timeout)

    def check(
        self, *, progress: Callable[[int, int], object] | None = None
    ) -> builtins.list[Violation]:
        """Return every violated invariant of the registry, without writing.

        Args:
            progress: called after each rule with the number of rules that are checked, and of all.
        """
        from registry.tables import integrity  # noqa: PLC0415 - rarely used

        self._session.require_open("check registry")
        with self._session.engine.snapshot("check registry") as connection:
            return integrity.run(connection, progress)

    def backup(
        self, path: str | os.PathLike[str], *, progress: Callable[[int, int], object] | None = None
    ) -> None:
        """Copy the registry to *path* while it is in use; the copy is checked before it is there.

        The copy has the latest commit, also inside a transaction of the caller. It is one file of
        mode 0600, which replaces an earlier backup at *path* in one step. It carries a mark: opened
        for writing at its own path it becomes another registry. `registry.restore` puts it in the
        place of a registry.

        Args:
            path: of the copy, in a directory that exists; a symlink in its place is refused.
            progress: called after each MiB with the pages that are copied, and all pages. Its
                exception is raised unchanged, and no copy is left.
        Raises:
            InvalidArgumentError: *path* names no file, or a file of the registry itself.
            FailedPreconditionError: at *path* is something else than a backup.
            NotFoundError: the directory is missing.
            ResourceExhaustedError: there is no space for the copy.
            DataLossError: the registry is damaged.
            UnavailableError: another process is writing a backup to *path*.
        """
        with late_import("registry.tables.backup"):
            from registry.tables.backup import back_up, target_of  # noqa: PLC0415 - rarely used

        doing = f"back up registry {self.path!r}"
        self._session.require_open(doing)
        if progress is not None and not callable(progress):
            raise invalid(doing, "progress", progress, "is not a function of two numbers of pages")
        target = target_of(path, doing)
        back_up(self._session.engine.committed(doing), self.path, target, progress)

    # Writing.

    def transaction(self) -> AbstractContextManager[None]:
        """Return a context manager that makes the calls in its body one commit; it yields None.

        The transaction belongs to the thread that enters it, or to the task of asyncio, trio or
        anyio, or to the greenlet. A nested transaction is a savepoint: if it fails, it is rolled
        back alone. Calls of the owner on another Store of the same file join the transaction.

        Raises:
            UnavailableError: the store's timeout passed before it could begin.
            FailedPreconditionError: another task of this thread has a transaction open, or this
                thread was called from inside a transaction, as by `asyncio.to_thread`.
        """
        return self._session.caller_write("transaction")

    def deadline(self, seconds: float) -> AbstractContextManager[None]:
        """Return a context manager whose calls wait at most *seconds* in all; it yields None.

        It holds for every call on this file in the body, of handles and of other Stores too, and in
        tasks and threads that are begun there with a copy of the context, until the body ends. The
        store's timeout holds for each call as well, and of nested deadlines the earliest. Once it
        has passed, a call that has to wait raises at once, and one that need not wait is made. The
        functions of the caller are not interrupted.

        Args:
            seconds: from the beginning of the body; 0 or more.
        Raises:
            InvalidArgumentError: *seconds* is no such number.
        """
        return self._session.deadline(check_seconds("set a deadline", "seconds", seconds))

    def add(
        self,
        metadata: Metadata,
        status: Status,
        *,
        container: Container | None = None,
        creator: int | None = None,
    ) -> Sandbox:
        """Add a sandbox and its status.

        A shim adds a sandbox as UNKNOWN, with the path of its future namespace, *before* it creates
        the namespace: a crash then leaves a record that names everything to clean up.

        Args:
            metadata: of the sandbox.
            status: of the sandbox.
            container: attached to the sandbox, for all handles of this process.
            creator: pid, as this process sees it, of the process that is responsible until the
                sandbox leaves UNKNOWN: a daemon, say, for which a short-lived program adds it.
                Default: this process. Once the creator is gone, reconcile takes the creation of an
                UNKNOWN sandbox for interrupted.
        Raises:
            FailedPreconditionError: no process with the pid *creator* runs.
            AlreadyExistsError: the id is taken.
            NameReservedError: sandbox `.holder` has the name.
            InvalidArgumentError, ResourceExhaustedError: a value cannot be stored.
            UnavailableError: the store's timeout passed before the write could begin, or a write of
                another thread in the same group delayed or ended the commit.
        """
        doing = f"add sandbox {getattr(metadata, 'id', None)!r}"
        pid = os.getpid() if creator is None else creator
        check_integer(doing, "creator", pid, 1, PID_MAX)
        return self._insert("add", metadata, status, pid, container)

    def adopt(self, metadata: Metadata, status: Status) -> Sandbox:
        """Add a sandbox that was created elsewhere, for another store for example.

        As `add`, but without a creator: the verdict on an UNKNOWN adopted sandbox is UNVERIFIED.
        That on an added sandbox is INTERRUPTED once this process has ended.

        Raises:
            AlreadyExistsError: as `add`.
            NameReservedError: as `add`.
            InvalidArgumentError: as `add`.
            ResourceExhaustedError: as `add`.
            UnavailableError: as `add`.
        """
        return self._insert("adopt", metadata, status, creator=0)

    def _insert(
        self,
        verb: str,
        metadata: Metadata,
        status: Status,
        creator: int,
        container: Container | None = None,
    ) -> Sandbox:
        """Add a sandbox that the process with pid *creator* is creating; 0: no process is."""
        addition = additions.prepare(verb, metadata, status, creator, HostContext.current())
        return additions.insert(self._session, addition, container)

    def update_metadata(self, id: str, fn: Callable[[Metadata], Metadata]) -> Sandbox:
        """Replace the metadata of *id* by the result of *fn*; only while the sandbox is UNKNOWN.

        *fn* runs inside the transaction, exactly once. Its exception is raised unchanged.

        Args:
            id: whole or a unique prefix.
            fn: must keep id and name.
        Raises:
            NotFoundError, AmbiguousPrefixError: as `get`.
            FailedPreconditionError: the sandbox is no longer UNKNOWN.
            InvalidArgumentError, ResourceExhaustedError: a value cannot be stored.
        """
        doing = f"update metadata of sandbox {id!r}"
        prefix = check_prefix(doing, id)
        check_function(doing, fn)
        with self._session.write(doing, sandbox_id=prefix) as transaction:
            self._session.require_space(doing, grows=True)
            row = writes.find(prefix, doing, transaction.fetch)
            if row is not None:
                metadata = self._session.ask(transaction, row, fn, row.metadata())
                _refuse_unless_completed(doing, row, validate_metadata(metadata, doing))
                entry = self._session.replace_metadata(transaction, row, metadata)
                identities.record_later(self._session, transaction, entry.row, entry.row.pid)
                return Sandbox(self._session, entry)
        self._session.mark_named_deleted(prefix, doing)
        raise NotFoundError(f"{doing}: there is no such sandbox", id=prefix)

    def delete(self, id: str) -> bool:
        """Delete the sandbox with *id*, full or a unique prefix; return whether there was one.

        Raises:
            AmbiguousPrefixError: several ids begin with *id*.
            InvalidArgumentError: *id* is empty or not a string.
        """
        doing = f"delete sandbox {id!r}"
        prefix = check_prefix(doing, id)
        with self._session.write(doing, sandbox_id=prefix) as transaction:
            row = writes.find(prefix, doing, transaction.fetch)
            if row is not None:
                self._session.delete(transaction, row)
                return True
        self._session.mark_named_deleted(prefix, doing)
        return False

    # Recovering.

    def reconcile(self, *, dry_run: bool = False) -> Report:
        """Observe the namespace and the process of every sandbox, and mark sandboxes that are gone.

        The call observes without holding any lock, and writes its changes in one transaction.

        Args:
            dry_run: return the same report, and write nothing.
        Raises:
            UnavailableError: the store's timeout passed before the changes could be written.
        """
        with late_import("registry.recovery.reconcile"):
            from registry.recovery.reconcile import log_report, run  # noqa: PLC0415 - as `open`
        began = time.monotonic()
        report = run(self._session, self._registry_id, dry_run=dry_run)
        latest = Reconciled(report, time.monotonic() - began, time.time_ns())
        self._reconciled = latest
        log_report(self.path, report, latest.seconds, dry_run=dry_run)
        return report

    def remove_orphans(self, paths: Iterable[str]) -> builtins.list[str]:
        """Remove the namespaces at *paths* that are still orphans, and return their paths.

        Each namespace is observed again under the write lock, so that no sandbox can claim it.

        Args:
            paths: orphans of a `Report`.
        Raises:
            InvalidArgumentError: a path is not absolute.
            NetNSError: with `.errno`, EBUSY if a process lives in the namespace; raised for the
                first orphan that cannot be removed, after the others were removed.
        """
        doing = "remove orphaned network namespaces"
        if isinstance(paths, str) or not isinstance(paths, Iterable):
            raise invalid(doing, "paths", paths, "is not several paths")
        wanted = [check_path(doing, "paths", path) for path in paths]
        with late_import("registry.recovery.orphans"):
            from registry.recovery.orphans import remove_orphans  # noqa: PLC0415 - as above
        return remove_orphans(self._session, self._registry_id, wanted)

    def new_netns_path(self, base_dir: str = netns.BASE_DIR) -> str:
        """Return a new path for a network namespace, whose name contains the registry's id.

        Raises:
            InvalidArgumentError: *base_dir* is not an absolute path.
        """
        self._session.require_open("name a network namespace")
        check_path("name a network namespace", "base_dir", base_dir)
        return netns.own_path(base_dir, self._registry_id)


def _open_session(
    path: str | os.PathLike[str],
    user: object,
    author: Author,
    timeout: float,
    *,
    create: bool,
    upgrade: bool,
    read_only: bool,
    damaged: bool,
) -> Session:
    """Open the file at *path*, or join the engine that this process has open; as `Store.open`.

    After an exception the caller detaches *user*.
    """
    engine = attach(
        path,
        user,
        create=create,
        read_only=read_only,
        damaged=damaged,
        timeout=timeout,
        hooks=SchemaHooks(
            inspect=partial(inspect, create=create, upgrade=upgrade, damaged=damaged),
            prepare=partial(
                migrations.prepare, create=create, upgrade=upgrade, read_only=read_only
            ),
            admit=migrations.admit,
            guard=migrations.guard,
        ),
    )
    if damaged:
        with late_import("registry.handles.damaged"):
            from registry.handles.damaged import DamagedSession  # noqa: PLC0415 - rarely needed
        return DamagedSession(engine, user, timeout, author)
    return Session(engine, user, timeout, author)


def _admit(session: Session) -> bool:
    """Return whether the registry may be written; raise unless it may be read."""
    path = session.engine.path
    doing = f"open registry {path!r}"
    with session.snapshot(doing) as fetch:
        return migrations.admit(fetch, doing, path)


def session_of(store: Store) -> Session:
    """Return the session of *store*, by which the command line and the metrics read its tables."""
    return store._session  # noqa: SLF001 - of this module


def _author(actor: str, clock: Callable[[], int] | None, doing: str) -> Author:
    """Return the author of writes; *actor* "" means the program's name and pid."""
    script = (sys.argv or [""])[0]
    program = os.path.basename(script) or "python"
    if program == MAIN:
        program = os.path.basename(os.path.dirname(os.path.abspath(script)))
    printable = program.encode(errors="replace").decode()
    check_line(doing, "actor", actor, ACTOR_MAX)
    if clock is not None and not callable(clock):
        raise invalid(doing, "clock", clock, "is not a function that returns nanoseconds")
    return Author(actor or f"{printable}[{os.getpid()}]", clock or time.time_ns, context.boot_id)


def _refuse_unless_completed(doing: str, row: Row, metadata: Metadata) -> None:
    """Raise unless *metadata* may replace the metadata of *row*."""
    if row.state != str(State.UNKNOWN):
        raise FailedPreconditionError(
            f"{doing}: it is {row.state}, and metadata is fixed once a sandbox is not UNKNOWN; "
            "delete it and add it again",
            id=row.id,
        )
    for field in ("id", "name"):
        if getattr(metadata, field) != getattr(row, field):
            raise invalid(doing, field, getattr(metadata, field), "cannot change")
