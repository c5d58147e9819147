"""Generator of docs/questions.md: `python -m docs.tools.questions` prints it.

Each query runs on the registry of `tests.node`, at the time at which that day ends.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
from contextlib import closing
from typing import Final

from registry.browse.questions import Question, load
from tests import node

HEAD: Final = """\
# Thirty questions

Find below the query for what you want to know. The page of `sandbox-registry browse` has the same
questions as links: see [browse.md](browse.md). Or run a query with `sqlite3` or any other program,
also while the registry is in use:

```sh
sqlite3 -readonly -box /var/lib/shim/registry.db "SELECT pod, reason, since FROM why_not_ready"
```

A query names the views, which are the contract: a newer version of the registry may add columns to
them, and takes none away. [schema.md](schema.md) says what each column means. In the `sqlite3`
shell, set a parameter such as `:id` with `.parameter set :id "'c0ffee'"`.

The answers below are those of a node at 18:00, after a day with a reboot. `make questions`
generates this page from `registry/browse/questions.toml`, and a test compares the two.
"""
WIDTH: Final = 140
"""Characters of a line above which an answer shows each row as lines of its own."""


def page() -> str:
    """Return the text of docs/questions.md."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "registry.db")
        node.build(path)
        with (
            closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection,
            closing(sqlite3.connect(":memory:")) as clock,
        ):
            _stop_the_clock(connection, clock)
            parts = [_section(connection, question) for question in load()]
    return "\n".join([HEAD, *parts])


def _stop_the_clock(connection: sqlite3.Connection, clock: sqlite3.Connection) -> None:
    """Make `julianday('now')` the end of the day of the registry; *clock* reads other times."""

    def julianday(text: str) -> float:
        (day,) = clock.execute(
            "SELECT julianday(?)", (node.NOW if text == "now" else text,)
        ).fetchone()
        return float(day)

    connection.create_function("julianday", 1, julianday)


def _section(connection: sqlite3.Connection, question: Question) -> str:
    """Return the question with its query and its answer."""
    cursor = connection.execute(question.sql, dict(question.example))
    names = [column[0] for column in cursor.description]
    rows = [["" if value is None else str(value) for value in row] for row in cursor]
    given = " and ".join(f"`:{name}` is `{value}`" for name, value in question.example.items())
    about = [question.about, f"Here {given}." if given else ""]
    remark = " ".join(each for each in about if each)
    return "\n".join(
        [
            f"## {question.title}\n",
            *([f"{remark}\n"] if remark else []),
            f"```sql\n{question.sql};\n```\n",
            f"```text\n{_table(names, rows)}\n```\n",
        ]
    )


def _table(names: list[str], rows: list[list[str]]) -> str:
    """Return *rows* as columns, or one below the other where they are too wide."""
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    if sum(widths) + 2 * len(widths) > WIDTH:
        most = max(map(len, names))
        blocks = [
            "\n".join(f"{n:>{most}} = {v}".rstrip() for n, v in zip(names, row, strict=True))
            for row in rows
        ]
        return "\n\n".join(blocks)
    lines = [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (names, *rows)
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(page())
