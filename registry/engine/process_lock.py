"""The lock between processes, in which writers are served in turn.

SQLite's busy handler sleeps and tries again: no queue, and one busy process starves the others.
`flock` alone is no queue either: whoever runs takes it again before a sleeper has woken. Hence two
files beside the database:

    take PATH-queue ─▶ take PATH-lock, sign ─▶ write ─▶ release PATH-queue ─▶ COMMIT
                                                                    ─▶ release PATH-lock

Whoever has committed and wants to write again stands behind everyone who is in the queue already;
whoever has rolled back may be in it again before the next one is awake. One alone waits for the
lock itself. The lock is for fairness and names its holder; safety rests on SQLite's own locks,
which a writer that knows nothing of this one takes too.

The holder releases the queue before the COMMIT, and not earlier: that wakes the next one in it, who
is up when the disk has synced, and has looked at all that he need not be alone for; what is left of
the COMMIT he spends looking at the lock. One waking for each turn is enough: each costs the holder
as much as a statement.

`flock` has no deadline. A thread that may block waits in the caller's stead; one who gives up
leaves the thread waiting, and the next to come takes its place over.

Assumption: one caller at a time (the engine's mutex).
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
"""Seconds for which whoever comes next looks at the lock without sleeping: some commits."""
POLL_INTERVAL: Final = 0.005
"""Seconds between two looks, at most, when the commit takes longer."""


class ProcessLock:
    """The write lock of one database file between processes."""

    def __init__(self, database: str) -> None:
        """Open or create both lock files beside *database*.

        Raises:
            OSError: they cannot be opened.
            FailedPreconditionError: something that is no regular file is in their place.
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
        """Take the lock in turn, and tell whether it came before *deadline*.

        Call `release` after it, whatever came of it.

        Args:
            deadline: monotonic seconds.
            verify: called when we are the next, beside whoever may still be committing; what it
                raises comes out.
        Raises:
            OSError, FailedPreconditionError: a file cannot be opened or locked.
        """
        for file in (self._lock, self._queue):
            if file.fd < 0 and self._queue_thread.idle:  # its release was refused
                file.reopen()
        while self._acquire_queue(deadline):
            if self._queue.is_at_path():
                if verify is not None:
                    verify()
                if not self._acquire_lock(deadline):
                    return False
                if self._lock.is_at_path():
                    self._lock.record_holder()
                    return True
            # Somebody removed a lock file: those who come now lock another one.
            self._lock.reopen()
            self._queue.reopen()
        return False

    def _acquire_queue(self, deadline: float) -> bool:
        self._in_queue = True  # first: who is interrupted releases what it may have
        if self._queue_thread.idle and self._queue.try_acquire():
            return True
        try:
            return self._queue_thread.wait(deadline)
        except threads.NoThreadError:
            # From Python 3.12 on none can be started once the interpreter is exiting.
            if not threads.is_exiting():
                raise
        return self._poll_queue(deadline)

    def _poll_queue(self, deadline: float) -> bool:
        """Take the queue when it is free, in no order; return False if *deadline* comes first."""
        while not self._queue.try_acquire():
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_INTERVAL)
        return True

    def _acquire_lock(self, deadline: float) -> bool:
        """Take the lock, which is free or about to be: its holder has left the queue."""
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
        """Let the next one get ready: all that is left is a COMMIT; harmless when repeated."""
        if self._in_queue:
            self._queue.release()
        self._in_queue = False

    def release(self) -> None:
        """Release the lock; releasing what is not held is harmless."""
        if self._queue_thread.leave():
            self.release_queue()
            self._lock.release()

    def holder(self) -> Holder | None:
        """Return who else holds the lock; None when it is nobody, or this process."""
        return self._lock.holder()

    def mark(self) -> None:
        """Mark that there is a registry, for a day on which its database is missing."""
        self._lock.mark()

    def remove_if_created(self) -> None:
        """Unlink the files if this object created them. Only while the lock is held."""
        for file in (self._lock, self._queue):
            if file.created and file.is_at_path():
                os.unlink(file.path)

    def close(self) -> None:
        """Close both files; where a thread still waits, it closes them when it is served."""
        self._queue_thread.close()


class _QueueThread:
    """A thread that waits in line in the stead of a caller who has a deadline.

    IDLE, until a caller comes; WAITING, until the queue is its own; SERVED, until the caller takes
    it over. A caller who leaves before finds it WAITING still, and the place is given back as soon
    as it comes.
    """

    def __init__(self, queue: LockFile, lock: LockFile) -> None:
        self._queue, self._lock = queue, lock
        self._guard = threading.Lock()
        self._changed = WaitQueue()
        self._running = False
        self._state = _IDLE
        self._wanted = self._closed = False
        self._error: OSError | None = None

    @property
    def idle(self) -> bool:
        """Whether the caller may take the queue by itself."""
        return self._state is _IDLE

    def wait(self, deadline: float) -> bool:
        """Return whether our turn came before *deadline*. After an exception call `leave`.

        Raises:
            OSError: no thread can be started, or the files cannot be locked.
        """
        if not self._running:
            threads.start(self._run)
        with self._guard:
            self._wanted = True
            if self._state is _IDLE:
                self._state = _WAITING
        self._changed.wake()
        self._changed.wait(lambda: self._state is not _WAITING, deadline)
        with self._guard:
            self._wanted = False
            if self._state is _WAITING:
                return False
            self._state = _IDLE
            error, self._error = self._error, None
        if error is not None:
            raise error
        return True

    def leave(self) -> bool:
        """Want no turn any more, and tell whether the files are the caller's to release."""
        with self._guard:
            self._wanted = False
            if self._state is _SERVED:
                self._state = _IDLE
            idle = self._state is _IDLE
        if not idle:
            self._changed.wake()  # who was struck in `wait` may not have told the thread
        return idle

    def _run(self) -> None:
        with self._guard:
            if self._running:
                return  # another one, started by who was struck before he knew
            self._running = True
        while True:
            self._changed.wait(lambda: self._state is _WAITING or self._closed, None)
            if self._closed:
                self._close_files()
                return
            error = None
            try:
                self._queue.acquire()
            except OSError as caught:
                error = caught
            except ValueError:  # a release that was refused has closed a file
                error = OSError(errno.EBADF, os.strerror(errno.EBADF))
            with self._guard:
                self._state, self._error = _SERVED, error
                if not self._wanted:
                    self._queue.release()
                    self._state, self._error = _IDLE, None
            self._changed.wake()

    def close(self) -> None:
        """End the thread, and close the files now or when it is served."""
        with self._guard:
            self._closed = True
            if self._state is not _WAITING:
                self._close_files()
        self._changed.wake()

    def _close_files(self) -> None:
        self._lock.close()
        self._queue.close()


_IDLE, _WAITING, _SERVED = "idle", "waiting", "served"
