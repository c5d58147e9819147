"""Backup of a registry beside its file, made before an upgrade of its schema."""

from __future__ import annotations

import sqlite3
import time
from typing import Final

from registry.engine import Connection
from registry.host import part_file
from registry.tables import incarnation
from registry.tables.copies import copy_pages
from registry.tables.version import REVISION

SUFFIX: Final = f"-before-{REVISION}"
"""Added to the path of a registry: the path of its backup before the upgrade to this revision."""
PART: Final = f"{SUFFIX}{part_file.SUFFIX}"
"""Suffix of a backup that is being written; the next backup replaces one that a kill has left."""


def back_up(connection: Connection, path: str) -> None:
    """Copy the registry at *path* to a file beside it, which replaces an earlier one of that name.

    The caller holds the write lock, outside a transaction. The copy has its name only once it is
    whole and synced.

    Raises:
        ResourceExhaustedError: there is no space for the copy.
        RegistryError: it cannot be written.
    """
    doing = f"back up registry {path!r} before its upgrade to revision {REVISION}"
    copy_pages(connection, f"{path}{SUFFIX}", path, doing, finish=_mark)


def _mark(copy: sqlite3.Connection) -> None:
    incarnation.mark_copy(copy, time.time_ns())
