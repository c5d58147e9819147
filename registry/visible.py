"""Text for people: what a terminal or a log shows is what the text holds.

Names, ids and messages come from pods, from clients and from the file. An escape sequence would
change what a terminal shows, a line break would begin a line that nothing of this package wrote,
and characters that are not seen make two ids look alike.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from logging import LogRecord

_UNSEEN: Final = (
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    r"\U000e0100-\U000e01ef]"
)
"""Printable characters that are not seen: fillers of Hangul, variation selectors, the blank of
Braille and others (Unicode, Default_Ignorable_Code_Point). All other characters that are not seen,
such as U+00AD, U+200B, U+202E and the tags, are not printable to Python."""


def visible(text: str) -> str:
    r"""Return *text* in one line, with an escape such as `\u202e` for each character not seen.

    Escaped are also control characters, line breaks, and what changes the direction of writing.
    """
    if not text.isascii():
        text = re.sub(_UNSEEN, lambda found: _escape(found[0]), text)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def counted(count: int, noun: str) -> str:
    """Return *count* with *noun*, which gets its plural by an s, such as `1 transition`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def visible_record(record: LogRecord) -> bool:
    """Make the message of *record* visible; return True, as a filter that lets it pass."""
    message = record.getMessage()
    shown = visible(message)
    if shown != message:
        record.msg, record.args = shown, ()
    return True


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()
