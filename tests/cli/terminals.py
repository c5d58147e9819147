"""Programs that run on a terminal (pty), and what they write there."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

SECONDS = 60
"""Seconds that a text may take to appear."""


class Terminal(NamedTuple):
    """Terminal of a running program."""

    process: subprocess.Popen[bytes]
    master: int
    seen: list[bytes]

    @property
    def text(self) -> str:
        """Text that the program has written so far."""
        return b"".join(self.seen).decode("utf-8", "replace")

    def expect(self, text: str, after: int = 0) -> int:
        """Wait until *text* is written behind the first *after* characters; return its end."""
        deadline = time.monotonic() + SECONDS
        while text not in self.text[after:]:
            assert time.monotonic() < deadline, f"no {text!r} in {self.text!r}"
            ready, _, _ = select.select([self.master], [], [], 1)
            if ready:
                with suppress(OSError):  # EIO: the program has ended
                    self.seen.append(os.read(self.master, 65536))
                    continue
                assert text in self.text[after:], f"ended without {text!r}: {self.text!r}"
        return self.text.index(text, after) + len(text)

    def press(self, keys: str) -> None:
        """Type *keys*."""
        os.write(self.master, keys.encode())

    def wait(self) -> int:
        """Return the exit code of the program, once it has ended."""
        while self.process.poll() is None:
            ready, _, _ = select.select([self.master], [], [], 0.05)
            if ready:
                with suppress(OSError):
                    self.seen.append(os.read(self.master, 65536))
        return self.process.returncode


def _as_a_login() -> None:
    """Take the terminal, and the default for a signal that the tests may ignore, under nohup."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@contextmanager
def terminal(
    command: Sequence[str], environment: Mapping[str, str], *, columns: int = 80
) -> Iterator[Terminal]:
    """Run *command* on a terminal of its own during the block, and end it afterwards."""
    master, slave = pty.openpty()
    size = columns.to_bytes(2, "little")
    fcntl.ioctl(slave, termios.TIOCSWINSZ, (24).to_bytes(2, "little") + size + bytes(4))
    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=dict(environment),
        start_new_session=True,
        preexec_fn=_as_a_login,  # noqa: PLW1509
    )
    os.close(slave)
    try:
        yield Terminal(process, master, [])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(master)
