"""Types and ranges of the stored columns, and what in a row contradicts them.

SQLite takes the type of each value from the record in the file, so one flipped bit turns a text
into a blob, which is equal to no text. A record that contradicts its schema is damaged: nothing may
be concluded from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, get_args

from registry.host import kernel
from registry.model.status import PID_MAX, State

SHOWN: Final = 80
"""Characters of a damaged value that a message repeats."""

_TYPES: Final[Mapping[type, str]] = {
    int: "an integer",
    float: "a real number",
    str: "text",
    bytes: "a blob",
    type(None): "NULL",
}
_STATES: Final = frozenset(map(str, State))
_OWNERS: Final = {"netns_": "netns_inode", "creator_": "creator_pid"}
"""Columns that say whether anything is recorded in those with the same beginning."""


class Shape:
    """Types and ranges that the values of a row must have."""

    def __init__(self, hints: Mapping[str, Any]) -> None:
        """Take the names of the fields and their types, in the order of the values."""
        self._fields: Final = tuple(hints)
        self._allowed: Final = [get_args(hint) or (hint,) for hint in hints.values()]
        self._sound: Final[set[tuple[type, ...]]] = set()
        """Types of rows that were found valid: comparing all at once takes a tenth of the time."""

    def mistyped(self, row: Sequence[Any]) -> str:
        """Return which values of *row* are missing or have a wrong type; "" if none."""
        types = tuple(map(type, row))
        if types in self._sound:
            return ""
        values = dict(zip(self._fields, row, strict=True))
        mistakes = [*self._mistakes(types), *_without_owner(values)]
        if not mistakes:
            self._sound.add(types)
        return "; ".join(mistakes)

    def damage(self, row: Sequence[Any]) -> str:
        """Return what in *row* contradicts the schema, ranges included; "" if nothing does."""
        mistyped = self.mistyped(row)
        return mistyped or "; ".join(_out_of_range(dict(zip(self._fields, row, strict=True))))

    def _mistakes(self, types: Sequence[type]) -> Iterator[str]:
        for field, found, allowed in zip(self._fields, types, self._allowed, strict=True):
            if found not in allowed:
                expected = " or ".join(_TYPES[each] for each in allowed)
                yield f"{field} is {_TYPES[found]}, not {expected}"


def _without_owner(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield parts of an identity that is not recorded as a whole."""
    for beginning, owner in _OWNERS.items():
        for field, value in values.items():
            is_part = field.startswith(beginning) and field != "netns_path"
            if is_part and value is not None and values.get(owner, value) is None:
                yield f"{field} is recorded without {owner}"


def _out_of_range(values: Mapping[str, Any]) -> Iterator[str]:
    for field, value in values.items():
        for applies, valid, expected in _RANGES:
            if value is not None and applies(field) and not valid(value):
                shown = repr(value)
                shown = shown if len(shown) <= SHOWN else shown[:SHOWN] + "..."
                yield f"{field} is {shown}, not {expected}"


def is_number(field: str) -> bool:
    """Return whether *field* holds a pid, or a number that identifies something in the kernel."""
    is_text = field.endswith(("boot_id", "path", "label"))
    return field == "pid" or (field.startswith(("netns_", "process_", "creator_")) and not is_text)


def is_path(text: str) -> bool:
    """Return whether *text* is "" or can be an absolute path."""
    return text == "" or (text[0] == "/" and "\0" not in text)


def is_inode(number: int) -> bool:
    """Return whether *number*, not negative, can be the inode of a namespace, which has 32 bits."""
    return number < kernel.INODES.stop


_RANGES: Final[tuple[tuple[Callable[[str], bool], Callable[[Any], object], str], ...]] = (
    ("state".__eq__, _STATES.__contains__, "a sandbox state"),
    ("host_network".__eq__, {0, 1}.__contains__, "0 or 1"),
    ("netns_path".__eq__, is_path, "an absolute path"),
    (lambda field: field.endswith("boot_id"), kernel.UUID.fullmatch, "a boot id"),
    (lambda field: field in {"pid", "creator_pid"}, range(PID_MAX + 1).__contains__, "a pid"),
    ("netns_inode".__eq__, is_inode, "an inode of a namespace"),
    (is_number, lambda number: number >= 0, "a positive number"),
)
"""Fields, the test that a value of the right type must pass, and what it must be, for messages."""
