"""SQL that an upgrade would run, found out without a write."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

import pytest

from registry import Store
from registry.tables import upgrade_sql
from registry.tables.version import LEVEL
from tests.tools import contents, make_old_registry, query

SCHEMA = "SELECT type, name, sql FROM sqlite_schema WHERE sql NOT NULL ORDER BY name"


@pytest.mark.parametrize("revision", [f"{level:04}" for level in range(1, LEVEL)])
def test_the_statements_make_the_schema_of_an_upgrade(path: str, revision: str) -> None:
    """They are run on a copy that SQLite has made; then the registry itself is upgraded."""
    make_old_registry(path, revision)
    statements = upgrade_sql.statements(path)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(":memory:")) as copy:
        source.backup(copy)
        copy.isolation_level = None
        for statement in statements:
            copy.execute(statement)
        by_hand = copy.execute(SCHEMA).fetchall()
        assert [(LEVEL,)] == copy.execute("SELECT level FROM registry").fetchall()
    Store.open(path, reconcile=False).close()
    assert query(path, SCHEMA) == by_hand


def test_the_statements_contain_neither_reads_nor_those_of_triggers(path: str) -> None:
    """They begin and commit transactions, as the upgrade does; the registry stays as it is."""
    make_old_registry(path)
    name = os.path.basename(path)
    before = contents(os.path.dirname(path))[name]
    found = upgrade_sql.statements(path)
    assert not [each for each in found if each.startswith(("SELECT", "--"))]
    assert found.count("BEGIN IMMEDIATE") == found.count("COMMIT") > 0
    assert before == contents(os.path.dirname(path))[name]
