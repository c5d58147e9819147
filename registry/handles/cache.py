"""Cache of query results, valid until another connection commits.

1. A result is kept if no commit came between the time before it was read and the time after. It is
   returned while the data version has not changed since. So it is never older than a commit that
   was acknowledged before the call.
2. A commit of this process changes the data version too. The cache then applies the changes that
   the transaction reported, and goes on: see `engine.own_commits`. The rest stays valid.
3. A result is of one commit: it is returned if the cache had the same version before it was
   gathered and after. While changes are applied the cache has no version.
4. Columns are kept, as bytes and text: every handle decodes a config of its own.
5. The size is bounded. What does not fit empties the cache first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, Generic, NamedTuple, TypeVar

from registry.handles.runtime_state import RuntimeState
from registry.model.status import State, Status
from registry.tables.rows import AnyRow, Row, load_status

BYTES_MAX: Final = 64 * 1024 * 1024
"""Approximate size of all that one Store caches: some 20,000 sandboxes with typical configs."""
ROW_BYTES: Final = 2048
"""Approximate size of a row without its long texts."""
ANSWER_BYTES: Final = 512
"""Approximate size of an answer without its sandboxes and the text of the question."""
T = TypeVar("T")

_STORED_AS_GIVEN: Final = frozenset({int, str, type(None)})
"""Types of values that SQLite returns as they were written; it returns no subclass of them."""


_FIELDS: Final = frozenset(Row._fields)
_LONG: Final = ("name", "netns_path", "additional_ips", "cni_result", "process_label", "config")
_long_texts: Final = itemgetter(*map(Row._fields.index, (*_LONG, "reason", "message")))
"""Returns the values of a row that may be long."""


class Entry:
    """A sandbox as it was read, and its runtime state."""

    __slots__ = ("_status", "_weight", "row", "runtime_state")

    def __init__(self, row: Row, runtime_state: RuntimeState) -> None:
        """Keep both."""
        self.row: Final = row
        self.runtime_state: Final = runtime_state
        self._status: Status | None = None
        self._weight = 0

    def status(self) -> Status:
        """Return the status that *row* has.

        Raises:
            MetadataError: this version does not know its state.
        """
        if self._status is None:
            self._status = load_status(self.row)
        return self._status

    def weight(self) -> int:
        """Return the approximate number of bytes of the entry."""
        if not self._weight:
            long = _long_texts(self.row)
            try:
                size = sum(map(len, filter(None, long)))  # no loop: a list weighs each sandbox
            except TypeError:  # a damaged value: a number
                size = sum(len(each) for each in long if isinstance(each, (str, bytes)))
            self._weight = ROW_BYTES + size
        return self._weight


class Added(NamedTuple):
    """Report of a sandbox that was inserted, or whose metadata was replaced."""

    entry: Entry
    is_new: bool


class Changed(NamedTuple):
    """Report of columns that were written, of a sandbox that was *before*."""

    before: AnyRow
    columns: Mapping[str, object]
    """Names that are none of `Row` are ignored."""

    def sets_pid_of(self, row: Row) -> bool:
        """Return whether it has set the pid that *row* has."""
        return self.before.creation == row.creation and self.columns.get("pid") == row.pid


class Deleted(NamedTuple):
    """Report of a sandbox that was deleted."""

    row: Row


class _Answers(Generic[T]):
    """Answers to questions of one kind."""

    __slots__ = ("known", "weight")

    def __init__(self) -> None:
        self.known: dict[Hashable, T] = {}
        self.weight = 0
        """Approximate size in bytes."""

    def put(self, question: Hashable, answer: T, weight: int) -> None:
        if question not in self.known:
            self.weight += weight
        self.known[question] = answer


_List = tuple[int, tuple[Entry, ...]]
"""The data version at which a list was valid last, and its entries."""


class Cache:
    """Cached query results of one Store."""

    def __init__(
        self, read_version: Callable[[str], int | None], is_committing: Callable[[], bool]
    ) -> None:
        """Begin empty.

        Args:
            read_version: returns the data version, None where it cannot.
            is_committing: returns whether a commit of this process is about to be followed. A
                reader that sees it earlier then leaves the cache as it is.
        """
        self._read_version: Final = read_version
        self._is_committing: Final = is_committing
        self._mutex = threading.Lock()
        self._changing_thread = 0
        self._clear(None)

    def _clear(self, version: int | None) -> None:
        """Drop all that is cached, and begin with *version*."""
        self.version: int | None = None
        """The data version for which all that is cached is valid; None: for none."""
        self.entries: dict[int, Entry] = {}
        """By creation."""
        self._entries_weight = 0
        self._creations: dict[str, int] = {}
        """By id."""
        self._prefixes = _Answers[int | None]()
        """The creation that a prefix names; None where it names none."""
        self._lists = _Answers[_List]()
        self._lists_by_state = _Answers[_List]()
        """Those that only sandboxes in a certain state are in."""
        self.version = version

    def invalidate(self) -> None:
        """Drop all that is cached."""
        self._clear(None)

    @property
    def weight(self) -> int:
        """The approximate size in bytes."""
        answers = (self._prefixes, self._lists, self._lists_by_state)
        return self._entries_weight + sum(each.weight for each in answers)

    @property
    def questions(self) -> int:
        """Number of cached answers, without the sandboxes themselves."""
        answers = (self._prefixes, self._lists, self._lists_by_state)
        return sum(len(each.known) for each in answers)

    # Queries.

    def one(self, creation: int, doing: str, read: Callable[[], Entry | None]) -> Entry | None:
        """Return the sandbox of *creation*, cached or read.

        Args:
            creation: of the sandbox.
            doing: for messages.
            read: returns it as of the latest commit; None when there is none.
        """
        version = self._read_version(doing)
        if version is not None and version == self.version:
            cached = self.entries.get(creation)
            if cached is not None and self.version == version:
                return cached
        entry = read()
        if entry is not None:
            self._keep(version, doing, (entry,))
        return entry

    def find(self, prefix: str, doing: str, read: Callable[[], Entry | None]) -> Entry | None:
        """Return the sandbox whose id is *prefix*, or begins with it; arguments as `one`."""
        version = self._read_version(doing)
        if version is not None and version == self.version:
            creation = self._creations.get(prefix)  # an exact id wins
            if creation is None:
                creation = self._prefixes.known.get(prefix, -1)
            cached = None if creation is None else self.entries.get(creation)
            if (cached is not None or creation is None) and self.version == version:
                return cached
        entry = read()
        weight, found = ANSWER_BYTES + len(prefix), None if entry is None else entry.row.creation
        self._keep(
            version,
            doing,
            () if entry is None else (entry,),
            weight,
            lambda _: self._prefixes.put(prefix, found, weight),
        )
        return entry

    def has(self, prefix: str, doing: str) -> bool:
        """Return whether the sandbox whose id is *prefix*, or begins with it, is cached."""
        # Without a version nothing was read yet, and to read the version opens a connection.
        version = None if self.version is None else self._read_version(doing)
        if version is None or version != self.version or not isinstance(prefix, str):
            return False
        creation = self._creations.get(prefix, self._prefixes.known.get(prefix))
        return creation in self.entries and self.version == version

    def several(
        self,
        question: Hashable,
        doing: str,
        read: Callable[[], tuple[Entry, ...]],
        *,
        by_state: bool,
    ) -> tuple[Entry, ...]:
        """Return the sandboxes that answer *question*.

        Args:
            question: equal for equal queries.
            doing: for messages.
            read: returns them as of the latest commit.
            by_state: whether a change of a state alone can change which they are.
        """
        version = self._read_version(doing)
        lists = self._lists_by_state if by_state else self._lists
        if version is not None and version == self.version:
            answer = lists.known.get(question)
            cached = None if answer is None else self._brought_up_to(version, answer)
            if cached is not None and self.version == version:
                lists.known[question] = (version, cached)
                return cached
        entries = read()
        weight = ANSWER_BYTES + len(repr(question)) + 8 * len(entries)

        def put(entries: tuple[Entry, ...]) -> None:
            lists = self._lists_by_state if by_state else self._lists
            lists.put(question, (version or 0, entries), weight)

        return self._keep(version, doing, entries, weight, put)

    def _brought_up_to(self, version: int, answer: _List) -> tuple[Entry, ...] | None:
        """Return *answer* with its sandboxes as they are at *version*; None: one is not cached."""
        valid_at, entries = answer
        if valid_at == version:
            return entries
        try:
            return tuple([self.entries[entry.row.creation] for entry in entries])
        except KeyError:
            return None

    # Changes.

    def _keep(
        self,
        version: int | None,
        doing: str,
        entries: tuple[Entry, ...],
        weight: int = 0,
        put: Callable[[tuple[Entry, ...]], None] | None = None,
    ) -> tuple[Entry, ...]:
        """Keep *entries* unless another commit came since *version*; return them, as cached.

        Args:
            version: the data version before they were read.
            doing: for messages.
            entries: that were read.
            weight: approximate bytes of what *put* keeps.
            put: keeps the answer that they are.
        """
        if version is None or self._read_version(doing) != version:
            return entries
        weight += sum([entry.weight() for entry in entries])
        kept = entries

        def keep() -> None:
            nonlocal kept
            if self.version is None or (self.version < version and not self._is_committing()):
                self._clear(version)
            if self.version != version or weight > BYTES_MAX:
                return
            if self.weight + weight > BYTES_MAX:
                self._clear(version)
            kept = tuple([self._put(entry) for entry in entries])
            if put is not None:
                put(kept)

        self._exclusively(keep)
        return kept

    def _put(self, entry: Entry) -> Entry:
        """Cache *entry*, or return the one that is cached of its creation."""
        row = entry.row
        cached = self.entries.setdefault(row.creation, entry)
        if cached is entry:
            self._entries_weight += entry.weight()
            self._creations[row.id] = row.creation
        return cached

    def _exclusively(self, change: Callable[[], None]) -> None:
        """Call *change* under the mutex, or not at all where this thread has it already.

        That is so in a signal handler that interrupts a change. What is not kept is read again.
        """
        me = threading.get_ident()
        if self._changing_thread == me:
            return
        with self._mutex:
            self._changing_thread = me
            try:
                change()
            finally:
                self._changing_thread = 0

    def follow(self, before: int, after: int, changes: Sequence[object]) -> None:
        """Go on after a commit of this process, if *before* is the version of the cache.

        Args:
            before: the data version of the state that the transaction began with.
            after: the data version of the state that it made.
            changes: that it reported, in order.
        """

        def apply() -> None:
            if self.version != before:
                return
            self.version = None  # until all is applied; an interrupt leaves it so
            for change in changes:
                if isinstance(change, Changed):
                    self._change(change)
                elif isinstance(change, Added):
                    self._add(change)
                elif isinstance(change, Deleted):
                    self._delete(change)
            if self.weight > BYTES_MAX:
                self._clear(None)
            else:
                self.version = after

        self._exclusively(apply)

    def _change(self, change: Changed) -> None:
        """Write the columns into what is cached of the sandbox."""
        columns, creation = change.columns, change.before.creation
        if "state" in columns or "created_at" in columns:
            self._lists_by_state = _Answers()
            if "created_at" in columns or change.before.state == str(State.UNKNOWN):
                self._lists = _Answers()
        cached = self.entries.get(creation)
        if cached is None:
            return
        known: dict[str, Any] = {name: value for name, value in columns.items() if name in _FIELDS}
        if _STORED_AS_GIVEN.issuperset(map(type, known.values())):
            self._replace(Entry(cached.row._replace(**known), cached.runtime_state))
        else:
            self._remove(creation)

    def _add(self, change: Added) -> None:
        self._replace(change.entry)
        self._creations[change.entry.row.id] = change.entry.row.creation
        self._lists, self._lists_by_state = _Answers(), _Answers()
        if change.is_new:
            self._prefixes = _Answers()

    def _delete(self, change: Deleted) -> None:
        self._remove(change.row.creation)
        self._creations.pop(change.row.id, None)
        self._prefixes, self._lists, self._lists_by_state = _Answers(), _Answers(), _Answers()

    def _replace(self, entry: Entry) -> None:
        """Cache *entry* in the place of the one that is cached."""
        self._remove(entry.row.creation)
        self.entries[entry.row.creation] = entry
        self._entries_weight += entry.weight()
        if entry.row.state == str(State.NOTREADY):
            entry.runtime_state.stopped.stop()

    def _remove(self, creation: int) -> None:
        cached = self.entries.pop(creation, None)
        if cached is not None:
            self._entries_weight -= cached.weight()
