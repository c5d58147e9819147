"""Group commit: threads that write at the same time share one transaction and one disk sync.

    mutex        the thread that runs, in the order of asking
    transaction  what runs: the first of a group, or a member with a savepoint of its own
    group        the members that have run and wait for the COMMIT

    state     event                                                        next state
    idle      a writer acquires the process lock: BEGIN                    running
    running   it has run, and the next waiter may join                     pending
    running   it has run, and no waiter may join: COMMIT                   idle
    running   it failed, and members are pending: ROLLBACK TO savepoint    pending
    running   it failed, and no member is pending: ROLLBACK                idle
    pending   the next waiter holds the mutex and joins: SAVEPOINT         running
    pending   the mutex is free, or its holder may not join: COMMIT        idle

1. There is no delay to collect members: a writer that sees no waiter commits the whole group.
2. The first of a group has no savepoint: if it fails, ROLLBACK undoes all there is.
3. An exclusive transaction, such as `transaction()`, neither joins a group nor is joined.
4. All members have one outcome: that of the COMMIT, or of an error inside one of them that ended
   the whole transaction, or the failure that the earliest deadline of a member has passed.
5. Every step is idempotent, and no member depends on another one: a member that has run leaves only
   when the outcome is known. While it waits it acquires the mutex, if that is free, and finishes
   the group itself, since an interrupt may have kept another thread from doing so.

docs/internals.md has the whole write path.
"""

from __future__ import annotations

import sqlite3
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from registry.engine.lock_holder import group_failure, timeout_error
from registry.engine.measurements import Measurements
from registry.engine.transaction import Group, Transaction
from registry.errors import FailedPreconditionError, RegistryError
from registry.sync.interrupts import run_to_end
from registry.sync.locks import Mutex

if TYPE_CHECKING:
    from registry.engine.commits import Commits
    from registry.engine.hooks import SchemaHooks
    from registry.engine.own_commits import OwnCommits
    from registry.engine.transaction import OpenState
    from registry.engine.writer import Writer

RUNS_MAX: Final = 64
"""Transactions after which a group is committed although others wait: a stream of them has no end.
"""


class GroupCommit:
    """The write transactions of one database file in this process."""

    def __init__(
        self,
        writer: Writer,
        hooks: SchemaHooks,
        state: OpenState,
        own_commits: OwnCommits,
        commits: Commits,
    ) -> None:
        """Begin idle.

        Args:
            writer: of the database.
            hooks: of its schema.
            state: of the database file.
            own_commits: tells the caches what each commit has changed.
            commits: has the waiters that each commit wakes.
        """
        self.transaction: Transaction | None = None
        """The transaction that runs."""
        self.mutex: Final = Mutex()
        self.measurements: Final = Measurements()
        self._writer: Final = writer
        self._hooks: Final = hooks
        self._state: Final = state
        self._own_commits: Final = own_commits
        self._commits: Final = commits
        self._group: Group | None = None
        self._version: int | None = None
        """PRAGMA data_version at the last call of the hook `guard`."""

    # One transaction, from its beginning to its end.

    def begin(self, transaction: Transaction, timeout: float) -> None:
        """Acquire the mutex and begin *transaction*, as the first of a group or as a member.

        Raises:
            UnavailableError: *timeout* seconds have passed.
            FailedPreconditionError: called in a signal handler that interrupted another write.
            RegistryError: the database cannot be written.
        """
        transaction.timeout, transaction.began = timeout, time.monotonic()
        transaction.deadline = transaction.began + timeout
        if self.mutex.queue:
            self._require_no_write_in_progress(transaction)
        try:
            group = self._acquire_locks(transaction)
        finally:
            transaction.waited_until = time.monotonic()
            self.measurements.waited(transaction.waited_until - transaction.began)
        if group is None:
            self._begin_first(transaction)
        else:
            group.runs += 1
            transaction.execute("SAVEPOINT member")
            transaction.joined = True
        self.transaction = transaction

    def _acquire_locks(self, transaction: Transaction) -> Group | None:
        """Acquire the mutex, and return the group to join; without one, the process lock too."""
        doing, deadline, timeout = transaction.doing, transaction.deadline, transaction.timeout
        if not self.mutex.acquire(transaction, deadline):
            raise self.timed_out(doing, timeout)
        if self._state.closed:
            self._state.require(doing)
        group = self._group
        if group is not None and not self._may_join(transaction, group):
            self._finish(group)
            group = None
        if group is None:
            self._writer.acquire_lock(doing, deadline, timeout)
        return group

    def _begin_first(self, transaction: Transaction) -> None:
        writer = self._writer
        writer.begin(transaction.doing, transaction.deadline, transaction.timeout)
        (version,) = transaction.fetch("PRAGMA data_version")[0]
        foreign = version != self._version  # another connection has committed
        if foreign:
            writer.invalidate_number()
            self._hooks.guard(transaction)
            self._version = version
        self._own_commits.begin(transaction.connection, foreign=foreign)

    def _require_no_write_in_progress(self, transaction: Transaction) -> None:
        """Raise in a signal handler that would wait for the write that it has interrupted."""
        other = self.mutex.entry_of_this_thread()
        if other is not None:
            raise FailedPreconditionError(
                f"{transaction.doing}: this thread is in the middle of "
                f"{getattr(other, 'doing', 'closing the store')}, which cannot go on before this "
                "call returns; in a signal handler, note the work and do it later"
            )

    def _may_join(self, transaction: Transaction, group: Group) -> bool:
        whole = transaction.connection.in_transaction and not group.closed
        in_time = group.runs < RUNS_MAX and time.monotonic() < group.join_deadline
        return whole and in_time and not transaction.exclusive

    def commit(self, transaction: Transaction) -> None:
        """Commit *transaction*, which has run, with its group; return when the outcome is known.

        Raises:
            RegistryError: nothing of the group is in the database.
            CommitUnknownError: the outcome cannot be known; nothing is written any more.
            DataLossError: the files at the paths are not those that are open.
        """
        if self._state.closed:
            self._state.require(transaction.doing)
        transaction.require_whole()
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
        group.calls += transaction.calls
        if len(self.mutex.queue) > 1 and self._next_may_join(transaction, group):
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
        """Roll back what is not committed, and release the mutex; idempotent."""
        group = transaction.group
        if group is not None:
            if not group.done:  # interrupted: the next waiter may not have been woken
                self._wait_for_outcome(transaction, group)
            if self._group is group:
                self._finish_if_abandoned(transaction, group)
            transaction.committed = group.done and group.failure is None
        self.abandon(transaction)

    def abandon(self, transaction: Transaction) -> None:
        """End *transaction* without waiting for the commit of its group; idempotent."""
        # The mutex is released last, and in no `finally`: while it is held, the next call after an
        # interrupt knows that the end is not complete.
        over = transaction.group is not None and transaction.group.done and self._group is None
        if not over and self.mutex.holder is transaction:
            self._roll_back(transaction)
        self.mutex.release(transaction)

    def _roll_back(self, transaction: Transaction) -> None:
        """Roll back *transaction*, which holds the mutex, unless it has run."""
        if self.transaction is transaction:
            self.transaction = None
        group, whole = self._group, transaction.connection.is_in_transaction()
        if group is None or not group.members:
            self._writer.reset()
            self._group = None
        elif group is transaction.group or group.closed:
            self._finish(group)
        elif not whole:
            self._fail(group, transaction, transaction.ended_by)
        elif transaction.joined and transaction.group is None:
            try:
                # The savepoint itself stays until the end of the group, where it does no harm.
                transaction.connection.execute("ROLLBACK TO member")
            except sqlite3.Error as error:
                self._fail(group, transaction, error)

    # The group, finished by the holder of the mutex.

    def finish_pending(self) -> None:
        """Commit the group that is pending, if there is one; the caller must hold the mutex."""
        if self._group is not None:
            self._finish(self._group)

    def _finish(self, group: Group) -> None:
        """Commit *group*, unless it was closed with a failure, and wake its members; idempotent."""
        failure = group.close(None)
        if failure is None and not group.done:
            try:
                self._commit(group)
            except RegistryError as error:
                failure = error
        group.failure = group.failure or failure
        group.done = True
        self._writer.reset()
        if self.mutex.freed.sleeping:
            self.mutex.freed.wake()
        if self._commits.watchers and group.failure is None:
            self._commits.wake_watchers()
        self._group = None  # set last: until then a member finishes the group after an interrupt

    def _commit(self, group: Group) -> None:
        doing = group.members[-1].doing if group.members else "write"
        if self._state.closed and not self._writer.committing:
            self._state.require(doing)
        before = self._own_commits.commit_begins()
        group.commit_began = time.monotonic()
        try:
            self._writer.commit(doing)
            self._writer.confirm(doing, group.deadline)
            seconds = time.monotonic() - group.commit_began
            self.measurements.committed(seconds, group.calls)
            changes = list[object]()
            for member in group.members:
                changes += member.changes
            self._own_commits.committed(self._writer.connection, self._version, before, changes)
        finally:
            self._own_commits.is_committing = False
            group.commit_ended = time.monotonic()

    def _fail(self, group: Group, transaction: Transaction, cause: BaseException | None) -> None:
        """Fail *group*, whose SQLite transaction was ended by *cause* in *transaction*."""
        group.close(group_failure(transaction, cause, self._state.path))
        self._finish(group)

    # The members that wait for the outcome.

    def _wait_for_outcome(self, transaction: Transaction, group: Group) -> None:
        """Return when the outcome of *group* is known; raise an interrupt only then.

        *transaction* is a member, and gives up the mutex.
        """
        run_to_end(partial(self._advance, transaction, group))

    def _advance(self, transaction: Transaction, group: Group) -> None:
        """Wait for the outcome, and finish the group if no other thread does; idempotent."""
        mutex = self.mutex
        mutex.release(transaction)
        while not group.done:
            deadline = None if group.closed else group.deadline
            if mutex.holder is transaction:
                self._finish(group)
            elif mutex.freed.wait(lambda: group.done or mutex.holder is None, deadline):
                if not group.done:
                    mutex.acquire(transaction, deadline)
            elif time.monotonic() >= group.deadline:
                self._expire(transaction, group)

    def _finish_if_abandoned(self, transaction: Transaction, group: Group) -> None:
        """Finish *group*, whose outcome is known, if the thread that had to was interrupted."""
        mutex = self.mutex
        while self._group is group and mutex.holder in {None, transaction}:
            if mutex.holder is transaction or mutex.acquire(transaction, time.monotonic()):
                self.finish_pending()

    def _expire(self, transaction: Transaction, group: Group) -> None:
        """Fail *group*, whose deadline has passed, unless it is closed and being committed.

        The function that runs may be waiting for one of the members, which wait for it.
        """
        waited = transaction.timeout + time.monotonic() - transaction.deadline
        late = timeout_error(transaction.doing, self._state.path, waited, self.transaction, None)
        if group.close(late) is late:
            group.held_up_by = self.transaction
            group.failure, group.done = late, True
            self.mutex.freed.wake()

    def timed_out(self, doing: str, timeout: float) -> RegistryError:
        """Return the error of a write that waited *timeout* seconds; it names the lock holder."""
        running, group = self.transaction, self._group
        if running is None and group is not None:
            running = group.members[-1]
        return timeout_error(doing, self._state.path, timeout, running, self._writer.holder())
