"""Which files this process has open: the Stores of one file share one engine.

A forked child has none: what its parent had open is left alone there, and cannot be opened anew.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from registry.engine import driver, lockfile
from registry.engine.file import Engine, living
from registry.engine.lost import require_beginnable
from registry.engine.paths import identity, make_directories, resolve, size
from registry.engine.transaction import Transaction
from registry.engine.tripwire import spoiled
from registry.errors import DataLossError, StoreClosedError, UnavailableError
from registry.sql import Fetch
from registry.waiting import Mutex

_engines: dict[tuple[str, bool], Engine] = {}
_gates: dict[tuple[str, bool], Mutex] = {}
_open_at_fork: set[str] = set()


def attach(
    path: str | os.PathLike[str],
    *,
    create: bool,
    read_only: bool,
    timeout: float,
    inspect: Callable[[str], None],
    prepare: Callable[[driver.Connection, str], None],
    guard: Callable[[Transaction], None],
    admit: Callable[[Fetch, str, str], object],
) -> Engine:
    """Return the engine of the file at *path*, which all Stores of this process share.

    Args:
        path: the database; its directories are made, with mode 0700, if *create*.
        create: whether a missing file is made, with mode 0600.
        read_only: read and never write, not even a lock file.
        timeout: seconds to wait for another process that writes or opens.
        inspect: called with the path under the write lock, before SQLite may change anything;
            raises where nothing may be changed.
        prepare: called once with the new connection and the path, under the write lock, before it
            is used.
        guard: called in a write transaction before its first statement, unless nobody else has
            committed since; raises where it may no longer be written.
        admit: called with a reader, what it does and the path when the schema was changed; raises
            where it may no longer be read.
    Raises:
        RegistryError: with what is wrong with the file, and what to do.
    """
    real = resolve(path)
    deadline = time.monotonic() + timeout
    with _gate(real, read_only=read_only, deadline=deadline) as entered:
        if not entered:
            who = "another thread of this process"
            raise UnavailableError(
                f"open registry {real!r}: waited {timeout:g} s for {who}, which is opening or "
                "closing it; try again",
                path=real,
                holder=who,
                timeout=timeout,
            )
        _require_openable(real)
        engine = _engines.get((real, read_only))
        if engine is None:
            _require_there(real, create=create and not read_only)
            engine = Engine(real, read_only=read_only, guard=guard, admit=admit)
            engine.open(inspect, prepare, timeout, deadline)
            _engines[real, read_only] = engine
        engine.require_same_file("open registry")
        engine.users += 1
        return engine


def _require_there(path: str, *, create: bool) -> None:
    """Raise unless there is a file at *path*, or one may be made, whose directories then are."""
    if not size(path):
        require_beginnable(path, create=create)
        if create:
            make_directories(os.path.dirname(path))


def detach(engine: Engine, timeout: float) -> None:
    """Leave *engine*; its last user closes it, within about *timeout* seconds."""
    if engine.closed:
        return
    with _gate(engine.path, read_only=engine.read_only, deadline=None):
        engine.users -= 1
        if engine.users or engine.closed:
            return
        _engines.pop((engine.path, engine.read_only), None)
        engine.close(timeout)


def _require_openable(path: str) -> None:
    if path in _open_at_fork:
        raise StoreClosedError(
            f"open registry {path!r}: it was open when this process was forked, and SQLite "
            "would take the parent's locks for its own; open it in a spawned process",
            path=path,
        )
    if path in spoiled and spoiled[path] == identity(path):
        raise DataLossError(
            f"open registry {path!r}: its log was replaced while this process had it open, and "
            "SQLite would mix up the old and the new; open it in another process",
            path=path,
        )


@contextmanager
def _gate(path: str, *, read_only: bool, deadline: float | None) -> Iterator[bool]:
    """Let one thread at a time open or close a file; False when *deadline* passed before."""
    key, visitor = (path, read_only), object()
    mutex = _gates.setdefault(key, Mutex())
    try:
        entered = mutex.acquire(visitor, deadline)
        while entered and _gates.get(key) is not mutex:  # who was inside before has removed it
            mutex.release(visitor)
            mutex = _gates.setdefault(key, Mutex())
            entered = mutex.acquire(visitor, deadline)
        yield entered
    finally:
        try:
            _leave(key, mutex, visitor)
        except BaseException:  # of a signal handler
            _leave(key, mutex, visitor)
            raise


def _leave(key: tuple[str, bool], mutex: Mutex, visitor: object) -> None:
    """Release *mutex*, and keep none for a path at which no thread is."""
    if mutex.holder is visitor and mutex.next is None and _gates.get(key) is mutex:
        _gates.pop(key, None)
    mutex.release(visitor)


def _in_child() -> None:
    _gates.clear()  # another thread may have held one at the fork
    for engine in living:
        engine.abandon_in_child()
        _open_at_fork.add(engine.path)
    _engines.clear()
    driver.leak_all()
    lockfile.close_all()


os.register_at_fork(after_in_child=_in_child)
