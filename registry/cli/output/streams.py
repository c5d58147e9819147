"""Text and bytes on stdout, written whole."""

from __future__ import annotations

import sys


def write(text: str) -> None:
    """Write *text*, with escapes for characters that the encoding of stdout does not have."""
    write_bytes(text.encode(sys.stdout.encoding, "backslashreplace"))


def write_bytes(data: bytes) -> None:
    """Write all of *data*: unbuffered, sys.stdout.write drops what a pipe or disk did not take."""
    while data:
        data = data[sys.stdout.buffer.write(data) :]
    sys.stdout.buffer.flush()
