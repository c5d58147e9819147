"""Worker process that opens damaged registries, and that may crash or hang."""

from __future__ import annotations

import os
import pickle
import select
import struct
import subprocess
import sys
import time
from typing import Final

from tests.damage.outcomes import State
from tests.damage.probe import Request
from tests.tools import ROOT, environment

HANG: Final = 5.0
"""Seconds of CPU time after which a worker hangs."""
BLOCKED: Final = 60.0
"""Seconds after which a worker hangs that uses no CPU; its timeout for locks is 1 second."""


class Worker:
    """Process that answers requests; a new one is started after a crash or a hang."""

    def __init__(self) -> None:
        """Start the process."""
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.damage.probe"],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )

    def ask(self, request: Request) -> State | str:
        """Return the answers, or `hang` or `crash` with its cause."""
        assert self._process.stdin is not None
        data = pickle.dumps(request)
        self._process.stdin.write(struct.pack(">I", len(data)) + data)
        begun, used = time.monotonic(), self._used()
        answer = bytearray()
        while len(answer) < 4 or len(answer) < 4 + struct.unpack(">I", answer[:4])[0]:
            assert self._process.stdout is not None
            if select.select([self._process.stdout], [], [], 0.5)[0]:
                data = os.read(self._process.stdout.fileno(), 1 << 20)
                answer += data
                if not data:
                    return self._ended()
            elif self._used() - used > HANG or time.monotonic() - begun > BLOCKED:
                return self._hangs()
        found: State = pickle.loads(answer[4:])
        return found

    def _used(self) -> float:
        """Return the seconds of CPU time that the process has used."""
        with open(f"/proc/{self._process.pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _ended(self) -> str:
        code = self._process.wait()
        self.close()
        self._start()
        return f"crash: exit {code}"

    def _hangs(self) -> str:
        self.close()
        self._start()
        return "hang"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
