"""Exit codes, and errors as one line on stderr."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from registry.cli.output.streams import note
from registry.errors import (
    CompactedError,
    InvalidArgumentError,
    MetadataError,
    NetNSError,
    NotFoundError,
    RegistryError,
)
from registry.visible import visible

PROGRAM: Final = "sandbox-registry"

FINE, FOUND, USAGE, UNAVAILABLE = 0, 1, 2, 3
"""Exit codes; FOUND: the object of the question is missing or wrong."""
DAMAGED: Final = "registry.cli.damaged"
"""Key of click's `Context.meta`: the verb has shown what can be read of a damaged registry."""
INTERRUPTED: Final = 130
CLOSED_PIPE: Final = 141
"""Exit codes that a shell shows for a program ended by SIGINT, and by SIGPIPE."""

ADVICE: Final = {
    "open it with read_only=True": (
        "mount its file system writable; without that list, inspect, history, check, export and "
        "reconcile --dry-run work"
    ),
    "restore it with force=True": "give --force",
    "open it for writing with upgrade=True": f"`{PROGRAM} upgrade` brings it up to date",
}
"""Advice for operators, by the library's advice for programs, which it replaces in messages."""


def code_of(error: RegistryError) -> int:
    """Return the exit code for *error*."""
    if isinstance(error, NotFoundError):
        return FOUND if error.id or error.name else UNAVAILABLE
    if isinstance(error, (CompactedError, MetadataError, NetNSError)):
        return FOUND
    return USAGE if isinstance(error, InvalidArgumentError) else UNAVAILABLE


def complain(message: str, code: int) -> int:
    """Write *message* as one line on stderr, if there is a stderr, and return *code*."""
    for of_library, of_program in ADVICE.items():
        message = message.replace(of_library, of_program)
    note(f"{PROGRAM}: error: {visible(message)}", folds=True)
    return code


def complain_all(messages: Iterable[str]) -> int:
    """Write each of *messages* on stderr; return FOUND if there is one, else FINE."""
    return max([complain(message, FOUND) for message in messages], default=FINE)
