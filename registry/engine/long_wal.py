"""Message about a write-ahead log past its bound: which processes keep it from being reset."""

from __future__ import annotations

from registry.engine import driver
from registry.host import file_locks, paths


def why_long(path: str) -> str:
    """Return the length of the WAL of the database at *path*, and the processes that keep it."""
    keepers = ", ".join(file_locks.snapshot_holders(path)) or "an unknown process"
    bytes = paths.estimated_size(f"{path}-wal")
    return (
        f"the write-ahead log of {path!r} has {bytes} bytes and cannot be reset: "
        f"{keepers} keeps a snapshot; end the read transaction there"
    )


def long_wal(path: str) -> str:
    """Return `why_long` with "; " before it; "" if the WAL is short, or no process keeps it."""
    if paths.estimated_size(f"{path}-wal") <= driver.WAL_MAX or not file_locks.snapshot_holders(
        path
    ):
        return ""
    return f"; {why_long(path)}"
