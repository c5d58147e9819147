"""The documents in a file of JSON: one in each line, or written over many lines.

Rules:

1. A document begins on a line of its own and ends with the line that closes its last bracket.
2. One that is none is reported, and stands only for what is surely its own: what follows it is
   looked for from the next line that begins with `{`, since a document that is cut off has no end,
   and swallows all behind it. From then on any such line begins a document: nothing is read three
   times.
3. What is read is bounded, however long a document or a line is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO, Final

from registry.errors import MetadataError
from registry.model.containerd import DOCUMENT_MAX
from registry.model.metadata import Metadata
from registry.sync.interrupts import reraise_interrupt

STDIN: Final = "-"
"""The file name that stands for it."""
REFUSED_MAX: Final = 1000
"""Documents of one file that are none before it is given up: a binary has millions of lines."""
PASSED_MAX: Final = 2**30
"""Bytes of one file that are passed over before it is given up: /dev/zero has no end."""
BEGIN: Final = b'{"Version":'
"""Of a line in containerd's hand; inside of a document there is no such line."""
LINE: Final = 512
"""Bytes that a line counts for at least: an empty one costs time too."""
CHUNK: Final = 2**20
"""Bytes that are read at once of what nobody is going to take."""

_BRACKETS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|([{\[])|([}\]])')
_WEIGHTS: Final = {None: 0, 1: 1, 2: -1}


@dataclass(frozen=True, slots=True)
class Document:
    """What stands at *source*, `FILE:LINE`: metadata, or *error* says why it is none."""

    source: str
    metadata: Metadata | None
    error: str = ""


def read(path: str) -> Iterator[Document]:
    """Yield what the file holds, in order; one that cannot be read is a document with an error."""
    try:
        with open_binary(path) as file:
            yield from documents(path, file)
    except OSError as error:
        reraise_interrupt(error)
        yield Document(path, None, f"read {path!r}: {error.strerror}")


def open_binary(path: str) -> BinaryIO:
    """Open *path*, or stdin, which stays open."""
    return open(0, "rb", closefd=False) if path == STDIN else open(path, "rb")


def documents(path: str, file: BinaryIO) -> Iterator[Document]:
    """Yield what *file* holds; *path* is what it is called."""
    lines, refused = _Lines(file), 0
    while text := _next(lines):
        first, _, rest = text.partition(b"\n")
        document = _decode(f"{path}:{lines.number - _count(rest)}", text.rstrip(b"\r\n"))
        yield document
        if document.metadata is None:
            refused += 1
            if rest or len(first) > DOCUMENT_MAX:
                lines.begin = b"{"
                lines.give_back(rest)
                lines.pass_over()
        if refused == REFUSED_MAX:
            break
    if refused == REFUSED_MAX or lines.given_up:
        yield Document(path, None, "too much of it is no document; the rest is not read")


def _next(lines: _Lines) -> bytes:
    """Return the lines up to the one that closes the last bracket; b"" at the end of the file.

    Of a document over `DOCUMENT_MAX` bytes, the lines up to the one that is too much.
    """
    text, depth = bytearray(), 0
    for line in lines:
        if text and line.startswith(lines.begin):
            lines.give_back(line)
            break
        if not text and not line.strip(b" \t\r\n"):
            lines.passed(line)
            continue
        text += line
        depth += _opened(line)
        if depth <= 0 or len(text) > DOCUMENT_MAX:
            break
    return bytes(text)


def _opened(line: bytes) -> int:
    """Return how many more brackets *line* opens than it closes."""
    return sum(_WEIGHTS[match.lastindex] for match in _BRACKETS.finditer(line))


def _count(lines: bytes) -> int:
    return lines.count(b"\n") + bool(lines and not lines.endswith(b"\n"))


def _decode(source: str, text: bytes) -> Document:
    if len(text) > DOCUMENT_MAX:
        return Document(source, None, f"the document is over the limit of {DOCUMENT_MAX} bytes")
    try:
        return Document(source, Metadata.unmarshal_json(text))
    except MetadataError as error:
        return Document(source, None, str(error))


class _Lines:
    """The lines of a file, of which those that were read last can be given back.

    *number* is that of the last one; *begin* is how a line begins that is in no document before it;
    *given_up* says that too much was passed over.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.number = 0
        self.begin = BEGIN
        self.given_up = False
        self._file, self._back, self._passed = file, BytesIO(), 0

    def __iter__(self) -> Iterator[bytes]:
        while not self.given_up and (line := self._back.readline() or self._read()):
            self.number += 1
            yield line

    def give_back(self, lines: bytes) -> None:
        """Have the last *lines* read again."""
        self._back = BytesIO(lines + self._back.read())
        self.number -= _count(lines)

    def pass_over(self) -> None:
        """Read on to the next line that begins with `{`."""
        for line in self:
            if line.startswith(b"{"):
                self.give_back(line)
                return
            self.passed(line)

    def _read(self) -> bytes:
        """Return a line, of a long one no more than makes it one."""
        line = self._file.readline(DOCUMENT_MAX + 2)
        if len(line) < DOCUMENT_MAX + 2 or line.endswith(b"\n"):
            return line
        while not self.given_up and (more := self._file.readline(CHUNK)):
            self.passed(more)
            if more.endswith(b"\n"):
                break
        return line + b"\n"

    def passed(self, data: bytes) -> None:
        """Count what was passed over."""
        self._passed += max(len(data), LINE)
        self.given_up = self._passed > PASSED_MAX
