"""Files that this process has open: the Stores of one file share one engine.

A forked child has no open files: it does not use its parent's, and cannot open them itself.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from registry.engine import driver, lock_file
from registry.engine.beside import require_own
from registry.engine.deadline import Deadline
from registry.engine.engine import Engine, open_engines
from registry.engine.file_identity import replaced_files
from registry.engine.hooks import SchemaHooks
from registry.engine.sqlite_errors import driver_errors
from registry.errors import DataLossError, StoreClosedError, UnavailableError
from registry.host.paths import identity, make_directories, resolve, size
from registry.sync.interrupts import call_then
from registry.sync.locks import Mutex

T = TypeVar("T")

EXIT_WAIT: Final = 1.0
"""Seconds for which the exit of the interpreter waits for other writers, in all."""

_Key = tuple[str, bool, bool]
"""Real path of a file, whether it is opened read-only, and whether it may be damaged."""
_engines: dict[_Key, Engine] = {}
_mutexes: dict[_Key, Mutex] = {}
_open_at_fork: set[str] = set()


def attach(
    path: str | os.PathLike[str],
    user: object,
    *,
    create: bool,
    read_only: bool,
    timeout: float,
    hooks: SchemaHooks,
    damaged: bool = False,
) -> Engine:
    """Return the engine of the file at *path*, which all Stores of this process share.

    Args:
        path: the database; its directories are created, with mode 0700, if *create*.
        user: object that has the engine open until `detach`; call that after an exception too.
        create: create a missing file, with mode 0600.
        read_only: write nothing, not even a lock file.
        timeout: seconds to wait for another process that writes or opens.
        hooks: of the schema; an engine that is open already has those of its first user.
        damaged: the file may be damaged: the hooks do not refuse it.
    Raises:
        RegistryError: the file cannot be opened.
    """
    real, deadline = resolve(path), time.monotonic() + timeout
    key = real, read_only, damaged

    def use() -> Engine:
        _require_openable(real)
        engine = _engines.get(key)
        if engine is None or engine.closed:
            require_own(real, read_only=read_only)
            engine = Engine(real, hooks, read_only=read_only)
            with Deadline(real, deadline - time.monotonic()):  # for the hooks of the schema
                if not size(real):
                    _prepare_creation(real, hooks, create=create and not read_only)
                engine.open(timeout, deadline)
                _engines[key] = engine  # here: an interrupt may come when the deadline ends
        engine.require_same_file("open registry")
        engine.users.add(user)
        return engine

    return _serialized(key, use, timeout, deadline)


def _prepare_creation(path: str, hooks: SchemaHooks, *, create: bool) -> None:
    """Inspect *path* before a lock file is made beside it, and make its directories."""
    with driver_errors(f"open registry {path!r}", path):
        hooks.inspect(path)
    if create:
        make_directories(os.path.dirname(path))


def detach(user: object, timeout: float) -> None:
    """End the use of its engine by *user*; the last user closes it, within about *timeout* seconds.

    Safe to call again after an interrupt; it resumes.
    """
    for key, engine in tuple(_engines.items()):
        if user in engine.users:
            _serialized(key, partial(_close_for, key, engine, user, timeout), timeout, None)


def _close_for(key: _Key, engine: Engine, user: object, timeout: float) -> None:
    if engine.users == {user}:
        if not engine.closed:
            engine.close(timeout)
        if _engines.get(key) is engine:
            del _engines[key]
    engine.users.discard(user)


def _require_openable(path: str) -> None:
    if path in _open_at_fork:
        raise StoreClosedError(
            f"open registry {path!r}: it was open when this process was forked, and SQLite "
            "would take the parent's locks for its own; open it in a spawned process",
            path=path,
        )
    if path in replaced_files and replaced_files[path] == identity(path):
        raise DataLossError(
            f"open registry {path!r}: its WAL was replaced while this process had it open, and "
            "SQLite would mix up the old and the new; open it in another process",
            path=path,
        )


def _serialized(key: _Key, call: Callable[[], T], timeout: float, deadline: float | None) -> T:
    """Return what *call* returns; one thread of this process at a time calls for *key*.

    Args:
        key: of the file.
        call: opens or closes the file.
        timeout: seconds that the caller waits in all, for the message.
        deadline: monotonic time in seconds after which waiting stops; None: never.
    """
    mutex, caller = _mutexes.setdefault(key, Mutex()), object()

    def enter_and_call() -> T:
        nonlocal mutex
        entered = mutex.acquire(caller, deadline)
        while entered and _mutexes.get(key) is not mutex:  # the holder before has removed it
            mutex.release(caller)
            mutex = _mutexes.setdefault(key, Mutex())
            entered = mutex.acquire(caller, deadline)
        if not entered:
            path, holder = key[0], "another thread of this process"
            raise UnavailableError(
                f"open registry {path!r}: timed out after {timeout:g} s waiting for {holder}, "
                "which is opening or closing it; retry",
                path=path,
                holder=holder,
                timeout=timeout,
            )
        return call()

    return call_then(enter_and_call, lambda: _leave(key, mutex, caller))


def _leave(key: _Key, mutex: Mutex, caller: object) -> None:
    """Release *mutex*, and remove it if no other thread waits for it; idempotent."""
    if mutex.holder is caller and mutex.next_waiter is None and _mutexes.get(key) is mutex:
        _mutexes.pop(key, None)
    mutex.release(caller)


def _in_child() -> None:
    _mutexes.clear()  # another thread may have held one at the fork
    for engine in open_engines:
        engine.abandon_in_child()
        _open_at_fork.add(engine.path)
    _engines.clear()
    lock_file.close_all()  # first: where no descriptor is left, it frees those that the next needs
    driver.leak_all()


os.register_at_fork(after_in_child=_in_child)


def _at_exit() -> None:
    """Close what is still open when the interpreter exits, under the process lock.

    Otherwise Python closes the connections without the lock. What cannot be closed in time is
    leaked, as by a process that is killed: the WAL stays for the next process.
    """
    deadline = time.monotonic() + EXIT_WAIT
    try:
        while _engines:
            with contextlib.suppress(KeyError):  # another thread closes it
                engine = _engines.popitem()[1]
                engine.close(max(0.0, deadline - time.monotonic()))
    finally:
        driver.leak_all()


atexit.register(_at_exit)
