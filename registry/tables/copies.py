"""Copies of a registry by SQLite's backup API: whole and synced at their path, or absent.

A copy has the journal mode DELETE: it is one file, and reading it leaves nothing beside it.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Final

from registry.engine import Connection
from registry.engine.sqlite_errors import translate
from registry.host import paths
from registry.host.part_file import PartFile
from registry.sync.interrupts import call_then, reraise_interrupt

Progress = Callable[[int, int], object]
"""Called after each step with the number of pages that are copied, and of all pages."""


class Stopped(BaseException):
    """The function of the caller has raised, in a step of a copy."""


class Caller:
    """The function of the caller that is told the progress, and what it has raised."""

    def __init__(self, progress: Progress | None = None) -> None:
        """Call *progress*, if there is one."""
        self._progress = progress
        self.error: BaseException | None = None
        """What it has raised, for the caller alone: the copy ends by `Stopped`."""

    def step(self, _: int, remaining: int, total: int) -> None:
        """Report a step of SQLite.

        Raises:
            Stopped: the function has raised.
        """
        if self._progress is not None:
            try:
                self._progress(total - remaining, total)
            except BaseException as error:
                self.error = error
                raise Stopped from error


STEP: Final = 256
"""Pages of a step: 1 MiB. Signal handlers run, and *progress* is called, between two steps."""


def copy_pages(
    connection: Connection,
    target: str,
    owner: str,
    doing: str,
    *,
    finish: Callable[[sqlite3.Connection], object],
    caller: Caller | None = None,
) -> None:
    """Copy all pages of *connection* to the file *target*, which it replaces when it is whole.

    Args:
        connection: has a snapshot, or a lock that keeps other writers away.
        target: path of the copy.
        owner: path of the file whose owner the copy gets.
        doing: operation and object, for messages.
        finish: called with a connection to the copy, in a transaction.
        caller: is told the progress.
    Raises:
        Stopped: its function has raised.
        RegistryError: the copy cannot be written.
    """
    part = PartFile(target)

    def copy_and_commit() -> None:
        try:
            part.create(owner, doing)
            with closing(sqlite3.connect(part.path, isolation_level=None)) as copy:
                _fill(copy, connection, finish, caller or Caller())
            part.commit()
        except sqlite3.Error as error:
            raise translate(error, doing, part.path) from error
        except OSError as error:
            reraise_interrupt(error)
            raise paths.refused(doing, part.path, "write the copy", error) from error

    call_then(copy_and_commit, part.discard)


def _fill(
    copy: sqlite3.Connection,
    connection: Connection,
    finish: Callable[[sqlite3.Connection], object],
    caller: Caller,
) -> None:
    """Write the pages of *connection* into the empty file of *copy*, and *finish* it."""
    # A kill leaves no journal, but a part that is not used.
    copy.execute("PRAGMA journal_mode = OFF")
    copy.execute("PRAGMA synchronous = FULL")
    copy.execute("PRAGMA locking_mode = EXCLUSIVE")  # needs no -shm
    connection.backup(copy, pages=STEP, progress=caller.step)
    _leave_wal_mode(copy)
    copy.execute("PRAGMA journal_mode = MEMORY")
    copy.execute("BEGIN IMMEDIATE")
    finish(copy)
    copy.execute("COMMIT")


def _leave_wal_mode(copy: sqlite3.Connection) -> None:
    """Give the copy, which has the mode of the original, the journal mode DELETE.

    Raises:
        OSError: SQLite reports no error of its own, but keeps the mode.
    """
    if copy.execute("PRAGMA journal_mode = DELETE").fetchone()[0] != "delete":
        raise OSError(errno.EIO, os.strerror(errno.EIO))
