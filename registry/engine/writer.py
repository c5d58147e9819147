"""The one connection of a process that writes, one step after the other.

Whoever calls has the process's mutex. Before SQLite's own lock stands the turnstile, from before
the first PRAGMA of an opening to after the last close.

Writers begin IMMEDIATE: a transaction that reads first and then writes fails at once when somebody
else wrote between.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from typing import TYPE_CHECKING, Final

from registry.engine import driver
from registry.engine.continuity import following, give_number, next_number
from registry.engine.disk_space import DiskSpace
from registry.engine.lock_holder import timeout_error
from registry.engine.process_lock import ProcessLock
from registry.engine.sqlite_errors import driver_errors, translate
from registry.engine.wal import Wal
from registry.errors import (
    CommitUnknownError,
    FailedPreconditionError,
    RegistryError,
    UnavailableError,
)
from registry.host.paths import create_file, refused, size
from registry.sync.interrupts import reraise_interrupt, suppress_os_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from registry.engine.file_identity import FileIdentity
    from registry.engine.lock_file import Holder

log = logging.getLogger("registry")

BUSY_RETRY: Final = 0.005
"""Seconds between two looks at a lock that a stranger to the turnstile holds."""


class Writer:
    """What writes to one database file."""

    connection: driver.Connection

    def __init__(self, path: str, file_identity: FileIdentity) -> None:
        """Open nothing yet; *file_identity* is set when it is opened."""
        self.unwritable: RegistryError | None = None
        """Why nothing is written any more."""
        self.committing = False
        """Whether COMMIT was asked for; until `reset`."""
        self.disk_space: Final = DiskSpace(path)
        """What may be written, by what is free on the disk."""
        self._refusal: sqlite3.Error | None = None
        self._path: Final = path
        self._file_identity: Final = file_identity
        self._lock: ProcessLock | None = None
        self._holds_lock = False
        self._changes = 0
        """`total_changes` of the connection when the transaction began."""
        self._number: int | None = None
        """Of the transaction, once it has one; see `continuity`."""
        self._latest: int | None = None
        """Number of the latest commit; None where it must be read."""
        self._wal: Final = Wal(path, file_identity)

    # Opening and closing.

    def open(
        self,
        inspect: Callable[[str], None],
        prepare: Callable[[driver.Connection, str], None],
        timeout: float,
        deadline: float,
    ) -> None:
        """Open the file under the process lock, and create it if there is none.

        Args:
            inspect: called with the path before SQLite may change anything; raises where nothing
                may be changed.
            prepare: called with the connection and the path before it is used.
            timeout: seconds that were to be waited, for messages.
            deadline: monotonic time in seconds after which waiting stops.
        """
        taken = opened = False
        try:
            self._lock = ProcessLock(self._path)
        except OSError as error:
            reraise_interrupt(error)
            raise self._lock_error(f"open registry {self._path!r}", error) from error
        try:
            self._acquire_lock("open registry", deadline, timeout)
            taken = True
            with driver_errors(f"open registry {self._path!r}", self._path):
                inspect(self._path)
            self._connect(prepare, deadline, timeout)
            opened = True
            self._lock.mark()
            self.disk_space.reserve.allocate()
            self._lock.release()
        except BaseException:
            if taken and not opened:
                self._lock.remove_if_created()
            self._lock.release()
            self._lock.close()
            raise

    def _connect(
        self, prepare: Callable[[driver.Connection, str], None], deadline: float, timeout: float
    ) -> None:
        doing = f"open registry {self._path!r}"
        create_file(self._path)
        self._file_identity.record(log=False)
        with driver_errors(doing, self._path):
            remaining = max(0.0, deadline - time.monotonic())
            connection = driver.connect(self._path, "rw", driver.SETUP, busy_timeout=remaining)
            try:
                prepare(connection, self._path)
                # From now on `_begin` waits, for a stranger to the turnstile.
                connection.execute("PRAGMA busy_timeout = 0")
                self._begin(connection, doing, deadline, timeout)
                self._file_identity.require_database("open registry")
                self._file_identity.record(log=True)
                # Where the system refused to open it for writing, SQLite has opened it for reading,
                # and begins IMMEDIATE all the same.
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

        The last connection of all processes to be closed moves the log into the database. Without
        the lock none is closed: they stay open until the process ends, and the log stays for the
        next one.

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
        if locked and size(self._path):
            self.disk_space.reserve.allocate()  # the last close frees what -wal and -shm have taken
        lock.release()
        lock.close()
        self._lock = None  # at last: an interrupted call is made again

    # A transaction.

    def acquire_lock(self, doing: str, deadline: float, timeout: float) -> None:
        """Take the turnstile.

        Args:
            doing: for messages.
            deadline: until when it may wait, monotonic seconds.
            timeout: how long that was, for messages.
        Raises:
            UnavailableError: *deadline* passed.
            RegistryError: nothing can be written.
        """
        if self.unwritable is not None:
            raise self.unwritable.with_traceback(None)  # or it gets longer each time
        self._holds_lock = True  # first: who is interrupted gives back what it may have
        self._acquire_lock(doing, deadline, timeout, lambda: self._file_identity.require(doing))

    def _acquire_lock(
        self,
        doing: str,
        deadline: float,
        timeout: float,
        verify: Callable[[], object] | None = None,
    ) -> None:
        assert self._lock is not None, "who is closed is not asked"
        try:
            if self._lock.acquire(deadline, verify):
                return
        except OSError as error:
            reraise_interrupt(error)
            raise self._lock_error(doing, error) from error
        raise self._timed_out(doing, timeout, self.holder())

    def begin(self, doing: str, deadline: float, timeout: float) -> None:
        """Begin a transaction of SQLite; arguments and errors as `acquire_lock`."""
        self.disk_space.begin(self.connection)
        self._begin(self.connection, doing, deadline, timeout)
        self._changes = self.connection.total_changes
        self._wal.extend()

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
        """Run COMMIT, once; it is not acknowledged before `confirm`.

        Who was interrupted in it calls it again, and it goes on where it was; `reset` ends it.

        Raises:
            RegistryError: nothing of the transaction is in the database.
            CommitUnknownError: nobody can tell; nothing is written any more.
        """
        if self._refusal is None and (not self.committing or self.connection.in_transaction):
            try:
                self._give_number()
                self.committing = True
                if self._lock is not None:
                    self._lock.release_queue()
                self._latest = None  # first, in case an interrupt follows the commit
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
        """Roll back what is open, and be ready for another transaction."""
        if self.connection.is_in_transaction():
            try:
                self.connection.execute("ROLLBACK")
            except sqlite3.Error:
                log.exception("write to %r: rolling back failed", self._path)
        self.committing, self._refusal, self._number = False, None, None

    def confirm(self, doing: str, deadline: float) -> None:
        """Make sure that what was committed is in the file at the path; may be called again.

        The turn is given back before, since others need not wait for a look, unless something is
        left to be done in it, which does not wait past *deadline* (monotonic seconds).

        Raises:
            DataLossError: it is in another one; nothing is written any more.
        """
        maintain = self._holds_lock and self.disk_space.needs_maintenance(self.connection)
        keep = maintain or (self._holds_lock and self._wal.is_long())
        if not keep:
            self.release_lock()
        if not self._file_identity.matches():
            self._file_identity.mark_replaced()
            self.unwritable = self._file_identity.replaced_error(doing)
            raise self.unwritable
        if maintain:
            self.disk_space.maintain(self.connection)
        if keep and self._wal.is_long():
            self._wal.restart(self.connection, deadline)

    def _refused(self, doing: str, error: sqlite3.Error) -> None:
        """Make sure that a commit which failed is not there after a crash, and raise.

        When the sync of the log fails, the frames are in it all the same, and whoever opens the
        file after a crash takes them for committed. Another commit overwrites them.
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
            self.unwritable = CommitUnknownError(
                f"{doing}: the commit failed ({error}) and so did making sure of it ({second}) "
                f"in {self._path!r}; close the store, open it anew and read what is so",
                path=self._path,
                sqlite_code=error.sqlite_errorcode,
            )
            raise self.unwritable from error
        raise translate(error, doing, self._path) from error

    def release_lock(self) -> None:
        """Give the turnstile back; harmless when repeated."""
        if self._holds_lock and self._lock is not None:
            self._lock.release()
        self._holds_lock = False

    # What is in the way.

    def holder(self) -> Holder | None:
        """Return which other process holds the turnstile."""
        return None if self._lock is None else self._lock.holder()

    def _timed_out(self, doing: str, timeout: float, holder: Holder | None) -> UnavailableError:
        return timeout_error(doing, self._path, timeout, None, holder)

    def _lock_error(self, doing: str, error: OSError) -> RegistryError:
        return refused(
            doing, self._path, f"open and lock the lock files beside {self._path!r}", error
        )
