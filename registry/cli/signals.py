"""Signals that end a verb which has something to undo: a screen, processes, a folder."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Final

ENDING: Final = (signal.SIGHUP, signal.SIGTERM)
"""Signals that would end the program at once; a terminal that is closed sends the first."""


def exit_by_signals() -> None:
    """Let SIGHUP and SIGTERM raise SystemExit; one that is ignored, as by nohup, stays so."""
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _exit)


def _exit(number: int, _: FrameType | None) -> None:
    """Raise SystemExit; a second signal does not interrupt what is undone."""
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)
