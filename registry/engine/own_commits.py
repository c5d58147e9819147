"""Commits of this process, reported to caches, so that these keep what a commit did not change.

A cache is valid for one value of the data version (`readers.DataVersion`). That value also changes
after a commit of this process. A cache may go on after such a commit if it learns two values:

    before    the data version of the state that the transaction began with
    after     the data version of the state that its COMMIT made, and of no later state

1. Between BEGIN IMMEDIATE and COMMIT no other connection can commit. So *before* is the value that
   is read in the transaction; it is still the *after* of the previous commit of this process
   unless another connection has committed since.
2. The data version of the connection that writes changes only when another connection has
   committed. *after* is read first, then this value: if it has not changed, no other commit is part
   of *after*.
3. Nothing is reported where this is not certain: after an error, after an interrupt, when
   another connection has committed, or when a statement has changed rows that the transaction did
   not report. The caches are then at a version that is not the latest, and read again.
4. The two values are read only if the data version was read since the last commit: a process that
   only writes does not pay for them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol
from weakref import WeakSet

from registry.errors import RegistryError
from registry.sync.interrupts import reraise_interrupt

if TYPE_CHECKING:
    from registry.engine.driver import Connection
    from registry.engine.readers import DataVersion


class Follower(Protocol):
    """A cache."""

    def follow(self, before: int, after: int, changes: Sequence[object]) -> None:
        """Apply a commit of this process."""


class OwnCommits:
    """Publisher of the commits of one engine. The caller of every method holds the mutex."""

    def __init__(self, data_version: DataVersion) -> None:
        """Begin without followers."""
        self.followers: Final = WeakSet[Follower]()
        self._data_version: Final = data_version
        self._before: int | None = None
        """The data version of the latest state; None: unknown."""
        self.is_committing = False
        """Whether a commit may be visible that was not reported to the followers yet."""
        self._unreported = 0
        """Rows changed on the connection, and not reported, when the transaction began."""

    def begin(self, connection: Connection, *, foreign: bool) -> None:
        """Record the state at the beginning of a write transaction.

        Args:
            connection: connection that writes, before the first change.
            foreign: whether another connection has committed since the last transaction.
        """
        self._unreported = connection.total_changes - connection.reported_changes
        if foreign:
            self._before = None
        if self._before is None and self._data_version.was_read and self.followers:
            self._before = self._read()

    def commit_begins(self) -> int | None:
        """Return *before* of the transaction, which is unknown from now on."""
        before, self._before = self._before, None
        self.is_committing = before is not None
        return before

    def committed(
        self,
        connection: Connection,
        version: int | None,
        before: int | None,
        changes: Sequence[object],
    ) -> None:
        """Report the changes of a transaction to the followers, after its COMMIT.

        Args:
            connection: the one that writes.
            version: its data version inside the transaction.
            before: as `commit_begins` returned it.
            changes: reported by the members of the group.
        """
        unreported = connection.total_changes - connection.reported_changes != self._unreported
        if before is None or unreported or not self._data_version.was_read:
            return
        after = self._read()
        if after is None or _version_of(connection) != version:
            return
        self._data_version.was_read = False
        for follower in tuple(self.followers):
            follower.follow(before, after, changes)
        self._before = after

    def _read(self) -> int | None:
        try:
            return self._data_version.read("follow commits")
        except RegistryError as error:
            reraise_interrupt(error)
            return None  # the commit itself is not in doubt


def _version_of(connection: Connection) -> int | None:
    try:
        return int(connection.execute("PRAGMA data_version").fetchone()[0])
    except sqlite3.Error:
        return None
