"""Characters with a meaning in SQL, LIKE, GLOB or JSON are ordinary characters in every value."""

from __future__ import annotations

import tempfile

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from registry import AmbiguousPrefixError, Metadata, NotFoundError, State, Status, Store
from registry.cri import PodSandboxConfig
from tests.tools import ids

pytestmark = pytest.mark.property

SPECIAL = "a%_*?[]^-'\";\\:@$`{}()|&<>!#=~,. é"
VALUES = st.text(SPECIAL, min_size=1, max_size=4).filter(
    lambda text: text == text.strip() and text not in {".", ".."}
)
FIXED = ["%", "_", "*", "a*", "[a]", "a'", "'; --", 'a"', "\\", "a\\%", "?", ":id", "a_"]
"""Values that are tried in each example."""


def metadata(number: int, id: str, value: str) -> Metadata:
    """Return metadata in which *value* is everything that can be searched for."""
    config = PodSandboxConfig(labels={"key": value, value: "key"})
    config.metadata.name, config.metadata.namespace, config.metadata.uid = value, value, value
    return Metadata(id=id, name=f"{value}{number}", config=config)


def found_by_prefix(known: list[str], prefix: str) -> str | None:
    """Return the id that the model finds; None: there is none, or several."""
    matching = [id for id in known if id.startswith(prefix)]
    if prefix in known:
        return prefix
    return matching[0] if len(matching) == 1 else None


@settings(max_examples=40, deadline=None)
@given(
    known=st.lists(VALUES, unique=True, min_size=1, max_size=8),
    value=VALUES,
    asked=st.lists(VALUES, max_size=4),
)
def test_a_value_matches_itself_alone(known: list[str], value: str, asked: list[str]) -> None:
    """Found by id, prefix, name, label, pod and namespace as a comparison of strings finds it."""
    known = list(dict.fromkeys([*known, *FIXED[: len(known)]]))
    values = [value if n % 2 else id for n, id in enumerate(known)]
    with tempfile.TemporaryDirectory() as folder, Store.open(f"{folder}/r.db") as store:
        with store.transaction():
            for n, (id, each) in enumerate(zip(known, values, strict=True)):
                store.add(metadata(n, id, each), Status(State.READY, created_at=n + 1, reason=""))
        for text in {*known, value, *asked, *FIXED}:
            having = [id for id, each in zip(known, values, strict=True) if each == text]
            assert having == ids(store.list(labels={"key": text}))
            assert having == ids(store.list(labels={text: "key"}))
            assert having == ids(store.list(pod=text))
            assert having == ids(store.list(namespace=text))
            assert [id for id in known if id.startswith(text)] == ids(store.list(id=text))
            named = [id for n, id in enumerate(known) if f"{values[n]}{n}" == text]
            assert named == ids(store.list(name=text))
            try:
                assert found_by_prefix(known, text) == store.get(text).id
            except (NotFoundError, AmbiguousPrefixError):
                assert found_by_prefix(known, text) is None
            assert (text in known) == bool(store.history(text))
        assert [] == store.check()
        for id in known:
            assert store.delete(id)
            assert ["created", "deleted"] == [each.event for each in store.history(id)]
        assert [] == store.list()
