"""Waiting for other threads, in a way that an exception from a signal handler cannot break.

Python runs a handler between any two bytecodes of the main thread, inside the `threading` module's
own Python too: struck at the wrong one, a Condition or an Event is left locked for ever. Here only
the bare lock is used, in a `with` or to sleep on, and what is true is read from the data.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final


class WaitQueue:
    """Threads that sleep until something is so, and are woken to look again."""

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        """Begin with nobody asleep."""
        self._locks: list[threading.Lock] = []

    def wait(self, condition: Callable[[], bool], deadline: float | None) -> bool:
        """Sleep until *condition* holds, and tell whether it does before *deadline*.

        Args:
            condition: asked at once, and whenever somebody calls `wake`.
            deadline: monotonic seconds; None: without end.
        """
        while not condition():
            lock = threading.Lock()
            lock.acquire()
            self._locks.append(lock)
            try:
                # Asked again, now that whoever makes it so will see us.
                if condition():
                    return True
                remaining = -1 if deadline is None else deadline - time.monotonic()
                if deadline is not None and remaining <= 0:
                    return False
                lock.acquire(timeout=remaining)
            finally:
                self._locks.remove(lock)
        return True

    def wake(self) -> None:
        """Let all of them look again."""
        for lock in tuple(self._locks):
            _wake(lock)


def _wake(lock: threading.Lock) -> None:
    if lock.locked():
        with contextlib.suppress(RuntimeError):  # somebody else has woken it meanwhile
            lock.release()


class Mutex:
    """A lock that is given in turn, knows its holder, and is waited for until a deadline.

    Whoever asks stands in the queue, and the first one in it is the holder. So there is no moment
    at which it is held and nobody knows by whom. Each change of the queue is one step of a list,
    under no lock: the garbage collector may call in the middle of it, with one more to release.
    """

    def __init__(self) -> None:
        """Begin with nobody holding it."""
        self.freed: Final = WaitQueue()
        """Woken when nobody holds it any more."""
        self._queue: list[tuple[object, threading.Lock, threading.Thread]] = []

    @property
    def holder(self) -> object:
        """Who holds it; None when nobody does."""
        try:
            return self._queue[0][0]
        except IndexError:
            return None

    def entry_of_this_thread(self) -> object:
        """Return who of the calling thread holds it, or waits; None where nobody does."""
        thread = threading.current_thread()
        for holder, _, other in tuple(self._queue):
            if other is thread:
                return holder
        return None

    @property
    def next_waiter(self) -> object:
        """Who gets it after the holder; None when nobody waits."""
        waiting = self._queue[1:2]
        return waiting[0][0] if waiting else None

    def acquire(self, holder: object, deadline: float | None) -> bool:
        """Wait until *holder* holds it, and tell whether it does before *deadline*.

        After an exception the caller releases it, whether it was held or not.
        """
        turn = threading.Lock()
        turn.acquire()
        self._queue.append((holder, turn, threading.current_thread()))
        while self.holder is not holder:
            remaining = -1 if deadline is None else deadline - time.monotonic()
            if (deadline is not None and remaining <= 0) or not turn.acquire(timeout=remaining):
                self.release(holder)
                return False
        return True

    def release(self, holder: object) -> None:
        """Take *holder* out of the queue, wherever it stands; harmless when repeated."""
        queue = self._queue
        for entry in tuple(queue):
            if entry[0] is holder:
                with contextlib.suppress(ValueError):  # somebody else has taken it out
                    queue.remove(entry)
                break
        for _, turn, _ in queue[:1]:
            _wake(turn)
        if not queue:
            self.freed.wake()
