"""Sandboxes with namespaces to remove, and removals that are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from registry import NetNS, NetNSError, Sandbox, Store
from tests.tools import (
    READY,
    sandbox,
)


def add(store: Store, path: str, id: str = "a") -> tuple[NetNS, Sandbox]:
    """Add a sandbox with a namespace of its own at *path*."""
    made = NetNS.create(path)
    return made, store.add(sandbox(id, netns_path=path), READY)


def refused(remove: Callable[[], object], code: int, path: str) -> str:
    """Expect the error, and return its message."""
    with pytest.raises(NetNSError) as caught:
        remove()
    assert (code, path) == (caught.value.errno, caught.value.path)
    return str(caught.value)
