"""Locks between threads that an interrupt leaves whole.

An interrupt inside the `threading` module's own Python code can leave a Condition or an Event
locked for ever. The classes here use only the bare lock, in a `with` or to sleep on, and read every
condition from data.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final


class WaitQueue:
    """Threads that sleep until a condition holds, and check it whenever they are woken."""

    __slots__ = ("sleeping",)

    def __init__(self) -> None:
        """Begin empty."""
        self.sleeping: list[threading.Lock] = []
        """One locked lock for each thread that sleeps."""

    def wait(self, condition: Callable[[], bool], deadline: float | None) -> bool:
        """Sleep until *condition* holds; return whether it holds before *deadline*.

        Args:
            condition: checked at once, and after each `wake`.
            deadline: monotonic time in seconds after which waiting stops; None: never.
        """
        while not condition():
            lock = threading.Lock()
            lock.acquire()
            self.sleeping.append(lock)
            try:
                # Checked again: a thread that made it true before the append has woken no one.
                if condition():
                    return True
                remaining = -1 if deadline is None else deadline - time.monotonic()
                if deadline is not None and remaining <= 0:
                    return False
                lock.acquire(timeout=remaining)
            finally:
                self.sleeping.remove(lock)
        return True

    def wake(self) -> None:
        """Have all sleeping threads check their condition."""
        for lock in tuple(self.sleeping):
            _wake(lock)


class Sleeper:
    """A thread that sleeps until it is woken; a wake before the sleep ends that at once."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        """Begin awake."""
        self._lock: Final = threading.Lock()
        self._lock.acquire()

    def sleep(self, timeout: float | None) -> None:
        """Sleep until `wake`, at most *timeout* seconds."""
        longest = threading.TIMEOUT_MAX
        self._lock.acquire(timeout=-1 if timeout is None else min(timeout, longest))

    def was_woken(self) -> bool:
        """Return whether it was woken since its last sleep, which then needs another wake."""
        return self._lock.acquire(blocking=False)

    def wake(self) -> None:
        """End the sleep, or the next one; from any thread."""
        _wake(self._lock)


def _wake(lock: threading.Lock) -> None:
    if lock.locked():
        with contextlib.suppress(RuntimeError):  # another thread has woken it meanwhile
            lock.release()


_FREE: Final = (None,)


class Mutex:
    """FIFO lock between threads that knows its holder and is waited for until a deadline.

    The first entry of the queue is the holder. So there is no moment at which the mutex is held and
    its holder is unknown. Each change of the queue is one step of a list, and needs no lock: the
    garbage collector may call `release` in the middle of another call.
    """

    def __init__(self) -> None:
        """Begin free."""
        self.freed: Final = WaitQueue()
        """Woken when the mutex becomes free and no thread waits for it."""
        self.queue: Final[list[tuple[object, threading.Lock, int]]] = []
        """The holder, then the waiters: each with the lock that wakes it, and its thread."""

    @property
    def holder(self) -> object:
        """The holder; None when the mutex is free."""
        return next(iter(self.queue), _FREE)[0]

    def entry_of_this_thread(self) -> object:
        """Return the holder or waiter that the calling thread has queued; None without one."""
        thread = threading.get_ident()
        for holder, _, other in tuple(self.queue):
            if other == thread:
                return holder
        return None

    @property
    def next_waiter(self) -> object:
        """The first waiter behind the holder; None when there is none."""
        waiting = self.queue[1:2]
        return waiting[0][0] if waiting else None

    def acquire(self, holder: object, deadline: float | None) -> bool:
        """Wait until *holder* holds the mutex; return whether it does before *deadline*.

        After an exception the caller must call `release`, whether the mutex was held or not.
        """
        queue, wakeup = self.queue, threading.Lock()
        wakeup.acquire()
        queue.append((holder, wakeup, threading.get_ident()))
        while next(iter(queue), _FREE)[0] is not holder:
            remaining = -1 if deadline is None else deadline - time.monotonic()
            if (deadline is not None and remaining <= 0) or not wakeup.acquire(timeout=remaining):
                self.release(holder)
                return False
        return True

    def release(self, holder: object) -> None:
        """Remove *holder* from the queue, wherever it stands; idempotent."""
        queue = self.queue
        for entry in tuple(queue):
            if entry[0] is holder:
                try:  # noqa: SIM105 - `suppress` calls three functions, in each write
                    queue.remove(entry)
                except ValueError:  # another thread has removed it
                    pass
                break
        for _, wakeup, _ in queue[:1]:
            _wake(wakeup)
        if not queue and self.freed.sleeping:
            self.freed.wake()
