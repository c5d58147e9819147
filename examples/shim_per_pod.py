"""Shim with one process for each pod, beside each other on one registry.

    python examples/shim_per_pod.py start|stop|recover|list REGISTRY [ID]

`start` adds the sandbox for the owner of the pod, a process that lives as long as the pod. It
creates a network namespace and a process, here `sleep`, records its end, and removes both once any
process has stopped the pod. Each step is recorded before it is taken, so each process may be killed
at any moment: `recover` then gives an owner to the pods that run, and removes what else is left.
It needs root.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from subprocess import DEVNULL, PIPE, Popen
from threading import Thread
from typing import Any

from registry import Metadata, NetNS, Process, Sandbox, State, Status, Store
from registry.errors import FailedPreconditionError, NotFoundError, RegistryError


def start(store: Store, id: str) -> None:
    """Add the sandbox, and have its owner create it."""
    owner = spawn([sys.executable, __file__, "own", store.path, id], PIPE)
    metadata = Metadata(id, f"{id}_default", None, netns_path=store.new_netns_path())
    store.add(metadata, Status(State.UNKNOWN, created_at=time.time_ns()), creator=owner.pid)
    sys.exit(0 if release(owner) else f"error: the pod {id!r} was not created")


def stop(store: Store, id: str) -> None:
    """Stop a pod: record it, then remove what is recorded; so does the owner, if there is one."""
    sandbox = store.get(name=f"{id}_default", include_unknown=True)
    sandbox.status.update(partial(notready, reason="Stopped"))
    clean_up(sandbox)
    print(id, "deleted")


def show(store: Store) -> None:
    """Print the pods, which `Store.open` has compared with the processes and namespaces."""
    for sandbox in store.list():
        print(sandbox.id, sandbox.status_as_read.state, sandbox.status_as_read.reason)


def recover(store: Store) -> None:
    """Remove what was interrupted, and give each pod that runs an owner if it has none."""
    for sandbox in store.list():
        if sandbox.status_as_read.reason in {"Stopped", "CreationInterrupted"}:
            clean_up(sandbox)
        elif sandbox.status_as_read.state is State.READY:
            release(spawn([sys.executable, __file__, "own", store.path, sandbox.id], PIPE))
    store.remove_orphans(store.reconcile().orphans)


def own(store: Store, id: str) -> None:
    """Own a pod until its end, from its creation or from now on."""
    sandbox, child = store.get(name=f"{id}_default", include_unknown=True), None
    with suppress(BlockingIOError), open(f"{store.path}-owners", "ab") as owners:  # it has one
        # One byte for each pod, which the kernel unlocks when the owner ends, however it ends.
        byte = int.from_bytes(hashlib.sha256(sandbox.netns_path.encode()).digest()[:7])
        fcntl.lockf(owners, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        if sandbox.status_as_read.state is State.UNKNOWN:
            child = create(sandbox)
        process = Process.of_pid(child.pid) if child else sandbox.open_process()
        if process is None:  # it has ended
            store.reconcile()
            return
        print(id, "SANDBOX_READY", flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `release` may return
        Thread(target=lambda: sandbox.stopped.wait() and process.kill(), daemon=True).start()
        process.wait()
        code = process.exit_status()
        end = partial(notready, reason="ProcessExited", exit_status=code, pid=0)
        with suppress(NotFoundError):  # it is deleted
            if sandbox.status.update(partial(end, exited_at=time.time_ns())).reason != "Stopped":
                return  # it is kept until it is stopped
        clean_up(sandbox)


def create(sandbox: Sandbox) -> Popen[str]:
    """Create the pod, and return its process: record each step, then take it."""
    pod = ["sh", "-c", "read go && exec sleep infinity"]
    try:
        child = NetNS.create(sandbox.netns_path).do(lambda: spawn(pod, DEVNULL))
        sandbox.status.update(partial(while_unknown, pid=child.pid))
        release(child)
        sandbox.status.update(partial(while_unknown, state=State.READY))
    except BaseException:  # a step failed, or the sandbox was stopped
        clean_up(sandbox)
        raise  # the process of the pod ends with this one, unless its pid is recorded
    return child


def clean_up(sandbox: Sandbox) -> None:
    """Remove what the record names, then the record. Idempotent, also in two processes at once."""
    if process := sandbox.open_process():
        with process:
            process.kill()
            process.wait()
    sandbox.remove_netns()
    sandbox.delete()


def spawn(command: list[str], stdout: int) -> Popen[str]:
    """Spawn a process that waits for `release`, and ends if this process ends before."""
    return Popen(command, text=True, stdin=PIPE, stdout=stdout, start_new_session=True)


def release(process: Popen[str]) -> str:
    """Let a process begin; return what it says: an owner, that the pod is READY."""
    print("go", file=process.stdin, flush=True)
    return process.stdout.read() if process.stdout else ""


def while_unknown(old: Status, **changes: Any) -> Status:
    """Return the status after a step of the creation; raise if the sandbox was stopped."""
    if old.state is not State.UNKNOWN:
        raise FailedPreconditionError(f"it was stopped while it was being created: {old.reason}")
    return replace(old, **changes)


def notready(old: Status, reason: str, **changes: Any) -> Status:
    """Return NOTREADY with *changes*; the first reason is kept."""
    return replace(old, state=State.NOTREADY, reason=old.reason or reason, **changes)


def main(verb: str, path: str, *ids: str) -> None:
    """Run one command."""
    if verb == "own" and not sys.stdin.readline():
        return  # `start` was killed, or has failed
    verbs: dict[str, Callable[..., None]]
    verbs = {"start": start, "stop": stop, "list": show, "recover": recover, "own": own}
    try:
        with Store.open(path, reconcile=verb in {"list", "recover"}) as store:
            verbs[verb](store, *ids)
    except RegistryError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
