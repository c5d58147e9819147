"""Start of a process: the imports, and the first calls."""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import registry
from benchmarks import samples
from benchmarks.measure import Figure, of_rounds, single

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
RESIDENT = """
with open("/proc/self/statm", encoding="ascii") as file:
    print(file.read().split()[1])
"""
"""Prints the resident set of the process, in pages."""


def measure(path: str, plain_path: str, rounds: int) -> Iterator[Figure]:
    """Yield the figures of processes that import the package and use it."""
    compileall.compile_dir(os.path.dirname(registry.__file__), quiet=1)  # as pip does
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
    yield memory(path, rounds)


def memory(path: str, rounds: int) -> Figure:
    """Return the resident set of a process that has opened, read and updated, and is open still."""
    idle = textwrap.indent(RESIDENT.strip(), "    ")
    mine, theirs = [], []
    for _ in range(rounds):
        mine.append(_resident(f"{USE}{idle}\n", path, samples.name(1)))
        theirs.append(_resident(f"import sqlite3\n{RESIDENT}"))
    return of_rounds(
        "memory of that process / import sqlite3", mine, theirs, "MiB", goal="at most 2.5"
    )


def _resident(code: str, *args: str) -> float:
    """Return the resident set that *code* prints (MiB)."""
    return int(_run("-c", code, *args)) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _python(code: str, *args: str) -> None:
    _run("-c", code, *args)


def _run(*args: str) -> bytes:
    """Run Python with *args*, and return its output."""
    # With compiled files, as an installed package has them.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, *args]
    return subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE).stdout
