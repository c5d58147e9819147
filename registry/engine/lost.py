"""Evidence that there was a registry where now there is no database, or an empty one."""

from __future__ import annotations

import os
from typing import Final

from registry.engine import disk_reserve, paths, wal_file
from registry.errors import DataLossError, NotFoundError

BESIDE: Final = ("-wal", "-shm", "-lock", "-queue", *disk_reserve.SIZES)
"""What is added to the path of a database for the names of its other files."""


def require_beginnable(path: str, *, create: bool) -> None:
    """Raise unless a registry may be begun at *path*, where there is none or an empty file.

    Changes nothing. An interrupted creation leaves an empty file and lock files, which prove
    nothing: the disk reserve is allocated, and the lock file is marked, when there is a registry.

    Raises:
        DataLossError: there was a registry, whose database was lost.
        NotFoundError: there was none, and none is to be made.
    """
    doing = f"open registry {path!r}"
    what, proofs = _what_is_there(path), _proofs(path)
    if proofs:
        there = ", ".join(repr(f"{path}{name}") for name in BESIDE if os.path.lexists(path + name))
        raise DataLossError(
            f"{doing}: {what}, but there was a registry: beside it {' and '.join(proofs)}; bring "
            "the database back (mount its disk, restore a backup); or, to begin a new registry, "
            f"first move these files away together: {there} "
            "(docs/operators.md, 'There was a registry')",
            path=path,
        )
    if not create:
        where = "" if os.path.exists(path) else "; is its disk mounted?"
        raise NotFoundError(f"{doing}: {what}{where}", path=path)


def _what_is_there(path: str) -> str:
    if not os.path.exists(path):
        return "there is no such file"
    if not paths.size(path):
        return "the database file is empty"
    # Of a young registry, the file has the first page only: the rest is in the log.
    return f"the database file holds no table, and its log '{path}-wal' is missing"


def _proofs(path: str) -> list[str]:
    """Say what proves that there was a registry at *path*."""
    found = []
    log = wal_file.read(path, None)
    if log is not None and log.committed:
        found.append("'-wal' holds commits")
    for suffix, size in disk_reserve.SIZES.items():
        if paths.size(f"{path}{suffix}") == size:
            found.append(f"{suffix!r} is allocated")
    if paths.size(f"{path}-lock"):
        found.append("'-lock' is marked")
    return found
