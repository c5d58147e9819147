"""The verb `demo`: a registry with sandboxes in several states, to try the commands on.

It needs no root: its pods are on the host network, and their processes are `cat`, which ends when
the demo does, even by SIGKILL: its standard input ends then. One pod names a network namespace that
was never made.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

from registry.cli import complete, options
from registry.cli.failures import FINE, PROGRAM
from registry.cli.output.streams import write
from registry.cli.signals import exit_by_signals
from registry.errors import FailedPreconditionError
from registry.handles.sandbox import Sandbox
from registry.model.metadata import Metadata
from registry.model.status import State, Status
from registry.store import Store
from registry.sync.interrupts import reraise_interrupt
from registry.visible import visible

NAME: Final = "registry.db"
COMMANDS: Final = (
    ("A shim has recorded these sandboxes, and then died.", "list --all"),
    ("Some are gone meanwhile. A reconcile observes each, and marks what is gone.", "reconcile"),
    ("Which are not ready, and why?", "list --state NOTREADY"),
    ("What happened to one of them, and what is left to do?", "why cache-0"),
    ("Who uses the registry?", "who"),
    ("What happened so far?", "history"),
)
"""Commands that the demo runs, each after a sentence."""
MORE: Final = (
    "why web-1",
    "why job-0",
    "inspect web-0",
    "check",
    "sql 'SELECT * FROM why_not_ready'",
)
"""Commands that it proposes."""


@click.command(
    epilog=options.examples("sandbox-registry demo", "sandbox-registry demo --keep /tmp/demo")
)
@click.option(
    "--keep",
    metavar="DIR",
    help="Put the registry into DIR, and keep it.",
    shell_complete=complete.files,
)
def demo(*, keep: str | None) -> int:
    """Try the commands on a registry that is made for it; this needs no root and no cluster.

    The demo removes what it has made, unless it is to be kept.
    """
    exit_by_signals()
    with _folder(keep) as folder, _processes(4) as processes:
        path = os.path.join(folder, NAME)
        _record(path, processes)
        for sentence, command in COMMANDS:
            write(f"\n{sentence}\n\n$ {PROGRAM} {command}\n")
            _run(path, command)
        write("\nTry more of them, in another terminal:\n\n")
        write(f"  export {options.VARIABLE}={visible(shlex.quote(path))}\n")
        write("".join(f"  {PROGRAM} {command}\n" for command in MORE))
        if keep is None and sys.stdin.isatty() and sys.stdout.isatty():
            write("\nPress Enter to remove the registry and end its processes.\n")
            sys.stdin.readline()
    if keep is None:
        write("\nThe registry and its processes are removed again.\n")
    else:
        write("\nThe registry is kept; its processes have ended, as `reconcile` will find out.\n")
    return FINE


@contextmanager
def _folder(keep: str | None) -> Iterator[str]:
    """Lend a folder for the registry: a temporary one, or *keep*.

    Raises:
        FailedPreconditionError: a registry is in *keep* already, or *keep* cannot be made.
    """
    if keep is None:
        with tempfile.TemporaryDirectory(prefix=f"{PROGRAM}-demo-") as folder:
            yield folder
        return
    try:
        os.makedirs(keep, mode=0o700, exist_ok=True)
    except OSError as error:
        reraise_interrupt(error)
        raise FailedPreconditionError(
            f"keep the demo in {keep!r}: {error.strerror}; name another directory", path=keep
        ) from error
    path = os.path.join(os.path.abspath(keep), NAME)
    if os.path.lexists(path):
        raise FailedPreconditionError(
            f"keep the demo in {keep!r}: {path!r} exists; name another directory", path=path
        )
    yield os.path.dirname(path)


@contextmanager
def _processes(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run *count* processes during the block, in a session that Ctrl-C does not reach."""
    found: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            found += [_process()]
        yield found
    finally:
        for process in found:
            _end(process)


def _process() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["cat"],  # noqa: S607 - as the user finds it
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _record(path: str, processes: list[subprocess.Popen[bytes]]) -> None:
    """Record the sandboxes as a shim does, and end what is to be found gone."""
    serving, exited, left, creator = processes
    with Store.open(path, actor=f"demo-shim[{creator.pid}]") as store:
        _add(store, "web-0", Status(State.READY, serving.pid))
        _add(store, "web-1", Status(State.READY, exited.pid))
        _add(store, "db-0", Status(State.READY), netns_path="/run/netns/never-made-by-the-demo")
        oom = Status(State.NOTREADY, left.pid, reason="OOMKilled", message="out of memory")
        _add(store, "cache-0", oom)
        _add(store, "job-0", Status(State.UNKNOWN), creator=creator.pid)
        _add(store, "old-0", Status(State.NOTREADY, reason="Evicted")).delete()
    _end(exited)
    _end(creator)


def _add(
    store: Store, pod: str, status: Status, *, netns_path: str = "", creator: int | None = None
) -> Sandbox:
    """Add the sandbox of *pod*; it is on the host network unless it has a *netns_path*."""
    from registry.cri import NamespaceMode, PodSandboxConfig  # noqa: PLC0415 - not for its help

    config = PodSandboxConfig(labels={"app": pod.partition("-")[0]})
    config.metadata.name, config.metadata.namespace = pod, "demo"
    config.metadata.uid = f"uid-{pod}"
    if not netns_path:
        config.linux.security_context.namespace_options.network = NamespaceMode.NODE
    metadata = Metadata(os.urandom(6).hex(), f"{pod}_demo_0", config, netns_path)
    now = time.time_ns()
    return store.add(
        metadata,
        Status(status.state, status.pid, now, reason=status.reason, message=status.message),
        creator=creator,
    )


def _run(path: str, command: str) -> None:
    """Run *command* in another process, which fits its output to the terminal of this one."""
    stdout = sys.stdout.fileno()
    subprocess.run(  # noqa: S603 - a constant
        [sys.executable, "-m", "registry", *command.split()],
        env=os.environ | {options.VARIABLE: path, "PAGER": "cat"},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stdout,
        check=False,
    )
