"""The command line: its start, and lists and checks of many sandboxes beside the sqlite3 shell."""

from __future__ import annotations

import compileall
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Final

import registry
from benchmarks import samples
from benchmarks.measure import Figure, single
from registry import Store

FEW, MANY = 50, 20_000
IMPORTS: Final = ("-c", "import click, sqlite3")
"""Reference of a start."""


def measure(folder: str, rounds: int, many: int = MANY) -> Iterator[Figure]:
    """Yield the rows.

    Args:
        folder: for the databases.
        rounds: number of rounds of each row; each gives a ratio of two medians.
        many: number of sandboxes of the long list and of the check.
    """
    compileall.compile_dir(os.path.dirname(registry.__file__), quiet=1)  # as pip does
    row = partial(single, rounds=rounds, calls=3)
    short, long = f"{folder}/few.db", f"{folder}/many.db"
    fill(short, FEW)
    fill(long, many)
    yield row(
        "sandbox-registry --version / import click, sqlite3",
        lambda _: _program("--version"),
        lambda _: _python(*IMPORTS),
        "at most 2.5",
    )
    yield row(
        f"sandbox-registry list of {FEW} / import click, sqlite3",
        lambda _: _program("--db", short, "list"),
        lambda _: _python(*IMPORTS),
        "at most 2.5",
    )
    if shutil.which("sqlite3") is None:
        return
    yield row(
        f"sandbox-registry list of {many} / sqlite3 'SELECT * FROM sandbox_overview'",
        lambda _: _program("--db", long, "list"),
        lambda _: _run("sqlite3", long, "SELECT * FROM sandbox_overview"),
        "at most 4",
    )
    yield row(
        f"sandbox-registry check of {many} / sqlite3 'PRAGMA integrity_check'",
        lambda _: _program("--db", long, "check"),
        lambda _: _run("sqlite3", long, "PRAGMA integrity_check"),
        "at most 2, and 1 s",
    )


def fill(path: str, count: int) -> None:
    """Create a registry of *count* sandboxes, whose ids are as random as those of containerd."""
    with Store.open(path, reconcile=False) as store, store.transaction():
        for n in range(count):
            metadata, status = samples.sandbox(n)
            id = hashlib.sha256(metadata.id.encode()).hexdigest()
            store.add(replace(metadata, id=id), status)


def _program(*args: str) -> None:
    _python("-m", "registry", *args)


def _python(*args: str) -> None:
    _run(sys.executable, *args)


def _run(*command: str) -> None:
    """Run *command*, with compiled files, as an installed package has them."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def main() -> None:
    """Print the rows alone."""
    with tempfile.TemporaryDirectory() as folder:
        for figure in measure(folder, 5):
            print(figure, flush=True)


if __name__ == "__main__":
    main()
