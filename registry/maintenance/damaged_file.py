"""The files of a damaged registry, read as bytes: SQLite would refuse them, or change them.

A `close` of a database file drops all locks that SQLite has on it in this process, so a file that
this process has open through SQLite is refused.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Final

from registry.engine import wal_file
from registry.engine.continuity import Continuity, FileAndWal
from registry.engine.engine import open_engines
from registry.engine.lock_holder import timeout_error
from registry.engine.process_lock import ProcessLock
from registry.engine.wal_file import Header, WalFacts
from registry.errors import FailedPreconditionError, InvalidArgumentError
from registry.host import paths
from registry.maintenance.pages import FILE_HEADER, PAGE_SIZES, PageError, Pages
from registry.maintenance.salvage_report import Loss, Report
from registry.sync.interrupts import call_then, reraise_interrupt
from registry.tables.version import APPLICATION_ID

if TYPE_CHECKING:
    from collections.abc import Callable

_PAGE_SIZE: Final = 4096
"""Bytes of a page of a registry, if its header cannot be read."""


def open_file(path: str, doing: str) -> BinaryIO:
    """Open the regular file at *path* for reading.

    Raises:
        FailedPreconditionError: this process has it open through SQLite, or may not read it.
        InvalidArgumentError: it is not a regular file.
        NotFoundError: there is none.
    """
    if any(engine.path == path for engine in open_engines):
        raise FailedPreconditionError(
            f"{doing}: this process has it open, and reading the file would drop SQLite's locks; "
            "close all its stores, or salvage in another process",
            path=path,
        )
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        file = open(fd, "rb", buffering=0)  # noqa: SIM115 - the caller closes it
    except OSError as error:
        reraise_interrupt(error)
        raise paths.refused(doing, path, f"open {path!r}", error) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        file.close()
        raise InvalidArgumentError(f"{doing}: {path!r} is not a regular file; name a file")
    return file


def open_database(path: str, doing: str) -> BinaryIO:
    """Open the database at *path* as `open_file` does; if only its WAL is there, an empty one."""
    if paths.inspect(path) is not None or not paths.size(f"{path}-wal"):
        return open_file(path, doing)
    try:
        return open(os.memfd_create("empty"), "rb", buffering=0)
    except OSError as error:
        reraise_interrupt(error)
        raise paths.refused(doing, path, "create an empty file in memory", error) from error


def read(
    path: str, doing: str, timeout: float, collect: Callable[[Pages], None], report: Report
) -> None:
    """Call *collect* with the pages of the registry at *path*, under its process lock.

    Args:
        path: real path of the registry.
        doing: operation and object, for messages.
        timeout: seconds to wait for a process that writes.
        collect: reads the pages.
        report: called with each part of the WAL that is left out.
    Raises:
        UnavailableError: another process held the write lock past *timeout*.
        RegistryError: a file cannot be opened.
    """
    body = partial(_read, path, doing, collect, report)
    has_locks = all(os.path.exists(f"{path}{suffix}") for suffix in ("-lock", "-queue"))
    if not has_locks or paths.on_read_only_file_system(path):
        body()  # no process of this package writes
        return
    try:
        lock = ProcessLock(path)
    except OSError as error:
        reraise_interrupt(error)
        raise paths.refused(doing, path, "open its lock files", error) from error

    def locked() -> None:
        if not lock.acquire(time.monotonic() + timeout):
            raise timeout_error(doing, path, timeout, None, lock.holder())
        body()

    def release() -> None:
        lock.release()
        lock.close()

    call_then(locked, release)


def _read(path: str, doing: str, collect: Callable[[Pages], None], report: Report) -> None:
    with ExitStack() as stack:
        file = stack.enter_context(open_database(path, doing)).fileno()
        header, wal, images = os.pread(file, FILE_HEADER, 0), -1, None
        if os.path.exists(f"{path}-wal"):
            log = stack.enter_context(open_file(f"{path}-wal", doing))
            wal, images = log.fileno(), _images(path, log, header, report)
        if paths.size(f"{path}-journal"):
            why = "it was not applied: the file may have a part of a transaction"
            report(Loss("", "", "-journal", why))
        size = _page_size(file, header, images)
        if images is not None and images.page_size != size:
            report(Loss("", "", "-wal", f"it has pages of {images.page_size} bytes, not {size}"))
            images = None
        collect(Pages(file, size, wal, images))


def _images(path: str, wal: BinaryIO, header: bytes, report: Report) -> wal_file.Images | None:
    """Return the pages in the WAL; None if there are none, or if they are of another file."""
    file = wal_file.header_of(header)
    if _is_strange(file, wal_file.read(path, file)):
        report(Loss("", "", "-wal", "it does not continue the file, and was left out"))
        return None
    images = wal_file.images(wal)
    for frame in () if images is None else images.damaged:
        report(Loss("", "", f"-wal, frame {frame}", "damaged: an older state of its page was read"))
    return images if images is not None and images.offsets else None


def _is_strange(file: Header | None, wal: WalFacts | None) -> bool:
    """Return whether the WAL is of another file; a damaged header of the file is no proof of that.

    One flipped bit makes another number of it, while two registries have nothing in common there.
    A backup has the schema version 1 and the pages of its original, which the WAL continues.
    """
    if file is None or file.application_id != APPLICATION_ID:
        return False
    if wal is not None and wal.first is not None:
        differing = (file.number ^ (wal.first.number - 1)) & 0xFFFFFFFF
        if differing & (differing - 1) == 0:
            return False
    return FileAndWal(file, wal).continuity() is Continuity.STRANGE


def _page_size(file: int, header: bytes, images: wal_file.Images | None) -> int:
    """Return the page size: of the header, the WAL, and the usual one, that which fits best."""
    found = int.from_bytes(header[16:18], "big")
    sizes = [65536 if found == 1 else found, images.page_size if images else _PAGE_SIZE, _PAGE_SIZE]
    sizes = list(dict.fromkeys(size for size in sizes if size in PAGE_SIZES))
    return max(sizes, key=partial(_count_nodes, file)) if len(sizes) > 1 else sizes[0]


def _count_nodes(file: int, size: int) -> int:
    """Return how many pages of *size* bytes are B-tree pages with all cells inside them."""
    pages, count = Pages(file, size), 0
    for number in range(1, pages.count + 1):
        with suppress(PageError):
            node = pages.node(number)
            count += 0 < max(node.cells, default=0) < size
    return count
