"""The write transaction that is open in this process, and those that are committed together.

What the owner of a transaction writes meanwhile joins as a savepoint. Another task of its thread
cannot wait, since the owner would not run meanwhile, and is refused. Another thread waits, unless
it was called from the body of the transaction, which waits for it.

An exception that a signal handler raises may strike between any two bytecodes. So no cleaning up
rests on a local variable: the mutex knows its holder, the connection knows whether it is in a
transaction, and to end twice is harmless.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Any

from registry.engine.driver import Connection
from registry.engine.owner import current_owner
from registry.engine.sqlite_errors import translate
from registry.errors import FailedPreconditionError, RegistryError, retold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


class Transaction:
    """The write transaction that is open, as its owner's calls see it."""

    __slots__ = (
        *("_effects", "_end_callbacks", "_outer", "committed", "connection", "deadline", "doing"),
        *("ended_by", "exclusive", "group", "joined", "owner", "path", "require_open", "scope"),
        *("since", "thread", "timeout"),
    )

    def __init__(
        self,
        connection: Connection,
        path: str,
        doing: str,
        require_open: Callable[[str], None],
        *,
        exclusive: bool,
    ) -> None:
        """Note who begins it; the engine begins and ends it.

        Args:
            connection: the one that writes.
            path: the database.
            doing: what, for messages.
            require_open: raises once the connection may no longer be used.
            exclusive: it shares no commit with others.
        """
        self.exclusive = exclusive
        self.joined = False
        """Whether it has a savepoint in a group that others began."""
        self.group: Group | None = None
        """The one that it waits for the commit of."""
        self.connection = connection
        self.require_open = require_open
        self.path = path
        self.doing = doing
        """What is being done, for messages: by the innermost part."""
        self._outer: list[str] = []
        self.owner = current_owner()
        self.scope = object()
        """What stands for it in the contexts of its body."""
        self.thread = threading.current_thread()
        self.since = time.time_ns()
        self.timeout = self.deadline = 0.0
        """How long all that it does may wait (seconds), and until when (monotonic seconds)."""
        self.committed = False
        self.ended_by: BaseException | None = None
        """The error with which SQLite ended the whole transaction."""
        self._effects: list[deque[Callable[[], object]]] = [deque()]
        self._end_callbacks: deque[Callable[[], object]] = deque()

    def execute(self, sql: str, params: Mapping[str, object] = {}) -> sqlite3.Cursor:
        """Run one statement.

        Raises:
            RegistryError: for a driver error, by its code.
            FailedPreconditionError: SQLite has ended the transaction; another statement would
                commit by itself.
        """
        self._require_whole()
        try:
            return self.connection.execute(sql, params)
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def execute_many(self, sql: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Run one statement for each of *rows*; errors as `execute`."""
        for row in rows:
            self.execute(sql, row)

    def fetch(self, sql: str, params: Mapping[str, object] = {}) -> list[tuple[Any, ...]]:
        """Return all rows of a query, this transaction's own changes among them."""
        self._require_whole()
        try:
            return self.connection.fetch(sql, params)
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _require_whole(self) -> None:
        self.require_open(self.doing)
        if not self.connection.in_transaction:
            raise self._ended() from self.ended_by

    def _translated(self, error: sqlite3.Error) -> RegistryError:
        """Return what a driver error is called here; of a connection closed in mid-call, that."""
        self.require_open(self.doing)
        translated = translate(error, self.doing, self.path)
        if not self.connection.in_transaction:
            self.ended_by = translated
            translated.__cause__ = error
        return translated

    def after_commit(self, effect: Callable[[], object]) -> None:
        """Run *effect* once the commit is certain and before the call returns; never otherwise."""
        self._effects[-1].append(effect)

    def effects(self) -> Iterator[Callable[[], object]]:
        """Return the effects that wait for the commit; those of failed parts are not among them."""
        return chain.from_iterable(self._effects)

    def after_end(self, effect: Callable[[], object]) -> None:
        """Run *effect* when the whole transaction has ended, whatever became of it."""
        self._end_callbacks.append(effect)

    @property
    def depth(self) -> int:
        """How many savepoints it has open, and one."""
        return len(self._effects)

    def begin_nested(self, doing: str) -> None:
        """Begin a savepoint: a part that may fail alone."""
        self._outer.append(self.doing)
        self.doing = doing
        self._effects.append(deque())
        self.execute(f"SAVEPOINT {self._savepoint()}")

    def end_nested(self, error: BaseException | None) -> None:
        """End the innermost savepoint: keep what it did, or take it back when it failed."""
        savepoint, effects = self._savepoint(), self._effects.pop()
        try:
            if error is not None and self.connection.in_transaction:
                self.connection.execute(f"ROLLBACK TO {savepoint}")
            self.execute(f"RELEASE {savepoint}")
        except BaseException as failure:
            # The part can no longer be told from the whole: the whole fails.
            of_sqlite = failure if isinstance(failure, sqlite3.Error) else None
            self.ended_by = self.ended_by or of_sqlite or error or failure
            if error is None:
                raise
        else:
            if error is None:
                self._effects[-1].extend(effects)
        finally:
            self.doing = self._outer.pop()

    def _savepoint(self) -> str:
        return f"nested_{self.depth}"

    def run_effects(self) -> None:
        """Run what waited for the commit."""
        while self._effects[0]:
            self._effects[0].popleft()()

    def run_end_callbacks(self) -> None:
        """Run what waited for the end."""
        while self._end_callbacks:
            self._end_callbacks.popleft()()

    def check_whole(self) -> None:
        """Refuse to commit what SQLite, or a failure in a nested write, has ended.

        Raises:
            FailedPreconditionError: from the error that ended it.
        """
        parts_left_open = self.depth > 1  # a signal handler's exception struck their end
        if self.ended_by is not None or parts_left_open or not self.connection.in_transaction:
            raise self._ended() from self.ended_by

    def _ended(self) -> FailedPreconditionError:
        return FailedPreconditionError(
            f"{self.doing}: the transaction was ended by an error inside it "
            f"({self.ended_by!r}); nothing of it is stored, begin a new one"
        )


class Group:
    """Writes that are committed together."""

    __slots__ = (
        "_outcome",
        "deadline",
        "done",
        "failure",
        "held_up_by",
        "join_deadline",
        "members",
        "runs",
    )

    def __init__(self) -> None:
        """Begin with no member."""
        self.members: list[Transaction] = []
        self.runs = 1
        """How many have run in it, those that failed counted."""
        self.deadline = self.join_deadline = math.inf
        """The earliest of its members, and when nobody may join any more: after a tenth of what a
        member may wait, so that the function of who joins has the rest. Monotonic seconds."""
        self.failure: RegistryError | None = None
        self.held_up_by: Transaction | None = None
        """Whose function had not come back when the earliest deadline passed."""
        self.done = False
        """Whether the outcome is known: *failure*, or that all of it is stored."""
        self._outcome: dict[str, RegistryError | None] = {}

    def close(self, failure: RegistryError | None) -> RegistryError | None:
        """Decide, the first time, that it fails by *failure* or, by None, that it is committed.

        One step for all threads, without a lock. Returns what was decided.
        """
        return self._outcome.setdefault("failure", failure)

    @property
    def closed(self) -> bool:
        """Whether nobody may join it any more."""
        return bool(self._outcome)

    def failure_of(self, transaction: Transaction) -> RegistryError:
        """Return its failure as the error of one member."""
        failure = self.failure
        assert failure is not None, "it has failed"
        why = str(failure)
        if transaction is self.held_up_by:
            why = (
                "its own function was still running when another write, with which it shares the "
                "commit, had waited as long as it may; nothing of both is stored, make it shorter"
            )
        for member in self.members:
            why = why.removeprefix(f"{member.doing}: ")
        error = retold(failure, f"{transaction.doing}: {why}")
        error.__cause__ = failure.__cause__
        return error
