"""Files beside a database: whether each is one that SQLite and this package may use.

SQLite reads `-wal` and `-journal` into the database and writes to `-shm`, and this package locks
`-lock` and `-queue`. So none of them may be a file of another program or of another user.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from registry.errors import FailedPreconditionError
from registry.host import paths

OF_SQLITE: Final = ("-journal", "-wal", "-shm")
LOCKS: Final = ("-lock", "-queue")
"""Suffixes of the files; a store that is open read-only locks none. The disk reserve is left out: a
registry without one works while the disk has space."""


def require_own(database: str, *, read_only: bool) -> None:
    """Raise unless each file beside *database*, its real path, may be one of its registry.

    Args:
        database: real path, which need not exist.
        read_only: only the files of SQLite are used.
    Raises:
        FailedPreconditionError: a file is not a regular one, has several names, or belongs to
            another user in a directory in which any user may create files.
        RegistryError: a file cannot be inspected.
    """
    doing = f"open registry {database!r}"
    trusted = _trusted_owners(database, doing)
    for suffix in OF_SQLITE if read_only else OF_SQLITE + LOCKS:
        found = paths.inspect(f"{database}{suffix}", doing, follow=False)
        why = "" if found is None else paths.why_not_ours(f"{database}{suffix}", found)
        if found is not None and not why and trusted and found.st_uid not in trusted:
            why = _of_another(found.st_uid)
        if why:
            raise FailedPreconditionError(
                f"{doing}: {database + suffix!r} {why}; move it away",
                path=database,
            )


def _trusted_owners(database: str, doing: str) -> set[int]:
    """Return the users whose files may lie beside *database*; empty: any.

    Raises:
        FailedPreconditionError: another user has put the empty file there in which a registry is to
            be created.
    """
    directory = paths.inspect(os.path.dirname(database), doing)
    shared = stat.S_ISVTX | stat.S_IWGRP, stat.S_ISVTX | stat.S_IWOTH
    if directory is None or not any(bits & ~directory.st_mode == 0 for bits in shared):
        return set()  # who may write there may replace the database too
    trusted, found = {0, os.geteuid()}, paths.inspect(database, doing)
    if found is None:
        return trusted
    if not found.st_size and found.st_uid not in trusted:
        raise FailedPreconditionError(
            f"{doing}: the file is empty and {_of_another(found.st_uid)}; "
            "create the registry in a directory of its own",
            path=database,
        )
    return trusted | {found.st_uid}


def _of_another(uid: int) -> str:
    return (
        f"belongs to another user (uid {uid}), in a directory in which other users may create files"
    )
