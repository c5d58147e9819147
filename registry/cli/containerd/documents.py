"""JSON documents in a file: one on each line, or written over several lines.

Rules:

1. A document begins on a line of its own and ends with the line that closes its last bracket.
2. An invalid document is reported. The search for the next one starts at the next line that begins
   with `{`: a truncated document has no end, and would include all text after it. From then on
   every such line begins a document, so that no line is read a third time.
3. Memory is bounded, however long a document or a line is.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader, BytesIO, FileIO
from typing import Any, BinaryIO, Final

from registry.errors import MetadataError
from registry.model.containerd import DOCUMENT_MAX
from registry.model.metadata import Metadata
from registry.sync.interrupts import reraise_interrupt

STDIN: Final = "-"
"""File name that stands for stdin."""
INVALID_MAX: Final = 1000
"""Reading of a file stops after this many invalid documents: a binary has millions of lines."""
SKIPPED_MAX: Final = 2**30
"""Reading of a file stops after this many skipped bytes: /dev/zero has no end."""
BEGIN: Final = b'{"Version":'
"""Beginning of a document as containerd writes it; no line inside a document begins so."""
LINE: Final = 512
"""Least number of bytes that a skipped line counts for: an empty line costs time too."""
CHUNK: Final = 2**20
"""Bytes per read of a line that is skipped."""

_BRACKETS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|([{\[])|([}\]])')
_WEIGHTS: Final = {None: 0, 1: 1, 2: -1}


@dataclass(frozen=True, slots=True)
class Document:
    """Document at *source*, `FILE:LINE`: its metadata, or the *error* that makes it invalid."""

    source: str
    metadata: Metadata | None
    error: str = ""


def read(path: str) -> Iterator[Document]:
    """Yield the documents of a file, in order; one with an error if the file cannot be read."""
    try:
        with open_binary(path) as file:
            yield from documents(path, file)
    except OSError as error:
        reraise_interrupt(error)
        yield Document(path, None, f"read {path!r}: {error.strerror}")


def open_binary(path: str) -> BinaryIO:
    """Open *path* for reading; `-` is stdin, whose descriptor is not closed.

    Raises:
        OSError: it cannot be opened.
    """
    if path == STDIN:
        return open(0, "rb", closefd=False)
    # A pipe such as /dev/fd/63 has no name to which its target leads.
    if stat.S_ISFIFO(os.stat(path).st_mode) and os.path.exists(os.path.realpath(path)):
        return BufferedReader(_Fifo(path, opener=_open_at_once))
    return open(path, "rb")


def _open_at_once(path: str, flags: int) -> int:
    """Return a descriptor of a FIFO; without O_NONBLOCK, this would wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


class _Fifo(FileIO):
    """FIFO whose first read fails if no process has it open for writing."""

    _started = False

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer)
        if self._started:
            return count or 0
        if count == 0:
            raise OSError(errno.ENXIO, "no process writes to this FIFO; start the writer first")
        self._started = True
        os.set_blocking(self.fileno(), True)
        # None: there is a writer, which has written nothing yet.
        return super().readinto(buffer) or 0 if count is None else count


def documents(path: str, file: BinaryIO) -> Iterator[Document]:
    """Yield the documents of *file*; *path* is its name in their sources."""
    lines, invalid = _Lines(file), 0
    while text := _next(lines):
        first, _, rest = text.partition(b"\n")
        document = _decode(f"{path}:{lines.number - _count(rest)}", text.rstrip(b"\r\n"))
        yield document
        if document.metadata is None:
            invalid += 1
            if rest or len(first) > DOCUMENT_MAX:
                lines.begin = b"{"
                lines.push_back(rest)
                lines.skip_to_object()
        if invalid == INVALID_MAX:
            break
    if invalid == INVALID_MAX or lines.exhausted:
        yield Document(
            path,
            None,
            "too much of it is invalid; the rest is not read",
        )


def _next(lines: _Lines) -> bytes:
    """Return the lines up to the one that closes the last bracket; b"" at the end of the file.

    Of a document over `DOCUMENT_MAX` bytes return the lines up to the one that exceeds the limit.
    """
    text, depth = bytearray(), 0
    for line in lines:
        if text and line.startswith(lines.begin):
            lines.push_back(line)
            break
        if not text and not line.strip(b" \t\r\n"):
            lines.skipped(line)
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
    """Lines of a file; those that were read last can be pushed back.

    Attributes:
        number: number of the last line that was read, from 1.
        begin: beginning of a line that starts a new document, also inside an unclosed one.
        exhausted: whether more than `SKIPPED_MAX` bytes were skipped.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.number = 0
        self.begin = BEGIN
        self.exhausted = False
        self._file, self._back, self._skipped = file, BytesIO(), 0

    def __iter__(self) -> Iterator[bytes]:
        while not self.exhausted and (line := self._back.readline() or self._read()):
            self.number += 1
            yield line

    def push_back(self, lines: bytes) -> None:
        """Push back *lines*, the last that were read, to be read again."""
        self._back = BytesIO(lines + self._back.read())
        self.number -= _count(lines)

    def skip_to_object(self) -> None:
        """Skip to the next line that begins with `{`."""
        for line in self:
            if line.startswith(b"{"):
                self.push_back(line)
                return
            self.skipped(line)

    def _read(self) -> bytes:
        """Return the next line; of one over the limit, enough to exceed the limit."""
        line = self._file.readline(DOCUMENT_MAX + 2)
        if len(line) < DOCUMENT_MAX + 2 or line.endswith(b"\n"):
            return line
        while not self.exhausted and (more := self._file.readline(CHUNK)):
            self.skipped(more)
            if more.endswith(b"\n"):
                break
        return line + b"\n"

    def skipped(self, data: bytes) -> None:
        """Count *data* as skipped."""
        self._skipped += max(len(data), LINE)
        self.exhausted = self._skipped > SKIPPED_MAX
