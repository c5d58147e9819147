"""Kinds of damage to the files of a registry, each made by one seed.

A kind is a function of a `Target`, which it changes. It returns the place for messages. Page 1, the
schema, tables, indexes, overflow pages and the freelist are damaged in the same ways; headers,
pointers, records, the WAL and its index in ways of their own.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from tests.damage.layout import HEADER, SIZE, USES, Cell, Layout, btree, offset
from tests.pages import varint

FRAME: Final = 24 + SIZE
"""Bytes of a frame of the WAL."""
WAL_HEADER: Final = 32


class Target:
    """Copy of a registry that is to be damaged."""

    def __init__(self, chance: random.Random, folder: str, layout: Layout, sources: str) -> None:
        """Prepare.

        Args:
            chance: decides on the place.
            folder: the copy.
            layout: of the database file, while it is whole.
            sources: folder of all whole registries.
        """
        self.chance = chance
        self.path = f"{folder}/registry.db"
        self.layout = layout
        self.sources = sources

    def read(self, suffix: str = "") -> bytearray:
        """Return the bytes of the database, or of a file beside it."""
        with open(self.path + suffix, "rb") as file:
            return bytearray(file.read())

    def write(self, data: bytes | bytearray, suffix: str = "") -> None:
        """Replace the database, or a file beside it."""
        with open(self.path + suffix, "wb") as file:
            file.write(data)

    def put(self, at: int, data: bytes) -> None:
        """Replace bytes of the database."""
        with open(self.path, "r+b") as file:
            file.seek(at)
            file.write(data)

    def source(self, name: str, suffix: str) -> bytearray:
        """Return a file of the whole registry *name*."""
        with open(f"{self.sources}/{name}/registry.db{suffix}", "rb") as file:
            return bytearray(file.read())

    def page(self, use: str) -> int:
        """Return a page of one use."""
        return self.chance.choice(self.layout.pages(use))

    def any_page(self) -> int:
        """Return any page but the first."""
        return self.chance.choice(sorted(self.layout.uses)[1:])

    def cell(self) -> Cell:
        """Return a cell with a record, of a leaf or of the interior of an index."""
        pages = [
            page
            for use in ("schema", "table_leaf", "index_leaf", "index_interior")
            for page in self.layout.pages(use)
        ]
        cells = [
            cell
            for page in self.chance.sample(pages, min(20, len(pages)))
            for cell in self.layout.cells(page)
            if cell.record is not None
        ]
        return self.chance.choice(cells)


# Whole pages.


def flipped(target: Target, use: str) -> str:
    """Flip one to eight bits of a page."""
    page = target.page(use)
    data = target.read()
    for _ in range(target.chance.choice((1, 1, 1, 2, 4, 8))):
        at = offset(page) + target.chance.randrange(SIZE)
        data[at] ^= 1 << target.chance.randrange(8)
    target.write(data)
    return f"page {page}"


def head_flipped(target: Target, use: str) -> str:
    """Flip a bit in the first bytes of a page: its b-tree header, pointers, next page."""
    page = target.page(use)
    at = btree(page) + target.chance.randrange(16)
    target.put(at, bytes([target.layout.data[at] ^ 1 << target.chance.randrange(8)]))
    return f"page {page}, byte {at - offset(page)}"


def overwritten(target: Target, use: str) -> str:
    """Replace a run of bytes of a page, or all of it, by random ones."""
    page = target.page(use)
    length = target.chance.choice((16, 64, 512, SIZE))
    at = target.chance.randrange(SIZE - length + 1)
    target.put(offset(page) + at, target.chance.randbytes(length))
    return f"page {page}, {length} bytes from {at}"


def zeroed(target: Target, use: str) -> str:
    """Zero a page."""
    page = target.page(use)
    target.put(offset(page), bytes(SIZE))
    return f"page {page}"


def swapped(target: Target, use: str) -> str:
    """Swap a page with any other one."""
    page, other = target.page(use), target.any_page()
    data = target.layout.data
    target.put(offset(page), data[offset(other) : offset(other) + SIZE])
    target.put(offset(other), data[offset(page) : offset(page) + SIZE])
    return f"pages {page} and {other}"


def duplicated(target: Target, use: str) -> str:
    """Write a page of the same use, or any page, over a page."""
    page = target.page(use)
    other = target.page(use) if target.chance.random() < 0.5 else target.any_page()
    data = target.layout.data
    target.put(offset(page), data[offset(other) : offset(other) + SIZE])
    return f"page {other} over page {page}"


# Parts of pages.


def header_field(target: Target) -> str:
    """Change a field of the database header."""
    at, length = target.chance.choice(_FIELDS)
    value = target.chance.choice((0, 1, 2, 3, 255, target.chance.randrange(256**length)))
    target.put(at, (value % 256**length).to_bytes(length, "big"))
    return f"byte {at}: {value}"


_FIELDS: Final = (
    *((16, 2), (18, 1), (19, 1), (20, 1), (21, 1), (22, 1), (23, 1), (24, 4), (28, 4), (32, 4)),
    *((36, 4), (40, 4), (44, 4), (48, 4), (52, 4), (56, 4), (60, 4), (64, 4), (68, 4), (92, 4)),
    *((0, 8), (72, 4)),
)
"""Offset and length of the fields of the header."""


def child_pointer(target: Target) -> str:
    """Point a child of an interior page at another page: itself, an ancestor, none, or far off."""
    page = target.chance.choice(target.layout.interior())
    places = [cell.start for cell in target.layout.cells(page)] + [btree(page) + 8]
    at = target.chance.choice(places)
    value = target.chance.choice((page, 1, 0, target.any_page(), 2**31 - 1, 2**32 - 1))
    target.put(at, struct.pack(">I", value))
    return f"page {page}: child {value}"


def cycle(target: Target) -> str:
    """Point all children of an interior page at the page itself."""
    page = target.chance.choice(target.layout.interior())
    for cell in target.layout.cells(page):
        target.put(cell.start, struct.pack(">I", page))
    target.put(btree(page) + 8, struct.pack(">I", page))
    return f"page {page}"


def overflow_chain(target: Target) -> str:
    """Point an overflow page at itself, at any page, or far off."""
    page = target.page("overflow")
    value = target.chance.choice((page, 0, target.any_page(), target.page("overflow"), 2**31))
    target.put(offset(page), struct.pack(">I", value))
    return f"page {page}: next {value}"


def freelist(target: Target) -> str:
    """Change the freelist: a cycle, pages in use or out of range, a wrong count."""
    trunk = target.page("trunk")
    at = target.chance.choice((32, 36, offset(trunk), offset(trunk) + 4, offset(trunk) + 8))
    value = target.chance.choice((trunk, 0, target.any_page(), 2**31, 2**32 - 1, 1, 5000))
    target.put(at, struct.pack(">I", value))
    return f"byte {at}: {value}"


def cell_pointer(target: Target) -> str:
    """Point to a cell elsewhere in its page, or change the number of cells."""
    cell = target.cell()
    if target.chance.random() < 0.3:
        target.put(btree(cell.page) + 3, struct.pack(">H", target.chance.randrange(700)))
        return f"page {cell.page}: number of cells"
    target.put(cell.pointer, struct.pack(">H", target.chance.randrange(SIZE)))
    return f"page {cell.page}: pointer at {cell.pointer}"


def serial_type(target: Target) -> str:
    """Change the serial type of a column of a record."""
    cell = target.cell()
    assert cell.record is not None
    size, at = varint(target.layout.data, cell.record)
    at += target.chance.randrange(max(1, size - 1))
    old = target.layout.data[at]
    value = target.chance.choice((0, 1, 6, 7, 8, 9, 10, 11, old ^ 1, old ^ 2, old + 2, 0x81))
    target.put(at, bytes([value & 0xFF]))
    return f"page {cell.page}, byte {at}: {old} to {value}"


def huge_varint(target: Target) -> str:
    """Write a huge number over the length of a record, its rowid, its header or a type."""
    cell = target.cell()
    assert cell.payload is not None
    assert cell.record is not None
    _, rowid = varint(target.layout.data, cell.payload)
    at = target.chance.choice((cell.payload, rowid, cell.record, cell.record + 1, cell.record + 2))
    value = target.chance.choice(
        (b"\xff\xff\xff\x7f", b"\xff" * 9, b"\x87\xff\xff\xff\x7f", b"\xbf\xff\x7f", b"\x81\x7f")
    )
    target.put(at, value)
    return f"page {cell.page}, byte {at}: {value.hex()}"


def record_bytes(target: Target) -> str:
    """Replace some bytes of the values of a record, which may then be no UTF-8."""
    cell = target.cell()
    assert cell.record is not None
    size, _ = varint(target.layout.data, cell.record)
    at = cell.record + size + target.chance.randrange(200)
    target.put(
        at, target.chance.choice((b"\xff", b"\xff\xfe\xfd", b"\0", b"'\"\n", b"\xed\xa0\x80"))
    )
    return f"page {cell.page}, byte {at}"


# The length of the file.


def cut(target: Target) -> str:
    """Cut the file at a page, inside a page, or down to nothing."""
    size = len(target.layout.data)
    pages = size // SIZE
    length = target.chance.choice(
        (
            target.chance.randrange(pages) * SIZE,
            target.chance.randrange(size),
            target.chance.choice((0, 1, HEADER, 512, SIZE, size - 1)),
        )
    )
    os.truncate(target.path, length)
    return f"{length} of {size} bytes"


def extended(target: Target) -> str:
    """Append zeros, or random bytes, to the file."""
    length = target.chance.choice((1, SIZE, 3 * SIZE + 7))
    zeros = target.chance.random() < 0.5
    data = bytes(length) if zeros else target.chance.randbytes(length)
    target.write(bytes(target.layout.data) + data)
    return f"{length} bytes more"


def missing(target: Target) -> str:
    """Remove the database file, or empty it, beside its other files."""
    if target.chance.random() < 0.5:
        os.unlink(target.path)
        return "removed"
    os.truncate(target.path, 0)
    return "emptied"


# The WAL and its index.


def wal_cut(target: Target) -> str:
    """Cut the WAL at a frame, or inside one."""
    size = len(target.read("-wal"))
    frames = (size - WAL_HEADER) // FRAME
    length = WAL_HEADER + target.chance.randrange(frames) * FRAME
    if target.chance.random() < 0.5:
        length = target.chance.randrange(size)
    os.truncate(f"{target.path}-wal", length)
    return f"{length} of {size} bytes"


def wal_flipped(target: Target) -> str:
    """Flip a bit of a frame, or of the header, of the WAL."""
    data = target.read("-wal")
    frame = target.chance.randrange((len(data) - WAL_HEADER) // FRAME)
    at = target.chance.choice(
        (
            target.chance.randrange(WAL_HEADER),
            WAL_HEADER + frame * FRAME + target.chance.randrange(24),
            WAL_HEADER + frame * FRAME + target.chance.randrange(FRAME),
        )
    )
    data[at] ^= 1 << target.chance.randrange(8)
    target.write(data, "-wal")
    return f"byte {at}"


def wal_salt(target: Target) -> str:
    """Change the salts of the header, or of all frames from one on."""
    data = target.read("-wal")
    frames = (len(data) - WAL_HEADER) // FRAME
    salt = target.chance.randbytes(8)
    if target.chance.random() < 0.3:
        data[16:24] = salt
        target.write(data, "-wal")
        return "header"
    first = target.chance.randrange(frames)
    for frame in range(first, frames):
        at = WAL_HEADER + frame * FRAME + 8
        data[at : at + 8] = salt
    target.write(data, "-wal")
    return f"frames from {first} on"


def wal_page(target: Target) -> str:
    """Damage a page in the WAL and mend the checksums, as if the page had been written so."""
    data = target.read("-wal")
    frames = (len(data) - WAL_HEADER) // FRAME
    frame = target.chance.randrange(frames)
    at = WAL_HEADER + frame * FRAME + 24
    how = target.chance.choice(("zeros", "bits", "other", "number"))
    if how == "zeros":
        data[at : at + SIZE] = bytes(SIZE)
    elif how == "number":  # of the page, or of the pages of the database after the commit
        field = at - 24 + target.chance.choice((0, 4))
        value = target.chance.choice((0, 1, 2, 2**31, 2**32 - 1, target.any_page()))
        data[field : field + 4] = struct.pack(">I", value)
    elif how == "other":
        other = offset(target.any_page())
        data[at : at + SIZE] = target.layout.data[other : other + SIZE]
    else:
        for _ in range(target.chance.choice((1, 4, 16))):
            data[at + target.chance.randrange(SIZE)] ^= 1 << target.chance.randrange(8)
    _mend(data)
    target.write(data, "-wal")
    return f"frame {frame}: {how}"


def _mend(data: bytearray) -> None:
    """Recompute the checksums of all frames that have the salts of the header."""
    order = ">" if data[3] & 1 else "<"
    sums = struct.unpack(">II", data[24:32])
    for frame in range((len(data) - WAL_HEADER) // FRAME):
        at = WAL_HEADER + frame * FRAME
        if data[at + 8 : at + 16] != data[16:24]:
            return
        sums = _checksum(data[at : at + 8] + data[at + 24 : at + FRAME], sums, order)
        data[at + 16 : at + 24] = struct.pack(">II", *sums)


def _checksum(data: bytes | bytearray, before: tuple[int, ...], order: str) -> tuple[int, int]:
    first, second = before
    for one, two in struct.iter_unpack(f"{order}II", data):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + two + first) & 0xFFFFFFFF
    return first, second


def wal_of(target: Target, name: str, *, with_index: bool) -> str:
    """Put the WAL of another registry, or of another state, in the place of the WAL."""
    target.write(target.source(name, "-wal"), "-wal")
    if with_index:
        target.write(target.source(name, "-shm"), "-shm")
    return "with its index" if with_index else "alone"


def wal_lost(target: Target) -> str:
    """Remove or empty the WAL, its index, or both."""
    suffixes = target.chance.choice((["-wal"], ["-shm"], ["-wal", "-shm"]))
    for suffix in suffixes:
        if target.chance.random() < 0.5:
            os.unlink(target.path + suffix)
        else:
            os.truncate(target.path + suffix, 0)
    return " and ".join(suffixes)


def file_and_wal_swapped(target: Target) -> str:
    """Swap the database and its WAL."""
    data, wal = target.read(), target.read("-wal")
    target.write(wal)
    target.write(data, "-wal")
    return "both"


def index_damaged(target: Target) -> str:
    """Fill the WAL index with random bytes, flip bits, cut it, or take one of another state."""
    data = target.read("-shm")
    how = target.chance.choice(("random", "bits", "cut", "stale", "other", "zeros"))
    if how == "random":
        data = bytearray(target.chance.randbytes(len(data)))
    elif how == "bits":
        for _ in range(8):
            data[target.chance.randrange(200)] ^= 1 << target.chance.randrange(8)
    elif how == "cut":
        data = data[: target.chance.randrange(len(data))]
    elif how == "zeros":
        data = bytearray(len(data))
    else:
        data = target.source("early" if how == "stale" else "other_hot", "-shm")
    target.write(data, "-shm")
    return how


def older_file(target: Target) -> str:
    """Put the database file of another state beside the WAL."""
    name = target.chance.choice(("later", "closed", "other"))
    shutil.copy(f"{target.sources}/{name}/registry.db", target.path)
    return f"file of {name}"


class Kind(NamedTuple):
    """Kind of damage, and the registries that it is done to."""

    name: str
    variants: tuple[str, ...]
    make: Callable[[Target], str]


_ALL: Final = ("closed", "hot", "large")
_PAGES: Final = (flipped, head_flipped, overwritten, zeroed, swapped, duplicated)
_PARTS: Final = (
    *(header_field, child_pointer, cycle, overflow_chain, freelist, cell_pointer),
    *(serial_type, huge_varint, record_bytes, cut, extended),
)
_WAL: Final = (
    *(wal_cut, wal_flipped, wal_salt, wal_page, wal_lost, file_and_wal_swapped),
    *(index_damaged, older_file, missing),
)


KINDS: Final = (
    *(
        Kind(f"{use} {make.__name__}", _ALL, partial(make, use=use))
        for use in USES
        for make in _PAGES
    ),
    *(Kind(make.__name__, _ALL, make) for make in _PARTS),
    *(Kind(make.__name__, ("hot",), make) for make in _WAL),
    Kind("missing beside locks", ("closed",), missing),
    *(
        Kind(f"wal of {name}{' with index' * whole}", variants, make)
        for name, variants in (("early", ("hot", "later")), ("other_hot", ("hot", "closed")))
        for whole in (False, True)
        for make in [partial(wal_of, name=name, with_index=whole)]
    ),
)
"""All kinds; seed n makes kind n modulo their number: a new one changes what each seed makes."""


TWICE: Final = 2000
"""Seed from which on each copy is damaged twice, the second time by any kind."""


def choose(seed: int) -> tuple[random.Random, Kind, str]:
    """Return the source of chance of *seed*, its kind, and the registry that is damaged."""
    chance = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    variant = chance.choice(kind.variants)
    if seed < TWICE:
        return chance, kind, variant
    other = chance.choice([each for each in KINDS if variant in each.variants])
    both = Kind(f"{kind.name} and {other.name}", (variant,), partial(_make_both, kind, other))
    return chance, both, variant


def _make_both(kind: Kind, other: Kind, target: Target) -> str:
    """Damage *target* by *kind* and then by *other*, if that still applies."""
    place = kind.make(target)
    try:
        return f"{place}; {other.make(target)}"
    except (OSError, IndexError, ValueError):  # the file is missing or shorter now
        return place
