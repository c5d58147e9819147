"""Paths as SQLite takes them."""

from __future__ import annotations

import os
from urllib.parse import quote

from registry.engine import driver


def test_path_is_quoted_as_urllib_does() -> None:
    """Every byte that a file name can have."""
    path = b"/" + bytes(range(1, 256))
    assert quote(path) == driver.quoted(os.fsdecode(path))
