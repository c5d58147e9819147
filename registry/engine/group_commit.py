"""Group commit: threads that write at the same time share one transaction, and one disk sync.

    mutex        which thread's turn it is, in the order of asking
    transaction  what runs in that turn: a member of the group, in a savepoint of its own
    group        the members that have run, and wait for their commit

    ┌──────┐ take the turnstile, BEGIN    ┌─────────┐ done, the next in line may join  ┌─────────┐
    │ idle ├─────────────────────────────▶│ running ├─────────────────────────────────▶│ pending │
    └──▲───┘                              └┬───────▲┘◀─────────────────────────────────└────┬────┘
       │                                   │       │          the next: SAVEPOINT           │
       │ done, nobody may join: COMMIT     │       │ failed: ROLLBACK TO its savepoint      │
       ├───────────────────────────────────┤       └─────────────────────────── pending     │
       │ failed, and nobody is pending: ROLLBACK                                            │
       │                              the mutex is free, or has come to one who cannot join │
       └────────────────────────── COMMIT ──────────────────────────────────────────────────┘

Who begins a group finds nobody pending, and needs no savepoint: what it takes back is all there is.
Nobody waits for company: whoever has run and sees nobody behind commits for all, and one alone pays
for nothing. `transaction()` neither joins nor is joined.

All members have one outcome. It is that of the COMMIT; or an error inside one of them that ended
the whole transaction; or a function that did not come back before the earliest deadline of those
who wait.

An exception that a signal handler raises may strike between any two bytecodes, so each step may be
taken again by whoever comes next: a member that has run leaves only when the outcome is known and
somebody has concluded the group, or is about to; meanwhile it takes the mutex, when that is free,
and commits for all. So nobody depends on anybody.
"""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING, Final

from registry.engine.lock_holder import group_failure, timeout_error
from registry.engine.transaction import Group, Transaction
from registry.errors import FailedPreconditionError, RegistryError
from registry.sync.locks import Mutex

if TYPE_CHECKING:
    from collections.abc import Callable

    from registry.engine.writer import Writer

RUNS_MAX: Final = 64
"""Turns after which a group is committed although others wait: a stream of them has no end."""
INTERRUPTS_MAX: Final = 8
"""Exceptions of signal handlers after which a member leaves the outcome to the others."""


class GroupCommit:
    """The write transactions of one database file in this process."""

    def __init__(
        self,
        path: str,
        writer: Writer,
        guard: Callable[[Transaction], None],
        require_open: Callable[[str], None],
    ) -> None:
        """Begin idle.

        Args:
            path: the database.
            writer: what writes to it.
            guard: called in a transaction of SQLite before its first statement, unless nobody else
                has committed since; raises where it may not be written any more.
            require_open: raises once nothing may be written any more.
        """
        self.transaction: Transaction | None = None
        """The one that runs."""
        self.mutex: Final = Mutex()
        self._path: Final = path
        self._writer: Final = writer
        self._guard: Final = guard
        self._require_open: Final = require_open
        self._group: Group | None = None
        self._version: int | None = None
        """The number of the commit that the guard has let through."""

    # A member, from its beginning to its end.

    def begin(self, transaction: Transaction, timeout: float) -> None:
        """Wait for the turn of *transaction*, and begin it: as the first of a group, or in one."""
        self.acquire(transaction, timeout)
        if self._group is None:
            self._writer.begin(transaction.doing, transaction.deadline, timeout)
            self._require_known_schema(transaction)
        else:
            transaction.execute("SAVEPOINT member")
            transaction.joined = True
        self.transaction = transaction

    def _require_known_schema(self, transaction: Transaction) -> None:
        """Call the guard if somebody else has committed since it was called last."""
        (version,) = transaction.fetch("PRAGMA data_version")[0]
        if version != self._version:
            self._writer.invalidate_number()
            self._guard(transaction)
            self._version = version

    def acquire(self, transaction: Transaction, timeout: float) -> None:
        """Take the mutex and, unless *transaction* joins a group that has it, the turnstile.

        Raises:
            UnavailableError: that took longer than *timeout* seconds.
            FailedPreconditionError: a signal handler has interrupted a write of this thread.
            RegistryError: nothing can be written.
        """
        transaction.timeout = timeout
        deadline = transaction.deadline = time.monotonic() + timeout
        self._require_no_write_in_progress(transaction)
        if not self.mutex.acquire(transaction, deadline):
            raise self._timed_out(transaction.doing, timeout)
        self._require_open(transaction.doing)
        group = self._group
        if group is not None and not self._may_join(transaction, group):
            self._finish(group)
            group = None
        if group is None:
            self._writer.acquire_lock(transaction.doing, deadline, timeout)
        else:
            group.runs += 1

    def _require_no_write_in_progress(self, transaction: Transaction) -> None:
        """Raise where a signal handler would wait for the write that it interrupts."""
        other = self.mutex.entry_of_this_thread()
        if other is not None:
            raise FailedPreconditionError(
                f"{transaction.doing}: this thread is in the middle of "
                f"{getattr(other, 'doing', 'closing the store')}, which ends only after this; "
                "in a signal handler note what is to be done, and do it later"
            )

    def _may_join(self, transaction: Transaction, group: Group) -> bool:
        whole = transaction.connection.in_transaction and not group.closed
        open_still = group.runs < RUNS_MAX and time.monotonic() < group.join_deadline
        return whole and open_still and not transaction.exclusive

    def commit(self, transaction: Transaction) -> None:
        """Return when *transaction*, which has run, is committed with its group.

        Raises:
            RegistryError: nothing of the group is in the database.
            CommitUnknownError: nobody can tell; nothing is written any more.
            DataLossError: the files were replaced.
        """
        self._require_open(transaction.doing)
        transaction.check_whole()
        group = self._group or Group()
        if group.done:
            raise group.failure_of(transaction)
        now = time.monotonic()
        group.deadline = min(group.deadline, transaction.deadline)
        group.join_deadline = min(group.join_deadline, now + (transaction.deadline - now) / 10)
        self._group = group
        self.transaction = None
        transaction.group = group
        group.members.append(transaction)
        if self._next_may_join(transaction, group):
            self.mutex.release(transaction)
            self._wait_for_outcome(transaction, group)
        else:
            self._finish(group)
        if group.failure is not None:
            raise group.failure_of(transaction)

    def _next_may_join(self, transaction: Transaction, group: Group) -> bool:
        following = self.mutex.next_waiter
        if transaction.exclusive or not isinstance(following, Transaction):
            return False
        return following.group is None and self._may_join(following, group)

    def end(self, transaction: Transaction) -> None:
        """Take back what is not committed and let the next one in; harmless when repeated."""
        group = transaction.group
        if group is not None:
            if not group.done:  # interrupted: whoever is next may not have been woken
                self.mutex.release(transaction)
                self._wait_for_outcome(transaction, group)
            self._finish_if_abandoned(transaction, group)
            transaction.committed = group.done and group.failure is None
        self.abandon(transaction)

    def abandon(self, transaction: Transaction) -> None:
        """Do so without waiting: what others are going to commit is theirs."""
        # The mutex goes last, and in no `finally`: by it the next try, after an interrupt, knows
        # that there is still something to do.
        over = transaction.group is not None and transaction.group.done and self._group is None
        if not over and self.mutex.holder is transaction:
            self._roll_back(transaction)
        self.mutex.release(transaction)

    def _roll_back(self, transaction: Transaction) -> None:
        """Take back what *transaction* did if it has not come to its end; it has the mutex."""
        if self.transaction is transaction:
            self.transaction = None
        group, whole = self._group, transaction.connection.is_in_transaction()
        if group is None or not group.members:
            self._release_writer()
            self._group = None
        elif group is transaction.group or group.closed:
            self._finish(group)
        elif not whole:
            self._fail(group, transaction, transaction.ended_by)
        elif transaction.joined and transaction.group is None:
            try:
                # The savepoint itself stays until the end of the group, and is in nobody's way.
                transaction.connection.execute("ROLLBACK TO member")
            except sqlite3.Error as error:
                self._fail(group, transaction, error)

    # The group, in the hands of whoever has the mutex.

    def finish_pending(self) -> None:
        """Commit what is pending; the caller has the mutex."""
        if self._group is not None:
            self._finish(self._group)

    def _finish(self, group: Group) -> None:
        """Commit *group*, unless it was decided that it fails, and tell all its members."""
        failure = group.close(None)
        if failure is None and not group.done:
            try:
                self._commit(group)
            except RegistryError as error:
                failure = error
        group.failure = group.failure or failure
        group.done = True
        self._release_writer()
        self.mutex.freed.wake()
        self._group = None  # at last: by it a member knows that there is still something to do

    def _commit(self, group: Group) -> None:
        doing = group.members[-1].doing if group.members else "write"
        if not self._writer.committing:
            self._require_open(doing)
        self._writer.commit(doing)
        self._writer.confirm(doing, group.deadline)

    def _release_writer(self) -> None:
        """Roll back what is left, and let other processes write."""
        self._writer.reset()
        self._writer.release_lock()

    def _fail(self, group: Group, transaction: Transaction, cause: BaseException | None) -> None:
        """Let *group* fail, whose transaction was ended by *cause* in *transaction*, no member."""
        group.close(group_failure(transaction, cause, self._path))
        self._finish(group)

    # Those that wait for the outcome.

    def _wait_for_outcome(self, transaction: Transaction, group: Group) -> None:
        """Return when the outcome of *group*, of which *transaction* is a member, is known.

        An exception meanwhile is raised when it is.
        """
        interrupts: list[BaseException] = []
        while not group.done and len(interrupts) < INTERRUPTS_MAX:
            try:
                self._advance(transaction, group)
            except BaseException as error:  # noqa: BLE001 - of a signal handler
                interrupts.append(error)
                self.mutex.release(transaction)
        try:
            if interrupts:
                raise interrupts[-1]
        finally:
            del interrupts  # or it and its traceback keep each other, and all that is in its frames

    def _finish_if_abandoned(self, transaction: Transaction, group: Group) -> None:
        """Conclude *group*, whose outcome is known, if whoever had to do so is gone."""
        mutex = self.mutex
        while self._group is group and mutex.holder in {None, transaction}:
            if mutex.holder is transaction or mutex.acquire(transaction, time.monotonic()):
                self.finish_pending()

    def _advance(self, transaction: Transaction, group: Group) -> None:
        mutex, deadline = self.mutex, None if group.closed else group.deadline
        if mutex.holder is transaction:
            self._finish(group)
        elif mutex.freed.wait(lambda: group.done or mutex.holder is None, deadline):
            if not group.done:
                mutex.acquire(transaction, deadline)
        elif time.monotonic() >= group.deadline:
            self._expire(transaction, group)

    def _expire(self, transaction: Transaction, group: Group) -> None:
        """Let *group* fail, whose deadline has passed, unless it is being committed.

        What holds it up is a function that waits for one of those who wait for it.
        """
        waited = transaction.timeout + time.monotonic() - transaction.deadline
        late = timeout_error(transaction.doing, self._path, waited, self.transaction, None)
        if group.close(late) is late:
            group.held_up_by = self.transaction
            group.failure, group.done = late, True
            self.mutex.freed.wake()

    def _timed_out(self, doing: str, timeout: float) -> RegistryError:
        running, group = self.transaction, self._group
        if running is None and group is not None:
            running = group.members[-1]
        return timeout_error(doing, self._path, timeout, running, self._writer.holder())
