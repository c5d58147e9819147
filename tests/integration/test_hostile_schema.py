"""Files whose schema was edited: endless views, bytes that are not UTF-8, values of any type."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from registry import DataLossError, Extension, RegistryError, Sandbox, Store
from registry.cli import failures, program
from registry.engine import driver
from registry.tables import sql
from registry.tables.version import APPLICATION_ID
from tests.tools import LONG, READY, UNKNOWN, contents, execute, pod, query, sandbox

ENDLESS = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n) SELECT {} FROM n"
OPENINGS: tuple[dict[str, Any], ...] = ({}, {"read_only": True}, {"damaged": "read"})
COMMANDS = (
    *(
        "list --all",
        "list --all --json",
        "list -l app=x --json",
        "inspect bad",
        "inspect bad --json",
    ),
    *("history", "history --json", "check", "check --json", f"export --status {os.devnull}"),
    *("reconcile --dry-run --json",),
)


def make_registry(path: str) -> None:
    """Make a registry with a row in each table."""
    with Store.open(path, reconcile=False) as store:
        bad = store.add(sandbox("bad", config=pod(app="x"), ip="10.0.0.9"), READY)
        bad.extensions.update(lambda _: {"name": Extension("type", b"value")})
        store.add(sandbox("good", config=pod(app="x")), READY)
        store.add(sandbox("new"), UNKNOWN)


# Views in the place of tables.


@pytest.mark.parametrize("name", [*sql.TABLES, "Registry"])
@pytest.mark.parametrize("application_id", [APPLICATION_ID, 0])
@pytest.mark.parametrize("options", OPENINGS, ids=str)
def test_an_endless_view_with_the_name_of_a_table_is_refused_unread(
    tmp_path: Path, name: str, application_id: int, options: dict[str, Any]
) -> None:
    """Reading it would never end."""
    path = str(tmp_path / "registry.db")
    columns = "1 AS level, 1 AS min_reader, 1 AS min_writer, 'x' AS registry_id, n AS seq"
    execute(
        path,
        f"PRAGMA application_id = {application_id}",
        *(f"CREATE TABLE {each} (level)" for each in sql.TABLES if each != name.lower()),
        f"CREATE VIEW {name} AS {ENDLESS.format(columns)}",
    )
    before = contents(str(tmp_path))
    with pytest.raises(DataLossError) as caught:
        Store.open(path, **options)
    assert path == caught.value.path
    assert f"{name.lower()} is a view" in str(caught.value) or not application_id
    assert failures.UNAVAILABLE == program.main(["--db", path, "check"])
    assert before == contents(str(tmp_path))


# Bytes that are not UTF-8 in the schema.


def replace_in_file(path: str, old: bytes, new: bytes) -> None:
    """Replace bytes of a closed registry by as many others."""
    data = Path(path).read_bytes()
    assert 1 == data.count(old)
    assert len(old) == len(new)
    Path(path).write_bytes(data.replace(old, new))


@pytest.mark.parametrize("options", OPENINGS, ids=str)
def test_a_schema_that_is_no_sql_and_no_utf8_is_data_loss(
    path: str, options: dict[str, Any]
) -> None:
    """SQLite's message quotes it, and Python cannot decode the message."""
    path = f"{path}-damaged"
    make_registry(path)
    replace_in_file(path, b"CREATE VIEW why_not_ready AS", b"CREATE VIEW why_not_ready \xff\xfe")
    with pytest.raises(DataLossError, match="malformed database schema") as caught:
        Store.open(path, **options)
    assert path == caught.value.path
    for command in COMMANDS:
        assert failures.UNAVAILABLE == program.main(["--db", path, *command.split()])


def test_a_text_in_the_schema_that_is_no_utf8_is_a_violation(
    path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The schema can be read, and so can every record."""
    path = f"{path}-damaged"
    make_registry(path)
    ((view,),) = query(path, "SELECT sql FROM sqlite_master WHERE name = 'why_not_ready'")
    text = re.findall(r"'[A-Za-z]{3,}'", view)[0].encode()
    changed = view.encode().replace(text, b"'\xff\xfe" + text[3:], 1)
    replace_in_file(path, view.encode(), changed)
    with Store.open(path) as store:
        assert ["schema_is_whole"] == [each.rule for each in store.check()]
        assert 2 == len(store.list())
    for form in ([], ["--json"]):
        assert failures.FOUND == program.main(["--db", path, "check", *form])
        out, _ = capfd.readouterr()
        assert "schema_is_whole" in out


# Values of any type, in every column.


def columns() -> Iterator[tuple[str, str]]:
    """Yield table and name of each column that is no key of SQLite's own."""
    with closing(sqlite3.connect(":memory:")) as shell:
        for statement in sql.SCHEMA:
            shell.execute(statement)
        for table in sql.TABLES:
            for _, name, *_ in shell.execute(f"PRAGMA table_info({table})"):
                if name not in {"one", "creation", "seq"}:
                    yield table, name


VALUES = {
    "blob": "x'6261ff'",
    "no UTF-8": "CAST(x'6261ff' AS TEXT)",
    "infinite": "9e999",
    "number": "9223372036854775807",
    "escape": "'a' || char(27, 10, 0x202e)",
    "null": "NULL",
}
PORTIONS = 1 if LONG else 4
"""Portions of the columns, of which one gets a kind of value."""
ROWS = {"registry": "1", "sandboxes": "id = 'bad'", "sandbox_transitions": "seq = 1"}
"""Condition of the row that is changed, by table; else it is that of sandbox `bad`."""


def put(path: str, table: str, column: str, value: str) -> None:
    """Write *value*, past STRICT, constraints and triggers, as `PRAGMA writable_schema` allows."""
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        shell.execute("PRAGMA ignore_check_constraints = ON")
        triggers = shell.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        saved = triggers.fetchall()
        for name, _ in saved:
            shell.execute(f"DROP TRIGGER {name}")
        ((strict,),) = shell.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,))
        loose = re.sub(r",? STRICT$", "", strict)
        typed = rf'(?m)^(\s*"?{column}"?) (?:INTEGER|TEXT|BLOB)( DEFAULT \S+)?( NOT NULL)?'
        set_schema(shell, table, re.sub(typed, r"\1 BLOB", loose))
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        shell.execute("PRAGMA ignore_check_constraints = ON")
        where = ROWS.get(table, "sandbox_id = 'bad'")
        with suppress(sqlite3.IntegrityError):  # NULL in a primary key
            shell.execute(f'UPDATE {table} SET "{column}" = {value} WHERE {where}')
        set_schema(shell, table, strict)
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        for _, text in saved:
            shell.execute(text)


def set_schema(shell: sqlite3.Connection, table: str, text: str) -> None:
    """Write the schema of *table* by hand."""
    shell.execute("PRAGMA writable_schema = ON")
    shell.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (text, table))
    ((version,),) = shell.execute("PRAGMA schema_version")
    shell.execute(f"PRAGMA schema_version = {version + 1}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a closed registry to copy."""
    path = str(tmp_path_factory.mktemp("whole") / "registry.db")
    make_registry(path)
    return path


@pytest.mark.parametrize("kind", VALUES)
def test_a_value_of_any_type_in_any_column_raises_no_error_of_another_package(
    whole: str, tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the default, read-only and of a damaged registry; no command prints a traceback."""
    first = list(VALUES).index(kind) % PORTIONS
    for number, (table, column) in list(enumerate(columns()))[first::PORTIONS]:
        path = str(tmp_path / f"{number}.db")
        shutil.copy(whole, path)
        put(path, table, column, VALUES[kind])
        for options in OPENINGS:
            with suppress(RegistryError), Store.open(path, **options) as store:
                use(store)
        for command in COMMANDS:
            code = program.main(["--db", path, *command.split()])
            out, err = capfd.readouterr()
            what = f"{command}, {kind} in {table}.{column}: {err}"
            assert code in {failures.FINE, failures.FOUND, failures.UNAVAILABLE}, what
            assert "Traceback" not in err, what
            if "--json" in command and out:
                json.loads(out, parse_constant=pytest.fail)
            assert all(char.isprintable() or char == "\n" for char in out), what
            if command == "list --all" and table != "registry":
                assert "good" in out, what


def use(store: Store) -> None:
    """Call everything that reads or writes; errors of the package are expected."""
    for each in (*store.list(include_unknown=True), *found(lambda: store.get("bad"))):
        use_one(each)
    reads: list[Callable[[], object]] = [
        lambda: store.get(name="name-bad"),
        lambda: store.list(labels={"app": "x"}, selector="app!=y"),
        store.history,
        lambda: store.history("bad"),
        lambda: list(store.watch(after=0, timeout=0)),
        lambda: [str(each) for each in store.check()],
        lambda: [str(each) for each in store.reconcile(dry_run=True).findings],
        store.reconcile,
        store.new_netns_path,
        lambda: store.delete("bad"),
    ]
    for read in reads:
        found(read)


def use_one(sandbox: Sandbox) -> None:
    """Call everything that reads or writes one sandbox."""
    calls: list[Callable[[], object]] = [
        lambda: sandbox.metadata,
        lambda: sandbox.stored,
        lambda: dict(sandbox.extensions),
        sandbox.status.get,
        sandbox.open_process,
        lambda: sandbox.netns,
        lambda: sandbox.status.update(lambda _: READY),
        lambda: hash(sandbox),
        lambda: repr(sandbox),
    ]
    for call in calls:
        found(call)


def found(call: Callable[[], Any]) -> list[Any]:
    """Return the result of *call* in a list, empty if it raises an error of the package."""
    with suppress(RegistryError):
        return [call()]
    return []


@pytest.mark.parametrize("id", ["'../../tmp/x'", "x'00'", "'abc'", "7"])
def test_an_id_of_a_registry_that_is_no_id_makes_no_path(
    whole: str, tmp_path: Path, id: str
) -> None:
    """It is a part of the paths of namespaces, and says which ones are orphans."""
    path = str(tmp_path / "registry.db")
    shutil.copy(whole, path)
    put(path, "registry", "registry_id", id)
    with pytest.raises(DataLossError):
        Store.open(path)
    with Store.open(path, damaged="read") as store:
        for call in (store.new_netns_path, lambda: store.reconcile(dry_run=True)):
            with pytest.raises(DataLossError, match="not 32 hexadecimal digits"):
                call()
        assert "registry_says_who_it_is" in {each.rule for each in store.check()}


# Settings of every connection.


def test_connections_bound_what_a_file_can_make_sqlite_do(store: Store) -> None:
    """For the writer and for readers."""
    engine = store._session.engine
    with engine.snapshot("test") as reader:
        for connection in (engine.writer.connection, reader):
            assert driver.VALUE_MAX == connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
            assert [(1,)] == connection.fetch("PRAGMA cell_size_check")
            trusted = int(sqlite3.sqlite_version_info < driver.SAFE_JSON)
            assert [(trusted,)] == connection.fetch("PRAGMA trusted_schema")
