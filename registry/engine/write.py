"""A write transaction as the body of a `with`."""

from __future__ import annotations

import threading
from types import TracebackType

from registry.engine import owner
from registry.engine.file import Engine
from registry.engine.transaction import Transaction
from registry.errors import FailedPreconditionError


class Write:
    """Makes its body one write transaction, or a savepoint of the one its owner has open.

    All that it waits for, it waits for no longer than *timeout* seconds in all.
    """

    _entered = _nested = _ended = False  # of the class: __init__ may be interrupted
    _scopes: tuple[object, ...] = ()

    def __init__(self, engine: Engine, doing: str, timeout: float, *, alone: bool = False) -> None:
        """Remember what to begin.

        Args:
            engine: of the database.
            doing: what, for messages.
            timeout: seconds that it waits.
            alone: it shares no commit with others: it has many parts, or takes long.
        """
        self._engine, self._doing, self._timeout = engine, doing, timeout
        self._alone = alone

    def __enter__(self) -> Transaction:
        if self._entered:
            raise FailedPreconditionError(
                f"{self._doing}: it was entered before; call transaction() for each `with`"
            )
        engine = self._engine
        self._transaction = engine.new_transaction(self._doing, alone=self._alone)
        self._entered = True
        outer = engine.writes.transaction
        if outer is not None and outer.owner is self._transaction.owner:
            self._enter_nested(outer)
        elif outer is not None and outer.thread is threading.current_thread():
            raise FailedPreconditionError(
                f"{self._doing}: another task of this thread has a transaction open "
                f"({outer.doing}); end it before awaiting, or write from another thread"
            )
        elif outer is not None and owner.is_in_scope(outer.scope):
            raise FailedPreconditionError(
                f"{self._doing}: it was called in another thread from inside the open transaction "
                f"({outer.doing}), and would wait for the end of that; call it in the thread and "
                "task that began the transaction, or after its end"
            )
        else:
            try:
                engine.writes.begin(self._transaction, self._timeout)
            except BaseException:
                engine.end(self._transaction)
                raise
            self._scopes = owner.enter_scope(self._transaction.scope)
        return self._transaction

    def _enter_nested(self, outer: Transaction) -> None:
        self._nested, self._transaction = True, outer
        depth = outer.depth
        try:
            outer.begin_nested(self._doing)
        except BaseException as error:
            if outer.depth > depth:  # else it was struck before it had begun
                outer.end_nested(error)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        engine, transaction = self._engine, self._transaction
        if self._nested:
            engine.require_open(self._doing)
            transaction.end_nested(error)
            return
        try:
            owner.leave_scope(self._scopes)
            if error is None:
                engine.writes.commit(transaction)
        finally:
            # An interrupt that strikes in here makes us begin again, not give up half-way.
            try:
                self._finish()
            except BaseException:
                self._finish()
                raise
            self._ended = True
            transaction.group = None  # which has it among its members: no work for the collector

    def __del__(self) -> None:
        # Where a signal handler's exception struck before the first bytecode of __exit__.
        if self._entered and not self._nested and not self._ended:
            self._engine.abandon(self._transaction)

    def _finish(self) -> None:
        engine, transaction = self._engine, self._transaction
        engine.end(transaction)
        if transaction.committed:
            transaction.run_effects()
        transaction.run_endings()
