"""Reader of a rollback journal as a file: the pages that SQLite would write back to a database.

A registry uses a WAL, but its creation and an operator's `PRAGMA journal_mode = DELETE` use a
rollback journal. The next open for writing rolls a journal back whose process was killed ("hot").
SQLite does not check that the journal belongs to the database: one of another database overwrites
the pages of this one, and cuts the file to the length of the other.

Source: https://www.sqlite.org/fileformat2.html, section 3.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from registry.engine import wal_file
from registry.host.paths import refused
from registry.sync.interrupts import reraise_interrupt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from registry.engine.wal_file import Header

_HEADER: Final = struct.Struct(">8sIIIII")
"""Magic, number of records, nonce, pages of the database, bytes of a sector and of a page."""
_MAGIC: Final = bytes.fromhex("d9d505f920a163d7")
_UP_TO_THE_END: Final = 0xFFFFFFFF
"""Number of records of a journal that was not synced."""
_SIZES: Final = frozenset(2**n for n in range(5, 17))
"""Bytes that a page or a sector may have."""


class Journal(NamedTuple):
    """Facts about a journal that SQLite would roll back."""

    pages: int
    """Pages of the database before the transaction; -1: it is not a journal."""
    page_size: int
    first: Header | None
    """Header of the first page before the transaction; None if the journal does not hold it."""

    def belongs_to(self, file: Header | None, pages: int) -> bool:
        """Return whether the journal is of a transaction of the database file.

        Without the first page, the transaction has not reached its commit, so that the file has the
        number of pages in its own first page still.

        Args:
            file: header of the database file; None if it holds nothing.
            pages: number of pages in it.
        """
        if file is None or self.page_size != file.page_size:
            return file is None and self.pages in {0, 1}  # the creation was interrupted
        first = self.first
        if first is None:
            return self.pages == pages
        known = (first.application_id, first.number) == (file.application_id, file.number)
        return known and first.schema <= file.schema


def read(database: str) -> Journal | None:
    """Return the journal of *database*; None if SQLite would roll back nothing.

    Raises:
        RegistryError: the journal cannot be read.
    """
    path = f"{database}-journal"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb", buffering=0) as journal:
            return _read(journal)
    except FileNotFoundError as error:
        reraise_interrupt(error)
        return None
    except OSError as error:
        reraise_interrupt(error)
        doing = f"open registry {database!r}"
        raise refused(doing, database, f"read {path!r}", error) from error


def _read(journal: BinaryIO) -> Journal | None:
    header = os.pread(journal.fileno(), _HEADER.size, 0)
    if header[:1] in {b"", b"\0"}:  # ended, or not synced: nothing was written to the database
        return None
    if len(header) < _HEADER.size or header[:8] != _MAGIC:
        return Journal(-1, 0, None)
    _, _, _, pages, sector, page_size = _HEADER.unpack(header)
    if not {sector, page_size} <= _SIZES:
        return Journal(-1, 0, None)
    for offset, number in _records(journal, sector, page_size):
        if number == 1:
            first = os.pread(journal.fileno(), page_size, offset)
            return Journal(pages, page_size, wal_file.header_of(first))
    return Journal(pages, page_size, None)


def _records(journal: BinaryIO, sector: int, page_size: int) -> Iterator[tuple[int, int]]:
    """Yield the offset of each page in the journal, and its number."""
    fd, at = journal.fileno(), 0
    size = os.fstat(fd).st_size
    while len(header := os.pread(fd, _HEADER.size, at)) == _HEADER.size:
        magic, count, *_ = _HEADER.unpack(header)
        if magic != _MAGIC:
            return
        at += sector
        left = (size - at) // (page_size + 8)
        for _ in range(left if count == _UP_TO_THE_END else min(count, left)):
            (number,) = struct.unpack(">I", os.pread(fd, 4, at))
            if number == 0:  # SQLite stops there; a sparse file has no other numbers
                return
            yield at + 4, number
            at += page_size + 8
        at = -(-at // sector) * sector  # the next header begins at a sector
