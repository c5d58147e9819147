"""Protobuf messages to Go's JSON and back, driven by their descriptors.

Go writes the fields of a message in the order of their declaration, under their proto names, and
omits fields with their default value; an empty message that is set is `{}`. Enums and 64-bit
integers are numbers. Fields that the descriptor does not know are not written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from operator import itemgetter
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from registry.cri.gojson.shapes import (
    TEXT,
    Bool,
    Element,
    Integer,
    Map,
    Pointer,
    Shape,
    Slice,
)

_SCALARS: Final[Mapping[int, Shape]] = {
    FieldDescriptor.CPPTYPE_STRING: TEXT,
    FieldDescriptor.CPPTYPE_BOOL: Bool(),
    FieldDescriptor.CPPTYPE_INT32: Integer("an int32", -(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: Integer("an int64", -(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: Integer("a uint32", 0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: Integer("a uint64", 0, 2**64 - 1),
}


# Reading.


@cache
def shape_of(descriptor: Descriptor) -> Pointer:
    """Return the shape of a message that may be absent."""
    return Pointer(partial(_fields_of, descriptor))


@cache
def _element_of(descriptor: Descriptor) -> Element:
    return Element(partial(_fields_of, descriptor))


def _fields_of(descriptor: Descriptor) -> dict[str, Shape]:
    return {field.name: _field_shape(field) for field in descriptor.fields}


def _field_shape(field: FieldDescriptor) -> Shape:
    value = _map_value(field)
    if value is not None:
        return Map(_one(value, _element_of))
    return Slice(_one(field, _element_of)) if field.is_repeated else _one(field, shape_of)


def _one(field: FieldDescriptor, message: Callable[[Descriptor], Shape]) -> Shape:
    if field.message_type is not None:
        return message(field.message_type)
    if field.enum_type is not None:
        return Integer(f"a {field.enum_type.name}", -(2**31), 2**31 - 1)
    if field.type == FieldDescriptor.TYPE_BYTES or field.cpp_type not in _SCALARS:
        raise _unknown(field)
    return _SCALARS[field.cpp_type]


def _map_value(field: FieldDescriptor) -> FieldDescriptor | None:
    """Return the field of the values of a map; None if *field* is not a map."""
    entry = field.message_type
    if entry is None or not entry.GetOptions().map_entry:
        return None
    key, value = entry.fields_by_number[1], entry.fields_by_number[2]
    if key.type != FieldDescriptor.TYPE_STRING:
        raise _unknown(key)
    return value


def _unknown(field: FieldDescriptor) -> TypeError:
    return TypeError(f"{field.full_name}: how Go writes its type is not known here")


# Writing.

Dump = Callable[[Any], Any]


def dump(message: Message) -> dict[str, Any]:
    """Return the fields of *message* that Go writes, in Go's order, as input of `write`."""
    plan = _plan_of(message.DESCRIPTOR)
    found = [(*plan[field.number], value) for field, value in message.ListFields()]
    found.sort(key=itemgetter(0))
    return {name: dump_value(value) for _, name, dump_value, value in found}


@cache
def _plan_of(descriptor: Descriptor) -> dict[int, tuple[int, str, Dump]]:
    """Return the position, the name and the dump function of each field, by its number."""
    return {field.number: (field.index, field.name, _dump_of(field)) for field in descriptor.fields}


def _dump_of(field: FieldDescriptor) -> Dump:
    value = _map_value(field)
    if value is not None:
        return partial(_dump_map, _dump_of(value))
    one = dump if _one(field, shape_of).kind == "object" else _as_it_is
    return partial(_dump_repeated, one) if field.is_repeated else one


def _dump_map(one: Dump, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return *values* in the order of their keys in UTF-8, which is that of the code points."""
    return {key: one(values[key]) for key in sorted(values)}


def _dump_repeated(one: Dump, values: Iterable[Any]) -> list[Any]:
    return [one(value) for value in values]


def _as_it_is(value: Any) -> Any:
    return value
