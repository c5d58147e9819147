"""Owner of a transaction: the task that began it, or else the thread.

Tasks of one thread take turns wherever they await, so what another task writes meanwhile must not
become a part of the transaction. Known are the tasks of asyncio and of trio (so those of anyio
too), and greenlets (so those of gevent and eventlet). None of these packages is imported here: a
task cannot run before its package is imported.
"""

from __future__ import annotations

import sys
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_local = threading.local()
_scopes: Final[ContextVar[tuple[object, ...]]] = ContextVar("registry_transactions", default=())
"""One object for each transaction in whose body the context was made, or copied."""


def current_owner() -> object:
    """Return the running task, or else an object that stands for the running thread."""
    return _asyncio_task() or _trio_task() or _greenlet() or _thread()


def _asyncio_task() -> object:
    running_loop = _imported("asyncio.events", "_get_running_loop")  # the public one raises
    loop = running_loop()
    return None if loop is None else _imported("asyncio.tasks", "current_task")(loop)


def _trio_task() -> object:
    try:
        return _imported("trio.lowlevel", "current_task")()
    except RuntimeError:  # outside of a task
        return None


def _greenlet() -> object:
    current = _imported("greenlet", "getcurrent")()
    # The greenlet without a parent is the thread itself.
    return None if current is None or current.parent is None else current


def _imported(module: str, name: str) -> Callable[..., Any]:
    """Return a function of *module*, or one that returns None where that is not (yet) imported."""
    function: Callable[..., Any] = getattr(sys.modules.get(module), name, _none)
    return function


def _none(*_: object) -> None:
    """Stand for a function that is not imported."""


def _thread() -> object:
    try:
        return _local.token
    except AttributeError:
        # Not the thread's id: the next thread may get the same one.
        _local.token = object()
        return _local.token


def enter_scope(scope: object) -> tuple[object, ...]:
    """Note in the caller's context that the body of a transaction begins.

    Args:
        scope: of the transaction.
    Returns:
        what `leave_scope` takes.
    """
    outer = _scopes.get()
    _scopes.set((*outer, scope))
    return outer


def leave_scope(outer: tuple[object, ...]) -> None:
    """Note in the caller's context that the body has ended; harmless in another context."""
    _scopes.set(outer)


def is_in_scope(scope: object) -> bool:
    """Return whether the caller's context was copied in the body of a transaction.

    asyncio.to_thread and the like copy it into the thread whose end the caller awaits.
    """
    return any(each is scope for each in _scopes.get())
