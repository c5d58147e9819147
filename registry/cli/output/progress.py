"""Progress of long work: a bar on stderr, if that is a terminal."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Final, Self

from registry.cli.output.streams import is_terminal

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as Bar
    from rich.progress import TaskID

DELAY: Final = 1.0
"""Seconds of work after which the bar appears; shorter work does not import rich."""


class Progress:
    """Bar of the work in the body of a `with`, which calls it with what is done, and of how much.

    Without such calls the bar shows the elapsed time alone.
    """

    def __init__(self, doing: str, *, shown: bool = True) -> None:
        """Prepare a bar with the title *doing*; *shown* is False if it would disturb an output."""
        self._shown = shown
        self._doing, self._done, self._total = doing, 0, 0
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        if self._shown and sys.stderr is not None and is_terminal(sys.stderr):
            self._timer = threading.Timer(DELAY, self._start)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __call__(self, done: int, total: int) -> None:
        """Show that *done* of *total* parts of the work are done."""
        self._done, self._total = done, total
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        if self._bar is not None:
            self._bar.stop()

    def _start(self) -> None:
        """Show the bar; the timer calls this in its thread, and rich draws it in another one."""
        try:
            from rich.console import Console  # noqa: PLC0415 - only long work on a terminal
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415
            from rich.progress import Progress as Bar  # noqa: PLC0415
        except ImportError:  # the work does without
            return
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._task = bar.add_task(self._doing, completed=self._done, total=self._total or None)
        bar.start()
        self._bar = bar
