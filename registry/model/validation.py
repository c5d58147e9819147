"""Checks of single arguments, and the error that names a refused one.

Every function takes *doing*, the operation and its object, which begin the message of an error, and
*field*, the name of the argument.
"""

from __future__ import annotations

import os
import re
from typing import Final

from registry.errors import InvalidArgumentError

_CONTROL: Final = r"[\x00-\x1f\x7f-\x9f]"

SECONDS_MAX: Final = 1e9
"""Thirty years, which the clocks of the platform can represent."""
SHOWN: Final = 100
"""Characters of a refused value that a message repeats."""


def invalid(
    doing: str, field: str, value: object, why: str, position: int = 0
) -> InvalidArgumentError:
    """Return the error that says that *field* cannot have *value*.

    Args:
        doing: operation and object.
        field: name of the value.
        value: the one that is refused.
        why: cause, which ends the message.
        position: number of the character of *value* that is refused, from 1 on; 0: all of it is.
    """
    shown = repr(value)
    if len(shown) > SHOWN:
        shown = shown[:SHOWN] + "..."
    message = f"{doing}: {field} {shown} {why}"
    return InvalidArgumentError(message, field=field, value=value, position=position)


def check_integer(doing: str, field: str, value: object, low: int, high: int) -> int:
    """Return *value* if it is an integer between *low* and *high*, both included.

    Raises:
        InvalidArgumentError: it is not; a bool is not an integer here.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise invalid(doing, field, value, "is not an integer")
    if not low <= value <= high:
        raise invalid(doing, field, value, f"is not between {low} and {high}")
    return value


def check_seconds(doing: str, field: str, value: object) -> float:
    """Return *value* if it is a finite number of seconds, not negative.

    Raises:
        InvalidArgumentError: it is not; a bool is not a number here.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise invalid(doing, field, value, "is not a number of seconds")
    if not 0 <= value <= SECONDS_MAX:
        raise invalid(doing, field, value, f"is not between 0 and {SECONDS_MAX:.0f} s")
    return float(value)


def check_text(doing: str, field: str, value: object, limit: int) -> str:
    """Return *value* if SQL text can hold it: a string of at most *limit* characters.

    Raises:
        InvalidArgumentError: it is not a string, too long, or has a NUL or a lone surrogate.
    """
    if not isinstance(value, str):
        raise invalid(doing, field, value, "is not a string")
    if len(value) > limit:
        raise invalid(doing, field, value, f"has {len(value)} characters, over {limit}")
    if "\0" in value:
        raise invalid(doing, field, value, "holds a NUL, at which SQL text ends")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise invalid(doing, field, value, "holds a lone surrogate, which has no UTF-8")
    return value


def check_line(doing: str, field: str, value: object, limit: int) -> str:
    """Return *value* if it is text without control characters: one line, safe on a terminal.

    Raises:
        InvalidArgumentError: it is not.
    """
    text = check_text(doing, field, value, limit)
    if not text.isprintable() and re.search(_CONTROL, text):
        raise invalid(doing, field, value, "holds a control character")
    return text


def check_path(doing: str, field: str, value: object, limit: int = 4096) -> str:
    """Return *value* if it is an absolute path: a relative one differs from process to process.

    Raises:
        InvalidArgumentError: it is not.
    """
    path = check_line(doing, field, value, limit)
    if not os.path.isabs(path):
        raise invalid(doing, field, value, "is not an absolute path")
    return path
