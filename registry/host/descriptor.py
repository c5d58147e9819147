"""File descriptors that several threads use and that are closed once."""

from __future__ import annotations

import os
from contextlib import contextmanager
from io import FileIO
from typing import TYPE_CHECKING

from registry.errors import FailedPreconditionError, StoreClosedError
from registry.sync.interrupts import suppress_os_errors

if TYPE_CHECKING:
    from collections.abc import Iterator


class Descriptor:
    """Owner of a file descriptor, which is closed once, and not before its last use ends.

    The kernel gives the number of a closed descriptor to the next file: a second close, or a call
    that still runs, would affect that file. In a forked child every use raises, and closing closes
    the child's copy.
    """

    _file: FileIO | None = None  # of the class: __init__ may be interrupted

    def __init__(self, fd: int, name: str) -> None:
        """Own *fd*; messages call it *name*."""
        # The file object closes it in C, where no signal handler runs; a second close has no
        # effect.
        self._file = FileIO(fd)
        self._name = name
        self._process = os.getpid()
        self._closed = False
        self._uses: list[object] = []

    @contextmanager
    def use(self, doing: str) -> Iterator[int]:
        """Lend the descriptor to the body.

        Raises:
            FailedPreconditionError: the descriptor is closed; the message begins with *doing*.
            StoreClosedError: the descriptor belongs to the process that forked this one.
        """
        use = object()
        try:
            # Recorded first: either close() sees the use, or the use sees that the descriptor is
            # closed.
            self._uses.append(use)
            yield self.fileno(doing)
        finally:
            if use in self._uses:
                self._uses.remove(use)
            if self._closed:
                self.close()

    def fileno(self, doing: str) -> int:
        """Return the descriptor, which another thread may close at any time; errors as `use`."""
        if self.is_foreign:
            message = f"{doing}: {self._name} belongs to the process that forked this one"
            raise StoreClosedError(f"{message}; open another one here")
        if self._closed or self._file is None:
            raise FailedPreconditionError(f"{doing}: {self._name} is closed; open another one")
        return self._file.fileno()

    @property
    def is_foreign(self) -> bool:
        """Return whether the descriptor belongs to the process that forked this one."""
        return self._process != os.getpid()

    def close(self) -> None:
        """Close the descriptor, or have its last use close it. Idempotent.

        If a signal handler interrupted the end of a use, the descriptor is closed by the garbage
        collector.
        """
        self._closed = True
        if self._file is not None and (self.is_foreign or not self._uses):
            with suppress_os_errors():  # the program has closed the number itself
                self._file.close()

    def __del__(self) -> None:
        """Close the descriptor."""
        if self._file is not None:
            with suppress_os_errors():
                self._file.close()
