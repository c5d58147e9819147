"""Interrupt a call at each point where CPython runs signal handlers.

CPython runs a signal handler at certain points only: when a function begins, after most calls, at
the end of each pass of a loop, and inside C functions that ask for it. Which points these are
depends on its version, so they are not listed here. Instead a signal is pending for as long as the
call under test runs: the handler makes the signal pending again before it returns, so that CPython
runs the handler at every one of the points. At the point to be interrupted the handler raises.

    for attempt in Interrupts():
        prepare()
        attempt.run(call)
        check()

Each attempt interrupts the first point that no earlier attempt has interrupted. The iteration ends
after an attempt that met no such point. It depends neither on time nor on the number of points,
which changes between attempts: CPython specialises bytecode, and a lock may be free or not.

Handlers run in the main thread alone, so only its calls can be interrupted.
"""

from __future__ import annotations

import _thread
import math
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any, Final

from registry import Store
from registry.engine import driver
from registry.engine.deadline import remaining
from tests.tools import is_locked

Points = tuple[object, ...]
"""The points at which one attempt was interrupted, in order."""

NUMBER: Final = signal.SIGUSR1
PASSES: Final = 2
"""Passes of a loop that are distinguished: the third and later ones count as the second."""
TESTS: Final = os.path.dirname(os.path.abspath(__file__))


class Interrupt(BaseException):
    """An exception that a signal handler raises."""


def interrupt() -> None:
    """Raise Interrupt."""
    raise Interrupt


def time_out() -> None:
    """Raise TimeoutError without an errno, as the signal handlers of many programs do."""
    raise TimeoutError


class _Pending:
    """`PENDING[number]` makes a signal pending.

    A subscript is no call: after a call CPython would run the handler at once.
    """

    __getitem__ = staticmethod(_thread.interrupt_main)


PENDING: Final = _Pending()


class Interrupts:
    """Attempts at one call, each interrupted at another point."""

    def __init__(
        self,
        action: Callable[[], object] = interrupt,
        *,
        times: int = 1,
        selected: bool = False,
        within: str = "",
    ) -> None:
        """Prepare the attempts.

        Args:
            action: called by the signal handler, in the middle of the call under test.
            times: points at which each attempt is interrupted. With 2, each point is combined with
                each point that CPython passes after it.
            selected: interrupt only the first point that is passed in each function.
            within: qualified name of a function; points outside of its calls do not count.
        """
        self.action: Final = action
        self.times: Final = times
        self.functions: Final[set[str]] = set()
        """Qualified names of the functions that were interrupted."""
        self.selected: Final = selected
        self._within: Final = within
        self._done: Final[set[Points]] = set()

    def __iter__(self) -> Iterator[Attempt]:
        """Return attempts; the last one is not interrupted."""
        while True:
            attempt = Attempt(self)
            yield attempt
            assert attempt.ended, "the attempt was not run"
            if not attempt.points:
                return
            self._done.add(attempt.points)

    def wants(self, points: Points, stack: list[FrameType]) -> bool:
        """Return whether an attempt is to be interrupted at *points*, the last one in *stack*."""
        names = [each.f_code.co_qualname for each in stack]
        # Of an object that is being finalized nothing is left that could go on after an interrupt.
        finalizing = len(points) > 1 and any(each.endswith(".__del__") for each in names)
        if finalizing or (self._within and self._within not in names):
            return False
        if points in self._done:
            return False
        self.functions.add(names[0])
        return True


class Attempt:
    """One run of the call, interrupted at the first point that is left."""

    def __init__(self, interrupts: Interrupts) -> None:
        """Run nothing yet."""
        self.points: Points = ()
        self.ended = False
        self.raised = False
        """Whether the exception of the signal handler came out of the call."""
        self.unraisable = False
        """Whether it was raised in a finalizer: CPython lets no exception out of one."""
        self._interrupts: Final = interrupts
        self._passes: Final[Counter[object]] = Counter()
        self._errors: Final[list[BaseException]] = []
        self._stacks: Final[list[str]] = []

    def __repr__(self) -> str:
        """Show where it was interrupted."""
        return f"interrupted in{' and then in'.join(self._stacks) or ' no function'}"

    def run(self, call: Callable[[], object], meanwhile: Callable[[], object] = int) -> None:
        """Run *call*, and catch the exception of the signal handler.

        Args:
            call: is interrupted.
            meanwhile: called in the `except` block, while the traceback of the exception exists.
        Raises:
            BaseException: another exception of *call*, or one of *meanwhile*, with a note that says
                where the call was interrupted.
        """
        handler, hook = signal.signal(NUMBER, self._handle), sys.unraisablehook
        sys.unraisablehook = self._note_unraisable
        try:
            self._note_point_of(partial(self._run, call))
        except BaseException as error:
            self.raised = any(error is each for each in self._errors)
            if self.raised:
                self._note_point_of(meanwhile)
            else:
                raise
        finally:
            self._errors.clear()
            sys.unraisablehook = hook
            signal.signal(NUMBER, handler)

    def _note_point_of(self, call: Callable[[], object]) -> None:
        """Run *call*, and add to its exception where the call under test was interrupted."""
        try:
            call()
        except BaseException as error:
            error.add_note(repr(self))
            raise

    def _run(self, call: Callable[[], object]) -> None:
        try:
            PENDING[NUMBER]
            call()
        finally:
            self.ended = True

    def _handle(self, _number: int, frame: FrameType | None) -> None:
        hit = not self.ended and self._is_hit(frame)
        more = not self.ended and len(self.points) < self._interrupts.times
        try:
            if hit:
                self._interrupts.action()
        except BaseException as error:
            self._errors.append(error)
            raise
        finally:
            # The last step, and no call: CPython would run the handler in this frame.
            if more:
                PENDING[NUMBER]

    def _is_hit(self, frame: FrameType | None) -> bool:
        """Return whether *frame* is to be interrupted, and note the point if it is."""
        stack = list(_stack(frame))
        if not stack:
            return False
        points = (*self.points, self._point(stack))
        if not self._interrupts.wants(points, stack):
            return False
        self.points = points
        self._stacks.append("".join(map(_describe, stack)))
        return True

    def _point(self, stack: list[FrameType]) -> object:
        if self._interrupts.selected:
            return id(stack[0].f_code)
        place = tuple((id(each.f_code), each.f_lasti) for each in stack)
        self._passes[place] += 1
        return place, min(self._passes[place], PASSES)

    def _note_unraisable(self, unraisable: Any) -> None:
        if unraisable.exc_value in self._errors:
            self.unraisable = True
        else:
            sys.__unraisablehook__(unraisable)


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield the frames of the call under test, innermost first; none of a tool of the tests."""
    if frame is None or frame.f_code.co_filename.startswith(TESTS):
        return
    while frame is not None and frame.f_code.co_filename != __file__:
        yield frame
        frame = frame.f_back


def _describe(frame: FrameType) -> str:
    code = frame.f_code
    return f"\n  {os.path.basename(code.co_filename)}:{frame.f_lineno} {code.co_qualname}"


def held(store: Store) -> list[str]:
    """Return what is locked or open in *store*: nothing, after a call that was interrupted."""
    engine = store._session.engine
    connections, commits = list(driver._open), engine.commits
    all_there_is = {
        "mutex": engine.writes.mutex.holder is not None,
        "transaction": engine.writes.transaction is not None,
        "group": engine.writes._group is not None,
        "process lock, by the writer": engine.writer._holds_lock,
        "process lock": is_locked(f"{store.path}-lock"),
        "queue": is_locked(f"{store.path}-queue"),
        "a waiter": commits._threads or commits.watchers or commits.followers,
        "SQLite's transaction": any(each.is_in_transaction() for each in connections),
        "deadline": remaining(store.path, math.inf) < math.inf,
    }
    return [name for name, is_held in all_there_is.items() if is_held]
