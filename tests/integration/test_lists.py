"""Lists by selector, state, order and limit; look-up by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from registry import InvalidArgumentError, NotFoundError, State, Status, Store
from registry.model.selector import REQUIREMENTS_MAX, VALUES_MAX
from tests.tools import NOTREADY, READY, UNKNOWN, ids, pod, query, sandbox


@pytest.fixture
def three(store: Store) -> Store:
    """Return a store with sandboxes of three states, created in the order of their ids."""
    for n, (id, state, labels) in enumerate(
        [
            ("a", State.READY, {"app": "web", "tier": "front"}),
            ("b", State.NOTREADY, {"app": "db"}),
            ("c", State.READY, {}),
            ("d", State.UNKNOWN, {"app": "web", "canary": ""}),
        ],
        1,
    ):
        store.add(sandbox(id, config=pod(**labels)), Status(state, created_at=n))
    return store


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("", "abcd"),
        ("app=web", "ad"),
        ("app==web,tier", "a"),
        ("app!=web", "bc"),
        ("app in (web, db)", "abd"),
        ("app notin (web)", "bc"),
        ("!app", "c"),
        ("canary=", "d"),
        ("canary!=,app", "ab"),
        ("app=web,tier!=db,app in (web,x),!canary", "a"),
        ("app>1", ""),
    ],
)
def test_list_by_selector_returns_what_kubernetes_would_select(
    three: Store, selector: str, expected: str
) -> None:
    """A label that is absent meets `!=` and `notin`, and no other comparison."""
    assert [*expected] == ids(three.list(selector=selector, include_unknown=True))


def test_list_by_selector_ands_it_with_every_other_filter(three: Store) -> None:
    """With labels too, which may have the same key."""
    assert ["a"] == ids(three.list(selector="app=web"))
    assert ["b"] == ids(three.list(selector="app", state=State.NOTREADY))
    assert ["a"] == ids(three.list(selector="app", labels={"tier": "front"}))
    assert [] == three.list(selector="app=db", labels={"app": "web"})
    assert ["b"] == ids(three.list(selector="app", id="b", pod="web", namespace="default"))


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State.READY, "ac"),
        ([State.READY], "ac"),
        ({State.READY, State.NOTREADY}, "abc"),
        ((State.NOTREADY, State.NOTREADY), "b"),
        (frozenset(State), "abcd"),
        ([State.UNKNOWN], "d"),
        ([], ""),
    ],
    ids=str,
)
def test_list_by_states_returns_sandboxes_that_have_one_of_them(
    three: Store, state: Any, expected: str
) -> None:
    """One state or a collection; of no states there is no sandbox."""
    assert [*expected] == ids(three.list(state=state, include_unknown=True))
    hidden = three.list(state=state)
    assert [each for each in expected if each != "d"] == ids(hidden)


def test_newest_first_reverses_the_order_and_limit_takes_the_first(three: Store) -> None:
    """Of the sandboxes that match; ids break ties, and an unset created_at is the oldest."""
    three.add(sandbox("e"), Status(State.READY, created_at=3))
    three.add(sandbox("f"), Status(State.READY))
    assert [*"fabce"] == ids(three.list())
    assert [*"ecbaf"] == ids(three.list(newest_first=True))
    assert [*"fa"] == ids(three.list(limit=2))
    assert [*"ec"] == ids(three.list(limit=2, newest_first=True, state=State.READY))
    assert ["a"] == ids(three.list(limit=1, selector="app"))
    assert 5 == len(three.list(limit=2**63 - 1))


@pytest.mark.parametrize("limit", [0, -1, 2**63, True, 1.0, "1"], ids=repr)
def test_limit_below_1_or_of_another_type_is_refused(store: Store, limit: Any) -> None:
    """The error has the operand."""
    with pytest.raises(InvalidArgumentError) as caught:
        store.list(limit=limit)
    assert ("limit", limit) == (caught.value.field, caught.value.value)


@pytest.mark.parametrize("state", ["READY", 1, [1], [State.READY, None], {"READY"}, iter([])])
def test_state_that_is_neither_a_state_nor_several_is_refused(store: Store, state: Any) -> None:
    """A text of the CRI included: `State.parse` reads it."""
    with pytest.raises(InvalidArgumentError) as caught:
        store.list(state=state)
    assert ("state", state) == (caught.value.field, caught.value.value)


def test_selector_that_cannot_be_read_names_the_character(store: Store) -> None:
    """The message begins with the operation."""
    with pytest.raises(
        InvalidArgumentError, match=r"^list sandboxes: selector 'a in b' "
    ) as caught:
        store.list(selector="a in b")
    assert ("selector", "a in b", 6) == (
        caught.value.field,
        caught.value.value,
        caught.value.position,
    )


def test_largest_selector_is_evaluated_and_a_larger_one_is_refused(store: Store) -> None:
    """As many requirements of each kind, and as many values, as the limits allow."""
    store.add(sandbox("a", config=pod(**{f"k{n}": "1" for n in range(REQUIREMENTS_MAX)})), READY)
    for text in ("k{n}", "!x{n}", "k{n}=1", "x{n}!=1", "k{n}>0", "k{n} notin (2)"):
        most = [text.format(n=n) for n in range(REQUIREMENTS_MAX)]
        assert ["a"] == ids(store.list(selector=",".join(most)))
        with pytest.raises(InvalidArgumentError, match="257 requirements, over the limit of 256"):
            store.list(selector=",".join([*most, "other"]))
        with pytest.raises(InvalidArgumentError, match="over the limit"):
            store.list(selector=",".join(most), labels={"more": ""})
    each = VALUES_MAX // REQUIREMENTS_MAX
    values = ",".join(str(n) for n in range(each))
    most = [f"k{n} in ({values})" for n in range(REQUIREMENTS_MAX)]
    assert ["a"] == ids(store.list(selector=",".join(most)))
    most[0] = f"k0 in ({values},{each})"
    with pytest.raises(InvalidArgumentError, match="4097 values, over the limit of 4096"):
        store.list(selector=",".join(most))


def test_list_runs_one_query_whatever_it_finds(store: Store) -> None:
    """None for each sandbox or label."""
    for n in range(30):
        store.add(sandbox(f"s{n}", config=pod(app="web", n=str(n))), READY)
    store.list()
    found = []
    for limit in (1, 30):
        with queries(store) as noted:
            assert limit == len(store.list(selector="app", limit=limit))
        found.append([each.replace(f"LIMIT {limit}", "LIMIT") for each in noted])
    assert found[0] == found[1]
    assert 1 == sum("sandbox_labels" in each for each in noted)


def test_selector_is_answered_by_indexes(store: Store, path: str) -> None:
    """Of the labels by key and value, or of one sandbox: the table of labels is never scanned."""
    for selector in ("a=b", "a in (b,c)", "a", "!a", "a!=b", "a>1", "a,b=c,!d,e notin (f)"):
        sent: list[str] = []
        store._session.engine.fetch("SELECT 1", {}, "test")
        (connection,) = store._session.engine._readers._idle
        connection.set_trace_callback(sent.append)
        store.list(selector=selector)
        connection.set_trace_callback(None)
        (text,) = [each for each in sent if "sandbox_labels" in each]
        plan = [row[3] for row in query(path, f"EXPLAIN QUERY PLAN {text}")]
        steps = [step for step in plan if "sandbox_labels" in step]
        assert steps
        assert all(step.startswith("SEARCH sandbox_labels USING ") for step in steps), plan


def test_selector_begins_with_what_few_sandboxes_are_likely_to_meet(store: Store) -> None:
    """A label with one value, whatever its place: SQLite follows the order of the conditions."""
    sent = []
    for selector in ("!x,a,b in (1,2),c!=1,d=1", "d=1,b in (2,1),a,c!=1,!x"):
        with queries(store) as noted:
            store.list(selector=selector)
        sent += [each for each in noted if "sandbox_labels" in each]
    assert 2 == len(sent)
    assert sent[0] == sent[1]
    keys = [each.split("'")[1] for each in sent[0].split('"key" = ')[1:]]
    assert ["d", "b", "a", "c", "x"] == keys


@contextmanager
def queries(store: Store) -> Iterator[list[str]]:
    """Note the SQL of the connection that reads."""
    store._session._cache.invalidate()
    store._session.engine.fetch("SELECT 1", {}, "test")
    noted = list[str]()
    (connection,) = store._session.engine._readers._idle
    connection.set_trace_callback(noted.append)
    yield noted
    connection.set_trace_callback(None)


# The cache.


def test_cached_list_with_a_limit_follows_every_change(store: Store) -> None:
    """Of a state, of created_at, of labels, of which sandboxes there are."""
    a, b = (store.add(sandbox(id, config=pod(app="web")), READY) for id in "ab")
    c = store.add(sandbox("c", config=pod(app="db")), UNKNOWN)

    def lists() -> list[list[str]]:
        return [
            ids(store.list(limit=1)),
            ids(store.list(limit=1, newest_first=True)),
            ids(store.list(limit=1, state={State.READY})),
            ids(store.list(limit=1, state={State.READY, State.NOTREADY}, newest_first=True)),
            ids(store.list(limit=1, selector="app!=db", newest_first=True, include_unknown=True)),
        ]

    def both() -> list[list[str]]:
        cached = lists()
        store._session._cache.invalidate()
        assert lists() == cached
        return cached

    assert [["a"], ["b"], ["a"], ["b"], ["b"]] == both()
    a.status.update(lambda old: replace(old, state=State.NOTREADY))
    assert [["a"], ["b"], ["b"], ["b"], ["b"]] == both()
    b.status.update(lambda old: replace(old, created_at=1))
    assert [["b"], ["a"], ["b"], ["a"], ["a"]] == both()
    store.update_metadata("c", lambda old: replace(old, config=pod(app="web")))
    assert ["a"] == both()[-1]
    store.update_metadata("c", lambda old: replace(old, config=pod()))
    c.status.update(lambda old: replace(old, created_at=2_000))
    assert [["b"], ["a"], ["b"], ["a"], ["c"]] == both()
    c.status.update(lambda old: replace(old, state=State.READY))
    assert [["b"], ["c"], ["b"], ["c"], ["c"]] == both()
    b.delete()
    assert [["a"], ["c"], ["c"], ["c"], ["c"]] == both()


# By name.


def test_get_by_name_returns_the_sandbox_with_exactly_that_name(store: Store) -> None:
    """A prefix of a name finds nothing; an id is no name."""
    store.add(sandbox("a", name="web-0"), READY)
    store.add(sandbox("web-0", name="%"), NOTREADY)
    assert "a" == store.get(name="web-0").id
    assert "web-0" == store.get(name="%").id
    for name in ("web-", "WEB-0", "a", "", "_"):
        with pytest.raises(NotFoundError, match=r"^get sandbox named ") as caught:
            store.get(name=name)
        assert (name, "") == (caught.value.name, caught.value.id)


def test_get_by_name_hides_a_sandbox_that_is_being_created(store: Store) -> None:
    """As by id; the error has the id too."""
    added = store.add(sandbox("a", name="web-0"), UNKNOWN)
    with pytest.raises(NotFoundError, match="it is being created") as caught:
        store.get(name="web-0")
    assert ("web-0", "a") == (caught.value.name, caught.value.id)
    assert "a" == store.get(name="web-0", include_unknown=True).id
    added.status.update(lambda _: READY)
    assert "a" == store.get(name="web-0").id
    store.delete("a")
    with pytest.raises(NotFoundError):
        store.get(name="web-0")


def test_get_by_name_sees_the_transaction_of_the_caller(store: Store) -> None:
    """And no other does."""
    with store.transaction():
        store.add(sandbox("a", name="web-0"), READY)
        assert "a" == store.get(name="web-0").id


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({}, "id"),
        ({"id": None}, "id"),
        ({"id": "a", "name": "a"}, "id"),
        ({"name": 7}, "name"),
        ({"name": b"a"}, "name"),
    ],
    ids=str,
)
def test_get_takes_exactly_one_of_id_and_name(
    store: Store, arguments: dict[str, Any], field: str
) -> None:
    """Each of them is text."""
    with pytest.raises(InvalidArgumentError) as caught:
        store.get(**arguments)
    assert field == caught.value.field
