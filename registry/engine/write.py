"""A write transaction as the body of a `with`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from types import MethodType, TracebackType
from typing import Final

from registry.engine import owner
from registry.engine.engine import Engine
from registry.engine.transaction import Transaction
from registry.errors import FailedPreconditionError


class _End(partial[None]):
    """The end of one `with`, which alone refers to it, and drops it as soon as it has called it.

    An interrupt before the first bytecode of an `__exit__` leaves a traceback that refers to the
    object of the `with`: its finalizer runs when the caller has handled the exception, and not
    before. This finalizer runs before, so that the caller can write while it handles the exception.
    """

    def __del__(self) -> None:
        self.args[0].abandon()


class _Exit:
    """Descriptor of `Write.__exit__`, which returns an `_End` to a `with`.

    A `with` reads the attribute before it enters. Later on it is an ordinary method.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self._function: Final = function

    def __get__(self, write: Write | None, _: type[Write]) -> Callable[..., None]:
        if write is None:
            return self._function
        bind = MethodType if write.entered else _End
        return bind(self._function, write)


class Write:
    """Makes its body one write transaction, or a savepoint of the one its owner has open.

    All that it waits for, it waits for no longer than *timeout* seconds in all.
    """

    entered = _nested = _ended = False  # of the class: __init__ may be interrupted
    _scopes: tuple[object, ...] = ()

    def __init__(
        self, engine: Engine, doing: str, timeout: float, *, exclusive: bool = False
    ) -> None:
        """Remember what to begin.

        Args:
            engine: of the database.
            doing: what, for messages.
            timeout: seconds that it waits.
            exclusive: it shares no commit with others: it has many parts, or takes long.
        """
        self._engine, self._doing, self._timeout = engine, doing, timeout
        self._exclusive = exclusive

    def __enter__(self) -> Transaction:
        if self.entered:
            raise FailedPreconditionError(
                f"{self._doing}: it was entered before; call transaction() for each `with`"
            )
        engine = self._engine
        self._transaction = engine.new_transaction(self._doing, exclusive=self._exclusive)
        self.entered = True
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
                self._scopes = owner.enter_scope(self._transaction.scope)
            except BaseException:
                engine.end(self._transaction)
                raise
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

    @_Exit
    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
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

    def abandon(self) -> None:
        """Roll back what was begun, unless it has come to its end."""
        if self.entered and not self._nested and not self._ended:
            self._engine.abandon(self._transaction)

    __del__ = abandon

    def _finish(self) -> None:
        engine, transaction = self._engine, self._transaction
        engine.end(transaction)
        if transaction.committed:
            transaction.run_effects()
        transaction.run_end_callbacks()
