"""Extensions as JSON: whole for an import, and decoded for people."""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any

from registry.errors import MetadataError
from registry.model.extensions import Extension
from registry.sync.interrupts import reraise_interrupt


def dump(extensions: Mapping[str, Extension]) -> dict[str, dict[str, str]]:
    """Return *extensions* as JSON values by name: the type URL, and the value in base64."""
    return {name: _encoded(extension) for name, extension in extensions.items()}


def _encoded(extension: Extension) -> dict[str, str]:
    value = binascii.b2a_base64(extension.value, newline=False).decode()
    return {"type_url": extension.type_url, "value": value}


def load(encoded: object) -> dict[str, Extension]:
    """Return the extensions that `dump` has made into *encoded*; they are not validated here.

    Raises:
        MetadataError: *encoded* has another layout.
    """
    if not isinstance(encoded, dict):
        raise MetadataError("extensions: not an object of extensions by name", value=encoded)
    return {name: _decoded(name, fields) for name, fields in encoded.items()}


def _decoded(name: str, fields: object) -> Extension:
    if not isinstance(fields, dict) or set(fields) != {"type_url", "value"}:
        message = f"extensions: {name!r} is not an object with type_url and value"
        raise MetadataError(message, value=fields)
    try:
        return Extension(fields["type_url"], binascii.a2b_base64(fields["value"], strict_mode=True))
    except (TypeError, ValueError) as error:
        message = f"extensions: the value of {name!r} is not base64: {error}"
        raise MetadataError(message, value=fields) from error


def decode(extension: Extension) -> dict[str, Any]:
    """Return *extension* as protobuf's JSON of an `Any`, or as in `dump` if its type is unknown.

    Known are the messages of `registry.cri` and the well-known types of protobuf.
    """
    if not extension.type_url:
        return _encoded(extension)
    # 60 ms that only a typed extension needs. The modules register their types when imported.
    from google.protobuf import (  # noqa: PLC0415
        any_pb2,
        duration_pb2,  # noqa: F401
        empty_pb2,  # noqa: F401
        json_format,
        struct_pb2,  # noqa: F401
        timestamp_pb2,  # noqa: F401
        wrappers_pb2,  # noqa: F401
    )

    from registry.cri import sandbox_config_pb2  # noqa: F401, PLC0415

    message = any_pb2.Any(type_url=extension.type_url, value=extension.value)
    try:
        found: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    except Exception as error:  # noqa: BLE001 - each decoder has errors of its own
        reraise_interrupt(error)
        return _encoded(extension)
    return found
