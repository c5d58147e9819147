"""Shim that uses threads: it hears of each stop and of each exit when it happens.

    python examples/shim_threads.py REGISTRY

Write `start ID` and `stop ID` to its standard input. It prints each change that a process commits.
A pod is a network namespace and a process, here `sleep`, which outlive the shim. It needs root.

Each step is recorded before it is taken, so the shim may be killed at any moment. The next one
follows the pods that run, and removes what an interrupted creation or stop has left. A stop is a
commit of NOTREADY, by any process. A pod that has ended stays NOTREADY until it is stopped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from subprocess import DEVNULL, PIPE, Popen
from threading import Thread
from typing import Any

from registry import Exits, Metadata, NetNS, Process, Sandbox, State, Status, Store, Transition
from registry.errors import FailedPreconditionError, NotFoundError, RegistryError, StoreClosedError


class Shim:
    """Pods of one registry."""

    def __init__(self, store: Store) -> None:
        """Recover what the previous shim has left."""
        self.store, self.exits = store, Exits(self.record_ends)
        self.children: dict[Sandbox, Popen[str]] = {}
        for sandbox in store.list():
            attempt(partial(self.recover, sandbox))
        report = store.reconcile()  # which marks those that have ended since `Store.open`
        attempt(partial(store.remove_orphans, report.orphans))

    def recover(self, sandbox: Sandbox) -> None:
        """Follow a pod of the previous shim if it runs; remove what an interrupted one has left."""
        if sandbox.status_as_read.reason in {"Stopped", "CreationInterrupted"}:
            clean_up(sandbox)
        elif process := sandbox.open_process():
            self.follow(sandbox, process)

    def start(self, id: str) -> None:
        """Create a pod: record each step, then take it."""
        metadata = Metadata(id, f"{id}_default", None, netns_path=self.store.new_netns_path())
        sandbox = self.store.add(metadata, Status(State.UNKNOWN, created_at=time.time_ns()))
        try:
            child = self.children[sandbox] = NetNS.create(sandbox.netns_path).do(spawn)
            self.follow(sandbox, Process.of_pid(child.pid))
            assert child.stdin is not None
            with child.stdin as gate:  # closed without a line, it ends the process
                sandbox.status.update(partial(while_unknown, pid=child.pid))
                gate.write("go\n")
            sandbox.status.update(partial(while_unknown, state=State.READY))
        except BaseException:  # a step failed, or the sandbox was stopped
            clean_up(sandbox)
            raise

    def stop(self, id: str) -> None:
        """Stop a pod: record it, then remove what is recorded."""
        sandbox = self.store.get(name=f"{id}_default", include_unknown=True)
        sandbox.status.update(partial(notready, reason="Stopped"))
        clean_up(sandbox)

    def follow(self, sandbox: Sandbox, process: Process) -> None:
        """Begin to wait for the stop of a sandbox and for the end of its process."""
        Thread(target=attempt, args=[partial(finish_stop, sandbox)], daemon=True).start()
        self.exits.watch(sandbox, process)

    def record_ends(self, ends: Sequence[tuple[Sandbox, int | None]]) -> None:
        """Record the ends of processes, and reap those that are children."""
        for sandbox, code in ends:  # code is None while it is not known
            end = partial(notready, reason="ProcessExited", exit_status=code, pid=0)
            with suppress(NotFoundError):  # it is deleted
                sandbox.status.update(partial(end, exited_at=time.time_ns()))
            if child := self.children.pop(sandbox, None):
                child.wait()


def finish_stop(sandbox: Sandbox) -> None:
    """Wait until any process stops or deletes the sandbox, then remove what it records."""
    with suppress(NotFoundError):  # it is deleted
        sandbox.stopped.wait()
        if sandbox.status.get().reason != "Stopped":
            return  # it is kept until it is stopped
    clean_up(sandbox)


def clean_up(sandbox: Sandbox) -> None:
    """Remove what the record names, then the record. Idempotent, also in two threads at once."""
    if process := sandbox.open_process():
        with process:
            process.kill()
            process.wait()
    sandbox.remove_netns()
    sandbox.delete()


def spawn() -> Popen[str]:
    """Spawn a process that waits for a line, and ends if the shim ends before."""
    held = ["sh", "-c", "read go && exec sleep infinity"]
    return Popen(held, text=True, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL, process_group=0)


def while_unknown(old: Status, **changes: Any) -> Status:
    """Return the status after a step of the creation; raise if the sandbox was stopped."""
    if old.state is not State.UNKNOWN:
        raise FailedPreconditionError(f"it was stopped while it was being created: {old.reason}")
    return replace(old, **changes)


def notready(old: Status, reason: str, **changes: Any) -> Status:
    """Return NOTREADY with *changes*; the first reason is kept."""
    return replace(old, state=State.NOTREADY, reason=old.reason or reason, **changes)


def attempt(fn: Callable[[], object]) -> None:
    """Call *fn*; print why it failed, and go on with the other pods."""
    try:
        fn()
    except (OSError, RegistryError) as error:
        if not isinstance(error, StoreClosedError):  # the shim ends
            print(f"error: {error}\n", end="", flush=True)  # in one write: `show` prints too


def show(changes: Iterable[Transition]) -> None:
    """Print each transition that any process commits, until the store is closed."""
    for new in changes:
        print(f"{new.sandbox_id} {new.to_state or new.event} {new.reason}\n", end="", flush=True)


def main(path: str) -> None:
    """Serve requests until standard input ends; the pods go on."""
    with Store.open(path, actor="shim-threads") as store, ThreadPoolExecutor() as requests:
        Thread(target=show, args=[store.watch()], daemon=True).start()
        shim = Shim(store)
        for line in sys.stdin:
            verb, id = line.split()
            requests.submit(attempt, partial(shim.start if verb == "start" else shim.stop, id))


if __name__ == "__main__":
    main(sys.argv[1])
