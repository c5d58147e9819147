"""Compare lists by a selector, which SQL evaluates, with an evaluation in Python."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from registry import State, Status, Store
from registry.cri import PodSandboxConfig
from registry.model import selector as selectors
from registry.model.selector import Operator, Requirement
from registry.tables import queries
from tests.tools import ids, sandbox

pytestmark = pytest.mark.property

PLAIN_KEYS = ("app", "in", "notin", "tier", "a.b-c/D_e", "key0")
HOSTILE_KEYS = (
    "",
    " ",
    "%",
    "_",
    "'",
    '"',
    "app=web",
    "!app",
    "a in (b)",
    "\u00e9",
    ":key0",
    "{n}",
)
NUMBERS = ("5", "05", "0", "10", str(2**63 - 1), str(2**63 - 2))
PLAIN_VALUES = ("", "web", "in", "App", "a_b", *NUMBERS)
HOSTILE_VALUES = (
    *("-5", "+5", "-0", "+", "-", "+-5", "--5", "5-", "1.5", "5x", " 5", "1_0", "0x5", "\u0665"),
    *(str(2**63), str(-(2**63)), str(-(2**63) - 1), "9" * 30, "0" * 30 + "7", "-" + "0" * 30),
    *("%", "_", "'", '"', "web' OR '1'='1", "\u00e9", "e\u0301", "WEB", "web ", "\U0001f600"),
)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4)
KEYS = st.sampled_from(PLAIN_KEYS) | st.sampled_from(HOSTILE_KEYS) | TEXT
VALUES = st.sampled_from(PLAIN_VALUES) | st.sampled_from(HOSTILE_VALUES) | TEXT
LABELS = st.dictionaries(KEYS, VALUES, max_size=5)
SETS = {Operator.IN, Operator.NOT_IN}
ORDERS = {Operator.GREATER, Operator.LESS}


@st.composite
def requirements(
    draw: st.DrawFn, keys: st.SearchStrategy[str], values: st.SearchStrategy[str]
) -> Requirement:
    """Draw a requirement on a label of *keys*."""
    operator, count = draw(st.sampled_from(Operator)), 0
    if operator in ORDERS:
        values, count = st.sampled_from(NUMBERS), 1
    elif operator in SETS:
        count = 4
    found = draw(st.sets(values, min_size=min(count, 1), max_size=count))
    return Requirement(draw(keys), operator, tuple(sorted(found)))


def integer(text: str) -> int | None:
    """Return the integer of 64 bits that *text* is, as Go's ParseInt reads it; None for another."""
    number = int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else 2**63
    return number if -(2**63) <= number < 2**63 else None


def meets(labels: Mapping[str, str], requirement: Requirement) -> bool:
    """Return whether *labels* meet *requirement*, as Requirement.Matches of Kubernetes decides."""
    key, operator, values = requirement
    value = labels.get(key)
    if operator is Operator.EXISTS:
        return value is not None
    if operator is Operator.ABSENT:
        return value is None
    if operator is Operator.IN:
        return value is not None and value in values
    if operator is Operator.NOT_IN:
        return value is None or value not in values
    number = None if value is None else integer(value)
    if number is None:
        return False
    return number > int(values[0]) if operator is Operator.GREATER else number < int(values[0])


def text_of(requirement: Requirement, space: str) -> str:
    """Return *requirement* as text, with *space* between its tokens."""
    key, operator, values = requirement
    if operator is Operator.EXISTS:
        return f"{space}{key}{space}"
    if operator is Operator.ABSENT:
        return f"!{space}{key}"
    if operator in ORDERS:
        return f"{key}{space}{'>' if operator is Operator.GREATER else '<'}{space}{values[0]}"
    if len(values) == 1:
        return f"{key}{space}{'=' if operator is Operator.IN else '!='}{space}{values[0]}"
    return f"{key} {operator}{space}({f'{space},{space}'.join(values)}{space})"


class TakenBackError(Exception):
    """Ends a transaction that is to be rolled back."""


def add_all(store: Store, labels: Sequence[Mapping[str, str]]) -> dict[str, Mapping[str, str]]:
    """Add a sandbox for each of *labels*, and return them by id, in the order of a list."""
    found = {f"s{n}": each for n, each in enumerate(labels)}
    for n, (id, each) in enumerate(found.items(), 1):
        config = PodSandboxConfig(labels=each)
        store.add(sandbox(id, config=config), Status(State.READY, created_at=n))
    return found


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    labels=st.lists(LABELS, max_size=6),
    wanted=st.lists(requirements(KEYS, VALUES), max_size=4),
)
def test_requirements_in_sql_equal_an_evaluation_in_python(
    store: Store, labels: list[dict[str, str]], wanted: list[Requirement]
) -> None:
    """Keys and values are any text: quotes, wildcards, selectors, numbers out of range."""
    with pytest.raises(TakenBackError), store.transaction():
        expected = [
            id
            for id, each in add_all(store, labels).items()
            if all(meets(each, requirement) for requirement in wanted)
        ]
        shapes = tuple((each.operator, len(each.values)) for each in wanted)
        query = queries.list_sandboxes(frozenset(), shapes)
        params = queries.requirement_params(wanted)
        found = store._session.list(query, params, "list", by_state=False)
        assert expected == [each.row.id for each in found]
        raise TakenBackError


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    labels=st.lists(LABELS, max_size=6),
    wanted=st.lists(
        requirements(st.sampled_from(PLAIN_KEYS), st.sampled_from(PLAIN_VALUES)), max_size=4
    ),
    space=st.sampled_from(["", " ", "\t\r\n "]),
    options=st.fixed_dictionaries(
        {}, optional={"newest_first": st.booleans(), "limit": st.integers(1, 7)}
    ),
)
def test_list_by_selector_equals_an_evaluation_in_python(
    store: Store,
    labels: list[dict[str, str]],
    wanted: list[Requirement],
    space: str,
    options: dict[str, Any],
) -> None:
    """The selector as text, in either order, with and without a limit."""
    text = ",".join(text_of(each, space) for each in wanted)
    assert tuple(dict.fromkeys(wanted)) == selectors.parse(text, "list")
    with pytest.raises(TakenBackError), store.transaction():
        expected = [
            id
            for id, each in add_all(store, labels).items()
            if all(meets(each, requirement) for requirement in wanted)
        ]
        expected = expected[::-1] if options.get("newest_first") else expected
        found = store.list(selector=text, **options)
        assert expected[: options.get("limit")] == ids(found)
        raise TakenBackError
