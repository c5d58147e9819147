"""JSON as Go's encoding/json writes it."""

from __future__ import annotations

import json
import re
from typing import Any, Final

# Python's encoder writes the same JSON, except these. A backslash is matched with the character
# that it escapes: a b after an escaped backslash must not change.
_DIFFERENT: Final = re.compile("\\\\.|[<>&\u2028\u2029]")
_GO: Final = {
    r"\b": r"\u0008",
    r"\f": r"\u000c",
    **{char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"},
}


def write(value: Any) -> bytes:
    """Return *value*, of dicts, lists, strings, integers, bools and None, as compact JSON.

    Raises:
        UnicodeEncodeError: a string holds a lone surrogate.
        TypeError: *value* contains an object of another type.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _DIFFERENT.sub(_as_go, text).encode()


def quote(text: str) -> str:
    r"""Return *text* as Go's %q writes it, for messages: `"a\x00\u00a0"`."""
    return f'"{"".join(map(_quoted, text))}"'


def _as_go(found: re.Match[str]) -> str:
    return _GO.get(found[0], found[0])


_SHORT: Final = dict(zip('\a\b\f\n\r\t\v\\"', (rf"\{char}" for char in 'abfnrtv\\"'), strict=True))


def _quoted(char: str) -> str:
    if char in _SHORT:
        return _SHORT[char]
    if char.isprintable():
        return char
    code = ord(char)
    if char.isascii():
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if char <= "\uffff" else f"\\U{code:08x}"
