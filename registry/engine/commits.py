"""Waits for commits of any process to one database.

    waiter     a thread or a task that waits until a condition holds
    watcher    a waiter that is woken at each commit
    follower   an object that reads each commit of another process, and wakes the waiters concerned
    poller     finds out that another process has committed

1. No thread is started. The first of the threads that wait polls for all of them; the next one goes
   on when it leaves. A loop of asyncio polls by a timer, for all its tasks.
2. A commit of this process wakes the watchers at once, and needs no poll.
3. A wake is a hint: each waiter reads its condition from data. So a wake that an interrupt has kept
   from being sent costs time, and loses nothing.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from registry.errors import FailedPreconditionError
from registry.sync.imports import late_import
from registry.sync.interrupts import call_then
from registry.sync.locks import Sleeper

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from registry.engine.poller import Poller
    from registry.engine.readers import DataVersion
    from registry.engine.transaction import OpenState

    # Here, since a Protocol takes long to make at the start of a process.

    class Waiter(Protocol):
        """A thread or a task that waits."""

        def wake(self) -> None:
            """Have it check its condition; from any thread."""

    class Follower(Protocol):
        """Reads each commit for waiters that need not be woken at every one."""

        def follow(self) -> None:
            """Read what was committed since the last call; idempotent."""

    class WaitingLoop(Protocol):
        """The tasks of an event loop that wait: `engine.loop_waits`."""

        def wake(self) -> None:
            """Have all tasks check their conditions; from any thread."""

        def end_if_closed(self) -> None:
            """End the waits of a loop that was closed while its tasks waited; from any thread."""

        def abandon_in_child(self) -> None:
            """Close the copies of the descriptors, in a forked child."""


class ThreadWaiter(Sleeper):
    """A thread that waits, and polls while it is the first of them."""

    __slots__ = ("poller", "thread")

    def __init__(self) -> None:
        """Belong to the calling thread."""
        super().__init__()
        self.thread: Final = threading.get_ident()
        self.poller: Poller | None = None
        """What the thread polls with, and may sleep on."""

    def wake(self) -> None:
        """Have the thread check its condition."""
        super().wake()
        poller = self.poller  # read after the line above, and set before the thread checks that
        if poller is not None:
            poller.ring()


class Commits:
    """Waiters of one database file in this process."""

    def __init__(self, state: OpenState, data_version: DataVersion) -> None:
        """Begin without waiters."""
        self.is_abandoned = False
        """Whether this is a forked child, which must not disturb its parent."""
        self.watchers: Final[list[Waiter]] = []
        self.followers: Final[dict[Follower, None]] = {}
        self.loops: Final[dict[object, WaitingLoop]] = {}
        """Event loops with tasks that wait."""
        self._threads: Final[list[ThreadWaiter]] = []
        self._pollers: Final[list[Poller]] = []
        """Pollers that are not in use; closing one may take 20 ms."""
        self._state: Final = state
        self._data_version: Final = data_version
        self._version: int | None = None
        """The data version that the followers have read, and that the watchers were woken for."""

    # Waking.

    def wake_watchers(self) -> None:
        """Wake those that wait for each commit; after one of this process."""
        for watcher in tuple(self.watchers):
            watcher.wake()

    def wake_all(self) -> None:
        """Have every waiter check its condition."""
        for waiter in tuple(self._threads):
            waiter.wake()
        for loop in tuple(self.loops.values()):
            loop.wake()

    def close(self) -> None:
        """Wake all waiters, whose conditions hold once the file is closed. Idempotent."""
        self.wake_all()
        while self._pollers:
            self._pollers[-1].close()
            del self._pollers[-1:]

    def abandon_in_child(self) -> None:
        """Close the copies of the descriptors, in a forked child."""
        self.is_abandoned = True
        for loop in self.loops.values():
            loop.abandon_in_child()
        pollers = (*self._pollers, *(each.poller for each in self._threads))
        for poller in pollers:
            if poller is not None:
                poller.close()

    # Polling.

    def take_poller(self) -> Poller:
        """Return a poller, to be given back by `give_back`."""
        pollers = self._pollers[-1:]
        del self._pollers[-1:]  # no call stands between the two, so no other thread takes it
        if pollers:
            return pollers[0]
        # ctypes is imported with the first waiter.
        with late_import("registry.engine.poller"):
            from registry.engine.poller import Poller  # noqa: PLC0415

        return Poller(self._state.path, partial(self._data_version.read, "wait for commits"))

    def give_back(self, poller: Poller) -> None:
        """Keep *poller* for the next waiter, or close it; one without events is made again."""
        if poller.events is not None:
            self._pollers.append(poller)
        if self._state.closed:
            self.close()

    def poll(self, poller: Poller) -> None:
        """Have the followers read what was committed since the last poll, and wake the watchers.

        Raises:
            RegistryError: it cannot be read. The next poll reads it again.
        """
        version = poller.poll()
        if version is None or version != self._version:
            for follower in tuple(self.followers):
                follower.follow()
            self.wake_watchers()
            self._version = version

    # Waiting in a thread.

    def wait(
        self, waiter: ThreadWaiter, condition: Callable[[], bool], deadline: float | None
    ) -> bool:
        """Wait until *condition* holds; return whether it holds before *deadline*.

        Args:
            waiter: of the calling thread; the caller has it woken when the condition may hold.
            condition: checked at once, and after each wake; it holds once the file is closed.
            deadline: monotonic time in seconds after which waiting stops; None: never.
        Raises:
            RegistryError: the database cannot be read.
        """
        return call_then(
            partial(self._wait, waiter, condition, deadline), partial(self._leave, waiter)
        )

    def _wait(
        self, waiter: ThreadWaiter, condition: Callable[[], bool], deadline: float | None
    ) -> bool:
        self._threads.append(waiter)
        while not condition():
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                return False
            if self._polls(waiter):
                self._sleep_and_poll(waiter, remaining)
            else:
                waiter.sleep(remaining)
        return True

    def _polls(self, waiter: ThreadWaiter) -> bool:
        """Return whether *waiter* is the first, or is in a signal handler that interrupts it."""
        return self._threads[0].thread == waiter.thread

    def _sleep_and_poll(self, waiter: ThreadWaiter, timeout: float | None) -> None:
        """Sleep until *waiter* is woken, or the next poll is due, and poll then."""
        if waiter.poller is None:
            waiter.poller = self.take_poller()
        poller = waiter.poller
        delay = poller.delay()
        if timeout is not None:
            delay = min(delay, timeout)
        if poller.events is None:
            waiter.sleep(delay)
        elif waiter.was_woken():  # before it could be heard
            return
        else:
            try:
                poller.sleep(delay)
            except FailedPreconditionError:
                self._state.require("wait for commits")
                raise
        if not self._state.closed:
            self.poll(poller)

    def _leave(self, waiter: ThreadWaiter) -> None:
        """End the wait of *waiter*, and have the next thread poll; idempotent."""
        if self.is_abandoned:
            return
        while waiter in self._threads:
            self._threads.remove(waiter)
        poller, waiter.poller = waiter.poller, None
        if poller is not None:
            self.give_back(poller)
        if self._threads and self._threads[0].poller is None:
            self._threads[0].wake()
