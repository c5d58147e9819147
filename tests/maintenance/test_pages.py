"""Pages of a database file, decoded as SQLite decodes them, and hostile ones."""

from __future__ import annotations

import os
import random
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from registry.maintenance.pages import (
    DAMAGED_PART,
    TABLE_INTERIOR,
    TABLE_LEAF,
    VISITS_MAX,
    PageError,
    Pages,
    free_pages,
    record,
)


@contextmanager
def opened(path: str, size: int) -> Iterator[Pages]:
    """Lend the pages of a file."""
    with open(path, "rb") as file:
        yield Pages(file.fileno(), size)


def make(path: str, size: int, values: list[Any]) -> int:
    """Make a database with a table of *values*, and an index of them; return its root page."""
    with closing(sqlite3.connect(path)) as shell, shell:
        shell.execute(f"PRAGMA page_size = {size}")
        shell.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, value)")
        shell.execute("CREATE INDEX i ON t (value)")
        shell.executemany("INSERT INTO t VALUES (?, ?)", enumerate(values, -3))
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (found,) = shell.execute(query, ("t",)).fetchone()
    return int(found)


def every(pages: Pages, root: int) -> list[tuple[int, Any]]:
    """Return the records of the tree below *root*, by any page."""
    found = []
    for number, belongs in pages.walk(root):
        assert belongs
        found += [*pages.records(pages.node(number))]
    return found


@pytest.mark.parametrize("size", [512, 1024, 4096, 65536])
def test_records_are_those_of_sqlite(tmp_path: Path, size: int) -> None:
    """Of all types and lengths: inside a page, at its limits, and with overflow chains."""
    dice = random.Random(size)
    values: list[Any] = [None, 0, 1, -1, 1.5, "", b"", "ä€😀", *(1 << n for n in range(63))]
    values += [-(1 << n) for n in range(64)]
    lengths = [*range(size - 40, size + 40, 3), *range(size // 8 - 20, size // 4), 9 * size]
    values += [dice.randbytes(n) if n % 2 else "x" * n for n in lengths]
    path = str(tmp_path / "a.db")
    root = make(path, size, values)
    with opened(path, size) as pages:
        found = every(pages, root)
    assert [(n, (None, value)) for n, value in enumerate(values, -3)] == sorted(
        found, key=lambda each: each[0]
    )


def test_the_freelist_is_followed(tmp_path: Path) -> None:
    """All pages that SQLite counts."""
    path = str(tmp_path / "a.db")
    make(path, 512, ["x" * 400] * 1000)
    with closing(sqlite3.connect(path)) as shell, shell:
        shell.execute("DELETE FROM t WHERE n > 10")
    with closing(sqlite3.connect(path)) as shell:
        ((count,),) = shell.execute("PRAGMA freelist_count")
    with opened(path, 512) as pages:
        free = [*free_pages(pages)]
    assert count == len(free) == len(set(free)) > 900


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x80",
        b"\x02",
        b"\x02\x0a",
        b"\x02\x07\0\0",
        b"\x02\x01\0\0",
        b"\x02\x81",
        b"\xff\xff\xff\x7f\x01",
        b"\x46" + b"\0" * 69,
    ],
)
def test_a_damaged_record_is_refused(payload: bytes) -> None:
    """It is empty, cut off, too long, or has a type that SQLite never writes."""
    with pytest.raises((PageError, IndexError)):
        record(payload)


def interior(children: list[int], size: int = 512) -> bytes:
    """Return an interior page of a table with *children*."""
    cells = [struct.pack(">IB", child, n % 128) for n, child in enumerate(children[:-1])]
    starts = [size - 5 * (n + 1) for n in range(len(cells))]
    head = struct.pack(">BHHHBI", TABLE_INTERIOR, 0, len(cells), 0, 0, children[-1])
    page = bytearray(head + struct.pack(f">{len(cells)}H", *starts)).ljust(size, b"\0")
    for start, cell in zip(starts, cells, strict=True):
        page[start : start + 5] = cell
    return bytes(page)


def leaf(cell: bytes, count: int = 1, size: int = 512) -> bytes:
    """Return a leaf of a table that has *cell* once, at *count* offsets."""
    start = size - len(cell)
    starts = [start - n for n in range(count)]
    head = struct.pack(">BHHHB", TABLE_LEAF, 0, count, 0, 0) + struct.pack(f">{count}H", *starts)
    return head.ljust(start, b"\0") + cell


def test_hostile_pages_are_read_in_linear_time(tmp_path: Path) -> None:
    """Each page has all pages below it, and cells with a chain of which each page leads to itself.

    The reads of pages are counted: time depends on the machine.
    """
    count = 60
    huge = b"\x83\xff\xff\x7f" + b"\x01" + b"\x02\x0c" + bytes(60)  # of 8 MB
    data = [bytes(512)]
    data += [interior([*range(1, count + 1)]) for _ in range(2, count // 2)]
    data += [leaf(huge + struct.pack(">I", count), 50) for _ in range(count // 2, count)]
    data += [struct.pack(">I", count).ljust(512, b"\1")]
    path = tmp_path / "a.db"
    path.write_bytes(b"".join(data))
    reads = 0

    class Counted(Pages):
        def read(self, number: int) -> bytes:
            nonlocal reads
            reads += 1
            return super().read(number)

    with open(path, "rb") as file:
        pages = Counted(file.fileno(), 512)
        for number, belongs in pages.walk(2):
            if belongs:
                for _, found in pages.records(pages.node(number)):
                    assert isinstance(found, PageError)
    assert reads <= count * (2 + VISITS_MAX)


def test_a_page_of_damaged_records_is_given_up(tmp_path: Path) -> None:
    """A page may claim 250 records, each of which would be decoded."""
    path = tmp_path / "a.db"
    path.write_bytes(bytes(512) + leaf(b"\x7f" * 20, 240))
    with opened(str(path), 512) as pages:
        found = [each for _, each in pages.records(pages.node(2))]
    assert isinstance(found[-1], PageError)
    assert 512 // DAMAGED_PART + 1 == sum(isinstance(each, PageError) for each in found)


@pytest.mark.parametrize("seed", range(300))
def test_random_pages_are_refused_or_read(tmp_path: Path, seed: int) -> None:
    """Nothing but PageError is raised, for pages of random bytes behind a valid first byte."""
    dice = random.Random(seed)
    data = bytearray(dice.randbytes(512 * 8))
    for at in range(0, len(data), 512):
        data[at] = dice.choice([2, 5, 10, 13])
        data[at + 3 : at + 5] = struct.pack(">H", dice.randrange(40))
        data[at + 5] = 0
    path = tmp_path / "a.db"
    path.write_bytes(data[: dice.randrange(len(data))])
    with opened(str(path), 512) as pages:
        assert pages.count == -(-os.path.getsize(path) // 512)
        for number in range(pages.count + 2):
            assert len([*pages.walk(number)]) <= pages.count
            try:
                node = pages.node(number)
            except PageError:
                continue
            assert all(isinstance(found, (tuple, PageError)) for _, found in pages.records(node))
        assert len([*free_pages(pages)]) <= 512 * pages.count
