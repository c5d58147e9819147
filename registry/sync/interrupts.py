"""Exceptions that a signal handler raises into the code of this package: interrupts.

CPython runs a signal handler in the main thread, between two bytecodes: when a function begins,
after most calls, and at the end of each pass of a loop. An exception of the handler is meant for
the embedding program. It is not an error of the system, so it is neither swallowed nor wrapped. It
may be of any class, OSError included.

The rest of the package handles interrupts by two functions of this module:

1. `reraise_interrupt` decides whether an error came from the system.
2. `run_to_end`, and `call_then` which uses it, run an idempotent step to its end and then raise the
   interrupt.

docs/internals.md explains the design, and what does not work.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

T = TypeVar("T")

ATTEMPTS: Final = 8
"""Calls of a step by `run_to_end`: an error that is no interrupt may come each time."""


def is_interrupt(error: BaseException) -> bool:
    """Return whether *error* was raised by a signal handler.

    Python passes to a handler the frame that it interrupts, so the traceback shows a function that
    has its own caller's frame as an argument. For errors of an embedder's function, which may be
    of any class; for errors of the system use `reraise_interrupt`.
    """
    entry = error.__traceback__
    while entry is not None and entry.tb_next is not None:
        caller, entry = entry.tb_frame, entry.tb_next
        if any(_holds(value, caller) for value in entry.tb_frame.f_locals.values()):
            return True
    return False


def _holds(value: object, frame: FrameType) -> bool:
    """Return whether *value* is *frame*, or the `*args` of a handler with *frame* among them."""
    return value is frame or (type(value) is tuple and any(each is frame for each in value))


def reraise_interrupt(error: Exception) -> None:
    """Raise *error* again if it came from a signal handler; return if it came from the system.

    Call this first wherever an OSError is caught. The system always gives an errno, and
    `raise TimeoutError` in a handler does not.
    """
    try:
        if (isinstance(error, OSError) and error.errno is None) or is_interrupt(error):
            raise error
    finally:
        # Otherwise this frame and the traceback refer to each other. The traceback also refers to a
        # write that has not ended: its locks would be held until the garbage collector runs.
        del error


@contextmanager
def suppress_os_errors() -> Iterator[None]:
    """Ignore an OSError of the system in the body, but not one of a signal handler."""
    try:
        yield
    except OSError as error:
        reraise_interrupt(error)


def run_to_end(step: Callable[[], object], attempts: float = ATTEMPTS) -> None:
    """Call *step* until it returns; then raise the last exception that interrupted it.

    Args:
        step: idempotent; called again, it continues where the interrupted call stopped. An error
            of its own is treated as an interrupt.
        attempts: calls of *step* after which the exception is raised although none has returned.

    An interrupt that arrives before the first call of *step* leaves it uncalled; see `call_then`.
    """
    errors: list[BaseException] = []
    ended = False
    while not ended and len(errors) < attempts:
        try:
            _repeat(step, errors, attempts)
            ended = True
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)
    try:
        if errors:
            raise errors[-1]
    finally:
        del errors  # or the exception and its traceback refer to each other


def _repeat(step: Callable[[], object], errors: list[BaseException], attempts: float) -> None:
    """Call *step* until it returns, or until there are as many *errors* as *attempts*.

    A function of its own: CPython 3.13 covers the jump back to the start of a loop by no `try` of
    the function that the loop is in. An interrupt there is caught by the caller.
    """
    while len(errors) < attempts:
        try:
            step()
        except BaseException as error:  # noqa: BLE001 - raised by `run_to_end`
            errors.append(error)
        else:
            return


def call_then(body: Callable[[], T], end: Callable[[], object]) -> T:
    """Return what *body* returns, after *end* has run to its end whatever interrupted it.

    An interrupt that arrives before *body* begins leaves both uncalled, so *body* also begins what
    *end* ends.

    Args:
        body: called once; its exception is raised after *end*.
        end: idempotent, and called also if *body* has not begun what it ends.
    """
    try:
        return body()
    finally:
        try:
            end()
        except BaseException:
            run_to_end(end)
            raise
