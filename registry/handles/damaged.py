"""Session of a damaged registry, whose reads leave out what SQLite cannot read."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from typing import Any

from registry.errors import DataLossError
from registry.handles.cache import Entry
from registry.handles.session import Session
from registry.tables import queries, readable


class DamagedSession(Session):
    """Session that only reads; a read that meets damage is made row by row."""

    def find(self, prefix: str, doing: str) -> Entry | None:
        """Return the sandbox that *prefix* names, as `Session.find`.

        Raises:
            DataLossError: the look-up meets damage, and no one readable sandbox has the id.
        """
        try:
            return super().find(prefix, doing)
        except DataLossError:
            query = queries.list_sandboxes(frozenset({"id"}))
            found = self._readable(query, queries.prefix_params(prefix), doing)
            for entry in found:
                if entry.row.id == prefix or len(found) == 1:
                    return entry
            raise

    def list(
        self,
        sql: str,
        params: Mapping[str, object],
        doing: str,
        *,
        by_state: bool,  # noqa: ARG002 - nothing is cached
    ) -> tuple[Entry, ...]:
        """Return the readable sandboxes of a query, as `Session.list`.

        Damage may leave out a sandbox without an error of SQLite; a warning tells that, too.
        """
        self.require_open(doing)
        return self._readable(sql, params, doing)

    def _readable(self, sql: str, params: Mapping[str, object], doing: str) -> tuple[Entry, ...]:
        with self.engine.snapshot(doing) as connection:
            return tuple(self.entries(readable.sandboxes(connection, sql, params, doing)))

    def history(
        self, query: str, params: Mapping[str, Any], doing: str
    ) -> builtins.list[tuple[Any, ...]]:
        """Return the readable transitions of a query; what is no longer kept is not told."""
        with self.engine.snapshot(doing) as connection:
            return readable.transitions(connection, query, params, doing)
