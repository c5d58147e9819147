"""Pictures of terminals in the documents: `python -m docs.tools.pictures` draws them again.

Each command runs in a terminal of its own, 80 columns wide, on a registry that this program makes.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from registry import Metadata, State, Status, Store
from registry.cri import PodSandboxConfig

ROOT: Final = Path(__file__).resolve().parents[2]
PICTURES: Final = {"terminal.svg": ("list", "why cart-5d6f")}
"""Commands of each picture, one below the other."""
COLUMNS: Final = 80
ROWS: Final = 60
SECOND: Final = 10**9
SANDBOXES: Final = [
    ("4a333b1c9d20", "kube-system", "coredns-7f9c", 90_000, ""),
    ("77b0d2e5a9f1", "kube-system", "proxy-x2x8k", 88_200, ""),
    ("3f2a9c41d07e", "shop", "web-0", 7_400, "ProcessExited"),
    ("c51e0f8843ab", "shop", "web-1", 7_100, ""),
    ("9be1774d02c6", "shop", "cart-5d6f", 2_650, "NetNSClosed"),
    ("e09a5521f3d8", "jobs", "report-28x", 35, ""),
]
"""Id, Kubernetes namespace and pod of a sandbox, its age in seconds, and the reason of its end."""
ENDS: Final = {
    "ProcessExited": (1_510, "process 4711 is gone"),
    "NetNSClosed": (730, "nothing is at '/run/netns/sr-cart-5d6f'"),
}
"""Seconds since an end, and its message, by the reason."""


def make_registry(path: str) -> None:
    """Create the registry that the pictures show."""
    start = time.time_ns()
    ago = 0
    with Store.open(
        path, reconcile=False, actor="pod-shim", clock=lambda: start - ago * SECOND
    ) as store:
        for number, (id, namespace, pod, ago, _) in enumerate(SANDBOXES):
            config = PodSandboxConfig(labels={"app": pod.partition("-")[0]})
            config.metadata.name, config.metadata.namespace = pod, namespace
            name, ip = f"{pod}_{namespace}", f"10.88.0.{7 + number}"
            status = Status(State.READY, created_at=start - ago * SECOND)
            store.add(Metadata(id, name, config, f"/run/netns/sr-{pod}", ip), status)
        for id, *_, reason in SANDBOXES:
            if reason:
                ago, message = ENDS[reason]
                ended = Status(State.NOTREADY, reason=reason, message=message)
                store.get(id).status.update(partial(_end, ended))


def _end(ended: Status, old: Status) -> Status:
    """Return *ended* with the time at which the sandbox was created."""
    return replace(ended, created_at=old.created_at)


def shown(folder: str, *arguments: str) -> str:
    """Return what the program prints on a terminal, with the escape sequences of its colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "SANDBOX_REGISTRY_DB": "registry.db",
        "TERM": "xterm-256color",
    }
    command = [sys.executable, "-m", "registry", *arguments]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        printed = bytearray()
        try:
            while data := os.read(ours, 4096):
                printed += data
        except OSError:  # EIO: the last process has closed the terminal
            pass
        finally:
            os.close(ours)
    if process.returncode not in {0, 1}:
        raise SystemExit(f"{command}: exit {process.returncode}\n{printed.decode()}")
    return printed.decode().replace("\r\n", "\n")


def draw(*commands: str) -> str:
    """Return the picture of *commands*, as SVG."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w", encoding="utf-8") as null:
        make_registry(f"{folder}/registry.db")
        console = Console(record=True, width=COLUMNS, file=null)
        for command in commands:
            console.print(Text(f"$ sandbox-registry {command}", style="bold"))
            console.print(Text.from_ansi(shown(folder, *command.split()).rstrip()))
    svg = console.export_svg(title="sandbox-registry", unique_id="terminal")
    # A page loads nothing from another site, so no font either.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code", "ui-monospace, 'DejaVu Sans Mono', Menlo")


if __name__ == "__main__":
    for name, commands in PICTURES.items():
        ROOT.joinpath("docs", "pictures", name).write_text(draw(*commands), encoding="utf-8")
