"""A function in a thread of its own, which an exception from a signal handler cannot break.

The main thread, interrupted in Thread.start, can leave the new one waiting for ever, and the
process with it when it wants to exit. Here the bare `_thread` starts one, and that, which no
handler interrupts, the `threading.Thread` in which the function runs.
"""

from __future__ import annotations

import _thread
import contextvars
import errno
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from registry.sync.interrupts import reraise_interrupt
from registry.sync.locks import WaitQueue

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class NoThreadError(OSError):
    """No thread can be started: EAGAIN, as the kernel says it."""

    def __init__(self, error: BaseException) -> None:
        """Keep what Python said."""
        super().__init__(errno.EAGAIN, str(error))


def is_exiting() -> bool:
    """Return whether the interpreter is exiting: the main thread has ended."""
    return not threading.main_thread().is_alive()


def start(fn: Callable[[], None]) -> None:
    """Start *fn* in a thread that the `threading` module does not know.

    Raises:
        NoThreadError: none can be started.
    """
    try:
        _thread.start_new_thread(fn, ())
    except RuntimeError as error:
        reraise_interrupt(error)
        raise NoThreadError(error) from error


def run(fn: Callable[[], T]) -> T:
    """Run *fn* in a thread and the caller's context, and return its result or raise its exception.

    It is never left running: an interrupt of the caller waits until it has ended, or keeps it from
    beginning.

    Raises:
        NoThreadError: none can be started; *fn* was not begun.
    """
    return _Call(fn).result()


class _Call(Generic[T]):
    """One run of a function."""

    def __init__(self, fn: Callable[[], T]) -> None:
        self._fn = fn
        self._context = contextvars.copy_context()
        self._daemon = threading.current_thread().daemon
        self._guard = threading.Lock()
        self._tried = self._started = self._finished = False
        self._end = WaitQueue()
        self._thread: threading.Thread | None = None
        self._results: list[T] = []
        self._failures: list[BaseException] = []

    def result(self) -> T:
        interrupts: list[BaseException] = []
        while not self._finished:
            try:
                self._advance(interrupts)
            except BaseException as error:  # noqa: BLE001 - interrupted again, on the way to the `try`
                interrupts.append(error)
        try:
            if interrupts:
                raise interrupts[-1]
        finally:
            del interrupts  # or it and its traceback keep each other, and all that is in its frames
        if self._thread is not None:
            self._thread.join()
        if self._failures:
            raise self._failures[0]
        return self._results[0]

    def _advance(self, interrupts: list[BaseException]) -> None:
        while not self._finished:
            try:
                if interrupts:
                    self._prevent_start()
                elif not self._tried:
                    self._tried = True
                    start(self._start)
                self._end.wait(lambda: self._finished, None)
            except BaseException as error:  # noqa: BLE001 - the thread may run all the same
                interrupts.append(error)

    def _prevent_start(self) -> None:
        with self._guard:
            if not self._started:  # else its end is its own to note
                self._finished = True

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="registry", daemon=self._daemon)
        self._thread = thread
        try:
            thread.start()
        except BaseException as error:  # noqa: BLE001 - it is raised where it belongs
            self._thread = None
            no_thread = isinstance(error, RuntimeError)
            self._failures.append(NoThreadError(error) if no_thread else error)
            self._prevent_start()
            self._end.wake()

    def _run(self) -> None:
        with self._guard:
            if self._finished:
                return
            self._started = True
        try:
            self._results.append(self._context.run(self._fn))
        except BaseException as error:  # noqa: BLE001 - it is raised where it belongs
            self._failures.append(error)
        self._finished = True
        self._end.wake()
