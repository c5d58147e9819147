"""Scanner of JSON text that accepts and refuses the same texts as Go's encoding/json.

Python's own `json` differs from Go: it raises RecursionError at a depth that Go accepts, drops all
values of a repeated key except the last, and accepts NaN.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Final, NoReturn

from registry.errors import MetadataError

DEPTH_MAX: Final = 10_000
"""Maximum nesting of objects and arrays, as in Go (encoding/json, maxNestingDepth)."""

SHOWN: Final = 100
"""Bytes of a value of the wrong type, or characters of a key, that a message repeats."""

_BLANK: Final = ord(" ")
_SPACE: Final = re.compile(rb"[ \t\r\n]*+")
_PLAIN: Final = re.compile(rb'"([^"\\\x00-\x1f]*+)"')
# An escape is an atomic group: below Python 3.11.5 a possessive repeat continues behind the part of
# it that matched (python/cpython#106052), so that the `"\u"` of `["\u", 1]` was a string.
_STRING: Final = re.compile(
    rb'"(?:[^"\\\x00-\x1f]++|(?>\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})))*+"',
)
_NUMBER: Final = re.compile(rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?")
_WORD: Final = re.compile(rb"true|false|null")
_KINDS: Final = {
    **dict.fromkeys(b"-0123456789", "number"),
    **dict.fromkeys(b"tf", "bool"),
    ord("n"): "null",
    ord('"'): "string",
    ord("{"): "object",
    ord("["): "array",
}
_WORDS: Final = {b"true": True, b"false": False, b"null": None}
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class Scan:
    """Position in a JSON text, and the first value of a wrong type.

    A value of a wrong type does not end the scan: a later syntax error takes precedence, as in Go.
    """

    def __init__(self, data: bytes, limit: int) -> None:
        """Begin at the first byte of *data*, whose values may take *limit* bytes; see `spend`."""
        self._data: Final = data
        self._limit: Final = limit
        self._spent = 0
        self._end: Final = len(data)
        self._at = 0
        self._depth = 0
        self._path: list[str | int] = []
        self.complaint: MetadataError | None = None

    # Errors.

    def refuse(self, expected: str) -> NoReturn:
        """Raise MetadataError: *expected* is missing at this position."""
        found = self._data[self._at : self._at + 1]
        what = f"{_decode(found)!r}" if found else "its end"
        raise MetadataError(
            f"unmarshal metadata: no JSON: byte {self._at} is {what} where {expected} should be",
            value=self._at,
        )

    def complain(self, problem: str, value: object = None) -> None:
        """Record the *problem* of the value at this position, unless one is recorded already."""
        if self.complaint is None:
            steps = (f"[{at}]" if isinstance(at, int) else f".{at[:SHOWN]}" for at in self._path)
            where = "".join(steps).removeprefix(".") or "document"
            message = f"unmarshal metadata: {where}: {problem}"
            self.complaint = MetadataError(message, field=where, value=value)

    def mismatch(self, kind: str, expected: str) -> None:
        """Skip the value of this *kind*, and record that it is not *expected*."""
        begin = self._at
        self.skip()
        shown = kind
        if kind not in {"object", "array"}:
            shown += f" {_decode(self._data[begin : min(self._at, begin + SHOWN)])}"
        self.complain(f"{shown} is not {expected}", shown)

    def spend(self, size: int) -> None:
        """Count *size* bytes, the minimum that a value takes when it is stored.

        A text such as `[{},{},...` takes many times its size in memory: the limit stops it early.

        Raises:
            MetadataError: the sum is over the limit.
        """
        self._spent += size
        if self._spent > self._limit:
            raise MetadataError(
                f"unmarshal metadata: byte {self._at}: more values than {self._limit} bytes can "
                "hold, which is the limit",
                value=self._spent,
            )

    # One value, whose kind is known.

    def kind(self) -> str:
        """Return the kind of the next value: null, bool, number, string, object or array."""
        kind = _KINDS.get(self._next())
        return kind if kind is not None else self.refuse("a value")

    def scalar(self, kind: str) -> str | bool | None:
        """Read a value that is neither object nor array: a number as text, a string decoded."""
        if kind == "string":
            return self.string()
        if kind == "number":
            return self._match(_NUMBER, "a number").decode()
        return _WORDS[self._match(_WORD, "true, false or null")]

    def string(self) -> str:
        """Read a string; each byte that is not UTF-8, and each lone surrogate, becomes U+FFFD."""
        plain = _PLAIN.match(self._data, self._at)
        if plain is not None:
            self._at = plain.end()
            return _decode(plain[1])
        whole = self._match(_STRING, "a whole string, its escapes and characters allowed,")
        text: str = json.loads(_decode(whole))
        return text if text.isascii() else _SURROGATE.sub("\ufffd", text)

    def members(self) -> Iterator[str]:
        """Read an object: yield each key; the caller reads its value before the next key."""
        self._open()
        if not self._passed(b"}"):
            while True:
                if self._next() != ord('"'):
                    self.refuse("a key")
                key = self.string()
                if not self._passed(b":"):
                    self.refuse("a colon")
                self._path.append(key)
                yield key
                self._path.pop()
                if self._passed(b"}"):
                    break
                if not self._passed(b","):
                    self.refuse("a comma or the end of the object")
        self._depth -= 1

    def elements(self) -> Iterator[int]:
        """Read an array: yield each index; the caller reads the element before it goes on."""
        self._open()
        if not self._passed(b"]"):
            index = 0
            while True:
                self._path.append(index)
                yield index
                self._path.pop()
                if self._passed(b"]"):
                    break
                if not self._passed(b","):
                    self.refuse("a comma or the end of the array")
                index += 1
        self._depth -= 1

    def skip(self) -> None:
        """Read a value and drop it, at any depth of nesting."""
        inside: list[Iterator[object]] = []
        while True:
            kind = self.kind()
            if kind == "object":
                inside.append(self.members())
            elif kind == "array":
                inside.append(self.elements())
            else:
                self.scalar(kind)
            while inside and next(inside[-1], None) is None:
                inside.pop()
            if not inside:
                return

    def end(self) -> None:
        """Require the end of the text.

        Raises:
            MetadataError: text follows, or a value has a wrong type.
        """
        if self._next() != -1:
            self.refuse("the end")
        if self.complaint is not None:
            raise self.complaint

    # Bytes.

    def _next(self) -> int:
        """Skip white space and return the next byte; -1 at the end."""
        at = self._at
        if at < self._end and self._data[at] > _BLANK:
            return self._data[at]
        space = _SPACE.match(self._data, at)
        assert space is not None, "it may be empty"
        self._at = at = space.end()
        return self._data[at] if at < self._end else -1

    def _passed(self, byte: bytes) -> bool:
        if self._next() != byte[0]:
            return False
        self._at += 1
        return True

    def _match(self, pattern: re.Pattern[bytes], expected: str) -> bytes:
        found = pattern.match(self._data, self._at)
        if found is None:
            self.refuse(expected)
        self._at = found.end()
        return found[0]

    def _open(self) -> None:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise MetadataError(
                f"unmarshal metadata: byte {self._at}: nested deeper than {DEPTH_MAX}",
                value=self._at,
            )
        self._at += 1


def _decode(data: bytes) -> str:
    """Return UTF-8 as text, with one U+FFFD for each byte that is not UTF-8, as in Go."""
    return data.decode("utf-8", _EACH_BYTE)


def _replace_one_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd", error.start + 1


_EACH_BYTE: Final = "registry-each-byte"
codecs.register_error(_EACH_BYTE, _replace_one_byte)
