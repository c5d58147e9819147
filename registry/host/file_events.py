"""Writes to one file, as inotify reports them to a thread or an event loop."""

from __future__ import annotations

import contextlib
import os
from typing import Final

from registry.errors import FailedPreconditionError
from registry.host import kernel
from registry.host.descriptor import Descriptor
from registry.sync.interrupts import reraise_interrupt

_EVENTS_BYTES: Final = 4096
"""Bytes of a read: over a hundred events, of which the kernel merges equal ones."""


class FileEvents:
    """Events of the writes to the file at one path, until it is closed."""

    def __init__(self, path: str) -> None:
        """Open the instance; `watch` names the file to it.

        Raises:
            OSError: no descriptor or no instance is left, or the kernel has no inotify.
        """
        self._path: Final = os.fsencode(path)
        self.descriptor: Final = Descriptor(kernel.inotify_init(), f"the watch of {path!r}")
        """Readable while there are events."""

    def watch(self) -> int | None:
        """Watch the file that is at the path now; return the number of the watch, or None.

        The number changes if another file is at the path. None: none is there, or the limit of
        watches is reached, or this is closed.
        """
        with contextlib.suppress(FailedPreconditionError), self.descriptor.use("watch") as fd:
            number = kernel.inotify_add_watch(fd, self._path, kernel.IN_MODIFY)
            return None if number < 0 else number
        return None

    def take(self) -> bool:
        """Take the events that are there; return whether there were any."""
        with contextlib.suppress(FailedPreconditionError), self.descriptor.use("watch") as fd:
            try:
                return bool(os.read(fd, _EVENTS_BYTES))
            except BlockingIOError as error:
                reraise_interrupt(error)
        return False

    def close(self) -> None:
        """Close the instance. Idempotent."""
        self.descriptor.close()
