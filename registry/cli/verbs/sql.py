"""The verb `sql`: queries on the registry, which write nothing."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import time
from dataclasses import replace
from itertools import islice
from typing import Any, Final

import click

from registry.cli import options
from registry.cli.failures import FINE, PROGRAM
from registry.cli.output.formats import show
from registry.cli.output.streams import write
from registry.cli.output.views import Format, View
from registry.engine import driver
from registry.engine.driver import Connection
from registry.errors import InvalidArgumentError, RegistryError, UnavailableError
from registry.host import paths
from registry.store import session_of
from registry.tables.rows import as_text
from registry.visible import visible

STEPS: Final = 10_000
"""Instructions of SQLite between two looks at the clock, under a millisecond."""
QUERIES: Final = frozenset(
    {
        *(sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION),
        sqlite3.SQLITE_RECURSIVE,
    }
)
"""Actions of SQLite that only read."""
PRAGMAS: Final = frozenset(
    {
        *("application_id", "compile_options", "data_version", "database_list", "encoding"),
        *("foreign_key_check", "foreign_key_list", "freelist_count", "function_list"),
        *("index_info", "index_list", "index_xinfo", "integrity_check", "journal_mode"),
        *("page_count", "page_size", "quick_check", "schema_version", "table_info"),
        *("table_list", "table_xinfo", "user_version"),
    }
)
"""Pragmas that only read; those of `SETTINGS` only without a value."""
SETTINGS: Final = frozenset(
    {"application_id", "encoding", "journal_mode", "page_size", "schema_version", "user_version"}
)
TABLES: Final = (
    "SELECT name, type FROM sqlite_schema WHERE type IN ('table', 'view')"
    " AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY type DESC, name"
)
"""Views first: they are the contract with operators."""
EXAMPLE: Final = "SELECT * FROM why_not_ready"
SHELL: Final = ("-readonly", "-safe", "-header", "-column", "-cmd", ".timeout 5000")
"""Options of the `sqlite3` shell: it writes no file, and runs no other program."""
SCHEMA: Final = ".schema"
DOT: Final = {
    ".tables": TABLES,
    SCHEMA: (
        "SELECT sql || ';' AS sql FROM sqlite_schema WHERE sql NOT NULL"
        " AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY rowid"
    ),
}
"""Commands of the `sqlite3` shell that work here without it."""


@click.command(
    "sql",
    epilog=options.examples(
        "sandbox-registry sql 'SELECT * FROM why_not_ready'",
        "sandbox-registry sql .tables",
    ),
)
@click.argument(
    "query", metavar="[QUERY]", required=False, help="One SELECT; or .tables, or .schema."
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=options.Seconds(),
    default=30.0,
    show_default=True,
    help="Longest time that the query may take.",
)
@options.output(None, lists=True)
@options.db
def run_sql(*, query: str | None, db: str, timeout: float, form: Format) -> int:
    """Run a read-only query on the registry, or open the sqlite3 shell on it.

    The views sandbox_overview and why_not_ready are the contract; the tables may change. Without
    QUERY, the sqlite3 shell is opened if it is installed.
    """
    if query is None:
        return _open_shell(db)
    with options.open_to_show(db) as store:
        doing = "run SQL"
        with session_of(store).engine.committed(doing) as connection:
            limit = None if form.sort else form.limit
            columns, rows = _fetch(connection, DOT.get(query.strip(), query), timeout, limit)
    first = columns[0] if columns else ""
    view = View(tuple(columns), {name: name for name in columns}, name=first, id=first, raw=True)
    form = form.resolved(view)
    if query.strip() == SCHEMA:
        form = replace(form, headers=False)  # what is printed can be run by another SQLite
    show([dict(zip(columns, row, strict=True)) for row in rows], view, form)
    return FINE


def _fetch(
    connection: Connection, query: str, timeout: float, limit: int | None
) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and the rows of *query*, *limit* at most; refuse whatever is no query.

    Raises:
        InvalidArgumentError: it is no single query, or SQLite cannot read it.
        UnavailableError: it takes longer than *timeout*.
    """
    deadline = time.monotonic() + timeout
    connection.set_authorizer(_authorize)
    connection.set_progress_handler(lambda: time.monotonic() > deadline, STEPS)
    connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
    try:
        cursor = connection.execute(query)
        if cursor.description is None:
            raise _unreadable(query, "it is empty")
        columns = [each[0] for each in cursor.description]
        rows = [list(map(_value, row)) for row in islice(cursor, limit)]
        cursor.close()  # a query that goes on would keep the snapshot
        return _unique(columns), rows
    except sqlite3.Error as error:
        refusal = _refusal(error, query, timeout)
        if refusal is None:
            raise
        if isinstance(refusal, UnavailableError) and time.monotonic() <= deadline:
            raise KeyboardInterrupt from error  # raised in the progress handler, and lost by SQLite
        raise refusal from error
    finally:
        connection.text_factory = str
        connection.set_progress_handler(None, 0)
        connection.set_authorizer(None)


def _authorize(action: int, name: str | None, value: str | None, *_: object) -> int:
    """Return whether SQLite may compile a part of a statement: all that only reads."""
    is_query = action in QUERIES
    if action == sqlite3.SQLITE_PRAGMA:
        pragma = (name or "").lower()
        is_query = pragma in PRAGMAS and (value is None or pragma not in SETTINGS)
    return sqlite3.SQLITE_OK if is_query else sqlite3.SQLITE_DENY


def _refusal(error: sqlite3.Error, query: str, timeout: float) -> RegistryError | None:
    """Return the error of this program for *error*; None: it is an error of the registry."""
    code = getattr(error, "sqlite_errorcode", None)
    doing = f"run SQL {query!r:.200}"
    if code in {sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY}:
        return InvalidArgumentError(
            f"{doing}: it is no query, and `sql` only reads, so that the triggers and the locks of "
            f"the registry hold for every change; use `{PROGRAM} delete` or `reconcile`, or "
            "write with the sqlite3 shell as docs/operators.md says",
            field="query",
            value=query,
        )
    if code == sqlite3.SQLITE_INTERRUPT:
        return UnavailableError(
            f"{doing}: stopped after {timeout:g} s; give a longer --timeout, or a simpler query",
            timeout=timeout,
        )
    if code in {None, sqlite3.SQLITE_ERROR}:  # None: of Python's module, for several statements
        return _unreadable(query, str(error).rstrip("."))
    return None


def _unreadable(query: str, why: str) -> InvalidArgumentError:
    message = f"run SQL {query!r:.200}: {why}; `{PROGRAM} sql .schema` shows the tables and views"
    return InvalidArgumentError(message, field="query", value=query)


def _unique(columns: list[str]) -> list[str]:
    """Return *columns* with a number behind each name that came before."""
    found: dict[str, None] = {}
    for column in columns:
        name, number = column, 1
        while name in found:
            number += 1
            name = f"{column}:{number}"
        found[name] = None
    return list(found)


def _value(value: object) -> object:
    """Return a value of SQLite as JSON has it; bytes are shown as SQL has them."""
    return f"x'{value.hex()}'" if isinstance(value, bytes) else value


def _open_shell(db: str) -> int:
    """Replace this process by the `sqlite3` shell on the registry; without it, say what to do."""
    shell, path = shutil.which("sqlite3"), paths.resolve(db)
    with options.open_to_show(db) as store:  # it must be a registry, and the WAL its own
        tables = session_of(store).fetch(TABLES, {}, "list the tables")
    if shell is not None and sys.stdin.isatty():
        write("read-only; .tables lists the tables and views, .quit ends\n")
        os.execv(shell, [shell, *SHELL, f"file:{driver.quoted(path)}?mode=ro"])  # noqa: S606
    why = "give a QUERY" if shell else "the sqlite3 shell is not installed (package sqlite3)"
    names = "".join(f"  {kind:5}  {visible(as_text(name))}\n" for name, kind in tables)
    write(f"{why}; for example: {PROGRAM} sql '{EXAMPLE}'\n{names}")
    return FINE
