"""Fixtures: every test that has a store is also a test that `check` finds nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from registry import Store

OpenStore = Callable[..., Store]

# Of a job in the background SIGINT is ignored, and so it would be of all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return where a registry can be made."""
    return str(tmp_path / "registry.db")


@pytest.fixture
def open_store(path: str) -> Iterator[OpenStore]:
    """Return `Store.open` of *path*; all are closed at the end, and the file is checked."""
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
    """Return an open store on a fresh file."""
    return open_store()
