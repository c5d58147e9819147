"""Types of Go, as encoding/json reads values into them.

A shape reads one value from a `Scan` into the old value, which an earlier key of the same name
gave. Structs and maps become dicts, and slices lists. A nil pointer, map or slice becomes None.

The shapes follow these rules of encoding/json (Go 1.19, decode.go):

1. A repeated object merges with the old one, and a repeated scalar replaces it. An array reads each
   element into the old element at the same index, also into one that a shorter array has cut off.
2. null does not change a scalar or a struct, and makes a pointer, map or slice nil.
3. An unknown key is skipped. A key matches a field also if it differs in case, or has U+017F for s
   or U+212A for k.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from registry.cri.gojson.scan import SHOWN, Scan

_FOLDED: Final = {
    **{upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)},
    0x017F: ord("s"),
    0x212A: ord("k"),
}


class Shape(ABC):
    """Type of Go: the kind of JSON value that it accepts, and the resulting value."""

    kind: ClassVar[str]
    """Kind of JSON value that the type accepts."""
    name: str
    """Accepted values, for messages."""
    size: ClassVar[int] = 1
    """Minimum bytes of a value in a protobuf message that repeats it."""

    @abstractmethod
    def zero(self) -> Any:
        """Return the zero value of the type."""

    def read(self, scan: Scan, old: Any) -> Any:
        """Read the next value into *old*, and return the result."""
        kind = scan.kind()
        if kind == self.kind:
            return self.take(scan, old)
        if kind == "null":
            new = self.null(scan, old)
            scan.skip()
            return new
        scan.mismatch(kind, self.name)
        return old

    @abstractmethod
    def take(self, scan: Scan, old: Any) -> Any:
        """Read a value of the accepted kind into *old*, and return the result."""

    def null(self, scan: Scan, old: Any) -> Any:  # noqa: ARG002 - an element complains
        """Return the result of reading null into *old*."""
        return old


class String(Shape):
    """`string`."""

    kind, name, size = "string", "a string", 2

    def zero(self) -> str:
        """Return the empty string."""
        return ""

    def take(self, scan: Scan, old: str) -> str:  # noqa: ARG002
        """Read a string."""
        return scan.string()


TEXT: Final = String()


class Written(String):
    """A type that is written as a string (encoding.TextUnmarshaler)."""

    def __init__(self, name: str, parse: Callable[[str], str], null: str | None) -> None:
        """Accept the strings that *parse* accepts.

        Args:
            name: accepted values, for messages.
            parse: returns the value of a string, or raises ValueError.
            null: result of reading null; None: null is refused.
        """
        self.name = name
        self._parse: Final = parse
        self._null: Final = null

    def take(self, scan: Scan, old: str) -> str:
        """Read a string, and return its value."""
        text = scan.string()
        try:
            return self._parse(text)
        except ValueError:
            scan.complain(f"string {text[:SHOWN]!r} is not {self.name}", text)
            return old

    def null(self, scan: Scan, old: str) -> str:
        """Return the result that `__init__` was given."""
        if self._null is None:
            scan.complain(f"null is not {self.name}")
            return old
        return self._null


class Bool(Shape):
    """`bool`."""

    kind, name = "bool", "a bool"

    def zero(self) -> bool:
        """Return False."""
        return False

    def take(self, scan: Scan, old: object) -> bool:  # noqa: ARG002
        """Read a bool."""
        return scan.scalar("bool") is True


class Integer(Shape):
    """Signed or unsigned integer, or an enum, which is an integer in Go."""

    kind = "number"

    def __init__(self, name: str, low: int, high: int) -> None:
        """Accept integers from *low* to *high*, written without a fraction and an exponent."""
        self.name = name
        self._low: Final = low
        self._high: Final = high

    def zero(self) -> int:
        """Return 0."""
        return 0

    def take(self, scan: Scan, old: int) -> int:
        """Read an integer."""
        literal = str(scan.scalar("number"))
        digits = literal.removeprefix("-")
        # Go's parser of unsigned integers accepts no sign: -0 is refused too.
        signed = self._low < 0 or digits == literal
        if signed and digits.isdecimal() and len(digits) <= len(str(self._high)):
            value = int(literal)
            if self._low <= value <= self._high:
                return value
        scan.complain(f"number {literal[:SHOWN]} is not {self.name}", literal)
        return old


class Slice(Shape):
    """`[]T`."""

    kind, name = "array", "an array"

    def __init__(self, element: Shape) -> None:
        """Accept arrays of elements of one shape."""
        self._element: Final = element

    def zero(self) -> None:
        """Return nil."""

    def null(self, scan: Scan, old: Any) -> None:
        """Return nil."""

    def take(self, scan: Scan, old: _Elements | None) -> _Elements:
        """Read an array, each element into the old one at its index."""
        element = self._element
        room = [] if old is None else old + old.behind
        count = 0
        for index in scan.elements():
            scan.spend(element.size)
            if index == len(room):
                room.append(element.zero())
            room[index] = element.read(scan, room[index])
            count = index + 1
        return _Elements(room[:count], room[count:] if count else [])


class _Elements(list[Any]):
    """Elements of a slice, and elements that a shorter array has cut off (*behind*)."""

    def __init__(self, elements: list[Any], behind: list[Any]) -> None:
        super().__init__(elements)
        self.behind: Final = behind


class Map(Shape):
    """`map[string]T`."""

    kind, name = "object", "an object"

    def __init__(self, value: Shape) -> None:
        """Accept objects whose values have one shape."""
        self._value: Final = value

    def zero(self) -> None:
        """Return nil."""

    def null(self, scan: Scan, old: Any) -> None:
        """Return nil."""

    def take(self, scan: Scan, old: dict[str, Any] | None) -> dict[str, Any]:
        """Read an object into the old map; a repeated key replaces its value."""
        new = {} if old is None else old
        for key in scan.members():
            scan.spend(_ENTRY)
            new[key] = self._value.read(scan, self._value.zero())
        return new


_ENTRY: Final = 4
"""Minimum bytes of an entry of a map in a protobuf message, if few have the same key."""


class Struct(Shape):
    """Struct by value."""

    kind, name, size = "object", "an object", 2

    def __init__(self, fields: Callable[[], Mapping[str, Shape]]) -> None:
        """Accept objects with the fields that *fields* returns.

        *fields* is called at the first read, since a message may contain itself.
        """
        self._build: Final = fields
        self._fields: Mapping[str, Shape] = {}
        self._folded: Mapping[str, str] = {}

    def zero(self) -> dict[str, Any] | None:
        """Return a struct without any field set."""
        return {}

    def take(self, scan: Scan, old: dict[str, Any] | None) -> dict[str, Any]:
        """Read an object into the old struct."""
        if not self._folded:
            self._fields = self._build()
            self._folded = {name.translate(_FOLDED): name for name in self._fields}
        new = {} if old is None else old
        for key in scan.members():
            name = key if key in self._fields else self._folded.get(key.translate(_FOLDED))
            if name is None:
                scan.skip()
            else:
                shape = self._fields[name]
                before = new[name] if name in new else shape.zero()
                new[name] = shape.read(scan, before)
        return new


class Pointer(Struct):
    """`*T` of a struct."""

    def zero(self) -> None:
        """Return nil."""

    def null(self, scan: Scan, old: Any) -> None:
        """Return nil."""


class Element(Pointer):
    """Message that is an element of a list or a map: protobuf has no nil there."""

    def null(self, scan: Scan, old: Any) -> None:  # noqa: ARG002
        """Record an error: Go continues with a nil, which it could never send."""
        scan.complain("null is not an object")


class Fresh(Pointer):
    """Struct with a json.Unmarshaler, which replaces the old struct."""

    def take(self, scan: Scan, old: Any) -> dict[str, Any]:  # noqa: ARG002
        """Read an object into a new struct."""
        return super().take(scan, None)


def read(shape: Shape, data: bytes, limit: int) -> Any:
    """Return the value of *shape* that Go reads from the JSON text *data*.

    Args:
        shape: type of the value.
        data: JSON text.
        limit: bytes that the value may take in a protobuf message.
    Raises:
        MetadataError: *data* is not JSON, a value has another type, or the value is over the limit.
    """
    scan = Scan(data, limit)
    value = shape.read(scan, shape.zero())
    scan.end()
    return value
