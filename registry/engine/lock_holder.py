"""Who stands in the way of a write: a thread of ours, a process, or one that knows no turnstile."""

from __future__ import annotations

import os
import sqlite3
from datetime import UTC, datetime
from typing import Final

from registry.engine.lock_file import Holder
from registry.engine.sqlite_errors import translate
from registry.engine.transaction import Transaction
from registry.errors import RegistryError, UnavailableError, retold
from registry.host import file_locks
from registry.host.file_locks import process_name


def timeout_error(
    doing: str, path: str, timeout: float, ours: Transaction | None, holder: Holder | None
) -> UnavailableError:
    """Return the error of a write that waited too long.

    Args:
        doing: what waited.
        path: the database.
        timeout: seconds that it waited.
        ours: the transaction that is open in this process, if one is.
        holder: who else has signed for the turnstile; None when nobody has.
    """
    if ours is not None:
        who, since = _thread_of(ours), ours.since
    elif holder is None:
        who, since = _holder_by_kernel(path), 0
    elif holder.pid == 0:
        who, since = "a process of another pid namespace", holder.since
    else:
        who, since = f"process {holder.pid}{process_name(holder.pid)}", holder.since
    when = f" since {datetime.fromtimestamp(since / 1e9, UTC).isoformat()}" if since else ""
    return UnavailableError(
        f"{doing}: waited {timeout:g} s for {path!r}, which {who} has been writing{when}; "
        "try again, or see what keeps it",
        path=path,
        holder=who,
        since=since,
        timeout=timeout,
    )


def group_failure(other: Transaction, cause: BaseException | None, path: str) -> RegistryError:
    """Return the error of writes whose transaction *other*, which had joined it, has ended.

    Where the disk or the memory failed, they would have met the same, and it is *cause*, told to
    them; of all else they are free, and need only try again.
    """
    who = _thread_of(other)
    said = f"{who}, with which it shared the commit, has ended the transaction"
    if isinstance(cause, sqlite3.Error):
        cause = translate(cause, other.doing, path)
    if isinstance(cause, RegistryError) and (cause.sqlite_code or 0) & 0xFF in _OF_THE_HOST:
        error = retold(cause, f"{said}: {str(cause).removeprefix(f'{other.doing}: ')}")
    else:
        why = "" if cause is None else f" ({cause!r})"
        error = UnavailableError(
            f"{said} in {path!r}{why}; nothing of it is stored, try again",
            path=path,
            holder=who,
            since=other.since,
        )
    error.__cause__ = cause
    return error


_OF_THE_HOST: Final = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM}
"""Those for which SQLite ends a transaction by itself, but for an interrupt, which nobody sends."""


def _thread_of(transaction: Transaction) -> str:
    return f"thread {transaction.thread.name!r} (doing: {transaction.doing})"


def _holder_by_kernel(path: str) -> str:
    """Name the process that is in the way, as the kernel lists its locks.

    SQLite locks byte 120 of the -shm file for writing (wal.c, WAL_WRITE_LOCK). Who was stopped in
    the middle of taking its turn has a lock file, and has not signed.
    """
    of_lock, of_queue = (
        file_locks.write_locker(f"{path}{name}", "FLOCK", 0) for name in ("-lock", "-queue")
    )
    writing = file_locks.write_locker(f"{path}-shm", "POSIX", file_locks.WRITE_LOCK)
    if of_lock not in {None, os.getpid()}:
        return f"process {of_lock}{process_name(of_lock or 0)}, whose turn it is,"
    if writing == os.getpid():
        return "this process, by a connection that takes no turns or a lock left over,"
    if writing is not None:
        return f"process {writing}{process_name(writing)}, which takes no turns,"
    if of_queue == os.getpid():
        turn = "another thread, whose turn it is" if of_lock == of_queue else "a place left over"
        return f"this process, by {turn},"
    if of_queue is not None:
        return f"process {of_queue}{process_name(of_queue)}, whose turn comes next,"
    return "an unknown process"
