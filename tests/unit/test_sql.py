"""The generated SQL is what its definitions in SQLAlchemy Core say."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from itertools import chain, combinations, product
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from registry.model.selector import Operator
from registry.tables import encoding, generate, integrity, queries, schema, sql, statements
from registry.tables.rows import STATUS_FIELDS, Summary


def subsets(names: tuple[str, ...]) -> list[frozenset[str]]:
    """Return every combination of *names*."""
    sizes = range(len(names) + 1)
    return [*map(frozenset, chain.from_iterable(combinations(names, size) for size in sizes))]


def test_sql_module_is_what_make_sql_generates() -> None:
    """Otherwise run `make sql`."""
    assert Path(sql.__file__).read_text(encoding="utf-8") == generate.source()


def test_list_query_equals_the_statement_of_core() -> None:
    """All combinations of filters, with and without an order and a limit."""
    for filters in subsets(tuple(statements.LIST_FILTERS)):
        for newest_first, limited, fields in (
            (False, False, ()),
            (False, True, ("id", "since")),
            (True, True, tuple(Summary.__annotations__)),
        ):
            statement = statements.list_sandboxes(
                filters, newest_first=newest_first, limited=limited, summaries=fields
            )
            assert generate.text_of(statement) == queries.list_sandboxes(
                filters, newest_first=newest_first, limited=limited, summaries=fields
            )


@pytest.mark.parametrize("values", [1, 2, 9])
def test_list_query_with_requirements_equals_the_statement_of_core(values: int) -> None:
    """Each operator twice, in two orders, beside filters."""
    sets = {Operator.IN, Operator.NOT_IN}
    without = {Operator.EXISTS, Operator.ABSENT}
    shapes = [(each, values if each in sets else int(each not in without)) for each in Operator]
    for requirements in ((), (*shapes, *shapes), (*reversed(shapes),)):
        for filters in (frozenset[str](), frozenset({"state", "pod"})):
            expected = generate.text_of(statements.list_sandboxes(filters, requirements))
            assert expected == queries.list_sandboxes(filters, requirements)


def test_status_update_equals_the_statement_of_core() -> None:
    """All combinations of fields that change; a new pid clears the recorded identity."""
    for changed in subsets(STATUS_FIELDS):
        identity = encoding.process_columns(None) if "pid" in changed else ()
        columns = changed.union(identity, statements.AUDIT_FIELDS)
        expected = generate.text_of(statements.update_status(columns))
        assert expected == queries.update_status(columns)


def test_history_query_equals_the_statement_of_core() -> None:
    """All combinations of filters."""
    for filters, newest in product(subsets(("id", "since", "limit")), [False, True]):
        expected = generate.text_of(statements.history(filters, newest_first=newest))
        assert expected == queries.history(filters, newest_first=newest)


def test_generated_schema_builds_what_core_builds() -> None:
    """The same objects in SQLite, white space aside."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in sql.SCHEMA:
            connection.execute(statement)
        built = integrity.words(connection.execute(integrity.OBJECTS).fetchall())
    engine = create_engine("sqlite://")
    with engine.begin() as core:
        schema.metadata.create_all(core)
        rows = core.exec_driver_sql(integrity.OBJECTS).all()
    engine.dispose()
    assert built == integrity.words((str(key), str(text)) for key, text in rows)
