"""Position in the history: whether every transition after it is still there."""

from __future__ import annotations

from typing import NamedTuple

from registry.engine.driver import Fetch
from registry.errors import CompactedError
from registry.tables import sql


class Position(NamedTuple):
    """Seq of a transition, after which a reader goes on, and the history of one snapshot."""

    after: int
    oldest: int
    """Seq of the oldest transition that is kept; 0: none is."""
    newest: int
    last: int
    """Seq that the next transition follows; greater than *newest* until an incarnation has one."""
    is_kept: bool
    """Whether the transition *after* is in the history."""
    is_followed: bool
    """Whether the transition with the next seq is."""
    registry_id: str

    @classmethod
    def read(cls, after: int, fetch: Fetch) -> Position:
        """Return the position *after* in the history that *fetch* sees."""
        ((oldest, newest, last, kept, followed, id),) = fetch(sql.POSITION, {"after": after})
        newest = newest or 0
        last = max(last or 0, newest)
        return cls(after, oldest or 0, newest, last, bool(kept), bool(followed), str(id))

    def require_whole(self, doing: str) -> None:
        """Raise unless the history has all transitions after it.

        Raises:
            CompactedError: they are no longer kept, or were lost when a backup was restored.
        """
        if self.is_kept or self.is_followed or self.after == self.last:
            return
        if self.after < self.oldest - 1:
            why = f"is compacted, it begins with {self.oldest}"
        elif self.after > self.last:
            why = f"is of another registry, or of a later backup; this one ends with {self.newest}"
        else:
            why = f"was lost when a backup was restored; this one ends with {self.newest}"
        raise CompactedError(
            f"{doing}: the history after seq {self.after} {why}; "
            "list the sandboxes, and go on from there",
            after=self.after,
            oldest=self.oldest,
        )
