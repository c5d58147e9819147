"""Types and ranges of the stored columns, and a check of rows against them.

The record in the file has the type of each value, so one flipped bit turns a text into a blob,
which equals no text. A record that contradicts its schema is damaged: it allows no conclusion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter, le
from typing import Any, Final, NamedTuple, get_args

from registry.host import context, kernel
from registry.model.status import PID_MAX, State, is_reason

SHOWN: Final = 80
"""Characters of a damaged value that a message repeats."""
WORDS_MAX: Final = 1024
"""Combinations of words that are cached for each kind of row."""

_TYPES: Final[Mapping[type, str]] = {
    int: "an integer",
    float: "a real number",
    str: "text",
    bytes: "a blob",
    type(None): "NULL",
}
_PIDS: Final = frozenset({"pid", "creator_pid"})
_BOUNDS: Final = {"netns_inode": kernel.INODES.stop - 1, **dict.fromkeys(_PIDS, PID_MAX)}
"""Greatest valid numbers, by field."""
_STATES: Final = frozenset(map(str, State))
_OWNERS: Final = {"netns_": "netns_inode", "creator_": "creator_pid"}
"""Columns that are set if the other columns with the same prefix may be set."""


class Shape:
    """Types and ranges that the values of a row must have.

    A reconcile checks thousands of rows, nearly all of them valid, so parts of valid rows are
    cached: the types of their values, and the combinations of their words (states, reasons, boot
    ids), which recur in most rows. The rest are numbers and a path, whose ranges are compared each
    time.
    """

    def __init__(self, hints: Mapping[str, Any]) -> None:
        """Prepare for rows with these fields and types, in the order of the values."""
        self._fields: Final = tuple(hints)
        self._allowed: Final = [get_args(hint) or (hint,) for hint in hints.values()]
        self._words_of: Final = _values_at(n for n, name in enumerate(hints) if _is_word(name))
        self._path: Final = self._fields.index("netns_path") if "netns_path" in hints else None
        self._types: Final[dict[tuple[type, ...], _Numbers]] = {}
        """Types of valid rows, with the numbers in such a row."""
        self._words: Final[set[tuple[object, ...]]] = set()
        """Combinations of words of valid rows."""

    def mistyped(self, row: Sequence[Any]) -> str:
        """Return the values of *row* that are missing or have a wrong type, as text; "" if none."""
        types = tuple(map(type, row))
        if types in self._types:
            return ""
        values = dict(zip(self._fields, row, strict=True))
        mistakes = [*self._mistakes(types), *_without_owner(values)]
        if not mistakes:
            self._types[types] = _Numbers.of(values)
        return "; ".join(mistakes)

    def damage(self, row: Sequence[Any]) -> str:
        """Return the contradictions of *row* to the schema, also in ranges; "" if there is none."""
        if self._is_valid(row):
            return ""
        damage = self.mistyped(row)
        damage = damage or "; ".join(_out_of_range(dict(zip(self._fields, row, strict=True))))
        if not damage:
            if len(self._words) >= WORDS_MAX:
                self._words.clear()
            self._words.add(self._words_of(row))
        return damage

    def are_sound(self, rows: Sequence[Sequence[Any]]) -> bool:
        """Return whether no row is damaged: column by column, as a list has thousands of rows."""
        columns = zip(self._fields, self._allowed, zip(*rows, strict=True), strict=False)
        for field, allowed, column in columns:
            tests = [test for covers, test, _ in _RANGES if covers(field)]
            values = set(column) if tests else set[object]()
            if not set(map(type, column)).issubset(allowed):
                return False
            if not all(test(value) for test in tests for value in values - {None}):
                return False
        return True

    def _is_valid(self, row: Sequence[Any]) -> bool:
        """Return whether *row* is valid, as far as the cache can tell."""
        numbers = self._types.get(tuple(map(type, row)))
        return (
            numbers is not None
            and self._words_of(row) in self._words
            and min(numbers.values(row)) >= 0
            and all(map(le, numbers.bounded(row), numbers.bounds))
            and (self._path is None or _is_path(row[self._path]))
        )

    def _mistakes(self, types: Sequence[type]) -> Iterator[str]:
        for field, found, allowed in zip(self._fields, types, self._allowed, strict=True):
            if found not in allowed:
                expected = " or ".join(_TYPES[each] for each in allowed)
                yield f"{field} is {_TYPES[found]}, not {expected}"


class _Numbers(NamedTuple):
    """The numbers in rows whose values have the same types."""

    values: Callable[[Sequence[Any]], tuple[Any, ...]]
    bounded: Callable[[Sequence[Any]], tuple[Any, ...]]
    """Returns the numbers with a bound below the 64 bits of SQLite."""
    bounds: tuple[int, ...]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> _Numbers:
        """Return the numbers of a row with *values* of these types, without NULL."""
        fields = enumerate(values.items())
        found = {n: name for n, (name, value) in fields if value is not None and _is_number(name)}
        bounded = {n: _BOUNDS[name] for n, name in found.items() if name in _BOUNDS}
        return cls(_values_at(found), _values_at(bounded), tuple(bounded.values()))


def _values_at(positions: Iterable[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Return a function that returns the values of a row at *positions*; (0,) for no positions.

    `min` of the result then needs no default, which would double its time.
    """
    several = tuple(positions)
    if len(several) > 1:
        return itemgetter(*several)
    # Of one position, itemgetter returns no tuple.
    return lambda row: tuple(row[n] for n in several) or (0,)


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


def _is_number(field: str) -> bool:
    """Return whether *field* holds a pid, or a number that identifies something in the kernel."""
    is_text = field.endswith(("boot_id", "path", "label"))
    return field == "pid" or (field.startswith(("netns_", "process_", "creator_")) and not is_text)


def _is_word(field: str) -> bool:
    """Return whether *field* holds one of few texts or numbers, which recur in many rows."""
    return field in {"state", "reason", "host_network"} or field.endswith("boot_id")


def _is_path(text: str) -> bool:
    """Return whether *text* is "" or can be an absolute path."""
    return text == "" or (text[0] == "/" and "\0" not in text)


_RANGES: Final[tuple[tuple[Callable[[str], bool], Callable[[Any], object], str], ...]] = (
    ("state".__eq__, _STATES.__contains__, "a sandbox state"),
    ("reason".__eq__, is_reason, "a CamelCase word"),
    ("host_network".__eq__, {0, 1}.__contains__, "0 or 1"),
    ("netns_path".__eq__, _is_path, "an absolute path"),
    (lambda field: field.endswith("boot_id"), context.UUID.fullmatch, "a boot id"),
    (_PIDS.__contains__, range(PID_MAX + 1).__contains__, "a pid"),
    ("netns_inode".__eq__, kernel.INODES.stop.__gt__, "an inode of a namespace"),
    (_is_number, lambda number: number >= 0, "a positive number"),
)
"""Fields, the test of a value of the right type, and the text about it for messages."""
