"""Watcher of the ends of init processes, which the kernel reports as they happen.

A pidfd tells of the recorded process and of no other, and no end is missed. What an end means is
for the embedder to record.

1. Only the watcher's thread uses its epoll instance. A forked child shares that with its parent, so
   a call in the child would change what the parent watches.
2. An end that cannot be noted does not hold up the others, and is tried again.
3. Nothing is reaped: a child's exit status is left to the process that forked it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from registry.errors import (
    FailedPreconditionError,
    RegistryError,
    ResourceExhaustedError,
    StoreClosedError,
)
from registry.handles.sandbox import Sandbox
from registry.host.descriptor import Descriptor
from registry.host.held_process import Process
from registry.model.validation import invalid
from registry.sync import threads
from registry.sync.interrupts import is_interrupt, reraise_interrupt
from registry.sync.locks import WaitQueue

log = logging.getLogger("registry")

RETRY: Final = 1.0
"""Seconds until what failed is tried again."""
LOG_EVERY: Final = 60.0
"""Seconds between two messages about one thing that goes on failing."""
REAPED_WITHIN: Final = 10.0
"""Seconds to wait for the exit status of another's child: its parent has to reap it."""
LOOK: Final = 0.02
"""Seconds between two looks whether it has."""

Exit = tuple[Sandbox, int | None]
"""A sandbox whose init process has ended, and its exit status if that is known."""


@dataclass(slots=True, eq=False, repr=False, kw_only=True)
class _Task:
    """Task of the thread, which is retried after a while if it fails."""

    again_at: float = 0.0
    """Monotonic time in seconds before which it is left alone."""
    failed: bool = False
    log_at: float = 0.0
    """Monotonic time in seconds before which its failures are not logged."""

    def fail(self, error: BaseException) -> None:
        """Have it tried again later; log *error* unless one was logged a short while ago."""
        now = time.monotonic()
        if now >= self.log_at:
            log.warning(
                "%s; trying again",
                error,
                exc_info=not isinstance(error, RegistryError),
                extra={"event": "exit_retried", "error": type(error).__name__},
            )
            self.log_at = now + LOG_EVERY
        self.failed, self.again_at = True, now + RETRY


@dataclass(slots=True, eq=False, repr=False, kw_only=True)
class _Work(_Task):
    """A function to be called until it does not raise."""

    run: Callable[[], None]


@dataclass(slots=True, eq=False, repr=False, kw_only=True)
class _Ended(_Task):
    """The end of a process, to be noted, and once more when its exit status is known later."""

    sandbox: Sandbox
    process: Process
    status: int | None
    until: float
    """Monotonic time in seconds until which the exit status is waited for."""
    noted: bool = False
    done: bool = False

    @property
    def is_news(self) -> bool:
        """Return whether there is something to note."""
        return not self.noted or self.status is not None


class Exits:
    """Watcher of the init processes of sandboxes, in a thread of its own, until it is closed.

    Any thread may use it. It joins no transaction; *note* may begin one for all that it is given.
    In a forked child every use raises `StoreClosedError`, and `close` closes the child's copies of
    the descriptors.
    """

    def __init__(self, note: Callable[[Sequence[Exit]], None]) -> None:
        """Start the thread.

        Args:
            note: is called in that thread with the sandboxes whose processes have ended, and once
                more with one whose exit status is known later. If it raises for several, it is
                called for each of them alone; so it has to be idempotent, or one transaction. One
                for which it raises alone is tried again every second, beside the others, until the
                store of that sandbox is closed.

        Raises:
            ResourceExhaustedError: no descriptor or no thread is left.
        """
        doing = "watch exits"
        if not callable(note):
            raise invalid(doing, "note", note, "is not a function of the ends")
        self._note: Final = note
        self._closing = self._finished = False
        self._waking: Final = WaitQueue()
        """Wakes the threads that wait in `close`, and this one while it rests after a failure."""
        self._inbox: Final[deque[_Work]] = deque()
        self._watched: Final[dict[Process, Sandbox]] = {}
        """All processes that are to be closed, whether they have ended or not."""
        self._work: list[_Work] = []
        self._ended: list[_Ended] = []
        self._by_fd: Final[dict[int, Process]] = {}
        self._ident = 0
        """Of the thread; this object does not refer to it, which refers to this one."""
        try:
            self._bell: Final = Descriptor(os.eventfd(0), "the watcher of exits")
            self._epoll: Final = select.epoll()
            self._epoll.register(self._bell.fileno(doing), select.EPOLLIN)
        except OSError as error:
            reraise_interrupt(error)
            raise ResourceExhaustedError(f"{doing}: {error.strerror}; raise the limit") from error
        thread = threading.Thread(target=self._run, name="exits", daemon=True)
        try:
            threads.start_thread(thread)
        except BaseException as error:
            self._stop()  # in case it has started
            if isinstance(error, (OSError, RuntimeError)) and not is_interrupt(error):
                self._release()
                raise ResourceExhaustedError(f"{doing}: {error}; raise the limit") from error
            raise

    def watch(self, sandbox: Sandbox, process: Process) -> None:
        """Watch *process*, which is closed when its end is noted. Idempotent.

        Raises:
            InvalidArgumentError: *process* is None: it has ended, or no pid is recorded.
            FailedPreconditionError: this watcher or *process* is closed.
        """
        self.watch_all([(sandbox, process)])

    def watch_all(self, processes: Iterable[tuple[Sandbox, Process]]) -> None:
        """Watch several processes, each with its sandbox; wakes the thread only once.

        Raises:
            InvalidArgumentError, FailedPreconditionError: as `watch`; none is watched.
        """
        watched, doing = list(processes), "watch processes"
        for sandbox, process in watched:
            doing = f"watch process of sandbox {sandbox.id!r}"
            if not isinstance(process, Process):
                raise invalid(doing, "process", process, "is not a Process; note its end yourself")
            process.fileno()  # raises if it is closed
        with self._bell.use(doing) as bell:
            for sandbox, process in watched:
                self._watched.setdefault(process, sandbox)
                self._inbox.append(_Work(run=partial(self._register, process)))
            os.eventfd_write(bell, 1)
            # Else the thread closes the processes, as if they had been watched before.
            pending = [each for _, each in watched if self._closing]
            if [each for each in pending if self._watched.pop(each, None) is not None]:
                raise FailedPreconditionError(f"{doing}: the watcher is closed; make another one")

    def retry(self, work: Callable[[], None]) -> None:
        """Call *work*, which has failed, after a second, and again until it does not raise.

        It is given up if it raises `StoreClosedError`.

        Raises:
            FailedPreconditionError: this watcher is closed.
        """
        with self._bell.use("retry work") as bell:
            self._inbox.append(_Work(run=work, again_at=time.monotonic() + RETRY))
            os.eventfd_write(bell, 1)

    def close(self) -> None:
        """Stop watching, and close the processes, which go on. Idempotent.

        Waits for a call of *note* that is under way, unless *note* itself calls this.
        """
        if self._bell.is_foreign:
            self._release()
            return
        self._stop()
        if threading.get_ident() != self._ident:
            self._waking.wait(lambda: self._finished, None)

    def _stop(self) -> None:
        self._closing = True
        with contextlib.suppress(FailedPreconditionError), self._bell.use("close") as bell:
            os.eventfd_write(bell, 1)
        self._waking.wake()

    # In the thread.

    def _run(self) -> None:
        self._ident = threading.get_ident()
        try:
            while not self._closing:
                try:
                    self._step()
                except Exception:
                    log.exception("watch exits", extra={"event": "exit_watcher_failed"})
                    self._waking.wait(lambda: self._closing, time.monotonic() + RETRY)
        finally:
            self._closing = True
            self._release()
            self._finished = True
            self._waking.wake()

    def _release(self) -> None:
        self._bell.close()
        self._epoll.close()
        for process in tuple(self._watched):
            if self._watched.pop(process, None) is not None:
                process.close()

    def _step(self) -> None:
        """Wait until there is something to do, and do it."""
        self._wait()
        while self._inbox:
            self._work.append(self._inbox.popleft())
        self._note_ended()
        self._do_work()

    def _wait(self) -> None:
        tasks = (*self._ended, *self._work)
        at = min((each.again_at for each in tasks), default=None)
        timeout = None if at is None else max(0.0, at - time.monotonic())
        bell = self._bell.fileno("wait for exits")
        for fd, _ in self._epoll.poll(timeout):
            if fd == bell:
                os.eventfd_read(bell)
            else:
                self._take(fd)

    def _register(self, process: Process) -> None:
        """Have the kernel tell of the end of *process*, once."""
        if process not in self._watched:
            return  # its end has been noted
        try:
            fd = process.fileno()
            self._by_fd[fd] = process
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLONESHOT)
        except FileExistsError:
            pass  # it is watched already
        except FailedPreconditionError:
            self._watched.pop(process, None)  # the caller has closed it

    def _take(self, fd: int) -> None:
        """Take the end of the process with the pidfd *fd*."""
        process = self._by_fd.get(fd)
        if process is None:
            return
        try:
            if not process.ended:
                # The event is of a descriptor that had this number, which the caller has closed
                # and a forked child has not.
                self._epoll.modify(fd, select.EPOLLIN | select.EPOLLONESHOT)
                return
            status = process.exit_status(0)
        except FailedPreconditionError:
            self._watched.pop(process, None)  # the caller has closed it
        else:
            sandbox, until = self._watched[process], time.monotonic() + REAPED_WITHIN
            ended = _Ended(sandbox=sandbox, process=process, status=status, until=until)
            self._ended.append(ended)
        del self._by_fd[fd]

    def _note_ended(self) -> None:
        """Note the ends at once, and each exit status when it is known."""
        now = time.monotonic()
        due = [each for each in self._ended if each.again_at <= now]
        for each in due:
            if each.status is None:
                with contextlib.suppress(FailedPreconditionError):  # the caller has closed it
                    each.status = each.process.exit_status(0)
        again = [each for each in due if each.failed]
        self._note_together([each for each in due if each.is_news and not each.failed])
        for each in again:
            self._note_together([each])
        for each in due:
            if each.noted and not each.failed:
                each.again_at = now + LOOK
                each.done = each.status is not None or now >= each.until
            if each.done:
                self._watched.pop(each.process, None)
                each.process.close()
        self._ended = [each for each in self._ended if not each.done]

    def _note_together(self, ended: Sequence[_Ended]) -> None:
        """Note *ended* in one call; if that fails, each of them alone."""
        if not ended or self._closing:
            return
        try:
            self._note([(each.sandbox, each.status) for each in ended])
        except BaseException as error:  # noqa: BLE001 - whatever it is, the others are noted
            if len(ended) > 1:
                for each in ended:
                    self._note_together([each])
            elif isinstance(error, StoreClosedError) and _is_of_closed_store(ended[0].sandbox):
                log.warning(
                    "%s; the end is not noted",
                    error,
                    extra={
                        "event": "exit_not_noted",
                        "sandbox_id": ended[0].sandbox.id,
                        "error": type(error).__name__,
                    },
                )
                ended[0].done = True
            else:
                ended[0].fail(error)
        else:
            for each in ended:
                each.noted, each.failed = True, False

    def _do_work(self) -> None:
        now, left = time.monotonic(), []
        for each in self._work:
            if each.again_at > now or self._closing:
                left.append(each)
                continue
            try:
                each.run()
            except StoreClosedError as error:
                log.warning(
                    "%s; it is not tried again",
                    error,
                    extra={"event": "retry_ended", "error": type(error).__name__},
                )
            except BaseException as error:  # noqa: BLE001 - whatever it is, the rest goes on
                each.fail(error)
                left.append(each)
        self._work = left


def _is_of_closed_store(sandbox: Sandbox) -> bool:
    """Return whether the store of *sandbox* is closed; *note* may have used another one."""
    try:
        sandbox.status.get()
    except StoreClosedError:
        return True
    except RegistryError:
        pass
    return False
