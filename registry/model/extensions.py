"""Extensions: data of the embedding program that is stored with a sandbox, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from registry.errors import InvalidArgumentError, ResourceExhaustedError
from registry.model.validation import check_line, invalid

NAME_MAX: Final = 256
"""Characters in the name of an extension."""
TYPE_URL_MAX: Final = 1024
"""Characters in a type URL."""
VALUE_MAX: Final = 256 * 1024
"""Bytes of a value."""
COUNT_MAX: Final = 64
"""Extensions of one sandbox."""


class TypedBytes(Protocol):
    """Bytes and the URL of their type: an `Extension`, or protobuf's `Any`."""

    @property
    def type_url(self) -> str:
        """URL of the type of the value; "" for bytes without a type."""

    @property
    def value(self) -> bytes:
        """The encoded value."""


@dataclass(frozen=True, slots=True)
class Extension:
    """Typed bytes, with the fields of protobuf's `Any`; the store does not interpret them.

    Source: containerd core/sandbox/store.go, Sandbox.Extensions.
    """

    type_url: str
    """URL of the type of *value*, as in protobuf's `Any`; "" for bytes without a type."""
    value: bytes
    """At most 256 KiB."""


ExtensionsFunc = Callable[[Mapping[str, Extension]], Mapping[str, TypedBytes | bytes]]
"""Takes the latest extensions by name and returns those to store; raising changes nothing."""


def validate(extensions: object, doing: str) -> dict[str, Extension]:
    """Return *extensions* by name if all can be stored, and say what is wrong otherwise.

    Args:
        extensions: a mapping of names to `Extension`, protobuf's `Any`, or bytes.
        doing: operation and object; they begin the message.
    Raises:
        InvalidArgumentError: with `.field` and `.value`.
        ResourceExhaustedError: a value is over `VALUE_MAX` bytes.
    """
    if not isinstance(extensions, Mapping):
        raise invalid(doing, "extensions", extensions, "is not a mapping of names to values")
    if len(extensions) > COUNT_MAX:
        raise InvalidArgumentError(
            f"{doing}: extensions are {len(extensions)}, over the limit of {COUNT_MAX}; "
            "put several values into one",
            field="extensions",
            value=len(extensions),
        )
    return {name: _validated(doing, name, value) for name, value in extensions.items()}


def _validated(doing: str, name: object, given: object) -> Extension:
    """Return the extension *name* with the value that was *given*."""
    if check_line(doing, "extension name", name, NAME_MAX) == "":
        raise invalid(doing, "extension name", name, "is empty")
    field = f"extension {name!r}"
    if isinstance(given, bytes):
        type_url: object = ""
        value: object = given
    else:  # an Extension, protobuf's Any, or another message with its fields
        type_url, value = getattr(given, "type_url", None), getattr(given, "value", None)
    if not isinstance(type_url, str) or not isinstance(value, bytes):
        raise invalid(
            doing, field, given, "is neither a registry.Extension, nor protobuf's Any, nor bytes"
        )
    check_line(doing, f"{field} type_url", type_url, TYPE_URL_MAX)
    if len(value) > VALUE_MAX:
        raise ResourceExhaustedError(
            f"{doing}: {field} has {len(value)} bytes, over the limit of {VALUE_MAX}; "
            "store a reference instead",
            field=field,
            size=len(value),
            limit=VALUE_MAX,
        )
    return Extension(type_url, value)
