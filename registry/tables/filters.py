"""Filters of a list, as a caller gives them: checked, and turned into parameters of `queries`."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

from registry.model.metadata import check_prefix
from registry.model.status import State
from registry.model.validation import check_integer, check_text, invalid
from registry.sync.imports import late_import
from registry.tables import queries

if TYPE_CHECKING:
    from registry.model.selector import Requirement

LISTING: Final = "list sandboxes"
"""The operation, for messages."""


def list_query(
    *,
    include_unknown: bool = False,
    id: str | None = None,
    state: State | Collection[State] | None = None,
    labels: Mapping[str, str] | None = None,
    selector: str | None = None,
    since: int | None = None,
    newest_first: bool = False,
    limit: int | None = None,
    summaries: tuple[str, ...] = (),
    **texts: str | None,
) -> tuple[str, dict[str, object]]:
    """Return the SQL of a list and its parameters; the filters are those of `Store.list`.

    Args:
        since: time in ns since the Unix epoch; leave out each sandbox whose state began before.
        summaries: fields of `Summary` that a row has, instead of those of a `Row`.
        texts: exact values of columns, by the name of the filter; None is no filter.
    Raises:
        InvalidArgumentError: a filter is of no use, see `Store.list`.
    """
    doing = LISTING
    given = {name: value for name, value in texts.items() if value is not None}
    params: dict[str, object] = {
        name: check_text(doing, name, value, sys.maxsize) for name, value in given.items()
    }
    named = set(params)
    if state is not None:
        params |= state_params(doing, state)
        named.add("state")
    if id is not None:
        params |= queries.prefix_params(check_prefix(doing, id))
        named.add("id")
    if since is not None:
        params["since"] = since
        named.add("since")
    if not include_unknown:
        named.add("hide_unknown")
    required = requirements(doing, labels, selector)
    params |= queries.requirement_params(required)
    if limit is not None:
        params["limit"] = check_integer(doing, "limit", limit, 1, 2**63 - 1)
    query = queries.list_sandboxes(
        frozenset(named),
        tuple([(each.operator, len(each.values)) for each in required]),
        newest_first=bool(newest_first),
        limited=limit is not None,
        summaries=summaries,
    )
    return query, params


def state_params(doing: str, state: object) -> dict[str, object]:
    """Return the parameters of the filter by *state*, one State or several.

    Raises:
        InvalidArgumentError: it is neither.
    """
    states = (state,) if isinstance(state, State) or not isinstance(state, Collection) else state
    for each in states:
        if not isinstance(each, State):
            raise invalid(doing, "state", state, "is neither a registry.State nor several of them")
    texts = sorted({str(each) for each in states})
    # A value that no state has stands in for those that are left out.
    return {f"state{n}": text for n, text in enumerate([*texts, "", "", ""][: len(State)])}


def requirements(
    doing: str, labels: Mapping[str, str] | None, selector: str | None
) -> tuple[Requirement, ...]:
    """Return the requirements of *labels*, which may be any text, and of *selector*.

    SQLite begins with the first one that leads to sandboxes, so those that few are likely to meet
    stand first; of two of one kind the one that the caller gave first.

    Raises:
        InvalidArgumentError: one of both cannot be read, or they are too many for one query.
    """
    if labels is not None and not isinstance(labels, Mapping):
        raise invalid(doing, "labels", labels, "is not a mapping")
    if not labels and selector is None:
        return ()
    with late_import("registry.model.selector"):
        from registry.model import selector as selectors  # noqa: PLC0415 - few lists have any

    found = []
    for label in (labels or {}).items():
        key, value = (check_text(doing, "labels", each, sys.maxsize) for each in label)
        found.append(selectors.Requirement(key, selectors.Operator.IN, (value,)))
    found += () if selector is None else selectors.parse(selector, doing)
    order = list(selectors.Operator)
    found.sort(key=lambda each: (order.index(each.operator), len(each.values)))
    return selectors.check_size(tuple(found), doing)
