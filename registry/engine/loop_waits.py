"""Waits for commits in tasks of asyncio: one timer and one inotify for all tasks of a loop.

Everything but `wake` runs in the thread of the loop. While no task waits, nothing is left in the
loop: no timer and no descriptor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING, Final

from registry.errors import FailedPreconditionError, RegistryError, retold

if TYPE_CHECKING:
    from collections.abc import Callable

    from registry.engine.commits import Commits
    from registry.engine.poller import Poller


class TaskWaiter:
    """A task that waits."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Belong to a task of *loop*."""
        self._loop: Final = loop
        self._process: Final = os.getpid()
        self._future: asyncio.Future[None] | None = None
        self._is_woken = False
        self.failure: RegistryError | None = None
        """The error of a poll, to be raised by the wait."""

    def wake(self) -> None:
        """Have the task check its condition; from any thread."""
        # Once, or a loop that is busy would get a call for each commit. A forked child shares the
        # descriptors of the loop with its parent.
        if not self._is_woken and self._process == os.getpid():
            self._is_woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self.wake_now)

    def wake_now(self) -> None:
        """Have the task check its condition; in the thread of the loop."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def abandon(self) -> None:
        """Release the task, which never runs again, to the garbage collector."""
        self._future = None

    async def sleep(self, condition: Callable[[], bool], deadline: float | None) -> bool:
        """Sleep until *condition* holds; return whether it holds before *deadline*."""
        while True:
            self._is_woken = False
            self._future = self._loop.create_future()
            if condition():
                return True
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                return False
            timer = None if remaining is None else self._loop.call_later(remaining, self.wake_now)
            try:
                await self._future
            finally:
                if timer is not None:
                    timer.cancel()
            if self.failure is not None:
                raise self.failure


class LoopWaits:
    """The tasks of one loop that wait for commits to one database, and their poller."""

    def __init__(self, commits: Commits, loop: asyncio.AbstractEventLoop) -> None:
        """Begin without tasks."""
        self._commits: Final = commits
        self._loop: Final = loop
        self._tasks: Final[list[TaskWaiter]] = []
        self._poller: Poller | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._events: int | None = None
        """Descriptor of the events that the loop listens to."""

    def wake(self) -> None:
        """Have all tasks check their conditions; from any thread."""
        for task in tuple(self._tasks):
            task.wake()
        self.end_if_closed()

    def end_if_closed(self) -> None:
        """End the waits of a loop that was closed while its tasks waited; from any thread."""
        if self._loop.is_closed():
            for task in tuple(self._tasks):
                task.abandon()
            self._tasks.clear()
            self._end()

    def enter(self, waiter: TaskWaiter) -> None:
        """Begin to poll for *waiter*."""
        self._tasks.append(waiter)
        if self._poller is None:
            self._poller = self._commits.take_poller()
            self._schedule(self._poller)

    def leave(self, waiter: TaskWaiter) -> None:
        """Remove *waiter*, and the timer and the descriptor with the last one."""
        if self._commits.is_abandoned:  # the child shares the epoll instance of its parent's loop
            return
        if waiter in self._tasks:
            self._tasks.remove(waiter)
        if not self._tasks:
            self._end()

    def _end(self) -> None:
        """Poll no longer. Idempotent."""
        self._commits.loops.pop(self._loop, None)
        self._listen(None)
        if self._timer is not None:
            self._timer.cancel()
        poller, self._poller = self._poller, None
        if poller is not None:
            self._commits.give_back(poller)

    def abandon_in_child(self) -> None:
        """Close the copies of the descriptors, in a forked child."""
        if self._poller is not None:
            self._poller.close()

    def _poll(self) -> None:
        """Poll, and have the next poll made; an error is raised by each wait."""
        poller = self._poller
        if poller is None:
            return
        try:
            self._commits.poll(poller)
        except RegistryError as error:
            for task in tuple(self._tasks):
                task.failure = retold(error, str(error))
                task.failure.__cause__ = error
                task.wake_now()
        finally:
            self._schedule(poller)

    def _schedule(self, poller: Poller) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(poller.delay(), self._poll)
        events = poller.events if poller.is_listening else None
        descriptor = None
        if events is not None:
            with contextlib.suppress(FailedPreconditionError):
                descriptor = events.descriptor.fileno("wait for commits")
        self._listen(descriptor)

    def _listen(self, descriptor: int | None) -> None:
        """Listen to *descriptor* and to no other; None: to none."""
        if descriptor != self._events:
            if self._events is not None and not self._loop.is_closed():
                self._loop.remove_reader(self._events)
            self._events = descriptor
            if descriptor is not None:
                self._loop.add_reader(descriptor, self._poll)


def new_waiter(doing: str) -> TaskWaiter:
    """Return a waiter for the running task.

    Raises:
        FailedPreconditionError: no event loop of asyncio runs in this thread.
    """
    try:
        return TaskWaiter(asyncio.get_running_loop())
    except RuntimeError as error:
        raise FailedPreconditionError(
            f"{doing}: no event loop of asyncio runs here; wait in a thread"
        ) from error


async def wait(
    commits: Commits, waiter: TaskWaiter, condition: Callable[[], bool], deadline: float | None
) -> bool:
    """Wait in a task, as `Commits.wait` does in a thread.

    Raises:
        RegistryError: the database cannot be read.
    """
    loop = asyncio.get_running_loop()
    for each in tuple(commits.loops.values()):
        each.end_if_closed()
    waits = commits.loops.setdefault(loop, LoopWaits(commits, loop))
    assert isinstance(waits, LoopWaits), "only this module adds to `loops`"
    try:
        waits.enter(waiter)
        return await waiter.sleep(condition, deadline)
    finally:
        waits.leave(waiter)
