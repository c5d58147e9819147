"""Go's JSON of any message of the CRI, against itself and against protobuf's own JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.cri import gojson, sandbox_config_pb2
from registry.model.metadata import CONFIG_MAX

pytestmark = pytest.mark.property

MESSAGES = sandbox_config_pb2.DESCRIPTOR.message_types_by_name
WIDE = {FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64}
"""Integers that protobuf's JSON has as strings, and Go's as numbers."""
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_STRING: st.text(max_size=8),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_ENUM: st.integers(-(2**31), 2**31 - 1) | st.integers(0, 3),
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
}


def messages(kind: Descriptor, *, wide: bool = True) -> st.SearchStrategy[Message]:
    """Return any message of *kind*; without 64-bit integers unless *wide*."""
    fields = {
        field.name: values(field, wide=wide)
        for field in kind.fields
        if wide or field.cpp_type not in WIDE
    }
    chosen = st.fixed_dictionaries({}, optional=fields)
    return chosen.map(lambda found: GetMessageClass(kind)(**found))


def values(field: FieldDescriptor, *, wide: bool) -> st.SearchStrategy[Any]:
    """Return any value of *field*."""
    inside = field.message_type
    if inside is None:
        one = SCALARS[field.cpp_type]
    elif inside.GetOptions().map_entry:
        key, value = inside.fields
        return st.dictionaries(values(key, wide=wide), values(value, wide=wide), max_size=3)
    else:
        one = messages(inside, wide=wide)
    return st.lists(one, max_size=3) if field.is_repeated else one


some = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=60)


@pytest.mark.parametrize("name", MESSAGES)
@some
@given(st.data())
def test_any_message_comes_back_from_its_json(name: str, data: st.DataObject) -> None:
    """The same message, and the same bytes again."""
    message = data.draw(messages(MESSAGES[name]))
    text = gojson.marshal(message)
    read = gojson.unmarshal(type(message), text, CONFIG_MAX)
    assert message == read
    assert text == gojson.marshal(read)


@pytest.mark.parametrize("name", MESSAGES)
@some
@given(st.data())
def test_protobuf_reads_our_json_as_the_same_message(name: str, data: st.DataObject) -> None:
    """It takes numbers for enums and 64-bit integers as well."""
    message = data.draw(messages(MESSAGES[name]))
    assert message == json_format.Parse(gojson.marshal(message), type(message)())


@pytest.mark.parametrize("name", MESSAGES)
@some
@given(st.data())
def test_we_read_protobufs_json_as_the_same_message(name: str, data: st.DataObject) -> None:
    """Where it writes the same names and numbers; both have the same keys and values."""
    message = data.draw(messages(MESSAGES[name], wide=False))
    text = json_format.MessageToJson(
        message, preserving_proto_field_name=True, use_integers_for_enums=True
    )
    assert message == gojson.unmarshal(type(message), text.encode(), CONFIG_MAX)
    assert json.loads(text) == json.loads(gojson.marshal(message))


@pytest.mark.parametrize("name", MESSAGES)
def test_fields_are_written_in_the_order_of_their_declaration(name: str) -> None:
    """Not of their numbers, nor of the time at which they were set."""
    kind = MESSAGES[name]
    message = GetMessageClass(kind)()
    for field in reversed(kind.fields):
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, field.name)["k"] = "v"
        elif field.is_repeated:
            repeated = getattr(message, field.name)
            repeated.add() if field.message_type else repeated.append(
                field.default_value or _one(field)
            )
        elif field.message_type is not None:
            getattr(message, field.name).SetInParent()
        else:
            setattr(message, field.name, _one(field))
    assert [field.name for field in kind.fields] == list(json.loads(gojson.marshal(message)))


def _one(field: FieldDescriptor) -> Any:
    return "x" if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else 1
