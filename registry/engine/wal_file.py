"""Reader of the write-ahead log as a file: the commits that SQLite would apply to a database.

Salts and checksums tie the frames of a WAL to one another; nothing ties them to a database. This
package numbers its commits in the first page of the database (`continuity`). This module finds the
copies of that page in a WAL.

The WAL may be opened without SQLite, unlike the database: SQLite holds no lock on the WAL.

Source: https://www.sqlite.org/fileformat2.html, sections 1.3 and 4.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from registry.host.paths import refused
from registry.sync.interrupts import reraise_interrupt

if TYPE_CHECKING:
    from collections.abc import Iterator

_WAL_HEADER: Final = struct.Struct(">IIII8s8s")
"""Magic, version, page size, checkpoint sequence, salts, checksum."""
_FRAME_HEADER: Final = struct.Struct(">II8s8s")
"""Page number, pages of the database (0: no commit), salts, checksum."""
_MAGIC: Final = 0x377F0682
"""First word of a WAL with little-endian checksums; big-endian ones set the lowest bit."""
_VERSION: Final = 3007000
_PAGE_MAX: Final = 65536
"""Bytes of the largest page of SQLite."""

_DATABASE_HEADER: Final = 100
"""Bytes at the beginning of the first page of a database."""
_PAGE_SIZE, _FREE_PAGES, _SCHEMA, _NUMBER, _APPLICATION_ID = 16, 36, 40, 60, 68
"""Offsets in the first page of a database."""


class Header(NamedTuple):
    """Fields of the first page of a database, which together identify one of its commits."""

    application_id: int
    number: int
    """`PRAGMA user_version`: see `continuity`."""
    schema: int
    """`PRAGMA schema_version`: changes with the schema, and differs in a backup."""
    free_pages: int
    page_size: int


class WalFacts(NamedTuple):
    """Facts about a WAL that SQLite would read."""

    salts: bytes
    """Chosen by SQLite each time that it restarts the WAL."""
    committed: bool
    """Whether the WAL holds a whole transaction."""
    first: Header | None
    """Header of the oldest copy of the first page; None if the WAL holds no copy."""
    has_file: bool
    """Whether a copy of the first page has the header of the database file."""
    replaces_file: bool
    """Whether the transaction that wrote the oldest copy of the first page wrote all pages, so that
    it replaces the whole file."""


def read(database: str, file: Header | None) -> WalFacts | None:
    """Return the facts about the WAL of *database*; None if SQLite would apply nothing of it.

    Args:
        database: path of the database.
        file: header of the database file.
    Raises:
        RegistryError: the WAL cannot be read.
    """
    path = f"{database}-wal"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb", buffering=0) as wal:
            return _read(wal, file)
    except FileNotFoundError as error:
        reraise_interrupt(error)
        return None
    except OSError as error:
        reraise_interrupt(error)
        doing = f"open registry {database!r}"
        raise refused(doing, database, f"read {path!r}", error) from error


def _read(wal: BinaryIO, file: Header | None) -> WalFacts | None:
    beginning = _beginning(wal)
    if beginning is None:
        return None
    page_size, salts, checksum, order = beginning
    committed, first, has_file = False, None, False
    for offset, frame in _frames(wal, page_size, salts):
        number, pages, _, its_checksum = _FRAME_HEADER.unpack(frame)
        if number == 1 and not (first and has_file):
            page = os.pread(wal.fileno(), page_size, offset + _FRAME_HEADER.size)
            found = header_of(page)
            if first is None or found == file:
                whole = len(page) == page_size
                if not whole or _checksum(frame[:8] + page, checksum, order) != its_checksum:
                    break  # a torn frame: SQLite ignores it and all that follow
                first, has_file = first or found, found == file
        committed, checksum = committed or pages > 0, its_checksum
    replaces_file = first is not None and _writes_all_pages(wal, page_size, salts)
    return WalFacts(salts, committed, first, has_file, replaces_file)


class _Beginning(NamedTuple):
    """Fields of the header of a WAL, and the byte order of its checksums."""

    page_size: int
    salts: bytes
    checksum: bytes
    order: str


def _beginning(wal: BinaryIO) -> _Beginning | None:
    """Return the header of *wal*; None if SQLite would read nothing of it."""
    header = os.pread(wal.fileno(), _WAL_HEADER.size, 0)
    if len(header) < _WAL_HEADER.size:
        return None
    magic, version, page_size, _, salts, checksum = _WAL_HEADER.unpack(header)
    order = ">" if magic & 1 else "<"
    whole = _checksum(header[:24], bytes(8), order) == checksum
    if magic & ~1 != _MAGIC or version != _VERSION or not whole or page_size > _PAGE_MAX:
        return None
    return _Beginning(page_size, salts, checksum, order)


class Images(NamedTuple):
    """The newest image in a WAL of each page that its commits have written."""

    page_size: int
    offsets: dict[int, int]
    """Offset of the image, by the number of the page."""
    pages: int
    """Pages of the database after the last commit; 0 without a commit."""
    damaged: list[int]
    """Damaged frames, numbered from 1, before the last commit: SQLite reads none from the first."""


def images(wal: BinaryIO) -> Images | None:
    """Return the images in *wal*, also of commits behind a damaged frame; None without a header.

    Each frame continues the checksum that is noted in the one before, so it can be checked alone.
    A power cut, too, leaves damaged frames behind the last commit, and commits that were not
    acknowledged. So a commit behind a damaged frame counts, with all before it, only if it is whole
    and has a later number.
    """
    beginning = _beginning(wal)
    if beginning is None:
        return None
    size, salts, before, order = beginning
    whole, number, accepted, length = True, 0, 0, 0
    found: dict[int, int] = {}
    waiting: dict[int, int] = {}
    damaged: list[int] = []
    bad: list[int] = []
    begins = range(_WAL_HEADER.size, os.fstat(wal.fileno()).st_size, _FRAME_HEADER.size + size)
    for count, at in enumerate(begins, 1):
        frame = os.pread(wal.fileno(), _FRAME_HEADER.size + size, at)
        if len(frame) < _FRAME_HEADER.size + size:
            break
        page, pages, its_salts, checksum = _FRAME_HEADER.unpack_from(frame)
        data = frame[_FRAME_HEADER.size :]
        if its_salts == salts and _checksum(frame[:8] + data, before, order) == checksum:
            waiting[page] = at + _FRAME_HEADER.size
            header = header_of(data) if page == 1 else None
            number = header.number if header else number
        else:
            bad.append(count)
            whole = False
        before = checksum
        if pages and whole and (not bad or number > accepted):
            found.update(waiting)
            damaged.extend(bad)
            accepted, length = number, pages
            waiting.clear()
            bad.clear()
        whole = whole or pages > 0
    return Images(size, found, length, damaged)


def _writes_all_pages(wal: BinaryIO, page_size: int, salts: bytes) -> bool:
    """Return whether the first transaction that writes the first page writes all pages."""
    written: set[int] = set()
    for _, frame in _frames(wal, page_size, salts):
        number, pages, _, _ = _FRAME_HEADER.unpack(frame)
        written.add(number)
        if pages > 0:  # the end of a transaction
            if 1 in written:
                return len(written) == int(pages)
            written.clear()
    return False


def _frames(wal: BinaryIO, page_size: int, salts: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and the header of each frame that was written since the last restart."""
    offset = _WAL_HEADER.size
    while True:
        frame = os.pread(wal.fileno(), _FRAME_HEADER.size, offset)
        if len(frame) < _FRAME_HEADER.size:
            return
        number, _, its_salts, _ = _FRAME_HEADER.unpack(frame)
        if number == 0 or its_salts != salts:
            return
        yield offset, frame
        offset += _FRAME_HEADER.size + page_size


def header_of(page: bytes) -> Header | None:
    """Return the header in the first page of a database; None if the page is cut off."""
    if len(page) < _DATABASE_HEADER:
        return None
    (size,) = struct.unpack_from(">H", page, _PAGE_SIZE)
    (application_id, number, schema, free_pages) = (
        struct.unpack_from(">i", page, offset)[0]
        for offset in (_APPLICATION_ID, _NUMBER, _SCHEMA, _FREE_PAGES)
    )
    return Header(application_id, number, schema, free_pages, 65536 if size == 1 else size)


def _checksum(data: bytes, before: bytes, order: str) -> bytes:
    """Return the checksum of the WAL up to the end of *data*.

    Args:
        data: pairs of 32-bit words.
        before: checksum of the WAL up to the beginning of *data*.
        order: byte order of a word, `>` or `<`.
    """
    first, second = struct.unpack(">II", before)
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for word in words:
        first = (first + word + second) & 0xFFFFFFFF
        second = (second + next(words) + first) & 0xFFFFFFFF
    return struct.pack(">II", first, second)
