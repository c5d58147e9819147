"""SQL with variable parts, joined from the generated parts in `sql`; never from values."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Final

from registry.tables import sql

if TYPE_CHECKING:
    from registry.model.selector import Requirement

ID_BYTES_MAX: Final = 4 * 76
"""Bytes of the longest id in UTF-8."""
QUERIES_MAX: Final = 128
"""Lists whose SQL is kept; selectors may be of any number of shapes."""


@cache
def update_status(columns: frozenset[str]) -> str:
    """Return the SQL that writes *columns* of the status of `:of`.

    Pass only columns that change: each column costs the update of its index and its triggers.
    """
    assignments = (text for name, text in sql.ASSIGNMENTS.items() if name in columns)
    return sql.UPDATE_STATUS.format(assignments=", ".join(assignments))


@lru_cache(QUERIES_MAX)
def list_sandboxes(
    filters: frozenset[str],
    requirements: tuple[tuple[str, int], ...] = (),
    *,
    newest_first: bool = False,
    limited: bool = False,
    summaries: tuple[str, ...] = (),
) -> str:
    """Return the SQL that lists the sandboxes which match all of *filters*.

    The parameters have the names of the filters, except that `prefix` and `end` belong to `id`, and
    `state0`, `state1` and `state2` to `state`; `requirement_params` returns those of
    *requirements*, and `limit` is the parameter of a *limited* list.

    Args:
        filters: names of `sql.LIST_FILTERS`.
        requirements: operator and number of values of each requirement.
        newest_first: whether the order is reversed.
        limited: whether the number of sandboxes is limited.
        summaries: fields of `Summary` that a row has, instead of those of a `Row`.
    """
    conditions = [text for name, text in sql.LIST_FILTERS.items() if name in filters]
    for n, (operator, count) in enumerate(requirements):
        values = ", ".join([f":value{n}_{m}" for m in range(count)])
        conditions.append(sql.LIST_REQUIREMENTS[operator].format(n=n, values=values))
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    order = sql.LIST_NEWEST_FIRST if newest_first else sql.LIST_ORDER
    columns = ", ".join([sql.SUMMARY_COLUMNS[name] for name in summaries])
    head = sql.SUMMARIES.format(columns=columns) if summaries else sql.LIST
    return head + where + order + (sql.LIMIT if limited else "")


def of_one(query: str) -> str:
    """Return the list *query*, limited to the sandbox `:creation`."""
    condition = query.removeprefix(sql.LIST).partition(" ORDER BY ")[0]
    return f"{sql.LIST}{condition}{' AND ' if condition else ' WHERE '}{sql.LIST_ONE}"


@cache
def history(filters: frozenset[str], *, newest_first: bool = False) -> str:
    """Return the SQL of the transitions after `:after`.

    Args:
        filters: names of `sql.HISTORY_FILTERS`, each of which is a parameter, and up to `limit`.
        newest_first: whether the order is reversed.
    """
    conditions = [text for name, text in sql.HISTORY_FILTERS.items() if name in filters]
    order = sql.HISTORY_NEWEST_FIRST if newest_first else sql.HISTORY_ORDER
    limit = sql.LIMIT if "limit" in filters else ""
    return sql.HISTORY + "".join(conditions) + order + limit


def prefix_params(prefix: str) -> dict[str, object]:
    """Return the parameters of a look-up by *prefix*."""
    return {"prefix": prefix, "end": prefix.encode() + b"\xff" * ID_BYTES_MAX}


def requirement_params(requirements: Iterable[Requirement]) -> dict[str, object]:
    """Return the parameters of a list with *requirements*."""
    params: dict[str, object] = {}
    for n, (key, operator, values) in enumerate(requirements):
        params[f"key{n}"] = key
        is_number = operator in {"gt", "lt"}
        for m, value in enumerate(values):
            params[f"value{n}_{m}"] = int(value) if is_number else value
    return params
