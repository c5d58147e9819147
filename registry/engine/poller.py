"""Polls for commits: reads the data version after a write to the WAL, and else now and then.

A writer appends its frames to the WAL, syncs it, and then makes the commit visible. So an event of
inotify comes before the commit that it announces, by the time of a sync:

    idle        nothing was written: wait for an event, and poll each IDLE seconds all the same
    announced   the WAL was written to: poll after FIRST seconds, then after longer and longer
                times until the commit is visible, and at each further event

1. Events are taken before the data version is read. If that has changed too, the events may be of
   this commit, or of the next one, which is not visible yet: the poller stays in the state
   announced for a while.
2. Where inotify is refused, or the WAL was replaced, or a commit has come without an event, the
   poller polls each UNANNOUNCED seconds, and goes on trying.
3. A reading of the data version holds no snapshot and queries no table.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import time
from typing import TYPE_CHECKING, Final

from registry.errors import FailedPreconditionError
from registry.host.descriptor import Descriptor
from registry.host.file_events import FileEvents
from registry.sync.interrupts import reraise_interrupt

if TYPE_CHECKING:
    from collections.abc import Callable

IDLE: Final = 0.5
"""Seconds between two polls while events announce each commit."""
UNANNOUNCED: Final = 0.05
"""Seconds between two polls while no events announce commits."""
FIRST: Final = 0.002
"""Seconds from an event to the poll that follows; a sync takes about as long."""
SYNC_MAX: Final = 30.0
"""Seconds after which an announced commit is taken for one that was rolled back."""
NEXT_SYNC_MAX: Final = 1.0
"""The same, if the events may be of a commit that is visible."""


class Poller:
    """Poller of one database for one thread or event loop at a time."""

    def __init__(self, path: str, read_version: Callable[[], int | None]) -> None:
        """Open inotify, if that is possible.

        Args:
            path: the database.
            read_version: returns its data version; None if that cannot be read now.
        """
        self._read_version: Final = read_version
        self.version: int | None = None
        """The data version that the latest poll has read."""
        self._announced_at: float | None = None
        """Monotonic time in seconds of an event whose commit is not visible yet."""
        self._watch: int | None = None
        self._sync_max = SYNC_MAX
        self._is_new_watch = self._is_missing_events = False
        self.is_listening = False
        """Whether an event makes the next poll due; as of the latest call of `delay`."""
        self.events: FileEvents | None = None
        """Events of the WAL; None: no descriptor is left, or the kernel has no inotify."""
        try:
            events = FileEvents(f"{path}-wal")
            bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._bell: Final = Descriptor(bell, "the bell of a poller")
            self.events = events
        except (OSError, ImportError, AttributeError) as error:
            # The import of ctypes opens files, and a signal handler may interrupt it and come here.
            reraise_interrupt(error)

    def close(self) -> None:
        """Close the descriptors. Idempotent."""
        if self.events is not None:
            self.events.close()
            self._bell.close()

    def poll(self) -> int | None:
        """Return the data version; None if it cannot be read now."""
        events = self.events is not None and self.events.take()
        if events:  # noted first, in case the reading fails
            self._announced_at, self._sync_max = time.monotonic(), SYNC_MAX
            self._is_missing_events = False
        version = self._read_version()
        if version is not None and version != self.version:
            if events:
                self._sync_max = NEXT_SYNC_MAX
            else:
                self._is_missing_events = self._announced_at is None and not self._is_new_watch
                self._announced_at = None
            self.version = version
        self._is_new_watch = False
        return version

    def delay(self) -> float:
        """Return the seconds until the next poll is due."""
        elapsed = math.inf
        if self._announced_at is not None:
            elapsed = time.monotonic() - self._announced_at
        self.is_listening = elapsed >= FIRST  # before that, a busy writer's events are not counted
        if elapsed < self._sync_max:
            return min(UNANNOUNCED, max(FIRST, elapsed / 2))
        self._announced_at = None
        watch = None if self.events is None else self.events.watch()
        if watch is not None and watch != self._watch:
            self._is_new_watch = True  # commits before this moment were not announced
            self._watch = watch
            return 0.0
        return UNANNOUNCED if watch is None or self._is_missing_events else IDLE

    # In a thread.

    def sleep(self, timeout: float) -> None:
        """Sleep until `ring`, an event, or *timeout* seconds have passed; only if there are events.

        Raises:
            FailedPreconditionError: it is closed, or belongs to the process that forked this one.
        """
        assert self.events is not None, "without events a thread sleeps on a lock"
        doing, poll = "wait for commits", select.poll()
        with self._bell.use(doing) as bell, self.events.descriptor.use(doing) as events:
            poll.register(bell, select.POLLIN)
            if self.is_listening:
                poll.register(events, select.POLLIN)
            for fd, event in poll.poll(math.ceil(timeout * 1000)):
                if fd == bell and event == select.POLLIN:  # else a handler has forked: it is closed
                    os.eventfd_read(bell)

    def ring(self) -> None:
        """Wake the thread that sleeps; from any thread."""
        if self.events is not None:
            # It is closed, or this is a forked child, which must not wake its parent.
            with contextlib.suppress(FailedPreconditionError), self._bell.use("wake") as bell:
                os.eventfd_write(bell, 1)
