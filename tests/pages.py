"""Damage to single records of a registry, by the places of their columns in the file.

The registry is closed, and has so few sandboxes that each table has one page.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

_LENGTHS = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)
"""Length in bytes of a value, by its serial type, for types 0 to 9."""


class Place(NamedTuple):
    """Place of a column of a record: offsets in bytes from the beginning of the file."""

    type: range
    """Bytes of the serial type, in the header of the record."""
    value: range
    """Bytes of the value."""


def places(path: str, table: str, id: str) -> dict[str, Place]:
    """Return the place of each column in the record of sandbox *id* in the closed file."""
    with closing(sqlite3.connect(path)) as shell:
        query = f"SELECT rootpage FROM sqlite_master WHERE name = '{table}'"
        ((root,),) = shell.execute(query)
        ((size,),) = shell.execute("PRAGMA page_size")
        names = [column[1] for column in shell.execute(f"PRAGMA table_info({table})")]
    with open(path, "rb") as file:
        data = file.read()
    for record in _records(data, (root - 1) * size):
        found = dict(zip(names, _columns(data, record), strict=True))
        key = found["id" if table == "sandboxes" else "sandbox_id"].value
        if data[key.start : key.stop] == id.encode():
            return found
    raise AssertionError(f"{table} has no record of {id!r}")


def flip(path: str, place: range, bit: int) -> None:
    """Flip the bit number *bit* of *place*, counted from its first byte."""
    with open(path, "r+b") as file:
        file.seek(place.start + bit // 8)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1 << bit % 8]))


def _records(data: bytes, page: int) -> Iterator[int]:
    """Yield the offset of each record on a leaf page of a table, with rowids or without."""
    kind = data[page]
    assert kind in {0x0D, 0x0A}, f"{kind:#x} is not a leaf"
    (count,) = struct.unpack_from(">H", data, page + 3)
    for cell in struct.unpack_from(f">{count}H", data, page + 8):
        _, at = varint(data, page + cell)  # bytes of the record
        if kind == 0x0D:
            _, at = varint(data, at)  # rowid
        yield at


def _columns(data: bytes, record: int) -> Iterator[Place]:
    header, at = varint(data, record)
    value = record + header
    while at < record + header:
        serial, after = varint(data, at)
        length = _LENGTHS[serial] if serial < len(_LENGTHS) else (serial - 12) // 2
        yield Place(range(at, after), range(value, value + length))
        at, value = after, value + length


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at *at*, and the offset behind it; a ninth byte counts whole."""
    value = 0
    for _ in range(8):
        byte, at = data[at], at + 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at
    return value << 8 | data[at], at + 1
