"""Fair lock between processes, built on two flock files beside the database.

    lock PATH-queue ─▶ lock PATH-lock, record holder ─▶ write ─▶ unlock PATH-queue ─▶ COMMIT
                                                                      ─▶ unlock PATH-lock

A process that has committed and wants to write again queues behind all that wait already. A process
that has rolled back may be in the queue again before the next one has woken. Only the first in the
queue waits for PATH-lock.

The lock provides fairness and the name of its holder. Safety rests on SQLite's own locks, which a
client that bypasses this lock takes too.

The holder unlocks PATH-queue just before COMMIT. This wakes the next process, which verifies the
files while the disk syncs, and then polls PATH-lock for the rest of the COMMIT.

`flock` has no timeout. A thread of its own blocks in it for the caller. A caller whose deadline has
passed leaves that thread in the queue, and the next caller takes over its place.

Assumption: one caller at a time, which holds the engine's mutex.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import TYPE_CHECKING, Final

from registry.engine.lock_file import Holder, LockFile
from registry.sync import threads
from registry.sync.locks import WaitQueue

if TYPE_CHECKING:
    from collections.abc import Callable

SPIN: Final = 0.0005
"""Seconds for which the first in the queue polls PATH-lock without sleeping: some commits."""
POLL_INTERVAL: Final = 0.005
"""Seconds between two polls, at most, when the commit takes longer."""

IDLE, WAITING, SERVED = "idle", "waiting", "served"
"""States of a place in the queue; see `_QueueThread`."""


class ProcessLock:
    """Write lock of one database file between processes."""

    def __init__(self, database: str) -> None:
        """Open or create both lock files beside *database*.

        Raises:
            OSError: they cannot be opened.
            FailedPreconditionError: at their path is something else than a regular file.
        """
        self._lock = LockFile(f"{database}-lock", database)
        try:
            self._queue = LockFile(f"{database}-queue", database)
        except BaseException:
            self._lock.close()
            raise
        self._in_queue = False
        self._queue_thread = _QueueThread(self._queue, self._lock)

    def acquire(self, deadline: float, verify: Callable[[], object] | None = None) -> bool:
        """Queue for the lock and acquire it; return whether it was acquired before *deadline*.

        Call `release` afterwards, also after False or an exception.

        Args:
            deadline: monotonic time in seconds after which waiting stops.
            verify: called as the first in the queue, while the previous holder may still be
                committing; its exceptions are raised.
        Raises:
            OSError, FailedPreconditionError: a file cannot be opened or locked.
        """
        for file in (self._lock, self._queue):
            # A failed unlock has closed it.
            if file.fd < 0 and self._queue_thread.state is IDLE:
                file.reopen()
        while self._acquire_queue(deadline):
            if self._queue.is_at_path():
                if verify is not None:
                    verify()
                if not (self._lock.try_acquire() or self._poll_lock(deadline)):
                    return False
                if self._lock.is_at_path():
                    self._lock.record_holder()
                    return True
            # A lock file was removed: processes that come now lock the new one.
            self._lock.reopen()
            self._queue.reopen()
        return False

    def _acquire_queue(self, deadline: float) -> bool:
        self._in_queue = True  # set first, so that an interrupted call still releases it
        if self._queue_thread.state is IDLE and self._queue.try_acquire():
            return True
        try:
            return self._queue_thread.wait(deadline)
        except threads.NoThreadError:
            # From Python 3.12 on no thread can be started while the interpreter exits.
            if not threads.is_exiting():
                raise
        return self._poll_queue(deadline)

    def _poll_queue(self, deadline: float) -> bool:
        """Lock the queue when it is free, in no order; return False if *deadline* comes first."""
        while not self._queue.try_acquire():
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_INTERVAL)
        return True

    def _poll_lock(self, deadline: float) -> bool:
        """Lock PATH-lock, whose holder has unlocked the queue and so is about to unlock it."""
        began = time.monotonic()
        while not self._lock.try_acquire():
            now = time.monotonic()
            if now >= deadline:
                return False
            if now - began < SPIN:
                os.sched_yield()
            else:
                time.sleep(min((now - began) / 4, POLL_INTERVAL))
        return True

    def release_queue(self) -> None:
        """Unlock the queue before COMMIT, so that the next process prepares; idempotent."""
        if self._in_queue:
            self._queue.release()
        self._in_queue = False

    def release(self) -> None:
        """Release the lock; idempotent, also where it is not held."""
        thread = self._queue_thread
        if (thread.state is IDLE and not thread.wanted) or thread.leave():
            if self._in_queue:
                self.release_queue()
            self._lock.release()

    def holder(self) -> Holder | None:
        """Return the other process that holds the lock; None without one."""
        return self._lock.holder()

    def mark(self) -> None:
        """Mark that a registry exists here, as evidence if its database is missing later."""
        self._lock.mark()

    def remove_if_created(self) -> None:
        """Unlink the files if this object created them. Only while the lock is held."""
        for file in (self._lock, self._queue):
            if file.created and file.is_at_path():
                os.unlink(file.path)

    def close(self) -> None:
        """Close both files, or have the thread close them that still waits in the queue."""
        self._queue_thread.close()


class _QueueThread:
    """Thread that blocks in flock for a caller who has a deadline.

    State of the place in the queue:

        IDLE ── wait ─▶ WAITING ── the thread has the lock ─▶ SERVED ── the caller takes it ─▶ IDLE
                           └───── the thread has it, and no caller wants it: it unlocks ─────▶ IDLE

    A caller whose deadline passes leaves the state WAITING, and the next caller takes over.
    """

    def __init__(self, queue: LockFile, lock: LockFile) -> None:
        self._queue, self._lock = queue, lock
        self._guard = threading.Lock()
        self._changed = WaitQueue()
        self._running = False
        self.state = IDLE
        """While IDLE, the caller may lock the queue itself."""
        self.wanted = self._closed = False
        """Whether a caller waits for the queue, or has not left it after an interrupt."""
        self._error: OSError | None = None

    def wait(self, deadline: float) -> bool:
        """Return whether the queue was locked before *deadline*. After an exception call `leave`.

        Raises:
            OSError: no thread can be started, or the file cannot be locked.
        """
        if not self._running:
            threads.start(self._run)
        with self._guard:
            self.wanted = True
            if self.state is IDLE:
                self.state = WAITING
        self._changed.wake()
        self._changed.wait(lambda: self.state is not WAITING, deadline)
        with self._guard:
            self.wanted = False
            if self.state is WAITING:
                return False
            self.state = IDLE
            error, self._error = self._error, None
        if error is not None:
            raise error
        return True

    def leave(self) -> bool:
        """Stop wanting the queue; return whether the caller may unlock the files."""
        with self._guard:
            self.wanted = False
            if self.state is SERVED:
                self.state = IDLE
            idle = self.state is IDLE
        if not idle:
            self._changed.wake()  # an interrupted `wait` may not have woken the thread
        return idle

    def _run(self) -> None:
        with self._guard:
            if self._running:
                return  # a second thread: the call that started the first was interrupted
            self._running = True
        while True:
            self._changed.wait(lambda: self.state is WAITING or self._closed, None)
            if self._closed:
                self._close_files()
                return
            error = None
            try:
                self._queue.acquire()
            except OSError as caught:
                error = caught
            except ValueError:  # an unlock that failed has closed the file
                error = OSError(errno.EBADF, os.strerror(errno.EBADF))
            with self._guard:
                self.state, self._error = SERVED, error
                if not self.wanted:
                    self._queue.release()
                    self.state, self._error = IDLE, None
            self._changed.wake()

    def close(self) -> None:
        """End the thread, and close the files now or when the thread has the lock."""
        with self._guard:
            self._closed = True
            if self.state is not WAITING:
                self._close_files()
        self._changed.wake()

    def _close_files(self) -> None:
        self._lock.close()
        self._queue.close()
