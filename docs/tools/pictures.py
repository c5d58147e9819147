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
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from registry import Metadata, Sandbox, State, Status, Store
from registry.cri import PodSandboxConfig

ROOT: Final = Path(__file__).resolve().parents[2]
PICTURES: Final = {"terminal.svg": ("list",)}
"""Commands of each picture, one below the other."""
COLUMNS: Final = 80
ROWS: Final = 60
SECOND: Final = 10**9
SANDBOXES: Final = [
    ("4a333b1c9d20", "kube-system", "coredns-7f9c", 90_000, ""),
    ("77b0d2e5a9f1", "kube-system", "proxy-x2x8k", 88_200, ""),
    ("3f2a9c41d07e", "shop", "web-0", 7_400, "ProcessExited"),
    ("c51e0f8843ab", "shop", "web-1", 7_100, ""),
    ("9be1774d02c6", "shop", "cart-5d6f", 640, "NetNSClosed"),
    ("e09a5521f3d8", "jobs", "report-28x", 35, ""),
]
"""Id, Kubernetes namespace and pod of a sandbox, its age in seconds, and the reason of its end."""
MESSAGES: Final = {
    "ProcessExited": "process 4711 is gone",
    "NetNSClosed": "network namespace '/run/netns/cart-5d6f' is gone: nothing is there",
}


def make_registry(path: str) -> None:
    """Create the registry that the pictures show."""
    now = time.time_ns()
    clock = iter(range(now - 60 * SECOND, now, SECOND))
    with Store.open(path, reconcile=False, actor="shim[812]", clock=lambda: next(clock)) as store:
        for number, (id, namespace, pod, age, _) in enumerate(SANDBOXES):
            config = PodSandboxConfig(labels={"app": pod.partition("-")[0]})
            config.metadata.name, config.metadata.namespace = pod, namespace
            metadata = Metadata(
                id=id, name=f"{pod}_{namespace}", config=config, ip=f"10.88.0.{7 + number}"
            )
            store.add(metadata, Status(State.READY, created_at=now - age * SECOND))
    with Store.open(path, reconcile=False, actor="reconcile") as store:
        for id, *_, reason in SANDBOXES:
            if reason:
                _end(store.get(id), reason)


def _end(sandbox: Sandbox, reason: str) -> None:
    """Mark *sandbox* as NOTREADY."""
    sandbox.status.update(
        lambda old: replace(
            old, state=State.NOTREADY, pid=0, reason=reason, message=MESSAGES[reason]
        )
    )


def shown(*command: str) -> str:
    """Return what *command* prints on a terminal, with the escape sequences of its colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "PAGER": "cat"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
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


def draw(path: str, *commands: str) -> str:
    """Return the picture of *commands* on the registry at *path*, as SVG."""
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for command in commands:
        console.print(Text(f"$ sandbox-registry {command}", style="bold"))
        text = shown(sys.executable, "-m", "registry", "--db", path, *command.split())
        console.print(Text.from_ansi(text))
    svg = console.export_svg(title="sandbox-registry", unique_id="terminal")
    # A page loads nothing from another site, so no font either.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code", "ui-monospace, 'DejaVu Sans Mono', Menlo")


def main() -> None:
    """Draw all pictures."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/registry.db"
        make_registry(path)
        for name, commands in PICTURES.items():
            ROOT.joinpath("docs", "pictures", name).write_text(
                draw(path, *commands), encoding="utf-8"
            )


if __name__ == "__main__":
    main()
