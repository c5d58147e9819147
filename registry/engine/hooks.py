"""Hooks of the schema: where the engine asks the tables whether the file may be used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from registry.engine.driver import Connection, Fetch
    from registry.engine.transaction import Transaction


class SchemaHooks(NamedTuple):
    """Functions that know the schema; each raises a RegistryError to refuse."""

    inspect: Callable[[str], bool]
    """Called with the path before SQLite may change anything; raises if the file must not be
    changed. False: a rollback journal must be rolled back before the content can be inspected."""
    prepare: Callable[[Connection, str], None]
    """Called with the first connection and the path; creates or upgrades the schema."""
    admit: Callable[[Fetch, str, str], object]
    """Called with a function that queries, the operation and the path when the schema has changed;
    raises if the database may no longer be read."""
    guard: Callable[[Transaction], None]
    """Called in a write transaction before its first statement if another connection has committed
    since the last call; raises if the database may no longer be written."""
