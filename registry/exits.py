"""Which init processes have ended, told by the kernel as it happens; and what is to be tried again.

Every shim needs it: who watches by pidfd is told of the right process and misses none, and what an
end means is for the embedder to write down.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from registry.errors import RegistryError, StoreClosedError
from registry.process import Process
from registry.sandbox import Sandbox

log = logging.getLogger("registry")

RETRY: Final = 1.0
"""Seconds until what failed is tried again."""
REAPED_WITHIN: Final = 10.0
"""Seconds that the exit status of another's child is waited for: its parent has to reap it."""
LOOK: Final = 0.02
"""Seconds between two looks whether it has."""

Exit = tuple[Sandbox, int | None]
"""Whose init process has ended, and its exit status if that is known."""


@dataclass(slots=True)
class _Ended:
    sandbox: Sandbox
    process: Process
    status: int | None
    until: float
    noted: bool = False


class Exits:
    """Watches the init processes of sandboxes, in a thread of its own, until it is closed.

    It joins no transaction; *note* may begin one for all that it is given.
    """

    def __init__(self, note: Callable[[Sequence[Exit]], None]) -> None:
        """Begin.

        Args:
            note: is called, in that thread, with those that ended, and once more with one whose
                exit status came late; again after a second while it raises.
        """
        self._note: Final = note
        self._epoll: Final = select.epoll()
        self._wake: Final = os.eventfd(0)
        self._closing = False
        self._watched: Final[dict[int, tuple[Sandbox, Process]]] = {}
        self._ended: list[_Ended] = []
        self._failed: Final[list[Callable[[], None]]] = []
        self._epoll.register(self._wake, select.EPOLLIN)
        self._thread: Final = threading.Thread(target=self._run, name="exits", daemon=True)
        self._thread.start()

    def watch(self, sandbox: Sandbox, process: Process) -> None:
        """Watch *process*, which is closed when it has ended."""
        self._watched[process.fileno()] = (sandbox, process)
        self._epoll.register(process.fileno(), select.EPOLLIN)

    def retry(self, work: Callable[[], None]) -> None:
        """Do *work*, which has failed, after a while, and again until it does not raise."""
        self._failed.append(work)
        if not self._closing:
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Watch no more; what has not ended goes on."""
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for _, process in self._watched.values():
            process.close()
        self._epoll.close()
        os.close(self._wake)

    def _run(self) -> None:
        again_at = 0.0
        while not self._closing:
            self._take()
            self._try(self._note_ended)
            if time.monotonic() >= again_at:
                again, self._failed[:] = self._failed[:], []
                for work in again:
                    self._try(work)
                again_at = time.monotonic() + RETRY

    def _take(self) -> None:
        """Wait for those that end; not for long, while something is to be tried or looked at."""
        soon = LOOK if any(each.noted for each in self._ended) else None
        for fd, _ in self._epoll.poll(RETRY if soon is None and self._failed else soon):
            if fd == self._wake:
                os.eventfd_read(fd)
                continue
            self._epoll.unregister(fd)
            sandbox, process = self._watched.pop(fd)
            until = time.monotonic() + REAPED_WITHIN
            self._ended.append(_Ended(sandbox, process, process.exit_status(0), until))

    def _try(self, work: Callable[[], None]) -> None:
        if self._closing:
            return
        try:
            work()
        except StoreClosedError:
            self._closing = True
        except Exception as error:
            # Not an interrupt, which comes in the main thread alone. Whatever it is, the others are
            # watched on.
            log.warning("%s; trying again", error, exc_info=not isinstance(error, RegistryError))
            if work not in self._failed:
                self._failed.append(work)

    def _note_ended(self) -> None:
        """Note the ends at once, and each exit status when it is known."""
        for each in self._ended:
            if each.status is None:
                each.status = each.process.exit_status(0)
        news = [each for each in self._ended if not each.noted or each.status is not None]
        if news:
            self._note([(each.sandbox, each.status) for each in news])
        now, left = time.monotonic(), []
        for each in self._ended:
            each.noted = True
            if each.status is None and now < each.until:
                left.append(each)
            else:
                each.process.close()
        self._ended = left
