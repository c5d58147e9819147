"""Contention report: the holder of the write lock, as an error names it.

The holder is a thread of this process, a process that holds the process lock, or a client that
bypasses the process lock. docs/internals.md says why two sources are needed.
"""

from __future__ import annotations

import os
import sqlite3
import time
from datetime import UTC, datetime
from typing import Final

from registry.engine.lock_file import Holder
from registry.engine.long_wal import long_wal
from registry.engine.sqlite_errors import translate
from registry.engine.transaction import Transaction
from registry.errors import RegistryError, UnavailableError, retold
from registry.host import file_locks
from registry.host.file_locks import process_name

POLL_INTERVAL: Final = 0.005
"""Seconds between two looks at the kernel's list of locks."""


def timeout_error(
    doing: str, path: str, timeout: float, ours: Transaction | None, holder: Holder | None
) -> UnavailableError:
    """Return the error of a write whose deadline has passed.

    Args:
        doing: operation and object that waited.
        path: the database.
        timeout: seconds for which it waited.
        ours: the open transaction of this process, if there is one.
        holder: the other process that is recorded as holder of the process lock; None without one.
    """
    if ours is not None:
        name, since = _thread_of(ours), ours.since
    elif holder is None:
        name, since = _holder_by_kernel(path), 0
    elif holder.pid == 0:
        name, since = "a process of another pid namespace", holder.since
    else:
        name, since = f"process {holder.pid}{process_name(holder.pid)}", holder.since
    when = f" since {_iso(since)}" if since else ""
    return UnavailableError(
        f"{doing}: timed out after {timeout:g} s waiting for the write lock on {path!r}, held by "
        f"{name}{when}; retry, or stop the holder{long_wal(path)}",
        path=path,
        holder=name,
        since=since,
        timeout=timeout,
    )


def wait_for_readers(path: str, doing: str, timeout: float, deadline: float) -> None:
    """Wait until no other process keeps readers out of the database at *path*.

    SQLite retries for 10 s, whatever its busy timeout, while another process creates the WAL index.

    Args:
        path: the database.
        doing: operation and object, for messages.
        timeout: seconds that the caller waits in all, for messages.
        deadline: monotonic time in seconds after which waiting stops.
    Raises:
        UnavailableError: *deadline* has passed.
    """
    while (pid := file_locks.reader_blocker(path)) is not None:
        if time.monotonic() >= deadline:
            name = file_locks.named(pid)
            raise UnavailableError(
                f"{doing}: timed out after {timeout:g} s waiting for {name}, which opens, recovers "
                f"or closes {path!r}; retry, or stop that process",
                path=path,
                holder=name,
                timeout=timeout,
            )
        time.sleep(POLL_INTERVAL)


def _iso(nanoseconds: int) -> str:
    """Return a time as ISO 8601 in UTC, to the millisecond."""
    moment = datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")


def group_failure(other: Transaction, cause: BaseException | None, path: str) -> RegistryError:
    """Return the error of the members of a group whose transaction *other* has ended.

    If the disk or the memory failed, the members would have met *cause* too, and get it. They have
    no part in any other cause, and need only retry.
    """
    name = _thread_of(other)
    what = f"the transaction was ended by {name}, which shared the commit"
    if isinstance(cause, sqlite3.Error):
        cause = translate(cause, other.doing, path)
    if isinstance(cause, RegistryError) and (cause.sqlite_code or 0) & 0xFF in _OF_THE_HOST:
        error = retold(cause, f"{what}: {str(cause).removeprefix(f'{other.doing}: ')}")
    else:
        why = "" if cause is None else f" ({cause!r})"
        error = UnavailableError(
            f"{what}, in {path!r}{why}; nothing of it is stored, retry",
            path=path,
            holder=name,
            since=other.since,
        )
    error.__cause__ = cause
    return error


_OF_THE_HOST: Final = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM}
"""Codes for which SQLite ends a transaction by itself; SQLITE_INTERRUPT is never sent here."""


def _thread_of(transaction: Transaction) -> str:
    return f"thread {transaction.thread.name!r} (doing: {transaction.doing})"


def _holder_by_kernel(path: str) -> str:
    """Return the holder of the write lock by the kernel's list of locks.

    It is needed where no other process is recorded: the client bypasses the process lock, or was
    stopped between locking a file and recording itself, or is this process. SQLite's own write lock
    is byte 120 of the -shm file (wal.c, WAL_WRITE_LOCK).
    """
    of_lock, of_queue = (
        file_locks.write_locker(f"{path}{name}", "FLOCK", 0) for name in ("-lock", "-queue")
    )
    writing = file_locks.write_locker(f"{path}-shm", "POSIX", file_locks.WRITE_LOCK)
    if of_lock not in {None, os.getpid()}:
        return f"process {of_lock}{process_name(of_lock or 0)}, which has not recorded itself"
    if writing == os.getpid():
        return "this process, by a connection that bypasses the process lock or a leaked lock"
    if writing is not None:
        return f"process {writing}{process_name(writing)}, which bypasses the process lock"
    if of_queue == os.getpid():
        return f"this process, by {'another thread' if of_lock == of_queue else 'a leaked lock'}"
    if of_queue is not None:
        return f"process {of_queue}{process_name(of_queue)}, the first in the queue"
    return "an unknown process"
