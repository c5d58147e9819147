"""SQL with variable parts, joined from the generated parts in `sql`; never from values."""

from __future__ import annotations

from functools import cache
from typing import Final

from registry.tables import sql

ID_BYTES_MAX: Final = 4 * 76
"""Bytes of the longest id in UTF-8."""


@cache
def update_status(columns: frozenset[str]) -> str:
    """Return the SQL that writes *columns* of the status of `:of`.

    Pass only columns that change: each column costs the update of its index and its triggers.
    """
    assignments = (text for name, text in sql.ASSIGNMENTS.items() if name in columns)
    return sql.UPDATE_STATUS.format(assignments=", ".join(assignments))


@cache
def list_sandboxes(filters: frozenset[str], labels: int) -> str:
    """Return the SQL that lists the sandboxes which match all of *filters*.

    The parameters have the names of the filters; `prefix` and `end` belong to `id`, and `key0`,
    `value0`, ... to each of *labels* labels.
    """
    conditions = [text for name, text in sql.LIST_FILTERS.items() if name in filters]
    conditions += (sql.LIST_LABEL.format(n=n) for n in range(labels))
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return sql.LIST + where + sql.LIST_ORDER


@cache
def history(filters: frozenset[str]) -> str:
    """Return the SQL of the transitions after `:after`.

    *filters* may contain `id`, for the transitions of one sandbox, and `limit`, for their maximum.
    """
    of_id = sql.HISTORY_ID if "id" in filters else ""
    limit = sql.HISTORY_LIMIT if "limit" in filters else ""
    return sql.HISTORY + of_id + sql.HISTORY_ORDER + limit


def prefix_params(prefix: str) -> dict[str, object]:
    """Return the parameters of a look-up by *prefix*."""
    return {"prefix": prefix, "end": prefix.encode() + b"\xff" * ID_BYTES_MAX}
