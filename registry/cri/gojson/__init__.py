"""JSON as Go's encoding/json writes and reads it, for protobuf messages and other structs.

containerd stores its metadata in this JSON, which differs from protobuf's own JSON mapping
(`google.protobuf.json_format`): it has proto names in the order of declaration, enums and 64-bit
integers as numbers, and Go's escapes. Reading never gives another result than Go's. A result of Go
that a protobuf message cannot hold is refused.

scan        scanner of JSON text, to the depth that Go accepts
shapes      types of Go, into which values are read
messages    protobuf messages as such types, by their descriptors
write       writer of values as text
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

from registry.cri.gojson.messages import dump, shape_of
from registry.cri.gojson.shapes import read
from registry.cri.gojson.write import quote, write

__all__ = ["dump", "marshal", "quote", "read", "shape_of", "unmarshal", "write"]

M = TypeVar("M", bound=Message)


def marshal(message: Message) -> bytes:
    """Return *message* as Go writes it."""
    return write(dump(message))


def unmarshal(kind: type[M], data: bytes, limit: int) -> M:
    """Return the message of *kind* that Go reads from *data*; null gives an empty message.

    Args:
        kind: class of the message.
        data: a JSON object.
        limit: bytes that the message may take.
    Raises:
        MetadataError: Go refuses *data*, it is too large, or no message can hold Go's result.
    """
    return kind(**(read(shape_of(kind.DESCRIPTOR), data, limit) or {}))
