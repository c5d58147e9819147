"""Look-up of sandboxes: ids, prefixes, names, and the filters of a list."""

from __future__ import annotations

from dataclasses import replace

import pytest

from registry import (
    AlreadyExistsError,
    AmbiguousPrefixError,
    InvalidArgumentError,
    NameReservedError,
    NotFoundError,
    State,
    Store,
)
from tests.tools import (
    NOTREADY,
    READY,
    UNKNOWN,
    ids,
    pod,
    sandbox,
)


def test_an_exact_id_wins_over_a_longer_one(store: Store) -> None:
    """Containerd calls this ambiguous."""
    store.add(sandbox("ab"), READY)
    store.add(sandbox("abc"), READY)
    assert "ab" == store.get("ab").id
    assert store.delete("ab")
    assert "abc" == store.get("ab").id


def test_a_prefix_of_several_ids_is_ambiguous_and_names_them(store: Store) -> None:
    """Hidden ones count: hiding comes after looking up."""
    for id in ("abc", "abd"):
        store.add(sandbox(id), READY)
    store.add(sandbox("abe"), UNKNOWN)
    for call in (store.get, store.delete, lambda a: store.update_metadata(a, lambda m: m)):
        with pytest.raises(AmbiguousPrefixError) as caught:
            call("ab")
        assert ("ab", ("abc", "abd", "abe")) == (caught.value.prefix, caught.value.ids)
        assert "'abd'" in str(caught.value)
    assert 3 == len(store.list(include_unknown=True))


def test_many_ambiguous_ids_are_counted_in_the_message(store: Store) -> None:
    """The attribute has all of them, the message the first ones."""
    with store.transaction():
        for n in range(30):
            store.add(sandbox(f"a{n:02}"), READY)
    with pytest.raises(AmbiguousPrefixError, match=r"30 ids begin with it.* and 20 more") as caught:
        store.get("a")
    assert 30 == len(caught.value.ids)


def test_an_empty_id_raises_everywhere(store: Store) -> None:
    """It is a prefix of everything."""
    store.add(sandbox("a"), READY)
    for call in (
        lambda: store.get(""),
        lambda: store.list(id=""),
        lambda: store.delete(""),
        lambda: store.history(""),
        lambda: store.update_metadata("", lambda m: m),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            call()
        assert "id" == caught.value.field
    assert ["a"] == [found.id for found in store.list()]


def test_percent_and_underscore_are_ordinary_characters(store: Store) -> None:
    """They match themselves only."""
    for id in ("a%b", "a_b", "axb", "A%b"):
        store.add(sandbox(id), READY)
    assert "a%b" == store.get("a%").id
    assert "a_b" == store.get("a_").id
    assert ["A%b"] == [found.id for found in store.list(id="A")]
    with pytest.raises(NotFoundError):
        store.get("%")


def test_prefixes_beyond_ascii_are_found(store: Store) -> None:
    """Also where the last character is the greatest there is."""
    for id in ("é1", "é2", "\U0010ffff", "\U0010ffffz", "e"):
        store.add(sandbox(id), READY)
    assert ["é1", "é2"] == [found.id for found in store.list(id="é")]
    assert ["\U0010ffff", "\U0010ffffz"] == [found.id for found in store.list(id="\U0010ffff")]


# Names.


def test_a_taken_id_and_a_taken_name_raise_different_errors(store: Store) -> None:
    """The id first; the name with its holder."""
    store.add(sandbox("a"), READY)
    with pytest.raises(AlreadyExistsError) as taken:
        store.add(sandbox("a", name="other"), READY)
    assert type(taken.value) is AlreadyExistsError
    assert "a" == taken.value.id
    with pytest.raises(NameReservedError) as reserved:
        store.add(sandbox("b", name="name-a"), READY)
    assert ("b", "name-a", "a") == (
        reserved.value.id,
        reserved.value.name,
        reserved.value.holder,
    )
    assert "name 'name-a' is reserved for 'a'" in str(reserved.value)


def test_a_name_is_free_again_after_the_deletion(store: Store) -> None:
    """And not before, NOTREADY or not."""
    store.add(sandbox("a", name="n"), NOTREADY)
    with pytest.raises(NameReservedError):
        store.add(sandbox("b", name="n"), READY)
    store.delete("a")
    assert "n" == store.add(sandbox("b", name="n"), READY).name


# Filters.


def test_filters_are_anded_and_ordered(store: Store) -> None:
    """By created_at, then id."""
    store.add(
        sandbox("c", config=pod("web", "prod", app="x", tier="1")), replace(READY, created_at=5)
    )
    store.add(sandbox("b", config=pod("web", "prod", app="x")), replace(READY, created_at=5))
    store.add(sandbox("a", config=pod("db", "prod", app="y")), replace(READY, created_at=9))
    store.add(sandbox("d", config=None), replace(NOTREADY, created_at=1))
    assert ["d", "b", "c", "a"] == ids(store.list())
    assert ["b", "c"] == ids(store.list(pod="web", namespace="prod"))
    assert ["c"] == ids(store.list(labels={"app": "x", "tier": "1"}))
    assert ["b", "c", "a"] == ids(store.list(state=State.READY, labels={}))
    assert ["d"] == ids(store.list(name="name-d", id="d", state=State.NOTREADY))
    assert [] == ids(store.list(labels={"app": "y"}, pod="web"))


@pytest.mark.parametrize(
    "id",
    ["x" * 76, "a b", "a:b@c", "ünïcode-日本", "-", "%_", "'\"; DROP TABLE sandboxes; --"],
    ids=repr,
)
def test_unusual_ids_that_can_be_stored_are_accepted(store: Store, id: str) -> None:
    """Every other character is ordinary."""
    store.add(sandbox(id), READY)
    assert id == store.get(id).id
    assert store.delete(id)
