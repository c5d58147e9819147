"""Text and bytes on stdout, written whole."""

from __future__ import annotations

import os
import sys
from typing import Final, TextIO

DUMB: Final = "dumb"
"""Value of TERM for a terminal without escape sequences, which one without TERM is taken for."""


def is_terminal(stream: TextIO | None = None) -> bool:
    """Return whether *stream*, stdout by default, is a terminal that knows escape sequences."""
    stream = stream or sys.stdout
    return stream.isatty() and os.environ.get("TERM", DUMB) not in {DUMB, ""}


def write(text: str) -> None:
    """Write *text*, with escapes for characters that the encoding of stdout does not have."""
    write_bytes(text.encode(sys.stdout.encoding, "backslashreplace"))


def write_bytes(data: bytes) -> None:
    """Write all of *data*: unbuffered, sys.stdout.write drops what a pipe or disk did not take."""
    while data:
        data = data[sys.stdout.buffer.write(data) :]
    sys.stdout.buffer.flush()
