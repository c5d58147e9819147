"""Calls in other threads that an interrupt leaves whole.

An interrupt of the main thread in Thread.start can leave the new thread waiting for ever, and the
process cannot exit then. So the bare `_thread` starts an intermediate thread, in which no signal
handler runs, and that one starts the `threading.Thread` in which the function runs.
"""

from __future__ import annotations

import _thread
import contextvars
import errno
import math
import mmap
import resource
import threading
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from registry.sync.interrupts import reraise_interrupt, run_to_end
from registry.sync.locks import WaitQueue

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

FRAMES: Final = 1 << 20
"""Bytes for the first frames of a thread, beside its stack; CPython takes 16 KiB at first."""
STACK: Final = 8 << 20
"""Bytes of the stack of a thread if neither Python nor the limit of the process says otherwise."""


class NoThreadError(OSError):
    """No thread can be started: EAGAIN, as the kernel reports it."""

    def __init__(self, error: BaseException) -> None:
        """Keep the message of *error*, which Python or the kernel raised."""
        super().__init__(errno.EAGAIN, getattr(error, "strerror", None) or str(error))


_exiting: Final[list[None]] = []
"""Not empty once the interpreter exits."""


def is_exiting() -> bool:
    """Return whether the interpreter is exiting: the main thread has ended."""
    return bool(_exiting)


def _note_exit() -> None:
    _exiting.append(None)


# Not `threading.main_thread().is_alive()`: in CPython 3.11 and 3.12 an interrupt in the middle of
# that call marks the main thread as ended, for the rest of the process.
try:
    threading._register_atexit(_note_exit)  # type: ignore[attr-defined]  # noqa: SLF001
except RuntimeError:  # the interpreter is exiting already
    _note_exit()


def start(fn: Callable[[], None]) -> None:
    """Start *fn* in a thread that the `threading` module does not know.

    Raises:
        NoThreadError: no thread can be started.
    """
    require_memory()
    try:
        _thread.start_new_thread(fn, ())
    except RuntimeError as error:
        reraise_interrupt(error)
        raise NoThreadError(error) from error


def start_thread(thread: threading.Thread) -> None:
    """Start *thread*, in another thread, which no signal handler interrupts.

    Raises:
        NoThreadError, RuntimeError: it cannot be started.
    """

    def begin() -> None:
        require_memory()
        thread.start()

    run(begin)


def require_memory() -> None:
    """Raise NoThreadError unless there is address space for one more thread.

    CPython ends a thread that has a stack but gets no memory for its first frame, and tells only
    `sys.unraisablehook`. Thread.start would wait for it for ever.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_STACK)
    stack = threading.stack_size() or (STACK if limit == resource.RLIM_INFINITY else limit)
    try:
        mmap.mmap(-1, stack + FRAMES, mmap.MAP_PRIVATE).close()
    except OSError as error:
        reraise_interrupt(error)
        raise NoThreadError(error) from error


def run(fn: Callable[[], T]) -> T:
    """Run *fn* in a thread and the caller's context, and return its result or raise its exception.

    *fn* is never left running: an interrupt of the caller is raised when *fn* has ended, or keeps
    *fn* from being called.

    Raises:
        NoThreadError: no thread can be started; *fn* was not called.
    """
    return _Call(fn).result()


class _Call(Generic[T]):
    """One run of a function in a thread."""

    def __init__(self, fn: Callable[[], T]) -> None:
        self._fn = fn
        self._context = contextvars.copy_context()
        self._daemon = threading.current_thread().daemon
        self._guard = threading.Lock()
        self._tried = self._started = self._finished = False
        self._changed = WaitQueue()
        self._thread: threading.Thread | None = None
        self._results: list[T] = []
        self._failures: list[BaseException] = []

    def result(self) -> T:
        """Return the result of the function, or raise its exception."""
        run_to_end(self._advance, attempts=math.inf)
        if self._thread is not None:
            self._thread.join()
        if self._failures:
            raise self._failures[0]
        return self._results[0]

    def _advance(self) -> None:
        """Start the thread and wait for its end; a second call follows an interrupt."""
        if self._tried:
            self._prevent_start()
        else:
            self._tried = True
            start(self._start)
        self._changed.wait(lambda: self._finished, None)

    def _prevent_start(self) -> None:
        with self._guard:
            if not self._started:  # else the thread itself notes its end
                self._finished = True

    def _start(self) -> None:
        try:
            thread = threading.Thread(target=self._run, name="registry", daemon=self._daemon)
            require_memory()
            self._thread = thread
            thread.start()
        except BaseException as error:  # noqa: BLE001 - raised by `result`
            self._thread = None
            no_thread = isinstance(error, RuntimeError)
            self._failures.append(NoThreadError(error) if no_thread else error)
            self._prevent_start()
            self._changed.wake()

    def _run(self) -> None:
        with self._guard:
            if self._finished:
                return
            self._started = True
        try:
            self._results.append(self._context.run(self._fn))
        except BaseException as error:  # noqa: BLE001 - raised by `result`
            self._failures.append(error)
        self._finished = True
        self._changed.wake()
