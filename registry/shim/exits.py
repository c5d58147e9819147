"""Which processes have ended, told by the kernel as it happens."""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable, Sequence
from typing import Final

from registry import Process, RegistryError, Sandbox, StoreClosedError

log = logging.getLogger("registry.shim")

RETRY: Final = 1.0
"""Seconds until an end that could not be noted is noted again."""

Exit = tuple[Sandbox, int | None]
"""Whose init process has ended, and its exit status if that is known."""


class Exits:
    """Watches the init processes of sandboxes, in a thread of its own."""

    def __init__(self, note: Callable[[Sequence[Exit]], None]) -> None:
        """Begin; *note* is called with those that ended, again while it raises RegistryError."""
        self._note: Final = note
        self._epoll: Final = select.epoll()
        self._closing: Final = os.eventfd(0)
        self._watched: Final[dict[int, tuple[Sandbox, Process]]] = {}
        self._epoll.register(self._closing, select.EPOLLIN)
        self._thread: Final = threading.Thread(target=self._run, name="exits", daemon=True)
        self._thread.start()

    def watch(self, sandbox: Sandbox, process: Process) -> None:
        """Watch *process*, which is closed when it has ended."""
        self._watched[process.fileno()] = (sandbox, process)
        self._epoll.register(process.fileno(), select.EPOLLIN)

    def close(self) -> None:
        """Watch no more; what has not ended goes on."""
        os.eventfd_write(self._closing, 1)
        self._thread.join()
        for _, process in self._watched.values():
            process.close()
        self._epoll.close()
        os.close(self._closing)

    def _run(self) -> None:
        ended: list[Exit] = []
        while True:
            for fd, _ in self._epoll.poll(RETRY if ended else None):
                if fd == self._closing:
                    return
                ended.append(self._take(fd))
            if not ended:
                continue
            try:
                self._note(ended)
            except StoreClosedError:
                return
            except RegistryError:
                log.exception("note the end of %d processes; trying again", len(ended))
            else:
                ended.clear()

    def _take(self, fd: int) -> Exit:
        self._epoll.unregister(fd)
        sandbox, process = self._watched.pop(fd)
        with process:
            return sandbox, process.exit_status()
