"""Write transaction as the body of a `with`."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from types import MethodType, TracebackType
from typing import Final

from registry.engine import owner
from registry.engine.engine import Engine
from registry.engine.transaction import Transaction
from registry.errors import FailedPreconditionError, ResourceExhaustedError
from registry.sync.imports import late_import
from registry.sync.interrupts import call_then

TRACING: Final = "opentelemetry.trace"
"""Module without which no program has set a tracer provider."""
_modules: Final = sys.modules


class _End(partial[None]):
    """`Write.__exit__` as a `with` holds it: its finalizer rolls back what was not ended.

    An interrupt at the first bytecode of `__exit__` leaves the transaction open. The traceback then
    refers to the `Write`, whose own finalizer would run only after the caller has handled the
    exception. Only the `with` refers to this object, and drops it at once: so the caller can write
    while it handles the exception.
    """

    def __del__(self) -> None:
        write = self.args[0]
        if not write.ended:
            write.abandon()


class _Exit:
    """Descriptor of `Write.__exit__`: an `_End` for a `with`, which reads it before it enters."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function: Final = function

    def __get__(self, write: Write | None, _: type[Write]) -> Callable[..., None]:
        if write is None:
            return self._function
        bind = MethodType if write.entered else _End
        return bind(self._function, write)


class Write:
    """Context manager whose body is a write transaction, or a savepoint of its owner's open one."""

    entered = ended = _nested = False  # of the class: __init__ may be interrupted
    _scopes: tuple[object, ...] = ()

    def __init__(
        self,
        engine: Engine,
        doing: str,
        timeout: float,
        *,
        exclusive: bool = False,
        sandbox_id: str = "",
    ) -> None:
        """Remember the arguments.

        Args:
            engine: of the database.
            doing: operation and object, for messages.
            timeout: seconds that it may wait in all.
            exclusive: whether it shares no commit with others: it has many parts, or takes long.
            sandbox_id: full id or prefix with which *doing* ends; "" if it ends otherwise.
        """
        self._engine, self._doing, self._timeout = engine, doing, timeout
        self._exclusive, self._sandbox_id = exclusive, sandbox_id

    def __enter__(self) -> Transaction:
        engine, doing = self._engine, self._doing
        if self.entered:
            raise FailedPreconditionError(
                f"{doing}: this transaction was entered before; call transaction() for each `with`"
            )
        connection = engine.require_writer(doing).connection
        self._transaction = Transaction(
            connection,
            engine.state,
            doing,
            exclusive=self._exclusive,
            sandbox_id=self._sandbox_id,
        )
        self.entered = True
        outer = engine.writes.transaction
        if outer is not None and outer.owner is self._transaction.owner:
            self._enter_nested(outer)
            return self._transaction
        if outer is not None:
            self._require_other_thread(outer)
        try:
            engine.writes.begin(self._transaction, self._timeout)
            self._scopes = owner.enter_scope(self._transaction.scope)
        except BaseException as error:
            engine.end(self._transaction)
            if TRACING in _modules:
                _trace(self._transaction, error)
            raise
        return self._transaction

    def _require_other_thread(self, outer: Transaction) -> None:
        """Raise if *outer*, the open transaction of another owner, waits for the caller."""
        if outer.thread is threading.current_thread():
            raise FailedPreconditionError(
                f"{self._doing}: another task of this thread has a transaction open "
                f"({outer.doing}); end it before awaiting, or write from another thread"
            )
        if owner.is_in_scope(outer.scope):
            raise FailedPreconditionError(
                f"{self._doing}: called in another thread from inside the open transaction "
                f"({outer.doing}), whose end it would wait for; call it in the thread and task "
                "that began the transaction, or after its end"
            )

    def _enter_nested(self, outer: Transaction) -> None:
        self._nested, self._transaction = True, outer
        depth = outer.depth
        try:
            outer.begin_nested(self._doing)
        except BaseException as error:
            if outer.depth > depth:  # else it was interrupted before it had begun
                outer.end_nested(error)
            raise

    @_Exit
    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._nested:
            self._engine.require_open(self._doing)
            self._transaction.end_nested(error)
        else:
            call_then(partial(self._commit, error), partial(self._finish, error))

    def _commit(self, error: BaseException | None) -> None:
        owner.leave_scope(self._scopes)
        if error is None:
            self._engine.writes.commit(self._transaction)

    def _finish(self, error: BaseException | None) -> None:
        """Roll back what is not committed, and call what waits for the outcome; idempotent."""
        transaction = self._transaction
        self._engine.end(transaction)
        transaction.run_callbacks()
        if TRACING in _modules and not self.ended:
            self.ended = True  # an interrupt loses the spans, rather than repeating them
            _trace(transaction, error)
        self.ended = True
        transaction.group = None  # which refers to it: no work for the garbage collector

    def abandon(self) -> None:
        """Roll back what was begun, unless it has ended."""
        if self.entered and not self._nested and not self.ended:
            self._engine.abandon(self._transaction)

    __del__ = abandon


def _trace(transaction: Transaction, error: BaseException | None) -> None:
    """Make the spans of *transaction*; none if no descriptor is left to import the module."""
    try:
        with late_import("registry.engine.spans"):
            # By the statement, which waits for another thread that is importing the module.
            from registry.engine import spans  # noqa: PLC0415
    except ResourceExhaustedError:
        return
    spans.record(transaction, error)


class CallerWrite(Write):
    """Write transaction whose body is code of the embedder: the `with` yields None."""

    def __enter__(self) -> None:  # type: ignore[override]
        super().__enter__()
