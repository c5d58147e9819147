"""Pager for output that is longer than the terminal, as git has it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from typing import Final

from registry.cli.output.streams import write
from registry.sync.interrupts import reraise_interrupt

PAGER: Final = "less"
LESS: Final = "FRX"
"""Options of less: end if the text fits, show colours, leave the text on the screen."""


def write_paged(text: str) -> None:
    """Write *text* to the terminal: by the pager of the environment if it is longer than that."""
    command = os.environ.get("PAGER", PAGER)
    if text.count("\n") < shutil.get_terminal_size().lines or command in {"", "cat"}:
        write(text)
        return
    environment = {"LESS": LESS, **os.environ}
    try:
        words = shlex.split(command)
        process = subprocess.Popen(words, stdin=subprocess.PIPE, env=environment)  # noqa: S603 - the operator's own
    except (OSError, ValueError) as error:  # there is no such program
        reraise_interrupt(error)
        write(text)
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the pager
    try:  # it ignores that the reader has seen enough
        process.communicate(text.encode(sys.stdout.encoding, "backslashreplace"))
    finally:
        signal.signal(signal.SIGINT, before)
