"""Filters of a list, as a caller gives them: checked, and turned into parameters of `queries`."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from registry.model.status import State
from registry.model.validation import check_text, invalid
from registry.sync.imports import late_import

if TYPE_CHECKING:
    from registry.model.selector import Requirement


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
