"""Deadline of all calls in the body of a `with`, kept in a context variable.

1. The deadline holds for the calls of its body, and of the tasks and threads that get a copy of the
   context there (asyncio.create_task, asyncio.to_thread), until the body ends.
2. Of several deadlines the earliest counts.
3. An interrupt at the first bytecode of `__exit__` leaves the deadline in the context. So a `with`
   gets an `__exit__` of its own, to which nothing else refers: once that is gone, the body has
   ended. See "The end of a `with`" in docs/internals.md.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import Final

from registry.errors import FailedPreconditionError

_deadlines: Final[ContextVar[tuple[Deadline, ...]]] = ContextVar("registry_deadlines", default=())


class _Exit:
    """Descriptor of `Deadline.__exit__`: for a `with`, a partial that lives as long as its body."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function: Final = function

    def __get__(self, deadline: Deadline | None, _: type[Deadline]) -> Callable[..., None]:
        if deadline is None:
            return self._function
        leave = partial(self._function, deadline)
        deadline.body = weakref.ref(leave)
        return leave


class Deadline:
    """Context manager whose body is given a number of seconds to wait in."""

    def __init__(self, path: str, seconds: float) -> None:
        """Begin with the `with`.

        Args:
            path: of the registry whose calls it concerns.
            seconds: for which all calls of the body may wait together.
        """
        self.path: Final = path
        self.at = math.inf
        """Monotonic time in seconds."""
        self.body: Callable[[], object] | None = None
        """Returns None once the body of the `with` has ended; None: there is no `with`."""
        self._seconds: Final = seconds
        self._outer: tuple[Deadline, ...] = ()
        self._ended = False

    def __enter__(self) -> None:
        if self.at < math.inf:
            raise FailedPreconditionError(
                f"wait for {self.path!r}: this deadline was entered before; "
                "call deadline() for each `with`",
                path=self.path,
            )
        self.at = time.monotonic() + self._seconds
        self._outer = _deadlines.get()
        _deadlines.set((*self._outer, self))

    @_Exit
    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._ended = True
        _deadlines.set(self._outer)

    def is_open(self) -> bool:
        """Return whether its body has not ended."""
        return not self._ended and (self.body is None or self.body() is not None)


def remaining(path: str, timeout: float) -> float:
    """Return the seconds for which a call may wait.

    Args:
        path: of the registry.
        timeout: seconds for which the call may wait without a deadline.
    Returns:
        *timeout*, or less if a deadline of the caller's context comes earlier; 0 or more.
    """
    deadlines = _deadlines.get()
    if not deadlines:
        return timeout
    ends = [each.at for each in deadlines if each.path == path and each.is_open()]
    return max(0.0, min(timeout, min(ends, default=math.inf) - time.monotonic()))
