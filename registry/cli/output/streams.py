"""Text and bytes on stdout, written whole, and notes on stderr."""

from __future__ import annotations

import errno
import os
import sys
from typing import Final, TextIO

from registry.sync.interrupts import reraise_interrupt

DUMB: Final = "dumb"
"""Value of TERM for a terminal without escape sequences, which one without TERM is taken for."""


def is_terminal(stream: TextIO | None = None) -> bool:
    """Return whether *stream*, stdout by default, is a terminal that knows escape sequences."""
    stream = stream or sys.stdout
    return stream.isatty() and os.environ.get("TERM", DUMB) not in {DUMB, ""}


def require_reader() -> None:
    """Raise BrokenPipeError if the pipe at stdout has no reader.

    A program that has nothing to write would not notice it.
    """
    import select  # noqa: PLC0415 - only what goes on and on needs it

    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if any(events & select.POLLERR for _, events in poll.poll(0)):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def write(text: str) -> None:
    """Write *text*, with escapes for characters that the encoding of stdout does not have."""
    write_bytes(text.encode(sys.stdout.encoding, "backslashreplace"))


def write_bytes(data: bytes) -> None:
    """Write all of *data*: unbuffered, sys.stdout.write drops what a pipe or disk did not take."""
    while data:
        data = data[sys.stdout.buffer.write(data) :]
    sys.stdout.buffer.flush()


def note(text: str, *, folds: bool = False) -> None:
    """Write *text*, which has no unseen characters, and a line break on stderr, if there is one.

    Args:
        text: to be written.
        folds: break it between words on a terminal.
    """
    try:
        if sys.stderr is not None:
            sys.stderr.write(f"{_fitted(text) if folds else text}\n")
            sys.stderr.flush()
    except OSError as error:
        reraise_interrupt(error)
        discard(sys.stderr)


def _fitted(line: str) -> str:
    """Return *line* in lines that fit stderr, if that is a terminal."""
    if not is_terminal(sys.stderr):
        return line
    try:
        from registry.cli.output.terminal import folded  # noqa: PLC0415 - not in a pipe
    except OSError as error:  # the system refuses to open its file, which may be what *line* says
        reraise_interrupt(error)
        return line
    return folded(line, stream=sys.stderr)


def discard(stream: TextIO) -> None:
    """Discard the buffer of *stream*: Python would write it again at exit, and report the failure.

    The descriptor stays in use; otherwise the next file that is opened would get its number.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
