"""The one connection of a process that writes, as single steps of a transaction.

1. The caller must hold the mutex.
2. The process lock is held from before the first PRAGMA of an open to after the last close, and for
   each transaction from before BEGIN to after COMMIT.
3. Transactions BEGIN IMMEDIATE: a deferred one that reads before it writes fails at once if another
   connection has committed in between.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from registry.engine import driver
from registry.engine.continuity import following, give_number, next_number
from registry.engine.disk_space import DiskSpace
from registry.engine.lock_holder import timeout_error, wait_for_readers
from registry.engine.process_lock import ProcessLock
from registry.engine.sqlite_errors import driver_errors, translate
from registry.engine.wal import Wal
from registry.errors import (
    CommitUnknownError,
    DataLossError,
    FailedPreconditionError,
    RegistryError,
    UnavailableError,
)
from registry.host.paths import create_file, estimated_size, refused
from registry.sync.interrupts import reraise_interrupt, suppress_os_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from registry.engine.file_identity import FileIdentity
    from registry.engine.hooks import SchemaHooks
    from registry.engine.lock_file import Holder
    from registry.engine.transaction import OpenState

log = logging.getLogger("registry")

BUSY_RETRY: Final = 0.005
"""Seconds between two attempts at SQLite's lock, while a client holds it that bypasses ours."""


class Writer:
    """Writer of one database file."""

    connection: driver.Connection

    def __init__(self, state: OpenState, hooks: SchemaHooks, file_identity: FileIdentity) -> None:
        """Open nothing yet; `open` records the files of *state* in *file_identity*."""
        path = state.path
        self.committing = False
        """Whether COMMIT has begun; until `reset`."""
        self.disk_space: Final = DiskSpace(path)
        """Limits of the writes, by the free space of the disk."""
        self._refusal: sqlite3.Error | None = None
        self._state: Final = state
        self._path: Final = path
        self._hooks: Final = hooks
        self._file_identity: Final = file_identity
        self._lock: ProcessLock | None = None
        self._holds_lock = False
        self._changes = 0
        """`total_changes` of the connection when the transaction began."""
        self._number: int | None = None
        """Number of the open transaction; None before it has one; see `continuity`."""
        self._latest: int | None = None
        """Number of the latest commit; None if it must be read."""
        self._wal: Final = Wal(path, file_identity)

    # Opening and closing.

    def open(self, timeout: float, deadline: float) -> None:
        """Open the file under the process lock, and create it if there is none.

        Args:
            timeout: seconds that the caller waits in all, for messages.
            deadline: monotonic time in seconds after which waiting stops.
        """
        taken = opened = False
        try:
            self._lock = ProcessLock(self._path)
        except OSError as error:
            reraise_interrupt(error)
            raise self._lock_error(f"open registry {self._path!r}", error) from error
        try:
            self.acquire_lock("open registry", deadline, timeout, verify=False)
            taken = True
            doing = f"open registry {self._path!r}"
            wait_for_readers(self._path, doing, timeout, deadline)
            with driver_errors(doing, self._path):
                if not self._hooks.inspect(self._path):
                    driver.roll_back_journal(self._path, max(0.0, deadline - time.monotonic()))
                    self._hooks.inspect(self._path)
            self._connect(deadline, timeout)
            opened = True
            self._lock.mark()
            self.disk_space.reserve.allocate()
            self.release_lock()
        except BaseException:
            if taken and not opened:
                self._lock.remove_if_created()
            self.release_lock()
            self._lock.close()
            raise

    def _connect(self, deadline: float, timeout: float) -> None:
        doing = f"open registry {self._path!r}"
        create_file(self._path)
        self._file_identity.record(log=False)
        with driver_errors(doing, self._path):
            remaining = max(0.0, deadline - time.monotonic())
            connection = driver.connect(self._path, "rw", driver.SETUP, busy_timeout=remaining)
            try:
                self._hooks.prepare(connection, self._path)
                # From now on `_begin` waits, for clients that bypass the process lock.
                connection.execute("PRAGMA busy_timeout = 0")
                self._begin(connection, doing, deadline, timeout)
                self._file_identity.require_database("open registry")
                self._file_identity.record(log=True)
                # If the system refused to open it for writing, SQLite has opened it for reading,
                # and BEGIN IMMEDIATE succeeds all the same.
                connection.execute("PRAGMA user_version = 0")
                connection.execute("ROLLBACK")
            except BaseException:
                connection.close()
                raise
        self.connection = connection

    def close(
        self,
        deadline: float,
        close_readers: Callable[[Callable[[driver.Connection], None]], None],
    ) -> None:
        """Close all connections under the process lock; idempotent.

        The close of the last connection of all processes moves the WAL into the database. If the
        lock cannot be acquired, the connections stay open until the process ends, and the WAL stays
        for the next process.

        Args:
            deadline: monotonic time in seconds after which waiting for the lock stops.
            close_readers: closes each reader by the function that it is called with.
        """
        lock, locked = self._lock, False
        if lock is None:
            return
        try:
            with suppress_os_errors(), contextlib.suppress(FailedPreconditionError):
                locked = lock.acquire(deadline)
        except BaseException:
            lock.release()
            raise
        self._file_identity.mark_if_replaced()
        close = self._file_identity.close if locked else driver.leak
        close_readers(close)
        close(self.connection)
        if locked and estimated_size(self._path):
            self.disk_space.reserve.allocate()  # the last close has freed -wal and -shm
        lock.release()
        lock.close()
        self._lock = None  # set last: a call after an interrupt resumes

    # A transaction.

    def acquire_lock(
        self, doing: str, deadline: float, timeout: float, *, verify: bool = True
    ) -> None:
        """Acquire the process lock.

        Args:
            doing: operation and object, for messages.
            deadline: monotonic time in seconds after which waiting stops.
            timeout: seconds that the caller waits in all, for messages.
            verify: whether the open files must be those at their paths.
        Raises:
            UnavailableError: *deadline* has passed.
            RegistryError: the database cannot be written.
        """
        assert self._lock is not None, "the writer is open"
        if self._state.unwritable is not None:
            raise self._state.unwritable.with_traceback(None)  # or it gets longer each time
        self._holds_lock = True  # set first, so that an interrupted call still releases the lock
        check = partial(self._file_identity.require, doing) if verify else None
        try:
            if self._lock.acquire(deadline, check):
                return
        except OSError as error:
            reraise_interrupt(error)
            raise self._lock_error(doing, error) from error
        raise self._timed_out(doing, timeout, self.holder())

    def begin(self, doing: str, deadline: float, timeout: float) -> None:
        """Begin a transaction of SQLite; the arguments and errors are those of `acquire_lock`."""
        self.disk_space.begin(self.connection)
        self._wal.preallocate(self.connection)
        self._begin(self.connection, doing, deadline, timeout)
        self._changes = self.connection.total_changes

    def _begin(
        self, connection: driver.Connection, doing: str, deadline: float, timeout: float
    ) -> None:
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise translate(error, doing, self._path) from error
                if time.monotonic() >= deadline:
                    raise self._timed_out(doing, timeout, None) from error
                time.sleep(BUSY_RETRY)
            else:
                return

    def commit(self, doing: str) -> None:
        """Run COMMIT; the caller acknowledges it only after `confirm`.

        COMMIT runs at most once per transaction: a second one would commit the next one. Safe to
        call again after an interrupt; it resumes. `reset` prepares the next transaction.

        Raises:
            RegistryError: nothing of the transaction is in the database.
            CommitUnknownError: the outcome cannot be known; nothing is written any more.
        """
        if self._refusal is None and (not self.committing or self.connection.in_transaction):
            try:
                self._give_number()
                self.committing = True
                if self._lock is not None:
                    self._lock.release_queue()
                self._latest = None  # set first, in case an interrupt follows COMMIT
                self.connection.execute("COMMIT")
                self._latest = self._number
            except sqlite3.Error as error:
                self._refusal = error
        if self._refusal is not None:
            self._refused(doing, self._refusal)

    def _give_number(self) -> None:
        """Number the transaction if it has changed anything; safe to call again."""
        if self.connection.total_changes != self._changes:
            if self._number is None and self._latest is not None:
                self._number = following(self._latest)
            elif self._number is None:
                self._number = next_number(self.connection)
            give_number(self.connection, self._number)

    def invalidate_number(self) -> None:
        """Read the number of the latest commit again: another connection has committed."""
        self._latest = None

    def reset(self) -> None:
        """Roll back an open transaction, release the process lock, and allow the next one."""
        if self.connection.is_in_transaction():
            try:
                self.connection.execute("ROLLBACK")
            except sqlite3.Error:
                log.exception(
                    "write to %r: rolling back failed",
                    self._path,
                    extra={"event": "rollback_failed", "path": self._path},
                )
        self.committing, self._refusal, self._number = False, None, None
        if self._holds_lock:
            self.release_lock()

    def confirm(self, doing: str, deadline: float) -> None:
        """Make sure that the commit is in the files at the paths; idempotent.

        The process lock is released first, unless it is needed for maintenance of the disk reserve
        or the WAL.

        Args:
            doing: operation and object, for messages.
            deadline: monotonic time in seconds after which the maintenance does not wait.
        Raises:
            DataLossError: the commit is in other files; nothing is written any more.
            CommitUnknownError: that is unknown; nothing is written any more.
        """
        maintain = self._holds_lock and self.disk_space.needs_maintenance(self.connection)
        keep = maintain or (self._holds_lock and self._wal.is_near_bound())
        if not keep:
            self.release_lock()
        try:
            self._file_identity.confirm(doing)
        except CommitUnknownError as error:
            self._state.unwritable = error
            raise
        except DataLossError as error:
            self._file_identity.mark_replaced()
            self._state.unwritable = error
            raise
        if maintain:
            self.disk_space.maintain(self.connection)
        if keep:
            self._wal.restart_if_outgrown(self.connection, deadline)

    def _refused(self, doing: str, error: sqlite3.Error) -> None:
        """Make sure that a failed commit is not there after a crash, and raise its error.

        If the sync of the WAL fails, its frames are in the file all the same, and an open after a
        crash takes them for committed. An empty commit overwrites them.
        """
        connection = self.connection
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_IOERR:
                connection.execute("BEGIN IMMEDIATE")
                give_number(connection, next_number(connection))
                connection.execute("COMMIT")
        except sqlite3.Error as second:
            self._state.unwritable = unknown = CommitUnknownError(
                f"{doing}: the commit failed ({error}), and undoing it for certain did too "
                f"({second}) in {self._path!r}; close the store, open it again and read it",
                path=self._path,
                sqlite_code=error.sqlite_errorcode,
            )
            raise unknown from error
        failure = translate(error, doing, self._path)
        self._state.note(failure)
        raise failure from error

    def release_lock(self) -> None:
        """Release the process lock; idempotent."""
        if self._holds_lock and self._lock is not None:
            self._lock.release()
        self._holds_lock = False

    # Contention.

    def holder(self) -> Holder | None:
        """Return the other process that holds the process lock; None without one."""
        return None if self._lock is None else self._lock.holder()

    def _timed_out(self, doing: str, timeout: float, holder: Holder | None) -> UnavailableError:
        return timeout_error(doing, self._path, timeout, None, holder)

    def _lock_error(self, doing: str, error: OSError) -> RegistryError:
        return refused(
            doing, self._path, f"open and lock the lock files beside {self._path!r}", error
        )
