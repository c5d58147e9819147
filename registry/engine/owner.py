"""Owner of a transaction: the task that began it, or else the thread.

The tasks of one thread alternate wherever they await, so a write of another task must not become a
part of the transaction. Tasks of asyncio and trio are recognised (and so those of anyio), and
greenlets (and so those of gevent and eventlet). None of these packages is imported here: a task
cannot run before its package is imported.
"""

from __future__ import annotations

import sys
import threading
from contextvars import ContextVar
from typing import Any, Final

_modules: Final = sys.modules
_local = threading.local()
_scopes: Final[ContextVar[tuple[object, ...]]] = ContextVar("registry_transactions", default=())
"""One object for each transaction in whose body the context was made, or copied."""


def current_owner() -> object:
    """Return the running task, or else an object that stands for the running thread."""
    for package, running_task in _TASKS:
        if package in _modules:
            task = running_task()
            if task is not None:
                return task
    try:
        return _local.token
    except AttributeError:
        # Not the thread's id: the next thread may get the same one.
        _local.token = object()
        return _local.token


def _asyncio_task() -> object:
    running_loop = _imported("asyncio.events", "_get_running_loop")  # the public one raises
    if running_loop is None or (loop := running_loop()) is None:
        return None
    current_task = _imported("asyncio.tasks", "current_task")
    return None if current_task is None else current_task(loop)


def _trio_task() -> object:
    current_task = _imported("trio.lowlevel", "current_task")
    try:
        return None if current_task is None else current_task()
    except RuntimeError:  # outside of a task
        return None


def _greenlet() -> object:
    current = _imported("greenlet", "getcurrent")
    greenlet = None if current is None else current()
    # The greenlet without a parent is the thread itself.
    return None if greenlet is None or greenlet.parent is None else greenlet


def _imported(module: str, name: str) -> Any:
    """Return the function *name* of *module*; None if that is not imported, or not completely."""
    return getattr(_modules.get(module), name, None)


_TASKS: Final = (
    ("asyncio.events", _asyncio_task),
    ("trio.lowlevel", _trio_task),
    ("greenlet", _greenlet),
)
"""Modules that run tasks, and the function that returns the running task, or None."""


def enter_scope(scope: object) -> tuple[object, ...]:
    """Record in the caller's context that the body of the transaction with *scope* begins.

    Returns:
        the argument for `leave_scope`.
    """
    outer = _scopes.get()
    _scopes.set((*outer, scope))
    return outer


def leave_scope(outer: tuple[object, ...]) -> None:
    """Record in the caller's context that the body has ended; no effect in another context."""
    _scopes.set(outer)


def is_in_scope(scope: object) -> bool:
    """Return whether the caller's context was copied in the body of a transaction.

    asyncio.to_thread and the like copy the context into a thread whose end the caller awaits.
    """
    return any(each is scope for each in _scopes.get())
