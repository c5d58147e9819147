"""Values of SQLite as PostgreSQL can store them.

PostgreSQL stores neither NUL nor lone surrogates, and a B-tree entry of more than 2,704 bytes is an
error for ever. A damaged registry may have values of any type in any column. Each value is changed
so far that it can be stored: one row must not keep all later ones back.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

KEY_MAX: Final = 512
"""Bytes of a text that is part of an index; the package itself accepts up to 16 KiB for a pod."""


def text(value: object) -> str | None:
    """Return *value* as a text, with escapes for NUL and lone surrogates; None: it is unset."""
    if value is None:
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    found = value if isinstance(value, str) else str(value)
    if "\0" not in found:
        try:
            found.encode()
        except UnicodeEncodeError:
            pass
        else:
            return found
    return found.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def key(value: object) -> str | None:
    """Return *value* as a text for an index: a longer one is cut, and ends with its hash."""
    found = text(value)
    if found is None or len(found) * 4 <= KEY_MAX:
        return found
    data = found.encode()
    if len(data) <= KEY_MAX:
        return found
    return f"{data[: KEY_MAX - 36].decode(errors='ignore')}…{digest(data)}"


def digest(data: bytes) -> str:
    """Return the hash of *data* as 32 hexadecimal digits."""
    return blake2b(data, digest_size=16).hexdigest()


def number(value: object) -> int | None:
    """Return *value* if it is an integer of 64 bits, else None."""
    return value if isinstance(value, int) and -(2**63) <= value < 2**63 else None


def array(values: Iterable[object]) -> str:
    """Return the literal of a PostgreSQL array of *values*, which `text` or `number` returned.

    psycopg's own arrays take three times as long: for a batch, more than all else that is done.
    """
    quoted = (
        "NULL"
        if value is None
        else str(value)
        if isinstance(value, int)
        else '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
        for value in values
    )
    return "{" + ",".join(quoted) + "}"
