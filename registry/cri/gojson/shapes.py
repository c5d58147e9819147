"""Types of Go, as encoding/json reads values into them.

A shape reads one value from a `Scan`, on top of the value that an earlier key of the same name has
left. Structs become dicts, maps dicts, slices lists, nil pointers, maps and slices None.

Rules of encoding/json (Go 1.19, decode.go) that are kept:

1. Repeated objects merge, a repeated scalar replaces, and an array reads its elements on top of
   those that stood at their places; one that got shorter finds them again when it grows.
2. null leaves a scalar and a struct as they are, and makes a pointer, map or slice nil.
3. A key that is no field's is skipped. One that differs in case, or has U+017F for s or U+212A for
   k, is the field's all the same.
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
    """A type: which JSON it takes, and what becomes of it."""

    kind: ClassVar[str]
    """The kind of JSON value that it takes."""
    name: str
    """What it takes, for people."""
    size: ClassVar[int] = 1
    """Bytes that a value at least takes in a protobuf message that repeats it."""

    @abstractmethod
    def zero(self) -> Any:
        """Return its zero value."""

    def read(self, scan: Scan, old: Any) -> Any:
        """Read the value that comes, and return what becomes of *old*."""
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
        """Read a value of its kind."""

    def null(self, scan: Scan, old: Any) -> Any:  # noqa: ARG002 - an element complains
        """Return what a null makes of *old*."""
        return old


class String(Shape):
    """`string`."""

    kind, name, size = "string", "a string", 2

    def zero(self) -> str:
        """Return the empty one."""
        return ""

    def take(self, scan: Scan, old: str) -> str:  # noqa: ARG002
        """Read it."""
        return scan.string()


TEXT: Final = String()


class Written(String):
    """A type that is written as a string (encoding.TextUnmarshaler)."""

    def __init__(self, name: str, parse: Callable[[str], str], null: str | None) -> None:
        """Take what *parse* takes; *null* is what a null makes of it, None: it is refused."""
        self.name = name
        self._parse: Final = parse
        self._null: Final = null

    def take(self, scan: Scan, old: str) -> str:
        """Read it, and return what *parse* makes of it."""
        text = scan.string()
        try:
            return self._parse(text)
        except ValueError:
            scan.complain(f"string {text[:SHOWN]!r} is not {self.name}", text)
            return old

    def null(self, scan: Scan, old: str) -> str:
        """Return what was given for it."""
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
        """Read it."""
        return scan.scalar("bool") is True


class Integer(Shape):
    """A signed or unsigned integer, or an enum, which is one to Go."""

    kind = "number"

    def __init__(self, name: str, low: int, high: int) -> None:
        """Take integers from *low* to *high*, written without a fraction and an exponent."""
        self.name = name
        self._low: Final = low
        self._high: Final = high

    def zero(self) -> int:
        """Return 0."""
        return 0

    def take(self, scan: Scan, old: int) -> int:
        """Read it."""
        literal = str(scan.scalar("number"))
        digits = literal.removeprefix("-")
        # Go parses what is unsigned without looking for a sign: -0 is refused too.
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
        """Hold elements of one shape."""
        self._element: Final = element

    def zero(self) -> None:
        """Return nil."""

    def null(self, scan: Scan, old: Any) -> None:
        """Return nil."""

    def take(self, scan: Scan, old: _Elements | None) -> _Elements:
        """Read it, each element on top of the one at its place."""
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
    """The elements of a slice, and those that stand behind its end."""

    def __init__(self, elements: list[Any], behind: list[Any]) -> None:
        super().__init__(elements)
        self.behind: Final = behind


class Map(Shape):
    """`map[string]T`."""

    kind, name = "object", "an object"

    def __init__(self, value: Shape) -> None:
        """Hold values of one shape."""
        self._value: Final = value

    def zero(self) -> None:
        """Return nil."""

    def null(self, scan: Scan, old: Any) -> None:
        """Return nil."""

    def take(self, scan: Scan, old: dict[str, Any] | None) -> dict[str, Any]:
        """Read it into what is there; a value that is there is replaced, not merged."""
        new = {} if old is None else old
        for key in scan.members():
            scan.spend(_ENTRY)
            new[key] = self._value.read(scan, self._value.zero())
        return new


_ENTRY: Final = 4
"""Bytes of a map's entry in a protobuf message, at least, if few have the same key."""


class Struct(Shape):
    """A struct that stands where it is."""

    kind, name, size = "object", "an object", 2

    def __init__(self, fields: Callable[[], Mapping[str, Shape]]) -> None:
        """Have the fields that *fields* returns; asked late, as a message may contain itself."""
        self._build: Final = fields
        self._fields: Mapping[str, Shape] = {}
        self._folded: Mapping[str, str] = {}

    def zero(self) -> dict[str, Any] | None:
        """Return one in which nothing has been set."""
        return {}

    def take(self, scan: Scan, old: dict[str, Any] | None) -> dict[str, Any]:
        """Read it into what is there."""
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
    """A message that is repeated or in a map: protobuf has no nil there."""

    def null(self, scan: Scan, old: Any) -> None:  # noqa: ARG002
        """Complain: Go would go on with a nil that it could never send."""
        scan.complain("null is not an object")


class Fresh(Pointer):
    """A struct that reads itself (json.Unmarshaler): nothing of an earlier one is left."""

    def take(self, scan: Scan, old: Any) -> dict[str, Any]:  # noqa: ARG002
        """Read it as if nothing were there."""
        return super().take(scan, None)


def read(shape: Shape, data: bytes, limit: int) -> Any:
    """Return the value of *shape* that the JSON text *data* stands for.

    Args:
        shape: what it is read as.
        data: the text.
        limit: bytes that its value may take in a protobuf message.
    Raises:
        MetadataError: it is no JSON, or some value is of another type, or it is over the limit.
    """
    scan = Scan(data, limit)
    value = shape.read(scan, shape.zero())
    scan.end()
    return value
