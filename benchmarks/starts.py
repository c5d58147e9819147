"""Start of a process: the imports, and the first calls."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

from benchmarks import samples
from benchmarks.measure import Figure, single

USE = """
import sys
from dataclasses import replace
from registry import Store
with Store.open(sys.argv[1], reconcile=False) as store:
    store.get(sys.argv[2]).status.update(lambda old: replace(old, message="started"))
"""
USE_PLAINLY = """
import sqlite3, sys
path, *id = sys.argv[1:]
db = sqlite3.connect(path, isolation_level=None)
db.execute("PRAGMA journal_mode = WAL")
db.execute("PRAGMA synchronous = FULL")
db.execute("BEGIN IMMEDIATE")
db.execute("SELECT * FROM sandbox_statuses WHERE sandbox_id = ?", id).fetchone()
db.execute("UPDATE sandbox_statuses SET message = 'started' WHERE sandbox_id = ?", id)
db.execute("COMMIT")
db.close()
"""
LISTED = 50
"""Sandboxes that the command line lists."""


def measure(path: str, plain_path: str, rounds: int) -> Iterator[Figure]:
    """Yield the figures of processes that import the package, use it, and list sandboxes."""
    _python("import registry")  # writes the compiled files, the first time
    yield single(
        "import registry / import sqlite3, protobuf",
        lambda _: _python("import registry"),
        lambda _: _python("import sqlite3, google.protobuf.message"),
        "at most 4",
        rounds=rounds,
        calls=3,
    )
    yield single(
        "a process that opens, gets, updates, closes / plain sqlite3",
        lambda _: _python(USE, path, samples.name(1)),
        lambda _: _python(USE_PLAINLY, plain_path, samples.name(1)),
        "at most 4.5",
        rounds=rounds,
        calls=3,
    )

    listed = os.path.join(os.path.dirname(path), "listed.db")
    samples.fill(listed, LISTED)
    yield single(
        f"sandbox-registry list of {LISTED} / import click, sqlite3",
        lambda _: _run("-m", "registry", "--db", listed, "list"),
        lambda _: _python("import click, sqlite3"),
        "at most 2.5",
        rounds=rounds,
        calls=3,
    )


def _python(code: str, *args: str) -> None:
    _run("-c", code, *args)


def _run(*args: str) -> None:
    # With compiled files, as an installed package has them.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, *args]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
