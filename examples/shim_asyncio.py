"""Shim that uses asyncio: two tasks for each pod hear of its stop and of its exit.

`python examples/shim_asyncio.py REGISTRY` has the requests and rules of `shim_threads.py`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from functools import partial
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

from registry import Metadata, NetNS, Process, State, Status
from registry.aio import AsyncSandbox, AsyncStore
from registry.errors import FailedPreconditionError, NotFoundError, RegistryError


async def recover(tasks: asyncio.TaskGroup, sandbox: AsyncSandbox) -> None:
    """Follow a pod of the previous shim if it runs; remove what an interrupted one has left."""
    if sandbox.status_as_read.reason in {"Stopped", "CreationInterrupted"}:
        await clean_up(sandbox)
    elif process := await sandbox.open_process():
        tasks.create_task(attempt(finish_stop(sandbox)))
        tasks.create_task(attempt(record_end(sandbox, process, None)))


async def start(store: AsyncStore, tasks: asyncio.TaskGroup, id: str) -> None:
    """Create a pod: record each step, then take it."""
    path, status = await store.new_netns_path(), Status(State.UNKNOWN, created_at=time.time_ns())
    sandbox = await store.add(Metadata(id, f"{id}_default", None, path), status)
    try:
        child = await asyncio.to_thread(lambda: NetNS.create(path).do(spawn))
        tasks.create_task(attempt(finish_stop(sandbox)))
        tasks.create_task(attempt(record_end(sandbox, Process.of_pid(child.pid), child)))
        assert child.stdin is not None
        with child.stdin as gate:  # closed without a line, it ends the process
            await sandbox.status.update(partial(while_unknown, pid=child.pid))
            gate.write("go\n")
        await sandbox.status.update(partial(while_unknown, state=State.READY))
    except BaseException:  # a step failed, or the sandbox was stopped
        await clean_up(sandbox)
        raise


async def stop(store: AsyncStore, id: str) -> None:
    """Stop a pod: record it, then remove what is recorded."""
    sandbox = await store.get(name=f"{id}_default", include_unknown=True)
    await sandbox.status.update(partial(notready, reason="Stopped"))
    await clean_up(sandbox)


async def finish_stop(sandbox: AsyncSandbox) -> None:
    """Wait until any process stops or deletes the sandbox, then remove what it records."""
    with suppress(NotFoundError):  # it is deleted
        await sandbox.stopped.wait_async()
        if (await sandbox.status.get()).reason != "Stopped":
            return  # it is kept until it is stopped
    await clean_up(sandbox)


async def record_end(sandbox: AsyncSandbox, process: Process, child: Popen[str] | None) -> None:
    """Wait for the end of a process, record it, and reap the process if it is a child."""
    with process:
        await has_ended(process)
        code = await asyncio.to_thread(process.exit_status)
    end = partial(notready, reason="ProcessExited", exit_status=code, pid=0)
    with suppress(NotFoundError):  # it is deleted
        await sandbox.status.update(partial(end, exited_at=time.time_ns()))
    if child:
        child.wait()


async def has_ended(process: Process) -> None:
    """Wait until a process has ended: then its pidfd can be read."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(process)


async def clean_up(sandbox: AsyncSandbox) -> None:
    """Remove what the record names, then the record. Idempotent, also in two tasks at once."""
    if process := await sandbox.open_process():
        with process:
            process.kill()
            await has_ended(process)
    await sandbox.remove_netns()
    await sandbox.delete()


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


async def attempt(work: Coroutine[Any, Any, object]) -> None:
    """Await *work*; print why it failed, and go on with the other pods."""
    try:
        await work
    except (OSError, RegistryError) as error:
        print("error:", error, flush=True)


async def show(store: AsyncStore) -> None:
    """Print each transition that any process commits."""
    async for change in store.watch():
        print(change.sandbox_id, change.to_state or change.event, change.reason, flush=True)


async def main(path: str) -> None:
    """Serve requests until standard input ends; the pods go on."""
    loop, lines = asyncio.get_running_loop(), asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with await AsyncStore.open(path) as store, asyncio.TaskGroup() as tasks:
        tasks.create_task(show(store))
        for sandbox in await store.list():
            await attempt(recover(tasks, sandbox))
        await attempt(store.remove_orphans((await store.reconcile()).orphans))
        async with asyncio.TaskGroup() as requests:
            async for line in lines:
                verb, id = line.decode().split()
                request = start(store, tasks, id) if verb == "start" else stop(store, id)
                requests.create_task(attempt(request))
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
