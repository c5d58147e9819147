"""Layout of a whole SQLite database file: the use of each page, and the places of its cells.

Source: https://www.sqlite.org/fileformat2.html, sections 1.3 to 1.6.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from tests.pages import varint

SIZE: Final = 4096
"""Bytes of a page of a registry."""
HEADER: Final = 100
"""Bytes of the database header, before the b-tree header of page 1."""
INTERIOR: Final = {2: "index_interior", 5: "table_interior"}
LEAF: Final = {10: "index_leaf", 13: "table_leaf"}
USES: Final = (
    *("header", "schema", *INTERIOR.values(), *LEAF.values()),
    *("overflow", "trunk", "free"),
)
"""Uses of a page; page 1 is `header`, the other pages of sqlite_schema are `schema`."""


class Cell(NamedTuple):
    """Cell of a b-tree: offsets in bytes from the beginning of the file."""

    page: int
    pointer: int
    """Offset of the two bytes that point to the cell."""
    start: int
    payload: int | None
    """Offset of the length of the record; None in the interior of a table."""
    record: int | None
    """Offset of the header of the record."""


def offset(page: int) -> int:
    """Return the offset of *page*, which counts from 1."""
    return (page - 1) * SIZE


def btree(page: int) -> int:
    """Return the offset of the b-tree header of *page*."""
    return offset(page) + (HEADER if page == 1 else 0)


def number(data: bytes, at: int) -> int:
    """Return the 32-bit number at *at*."""
    return int(struct.unpack_from(">I", data, at)[0])


class Layout:
    """Uses of all pages of an undamaged database."""

    def __init__(self, data: bytes, roots: list[int]) -> None:
        """Walk the b-trees at *roots*, of every table and index, and the freelist."""
        self.data = data
        self.uses: dict[int, str] = {}
        self._walk(1, "schema")
        for root in roots:
            self._walk(root, "")
        self._walk_freelist()
        self.uses[1] = "header"

    def pages(self, use: str) -> list[int]:
        """Return the pages of one use, in order."""
        return sorted(page for page, its in self.uses.items() if its == use)

    def interior(self) -> list[int]:
        """Return the pages with child pointers."""
        return [page for page in sorted(self.uses) if self.data[btree(page)] in INTERIOR]

    def cells(self, page: int) -> Iterator[Cell]:
        """Yield the cells of a page of a b-tree."""
        at = btree(page)
        kind = self.data[at]
        (count,) = struct.unpack_from(">H", self.data, at + 3)
        first = at + (12 if kind in INTERIOR else 8)
        for pointer in range(first, first + 2 * count, 2):
            (start,) = struct.unpack_from(">H", self.data, pointer)
            start += offset(page)
            payload = None if kind == 5 else start + (4 if kind == 2 else 0)
            record = None
            if payload is not None:
                _, record = varint(self.data, payload)
                if kind == 13:
                    _, record = varint(self.data, record)
            yield Cell(page, pointer, start, payload, record)

    def _walk(self, page: int, use: str) -> None:
        kind = self.data[btree(page)]
        self.uses[page] = use or {**INTERIOR, **LEAF}[kind]
        for cell in self.cells(page):
            self._walk_overflow(cell, kind)
            if kind in INTERIOR:
                self._walk(number(self.data, cell.start), use)
        if kind in INTERIOR:
            self._walk(number(self.data, btree(page) + 8), use)

    def _walk_overflow(self, cell: Cell, kind: int) -> None:
        if cell.payload is None or cell.record is None:
            return
        length, _ = varint(self.data, cell.payload)
        most = SIZE - 35 if kind == 13 else (SIZE - 12) * 64 // 255 - 23
        least = (SIZE - 12) * 32 // 255 - 23
        if length <= most:
            return
        local = least + (length - least) % (SIZE - 4)
        page = number(self.data, cell.record + (local if local <= most else least))
        while page:
            self.uses[page] = "overflow"
            page = number(self.data, offset(page))

    def _walk_freelist(self) -> None:
        trunk = number(self.data, 32)
        while trunk:
            self.uses[trunk] = "trunk"
            for n in range(number(self.data, offset(trunk) + 4)):
                self.uses[number(self.data, offset(trunk) + 8 + 4 * n)] = "free"
            trunk = number(self.data, offset(trunk))
