"""JSON as Go's encoding/json writes and reads it, for protobuf messages and other structs.

containerd stores its metadata with it, and what it writes differs from protobuf's own JSON mapping
(`google.protobuf.json_format`): proto names in the order of declaration, enums and 64-bit integers
as bare numbers, Go's escapes. Reading follows one rule: never another result than Go's. What Go
would end up with and a protobuf message cannot hold is refused.

scan        the text: what is JSON, to any depth that Go takes
shapes      Go's types, as values are read into them
messages    protobuf messages as such types, by their descriptors
write       values as text
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
    """Return the message of *kind* that Go reads from *data*; null is an empty one.

    Args:
        kind: class of the message.
        data: a JSON object.
        limit: bytes that the message may take.
    Raises:
        MetadataError: Go refuses it, or it is too large, or no message can hold what Go reads.
    """
    return kind(**(read(shape_of(kind.DESCRIPTOR), data, limit) or {}))
