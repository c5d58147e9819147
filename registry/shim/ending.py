"""End of the server: on a signal, or because it cannot serve any more.

A server that cannot be mended from within ends with an error, so that its supervisor starts the
next one, which opens the registry again. Before that it answers one Status call, for the client to
learn the reason; a server that no client asks ends after `TOLD_WITHIN`.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from typing import Final

from registry import DataLossError, RegistryError

log = logging.getLogger("registry.shim")

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
"""Signals that end the server; every thread has them blocked."""
TOLD_WITHIN: Final = 10.0
"""Seconds that a failed server waits for a Status call; a kubelet calls it every 5 to 10."""


class Ending:
    """Reason for which the server ends, noted by any thread; the main thread waits for it."""

    def __init__(self) -> None:
        """Belong to the calling thread, which has `SIGNALS` blocked, and is the one that waits."""
        self.error: RegistryError | None = None
        """The error for which the server ends; None if it does not, or on a signal."""
        self._main: Final = threading.get_ident()
        self._mutex: Final = threading.Lock()
        self._is_told = False
        self.is_deaf = False
        """Whether no call is answered any more."""

    def note(self, error: BaseException) -> None:
        """End the server if *error* tells that its store is no longer safe to use."""
        if isinstance(error, DataLossError):
            self.fail(error)

    def fail(self, error: RegistryError, *, is_deaf: bool = False) -> None:
        """End the server with *error*, or with an earlier one.

        Args:
            error: raised in the main thread.
            is_deaf: whether no call is answered any more.
        """
        with self._mutex:
            self.is_deaf |= is_deaf
            if self.error is not None:
                return
            self.error = error
        log.error(
            "ending, to be started again: %s",
            error,
            extra={"event": "failed", "error": type(error).__name__},
        )
        self._wake()

    def tell(self) -> RegistryError | None:
        """Return the error for which the server ends, to a client that has asked for the state."""
        if self.error is not None:
            self._is_told = True  # first: the main thread may take this signal for that of `fail`
            self._wake()
        return self.error

    def wait(self, seconds: float, beat: Callable[[], object]) -> str:
        """Wait for a signal or an error, and return the name of the signal, or "".

        Args:
            seconds: time between two calls of *beat*.
            beat: called while the server serves; the watchdog of a supervisor.
        """
        number = None
        while number is None:
            number = signal.sigtimedwait(SIGNALS, seconds)
            if number is None:
                beat()
        return "" if self.error else signal.Signals(number.si_signo).name

    def wait_until_told(self) -> None:
        """Wait, after an error, until a client was told or a signal comes."""
        if self.error is not None and not self.is_deaf and not self._is_told:
            signal.sigtimedwait(SIGNALS, TOLD_WITHIN)

    def _wake(self) -> None:
        """Wake the main thread, by a signal to it alone."""
        signal.pthread_kill(self._main, signal.SIGTERM)
