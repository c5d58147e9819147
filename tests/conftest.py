"""Fixtures that open registries, and check each of them at the end of its test."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from registry import Store
from tests.tools import environment, python

OpenStore = Callable[..., Store]
RunInLocale = Callable[..., list[str]]

# A job in the background ignores SIGINT, and so would every process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a path at which a registry can be created."""
    return str(tmp_path / "registry.db")


@pytest.fixture
def open_store(path: str) -> Iterator[OpenStore]:
    """Return `Store.open` of *path*; close all stores at the end, and check the file."""
    stores = []

    def open_it(**options: Any) -> Store:
        stores.append(Store.open(path, **options))
        return stores[-1]

    yield open_it
    for store in stores:
        store.close()
    if os.path.exists(path):
        with Store.open(path, reconcile=False) as last:
            assert [] == last.check()


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    """Return an open store of a new file."""
    return open_store()


@pytest.fixture
def latin1(tmp_path_factory: pytest.TempPathFactory) -> RunInLocale:
    """Return a function that runs code in a process whose locale is ISO 8859-1."""
    folder, name = tmp_path_factory.mktemp("locale"), "de_DE.ISO-8859-1"
    try:
        subprocess.run(
            ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", folder / name],
            check=False,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("localedef is not installed (package locales)")
    if not (folder / name).exists():
        pytest.skip("localedef has no definition of de_DE (package locales)")
    variables = {"LOCPATH": str(folder), "LC_ALL": name, "PYTHONUTF8": "0"}

    def run_it(code: str, *args: object) -> list[str]:
        done = subprocess.run(
            python(code, *args),
            env={**environment(), **variables},
            capture_output=True,
            check=False,
        )
        assert 0 == done.returncode, done.stderr.decode("latin-1")
        return done.stdout.decode("ascii").splitlines()

    return run_it
