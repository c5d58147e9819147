"""The thirty questions of docs/questions.md, and the registry that answers them."""

from __future__ import annotations

import re

import pytest

from docs.tools import questions as generator
from registry import Store
from registry.browse import questions
from registry.tables.views import VIEWS
from tests import node
from tests.documents import text_of

ALL = questions.load()


def test_the_page_is_what_make_questions_generates() -> None:
    """With the answers of the queries; otherwise run `make questions`."""
    assert text_of("docs/questions.md") == generator.page()


def test_there_are_thirty_questions_and_each_has_a_name_of_its_own() -> None:
    """The name is a part of an address."""
    assert 30 == len(ALL) == len({each.name for each in ALL})
    assert all(re.fullmatch("[a-z-]+", each.name) for each in ALL)
    assert all(each.title.endswith("?") for each in ALL)


@pytest.mark.parametrize("question", ALL, ids=lambda each: each.name)
def test_a_question_reads_views_alone(question: questions.Question) -> None:
    """A table may change with the next revision."""
    read = set(re.findall(r"(?:FROM|JOIN) (\w+)", question.sql))
    assert read
    assert read <= {view.name for view in VIEWS}
    assert set(question.example) == set(re.findall(r":([a-z]+)", question.sql))


def test_the_registry_of_the_documents_violates_nothing(path: str) -> None:
    """It is a registry as the package makes one."""
    node.build(path)
    with Store.open(path, read_only=True) as store:
        assert [] == store.check()
