"""Pages of a database file, decoded without SQLite and without trust in any pointer.

SQLite ends a scan at the first page that contradicts another one, and its table of raw pages
(sqlite_dbpage) is compiled into few builds, not into Debian's. This module decodes each page by
itself. A damaged one costs its own records, and no others:

1. Each pointer, length and count is checked against the page or the file before it is used.
2. A page is visited once in a B-tree, and at most `VISITS_MAX` times in overflow chains, so cycles
   end, and the time is linear in the size of the file.
3. A record is decoded as a whole, or refused: its values fill it exactly.

Source: https://www.sqlite.org/fileformat2.html, sections 1.5, 1.6 and 2.1.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from registry.engine.wal_file import Images
from registry.sync.interrupts import reraise_interrupt

Value = int | float | str | bytes | None
"""A column; bytes of a text that are not UTF-8 are lone surrogates."""

PAGE_SIZES: Final = frozenset(512 << n for n in range(8))
INDEX_INTERIOR, TABLE_INTERIOR, INDEX_LEAF, TABLE_LEAF = 0x02, 0x05, 0x0A, 0x0D
"""Kinds of B-tree pages. The first and the last two hold records."""
FILE_HEADER: Final = 100
"""Bytes before the B-tree in the first page."""
PAYLOAD_MAX: Final = 64 * 1024 * 1024
"""Bytes of a record; the longest that the model accepts has a few times 4 MiB."""
COLUMNS_MAX: Final = 64
"""Columns of a record; the widest table has 26."""
DAMAGED_PART: Final = 32
"""A page of N bytes is given up after N / 32 damaged records; the shortest record has 8 bytes."""
CUT_MAX: Final = 2**20
"""Pages by which a file may have been cut; the WAL tells how many it had."""
VISITS_MAX: Final = 16
"""Records whose overflow chains may lead to one page; only in a damaged file is it more than 1."""
_REAL: Final = 7
_CONTINUES: Final = 0x80
"""Serial type of a floating-point number; bit of each byte of a number but the last one."""
_LENGTHS: Final = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)
"""Length in bytes of a value, by its serial type, for types 0 to 9."""


class PageError(ValueError):
    """A page, a cell or a record cannot be decoded."""


class Node(NamedTuple):
    """A page of a B-tree: the offsets of its cells, and the page behind the last one, or 0."""

    number: int
    kind: int
    data: bytes
    cells: tuple[int, ...]
    right: int

    @property
    def is_table(self) -> bool:
        """True in a B-tree with rowids."""
        return self.kind in {TABLE_INTERIOR, TABLE_LEAF}

    def children(self) -> Iterator[int]:
        """Yield the pages below, unchecked; a leaf has none."""
        if self.kind in {TABLE_INTERIOR, INDEX_INTERIOR}:
            for at in self.cells:
                yield int.from_bytes(self.data[at : at + 4], "big")
            yield self.right


class Pages:
    """Pages of a database file, numbered from 1, with the commits of its WAL applied."""

    def __init__(self, file: int, size: int, wal: int = -1, images: Images | None = None) -> None:
        """Read pages of *size* bytes from the descriptor *file*.

        Args:
            file: descriptor of the database file.
            size: bytes of a page.
            wal: descriptor of the WAL.
            images: pages in the WAL.
        """
        self._file, self._wal = file, wal
        self._images = {} if images is None else images.offsets
        self.size: Final = size
        whole = -(-os.fstat(file).st_size // size)
        if self._images and images is not None:
            whole = min(images.pages, whole + len(self._images) + CUT_MAX)
        self.count: Final = whole
        self.visits: Final = bytearray(self.count + 1)
        """Number of records whose overflow chains have led to a page, by its number."""

    def read(self, number: int) -> bytes:
        """Return page *number*.

        Raises:
            PageError: it is not in the file, or the disk cannot read it.
        """
        if not 1 <= number <= self.count:
            raise PageError(f"page {number} is not in the file, which has {self.count}")
        at = self._images.get(number)
        try:
            if at is None:
                data = os.pread(self._file, self.size, (number - 1) * self.size)
            else:
                data = os.pread(self._wal, self.size, at)
        except OSError as error:
            reraise_interrupt(error)
            raise PageError(f"page {number} cannot be read: {error.strerror}") from error
        if len(data) < self.size:
            raise PageError(f"page {number} is cut off after {len(data)} bytes")
        return data

    def node(self, number: int) -> Node:
        """Return page *number* as a page of a B-tree.

        Raises:
            PageError: it is none.
        """
        data = self.read(number)
        start = FILE_HEADER if number == 1 else 0
        kind, _, count, _, _ = struct.unpack_from(">BHHHB", data, start)
        if kind not in {INDEX_INTERIOR, TABLE_INTERIOR, INDEX_LEAF, TABLE_LEAF}:
            raise PageError(f"page {number} is not a B-tree page: its first byte is {kind:#04x}")
        interior = kind in {INDEX_INTERIOR, TABLE_INTERIOR}
        first = start + (12 if interior else 8)
        if first + 2 * count > self.size:
            raise PageError(f"page {number} has {count} cells, for which it has no space")
        cells = struct.unpack_from(f">{count}H", data, first)
        right = int.from_bytes(data[first - 4 : first], "big") if interior else 0
        return Node(number, kind, data, cells, right)

    def walk(self, root: int) -> Iterator[tuple[int, bool]]:
        """Yield each page that can be reached from page *root*, and whether it belongs there.

        A page that cannot be decoded, or is of another kind of B-tree than *root*, does not.
        """
        seen, waiting, is_table = bytearray(self.count + 1), [root], None
        while waiting:
            number = waiting.pop()
            if not 1 <= number <= self.count or seen[number]:
                continue
            seen[number] = True
            try:
                node = self.node(number)
            except PageError:
                yield number, False
                continue
            is_table = node.is_table if is_table is None else is_table
            yield number, node.is_table == is_table
            if node.is_table == is_table:
                waiting.extend(node.children())

    def records(self, node: Node) -> Iterator[tuple[int, tuple[Value, ...] | PageError]]:
        """Yield the rowid (0 in an index) and the values of each record, or why it has none.

        A page with very many damaged records is given up.
        """
        damaged, limit = 0, self.size // DAMAGED_PART
        if node.kind == TABLE_INTERIOR:
            return
        for n, at in enumerate(sorted(set(node.cells))):
            rowid = 0
            try:
                rowid, payload = self._cell(node, at)
                yield rowid, record(payload)
            except (PageError, IndexError) as error:
                reraise_interrupt(error)
                yield rowid, PageError(f"record {n + 1} is damaged: {error}")
                damaged += 1
                if damaged > limit:
                    return

    def _cell(self, node: Node, at: int) -> tuple[int, bytes]:
        """Return the rowid, and the payload, of the cell at offset *at*."""
        if node.kind == INDEX_INTERIOR:
            at += 4
        length, at = _varint(node.data, at)
        rowid = 0
        if node.kind == TABLE_LEAF:
            rowid, at = _varint(node.data, at)
            rowid = rowid - (1 << 64) if rowid >> 63 else rowid
        if length > PAYLOAD_MAX:
            raise PageError(f"it claims {length} bytes")
        local = self._local(length, table=node.kind == TABLE_LEAF)
        payload = node.data[at : at + local]
        if len(payload) < local:
            raise PageError("it ends behind its page")
        if local < length:
            chain = node.data[at + local : at + local + 4]
            payload += self._overflow(int.from_bytes(chain, "big"), length - local)
        return rowid, payload

    def _local(self, length: int, *, table: bool) -> int:
        """Return how many of *length* bytes of a record are in its cell (section 1.6)."""
        most = self.size - 35 if table else (self.size - 12) * 64 // 255 - 23
        if length <= most:
            return length
        least = (self.size - 12) * 32 // 255 - 23
        local = least + (length - least) % (self.size - 4)
        return local if local <= most else least

    def _overflow(self, number: int, length: int) -> bytes:
        """Return *length* bytes of the overflow chain that begins with page *number*."""
        parts = []
        while length:
            if not 1 < number <= self.count:
                raise PageError(f"{length} bytes are missing: its chain leads to page {number}")
            if self.visits[number] == VISITS_MAX:
                raise PageError(f"its chain leads to page {number}, as many others do")
            self.visits[number] += 1
            data = self.read(number)
            parts.append(data[4 : 4 + length])
            length -= len(parts[-1])
            number = int.from_bytes(data[:4], "big")
        if number:
            raise PageError(f"its chain goes on with page {number}")
        return b"".join(parts)


def record(payload: bytes) -> tuple[Value, ...]:
    """Return the values of the record in *payload*.

    Raises:
        PageError, IndexError: it is not a record.
    """
    end, at = _varint(payload, 0)
    types: list[int] = []
    while at < end and len(types) <= COLUMNS_MAX:
        serial, at = _varint(payload, at)
        types.append(serial)
    if at != end or len(types) > COLUMNS_MAX:
        raise PageError("its header does not end with a column")
    values = []
    for serial in types:
        if serial in {10, 11}:
            raise PageError(f"it has a value of type {serial}")
        length = _LENGTHS[serial] if serial < len(_LENGTHS) else (serial - 12) // 2
        values.append(_value(serial, payload[at : at + length]))
        at += length
    if at != len(payload):
        raise PageError(f"its values have {at - end} bytes instead of {len(payload) - end}")
    return tuple(values)


def _value(serial: int, data: bytes) -> Value:
    if serial == _REAL:
        return float(struct.unpack(">d", data.ljust(8, b"\0"))[0])
    if serial in {0, 8, 9}:
        return (None, 0, 1)[max(serial - _REAL, 0)]
    if serial < _REAL:
        return int.from_bytes(data, "big", signed=True)
    return data.decode("utf-8", "surrogateescape") if serial % 2 else data


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at *at*, and the offset behind it; a ninth byte counts whole."""
    value = 0
    for _ in range(8):
        byte, at = data[at], at + 1
        value = value << 7 | byte & 0x7F
        if byte < _CONTINUES:
            return value, at
    return value << 8 | data[at], at + 1


def free_pages(pages: Pages) -> Iterator[int]:
    """Yield the pages of the freelist, as far as it can be followed (section 1.5)."""
    try:
        number, trunks = int.from_bytes(pages.read(1)[32:36], "big"), 0
        while number and trunks < pages.count:
            data, trunks = pages.read(number), trunks + 1
            following, count = struct.unpack_from(">II", data)
            if count > pages.size // 4 - 2:
                return
            yield number
            yield from struct.unpack_from(f">{count}I", data, 8)
            number = following
    except PageError:
        return


def free_count(pages: Pages) -> int:
    """Return the number of pages on the freelist, by the header of the file; -1 without one."""
    try:
        return int.from_bytes(pages.read(1)[36:40], "big")
    except PageError:
        return -1
