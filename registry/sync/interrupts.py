"""Exceptions that a signal handler raises into the code of this package.

Python runs a signal handler between any two bytecodes of the main thread, and in system calls that
a signal interrupts. What the handler raises is meant for the embedding program: it is no answer of
the system, so it is neither swallowed nor wrapped. It may be of any class, OSError included.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


def is_interrupt(error: BaseException) -> bool:
    """Return whether *error* came out of a signal handler.

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
        # Otherwise this frame and the traceback keep each other, and with them a write that is not
        # ended yet: its locks would be held until the garbage collector runs.
        del error


@contextmanager
def suppress_os_errors() -> Iterator[None]:
    """Ignore an OSError of the system in the body, but not one of a signal handler."""
    try:
        yield
    except OSError as error:
        reraise_interrupt(error)
