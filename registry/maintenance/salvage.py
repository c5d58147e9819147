"""Salvage: every readable record of a damaged registry, copied into a new one.

    old file and WAL ─ pages ─▶ records by shape ─ scratch database ─▶ NEW.part ─ check ─▶ NEW

The old file is read as bytes, under its process lock; SQLite never opens it. The copy gets its name
only when `check` finds nothing in it.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing
from typing import Final

from registry.engine import driver
from registry.engine.continuity import give_number, next_number
from registry.engine.sqlite_errors import driver_errors
from registry.errors import DataLossError, FailedPreconditionError
from registry.host import paths
from registry.host.part_file import PartFile
from registry.maintenance import damaged_file
from registry.maintenance.pages import Pages
from registry.maintenance.records import Collector, counts
from registry.maintenance.salvage_copy import Copy
from registry.maintenance.salvage_report import Losses, Salvage
from registry.model.validation import check_seconds
from registry.sync.interrupts import call_then, reraise_interrupt, suppress_os_errors
from registry.tables import integrity, sql
from registry.visible import counted

log = logging.getLogger("registry")

SCRATCH: Final = "-found"
"""Added to the path of the part: the scratch database. A killed salvage leaves it to the next."""
_CREATIONS: Final = ("CREATE TABLE", "CREATE INDEX")
_TABLES: Final = (*(each for each in sql.SCHEMA if each.startswith(_CREATIONS)), *sql.INITIAL)
"""Statements before the records are copied: no trigger writes transitions meanwhile."""
_TRIGGERS: Final = tuple(each for each in sql.SCHEMA if not each.startswith(_CREATIONS))
"""Statements afterwards: triggers and views."""


def salvage(
    old: str | os.PathLike[str], new: str | os.PathLike[str], *, timeout: float = 30.0
) -> Salvage:
    """Copy every readable record of the damaged registry *old* into a new one; report the rest.

    Args:
        old: the damaged registry; its files stay as they are. No Store of this process may have it
            open.
        new: path of the copy; there is no file.
        timeout: seconds to wait for a process that writes to *old*.
    Raises:
        NotFoundError: there is no file *old* and no WAL of it, or no directory for *new*.
        DataLossError: no record of a registry was found in *old*.
        FailedPreconditionError: a file *new* exists, or this process has *old* open.
        UnavailableError: another process held the write lock past *timeout*, or writes to *new*.
    """
    source, target = paths.resolve(old), paths.resolve(new)
    doing = f"salvage registry {source!r}"
    timeout = check_seconds(doing, "timeout", timeout)
    _require_free(source, target, doing)
    damaged_file.open_database(source, doing).close()
    part, losses = PartFile(target), Losses()

    def copy() -> Salvage:
        try:
            part.create(source if os.path.exists(source) else f"{source}-wal", doing)
            try:
                with driver_errors(doing, part.path):
                    read, written, added, lost = _write(source, part.path, doing, timeout, losses)
                    _require_valid(part.path, doing)
            finally:
                _remove(f"{part.path}{SCRATCH}")
            part.commit(replace=False)
        except FileExistsError as error:
            reraise_interrupt(error)
            raise _exists(target, doing) from error
        except OSError as error:
            reraise_interrupt(error)
            raise paths.refused(doing, target, f"write {part.path!r}", error) from error
        found = tuple(losses.found)
        ids = tuple(sorted(lost))
        return Salvage(source, target, read, written, added, found, losses.omitted, ids)

    done = call_then(copy, part.discard)
    log.info(
        "salvaged registry %r to %r: %d sandboxes, %d losses",
        source,
        target,
        done.written["sandboxes"],
        len(done.losses) + done.omitted,
        extra={
            "event": "registry_salvaged",
            "path": source,
            "copy": target,
            "sandboxes": done.written["sandboxes"],
            "losses": len(done.losses) + done.omitted,
        },
    )
    return done


def _require_free(source: str, target: str, doing: str) -> None:
    """Raise if there is a file at *target*, or one beside it that SQLite would take for its own.

    Nor may the copy become a file of *source*, such as its WAL.
    """
    if target.startswith(f"{source}-"):
        raise FailedPreconditionError(
            f"{doing}: {target!r} would be a file beside it; name a file of another name",
            path=target,
        )
    for path in (target, *(f"{target}{suffix}" for suffix in ("-wal", "-shm", "-journal"))):
        if os.path.lexists(path):
            raise _exists(path, doing)


def _exists(path: str, doing: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"{doing}: {path!r} exists; name a new file", path=path)


def _remove(path: str) -> None:
    with suppress_os_errors():
        os.unlink(path)


def _write(
    source: str, part: str, doing: str, timeout: float, losses: Losses
) -> tuple[dict[str, int], dict[str, int], dict[str, int], set[str]]:
    """Write the copy.

    Returns:
        how many records were read, were written, and of these were made, by table; the ids of the
        lost sandboxes.
    """
    with closing(driver.connect(part, "rw", (_settings,), busy_timeout=0)) as connection:
        _attach_scratch(connection, f"{part}{SCRATCH}")
        connection.execute("BEGIN")
        for statement in _TABLES:
            connection.execute(statement)

        def collect(pages: Pages) -> None:
            Collector(connection, pages, losses.add).collect()

        damaged_file.read(source, doing, timeout, collect, losses.add)
        connection.execute("COMMIT")  # a change of the schema would hinder savepoints
        read = counts(connection, "found")
        if not any(read.values()):
            raise DataLossError(
                f"{doing}: no record of a registry was found in it; is the path right? If it was a "
                "registry, restore a backup",
                path=source,
            )
        copy = Copy(connection, losses.add, doing)
        copy.run()
        connection.execute("BEGIN")
        for statement in _TRIGGERS:
            connection.execute(statement)
        give_number(connection, next_number(connection))
        connection.execute("COMMIT")
        written = counts(connection, "main")
        return read, written, {table: copy.added[table] for table in written}, copy.lost


def _settings(connection: sqlite3.Connection) -> None:
    """Journal in memory: a file that is not whole is removed. Sync the commit."""
    connection.execute("PRAGMA journal_mode = MEMORY")
    connection.execute("PRAGMA synchronous = FULL")


def _attach_scratch(connection: sqlite3.Connection, path: str) -> None:
    """Attach a new scratch database at *path* as `found`."""
    _remove(path)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection.execute("ATTACH DATABASE ? AS found", (path,))
    connection.execute("PRAGMA found.journal_mode = OFF")
    connection.execute("PRAGMA found.synchronous = OFF")


def _require_valid(part: str, doing: str) -> None:
    """Raise if `check` finds a violation in the copy."""
    with closing(driver.connect(part, "ro", driver.READER_SETUP, busy_timeout=0)) as connection:
        found = integrity.run(connection)
    if found:
        raise DataLossError(
            f"{doing}: the copy would violate {counted(len(found), 'invariant')}, first: "
            f"{found[0]}; restore a backup, and report this fault of the program",
            path=part,
        )
