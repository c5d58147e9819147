"""A backup, put in the place of a registry that is in use, damaged or gone.

    verify the backup ─▶ lock ─▶ examine what is there ─▶ prepare PATH-restore
        there is a registry:  copy it to PATH.replaced-TIME ─▶ write the pages of PATH-restore into
                              it, in one transaction of SQLite
        it is damaged, gone:  move it to PATH.replaced-TIME ─▶ rename PATH-restore to PATH
    ─▶ unlock ─▶ open and reconcile

1. PATH-restore is complete and synced before PATH is changed: upgraded, checked, and with the new
   incarnation begun. A killed restore leaves it, and the next restore replaces it.
2. A registry in use is written through SQLite, so that processes that have it open go on with the
   restored content, and no old WAL is applied to it.
3. Files that are moved away are replaced files to a process that has them open: see
   `engine.file_identity`.
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from registry.engine import driver
from registry.engine.continuity import following, give_number, next_number
from registry.engine.engine import open_engines
from registry.engine.lock_holder import timeout_error
from registry.engine.process_lock import ProcessLock
from registry.engine.sqlite_errors import driver_errors
from registry.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from registry.host import paths
from registry.maintenance.present import (
    BUSY_TIMEOUT,
    History,
    connect_to_backup,
    examine,
    move_away,
    path_to_keep,
)
from registry.recovery.findings import Report
from registry.store import Store
from registry.sync.interrupts import call_then, reraise_interrupt, suppress_os_errors
from registry.tables import incarnation, migrations
from registry.tables.backup import mark_and_check
from registry.tables.copies import copy_pages
from registry.tables.inspection import inspect
from registry.tables.version import BLOCK
from registry.visible import counted

log = logging.getLogger("registry")

PREPARED: Final = "-restore"
"""Added to the path of a registry: the file with the content that it gets."""
TIMEOUT: Final = 30.0
"""Seconds to wait for other writers."""
_BLOCKS: Final = 1_000_000
"""Blocks of the history of which one is chosen at random where its end is not known."""


@dataclass(frozen=True, slots=True)
class Restoration:
    """Result of a restore."""

    path: str
    """Real path of the registry."""
    backup: str
    """Real path of the backup."""
    incarnation: int
    """Number of the incarnation that has begun."""
    replaced: str
    """Path at which the replaced registry is kept; "": there was none."""
    lost: tuple[range, ...] | None
    """The seqs of the transitions that were committed after the backup and are lost, in order; None
    if the replaced registry cannot tell."""
    recovery: Report
    """The report of the reconcile of the restored registry."""


def restore(
    backup: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    actor: str = "",
) -> Restoration:
    """Put *backup* in the place of the registry at *path*, and reconcile it with the host.

    A registry that is in use gets the content of the backup in one transaction: processes that have
    it open go on with it. A damaged one is moved away. What is replaced is kept beside it. A new
    incarnation begins, so that no seq of a lost transition is used again.

    Args:
        backup: made by `Store.backup`, or another copy of a registry by SQLite.
        path: the registry; it may be gone, as on another host.
        force: also replace a registry that has newer history than the backup, or another id, or a
            file that SQLite cannot read and that nothing beside it proves to be a registry.
        actor: name in the history of the writer that reconciles; default: program name and pid.
    Raises:
        InvalidArgumentError: *backup* or *path* names no file, both name the same, or *actor* is
            no line of text.
        NotFoundError: there is no backup.
        DataLossError: the backup is damaged or no registry, or what is at *path* is no registry.
        SchemaVersionError: the schema of the backup, or that of the registry, is too new.
        FailedPreconditionError: the registry has newer history or another id, and not *force*; or
            it is damaged and open in this process.
        ResourceExhaustedError: there is no space.
        UnavailableError: another process held the write lock for 30 s.
    """
    source, real = paths.resolve(backup), paths.resolve(path)
    doing = f"restore registry {real!r} from {source!r}"
    same = paths.identity(source) is not None and paths.identity(source) == paths.identity(real)
    if same or source == f"{real}{PREPARED}":  # the latter is what a killed restore has left
        raise InvalidArgumentError(
            f"{doing}: both are the same file, or the former is of a restore; name a backup",
            field="backup",
            value=source,
        )
    copied = _verified(source)
    paths.make_directories(os.path.dirname(real))
    owner = next(each for each in (real, f"{real}-lock", source) if os.path.exists(each))
    with _system_errors(doing, real, "open and lock the lock files"):
        lock = ProcessLock(real)
    job = _Job(doing, source, real, owner, lock)
    body = partial(_replace, job, copied, force=force)
    number, replaced, lost = call_then(body, partial(_unlock, real, lock, os.stat(owner)))
    with Store.open(real, create=False, actor=actor) as store:
        report = store.recovery
    assert report is not None, "it was reconciled"
    log.info(
        "restored registry %r from %r",
        real,
        source,
        extra={
            "event": "registry_restored",
            "path": real,
            "backup": source,
            "incarnation": number,
            "replaced": replaced,
            "lost": None if lost is None else sum(map(len, lost)),
        },
    )
    return Restoration(real, source, number, replaced, lost, report)


def _verified(source: str) -> History:
    """Return the history of the backup at *source*.

    Raises:
        NotFoundError, DataLossError, SchemaVersionError: it cannot be restored.
    """
    doing = f"open backup {source!r}"
    if not paths.size(source):
        raise NotFoundError(f"{doing}: there is no such file, or it is empty", path=source)
    with driver_errors(doing, source):
        if not inspect(source, create=False, upgrade=True):
            raise DataLossError(
                f"{doing}: a write to it was cut short, and its journal is beside it; restore "
                "another one",
                path=source,
            )
        with closing(connect_to_backup(source)) as connection:
            return History.read(connection.fetch)


class _Job(NamedTuple):
    """Operands of a restore."""

    doing: str
    source: str
    path: str
    owner: str
    """Path of a file whose owner the registry gets."""
    lock: ProcessLock


def _replace(
    job: _Job, copied: History, *, force: bool
) -> tuple[int, str, tuple[range, ...] | None]:
    """Acquire the lock, and replace the registry; return what a `Restoration` has of it."""
    doing, path, lock = job.doing, job.path, job.lock
    with _system_errors(doing, path, "open and lock the lock files"):
        if not lock.acquire(time.monotonic() + TIMEOUT):
            raise timeout_error(doing, path, TIMEOUT, None, lock.holder())
    present = examine(path, force=force)
    if present is not None and not force:
        _require_older(doing, path, present, copied)
    number = _prepare(job, _before(copied, present))
    kept = path_to_keep(path)
    if present is None:
        replaced = _put_in_place(doing, path, kept, lock)
    else:
        replaced = _write_into(doing, path, kept)
    return number, replaced, _lost(copied, present)


def _unlock(path: str, lock: ProcessLock, owner: os.stat_result) -> None:
    """Remove the prepared file, and release *lock*, whose files get their owner; idempotent."""
    with suppress_os_errors():
        if os.path.lexists(f"{path}{PREPARED}"):
            os.unlink(f"{path}{PREPARED}")
    if os.geteuid() == 0:
        for suffix in ("-lock", "-queue"):
            with suppress_os_errors():
                os.chown(f"{path}{suffix}", owner.st_uid, owner.st_gid, follow_symlinks=False)
    lock.release()
    lock.close()


@contextmanager
def _system_errors(doing: str, path: str, what: str) -> Iterator[None]:
    """Raise an error of the system in the body as an error of this package."""
    try:
        yield
    except OSError as error:
        reraise_interrupt(error)
        raise paths.refused(doing, path, what, error) from error


def _require_older(doing: str, path: str, present: History, copied: History) -> None:
    """Raise unless the backup has all that the registry at *path* has.

    Raises:
        FailedPreconditionError: it has newer history, or is another registry.
    """
    if present.incarnation.registry_id != copied.incarnation.registry_id:
        raise FailedPreconditionError(
            f"{doing}: it is another registry (id {present.incarnation.registry_id}) than that of "
            f"the backup (id {copied.incarnation.registry_id}); restore it with force=True to "
            "replace it",
            path=path,
        )
    lost = _lost(copied, present) or ()
    if lost:
        after = f"sandbox-registry --db {shlex.quote(path)} history --after {lost[0][0] - 1}"
        raise FailedPreconditionError(
            f"{doing}: the backup does not have {shown(lost)}; `{after}` shows what would be lost; "
            "restore it with force=True to lose it",
            path=path,
        )


def _lost(copied: History, present: History | None) -> tuple[range, ...] | None:
    """Return the seqs of the transitions that *present* has and the backup does not have."""
    if present is None or present.incarnation.registry_id != copied.incarnation.registry_id:
        return None
    since = min(copied.seqs, default=0)
    seqs = {seq for seq in present.seqs - copied.seqs if seq > since}
    last = copied.incarnation.last_seq
    if seqs and present.incarnation.number == copied.incarnation.number:
        seqs.update(range(last + 1, max(seqs)))  # those that the history no longer keeps
    return _ranges(seqs)


def shown(lost: Collection[range]) -> str:
    """Return the number of transitions in *lost*, and their seqs, for people."""
    seqs = (str(each[0]) if len(each) == 1 else f"{each[0]} to {each[-1]}" for each in lost)
    return f"{counted(sum(map(len, lost)), 'transition')} (seq {', '.join(seqs)})"


def _ranges(seqs: Iterable[int]) -> tuple[range, ...]:
    """Return *seqs* as ranges, in order."""
    found: list[range] = []
    for seq in sorted(seqs):
        if found and found[-1].stop == seq:
            found[-1] = range(found[-1].start, seq + 1)
        else:
            found.append(range(seq, seq + 1))
    return tuple(found)


# The new content.


def _prepare(job: _Job, new: tuple[incarnation.Incarnation, int]) -> int:
    """Write the new content to PATH-restore, and return its incarnation.

    Args:
        job: the restore.
        new: as `_before` returns it.
    Raises:
        DataLossError: the backup is damaged.
        RegistryError: the file cannot be written.
    """
    doing, source, prepared = job.doing, job.source, f"{job.path}{PREPARED}"
    now, number = new
    with driver_errors(doing, prepared):
        with closing(connect_to_backup(source)) as backup:
            copy_pages(backup, prepared, job.owner, doing, finish=lambda _: None)
        with closing(_offline(prepared)) as connection:
            migrations.upgrade_copy(connection, prepared)
            connection.execute("BEGIN IMMEDIATE")
            incarnation.begin(connection, now, registry_id=now.registry_id, number=number)
            connection.execute("COMMIT")
            damage = connection.fetch("PRAGMA integrity_check(1)")
    if damage != [("ok",)]:
        raise DataLossError(
            f"{doing}: the backup is damaged: {damage[0][0]}; restore another one", path=source
        )
    return number


def _before(copied: History, present: History | None) -> tuple[incarnation.Incarnation, int]:
    """Return the incarnation that the new one follows, and the number of the new one.

    The history that is lost with a registry that cannot be read may have any seq of the next
    blocks. A block at random has most likely none of them.
    """
    now = copied.incarnation
    if present is None:
        skipped = secrets.randbelow(_BLOCKS) * BLOCK
        return now._replace(last_seq=now.last_seq + skipped), now.number + 1
    last = max(now.last_seq, present.incarnation.last_seq)
    return now._replace(last_seq=last), max(now.number, present.incarnation.number) + 1


def _offline(path: str) -> driver.Connection:
    """Return a connection to a copy that no other process uses: a kill leaves nothing beside it."""
    connection = driver.connect(path, "rw", (driver.synchronous_full,), busy_timeout=0)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = MEMORY")
    return connection


# Its place.


def _put_in_place(doing: str, path: str, kept: str, lock: ProcessLock) -> str:
    """Move what is at *path* to *kept*, and the prepared file to *path*; return where it is kept.

    Raises:
        FailedPreconditionError: this process has the damaged registry open.
    """
    if any(engine.path == path and not engine.closed for engine in open_engines):
        raise FailedPreconditionError(
            f"{doing}: this process has the damaged registry open; close its stores first",
            path=path,
        )
    with _system_errors(doing, path, "put the files in place"):
        lock.mark()  # from now on it is known that there was a registry
        moved = move_away(path, kept)
        os.rename(f"{path}{PREPARED}", path)
        paths.sync_directory(os.path.dirname(path))
    return kept if moved else ""


def _write_into(doing: str, path: str, kept: str) -> str:
    """Copy the registry at *path* to *kept*, and write the prepared content into it.

    The numbers of commits, which distinguish the WAL from others, go on (see `continuity`).
    """
    with driver_errors(doing, path):
        connection = driver.connect(path, "rw", driver.SETUP, busy_timeout=BUSY_TIMEOUT)
        with closing(connection), closing(_offline(f"{path}{PREPARED}")) as prepared:
            copy_pages(connection, kept, path, doing, finish=mark_and_check(path, doing))
            try:
                _replace_pages(doing, path, prepared, connection)
            except BaseException as error:
                if _is_unchanged(connection, prepared, error):
                    with suppress_os_errors():
                        os.unlink(kept)
                raise
    return kept


def _is_unchanged(
    connection: driver.Connection, prepared: driver.Connection, error: BaseException
) -> bool:
    """Return whether the registry certainly has its old content after *error*.

    An interrupt may have come after the commit. If the sync of the WAL fails, the frames of the
    commit are in the file all the same, and an open after a crash takes them for committed: another
    commit overwrites them.
    """
    try:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR:
            _commit_number(connection)
        old, new = (incarnation.Incarnation.read(each.fetch) for each in (connection, prepared))
    except sqlite3.Error:
        return False
    return old.number != new.number


def _commit_number(connection: driver.Connection) -> int:
    """Commit the next number alone, and return it."""
    connection.execute("BEGIN IMMEDIATE")
    number = next_number(connection)
    give_number(connection, number)
    connection.execute("COMMIT")
    return number


def _replace_pages(
    doing: str, path: str, prepared: driver.Connection, connection: driver.Connection
) -> None:
    """Replace all pages of the database of *connection*, in one transaction.

    Args:
        doing: operation and object, for messages.
        path: the registry.
        prepared: has the new content.
        connection: to the registry; the caller holds the process lock.
    Raises:
        UnavailableError: a client that bypasses the process lock held SQLite's lock for 30 s.
        sqlite3.Error: nothing was changed.
    """
    (size,), (other,) = (each.fetch("PRAGMA page_size")[0] for each in (connection, prepared))
    if size != other:  # the backup API cannot change that of a database in WAL mode
        prepared.execute(f"PRAGMA page_size = {size}")
        prepared.execute("VACUUM")
    # The WAL must begin with a commit of the old content: else it would seem to be of another file.
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    give_number(prepared, following(_commit_number(connection)))

    deadline = time.monotonic() + TIMEOUT

    def step(status: int, *_: int) -> None:
        waits = status in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
        if waits and time.monotonic() > deadline:
            raise timeout_error(doing, path, TIMEOUT, None, None)

    prepared.backup(connection, pages=-1, progress=step, sleep=0.01)
