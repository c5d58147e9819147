"""What was read of the latest commit, for as long as nobody commits.

1. An answer is kept if no commit came between before it was read and after, and it is given while
   none has come since; so it is never older than a commit that was acknowledged before.
2. Columns are kept, as bytes and text: every handle decodes a config of its own.
3. What one Store keeps is bounded; what would be more is read each time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final

from registry.handles.runtime_state import RuntimeState
from registry.model.status import Status
from registry.tables.rows import Row, load_status

BYTES_MAX: Final = 64 * 1024 * 1024
"""Of what is kept, about: some 20,000 sandboxes with typical configs."""
ROW_BYTES: Final = 2048
"""Of a row without its long texts, about."""
ANSWER_BYTES: Final = 512
"""Of an answer without its sandboxes and the question's text, about."""


class Entry:
    """A sandbox as it was read, and what it has in this process."""

    __slots__ = ("_status", "row", "runtime_state")

    def __init__(self, row: Row, runtime_state: RuntimeState) -> None:
        """Keep both."""
        self.row: Final = row
        self.runtime_state: Final = runtime_state
        self._status: Status | None = None

    def status(self) -> Status:
        """Return the status that *row* has.

        Raises:
            MetadataError: its state is none that is known here.
        """
        if self._status is None:
            self._status = load_status(self.row)
        return self._status

    def weight(self) -> int:
        """Return how many bytes it takes, about."""
        row = self.row
        texts = (row.name, row.netns_path, row.additional_ips, row.cni_result, row.process_label)
        long = (*texts, row.config, row.reason, row.message)
        return ROW_BYTES + sum(len(each) for each in long if isinstance(each, (str, bytes)))


class _Commit:
    """The answers that are known of one commit."""

    __slots__ = ("answers", "entries", "version", "weight")

    def __init__(self, version: int | None) -> None:
        self.version = version
        self.entries: dict[int, Entry] = {}
        """By creation; shared by all answers."""
        self.answers: dict[Hashable, Any] = {}
        self.weight = 0


class Cache:
    """The answers that are known of the latest commit."""

    def __init__(self, look: Callable[[str], int | None]) -> None:
        """Begin with none; *look* returns another number when somebody has committed."""
        self._look: Final = look
        self._commit = _Commit(None)

    def one(self, creation: int, doing: str, read: Callable[[], Entry | None]) -> Entry | None:
        """Return what *read* returns, or has returned since the last commit.

        Args:
            creation: of the sandbox.
            doing: for messages.
            read: returns it as of now; None when there is none.
        """
        version = self._look(doing)
        commit = self._commit
        if version == commit.version and version is not None:
            known = commit.entries.get(creation)
            if known is not None:
                return known
        found = read()
        if found is not None:
            self._keep(version, doing, None, found)
        return found

    def several(
        self, question: Hashable, doing: str, read: Callable[[], tuple[Entry, ...]]
    ) -> tuple[Entry, ...]:
        """Return what *read* returns, or has returned to that *question* since the last commit."""
        version = self._look(doing)
        commit = self._commit
        if version == commit.version and version is not None:
            known: tuple[Entry, ...] | None = commit.answers.get(question)
            if known is not None:
                return known
        found = read()
        return self._keep(version, doing, question, *found)

    def invalidate(self) -> None:
        """Begin with none again."""
        self._commit = _Commit(None)

    def _keep(
        self, version: int | None, doing: str, question: Hashable, *found: Entry
    ) -> tuple[Entry, ...]:
        """Keep *found*, and return what is known already of each instead of it."""
        if version is None or self._look(doing) != version:
            return found
        commit = self._commit
        if commit.version != version:
            commit = _Commit(version)
        known = commit.entries
        weight = commit.weight + 8 * len(found)
        if question is not None:
            weight += ANSWER_BYTES + len(repr(question))
        weight += sum(each.weight() for each in found if each.row.creation not in known)
        if weight > BYTES_MAX:
            return found
        answer = tuple(known.setdefault(each.row.creation, each) for each in found)
        if question is not None:
            commit.answers[question] = answer
        commit.weight = weight
        self._commit = commit
        return answer
