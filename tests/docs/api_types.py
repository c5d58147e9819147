"""Types of the public API, as a type checker sees them; this module is checked and never run.

`assert_type` states what a call returns. A comment `type: ignore` with its code stands on each line
that a checker must reject: the checkers report such a comment where there is no error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any as AnyType
from typing import assert_type

from google.protobuf.any_pb2 import Any
from prometheus_client.registry import Collector

import registry
from registry import (
    CNIResult,
    Container,
    Exit,
    Exits,
    Extension,
    Extensions,
    Finding,
    Loss,
    Metadata,
    NetNS,
    Process,
    RegistryError,
    Report,
    Salvage,
    Sandbox,
    State,
    Status,
    StatusStorage,
    StopCh,
    Store,
    Transition,
    UnavailableError,
    UpdateFunc,
    Verdict,
    Violation,
    salvage,
)
from registry.aio import AsyncSandbox, AsyncStore
from registry.cri import PodSandboxConfig
from registry.handles.watch import Watch
from registry.metrics import collector


class Task:
    """A container of the embedder; it need not inherit from `Container`."""

    id: str = "task"

    def pid(self) -> int | None:
        """Return no pid."""
        return None


def load(sandbox: Sandbox) -> Container | None:
    """Return the container of a recovered sandbox."""
    return Task() if sandbox.id else None


def opening(path: str) -> None:
    """Open a store, and use what it recovered."""
    with Store.open(path, timeout=1, container_loader=load, clock=lambda: 1) as store:
        assert_type(store, Store)
    assert_type(store.path, str)
    assert_type(store.recovery, Report | None)
    assert_type(store.close(), None)
    assert_type(registry.__version__, str)
    Store.open(path, False)  # type: ignore[call-arg] # options are given by name
    Store.open(path, read_onyl=True)  # type: ignore[call-arg]
    Store.open(path, clock=lambda: 0.5)  # type: ignore[arg-type, return-value]
    _ = store.recovery.findings  # type: ignore[union-attr] # there is none after `reconcile=False`


def salvaging(path: str) -> None:
    """Copy what can be read of a damaged registry."""
    found = salvage(path, "new.db", timeout=1)
    assert_type(found, Salvage)
    assert_type(found.complete, bool)
    assert_type(found.lines(), Iterator[str])
    assert_type(found.losses, tuple[Loss, ...])
    assert_type(found.read, Mapping[str, int])


def reading(store: Store) -> None:
    """Read sandboxes and the history."""
    assert_type(store.get("4a33", include_unknown=True), Sandbox)
    assert_type(store.get(name="web-0"), Sandbox)
    assert_type(store.list(id="4a", state=State.READY, labels={"app": "web"}), list[Sandbox])
    assert_type(store.list(state={State.READY, State.NOTREADY}), list[Sandbox])
    assert_type(store.list(selector="app=web", newest_first=True, limit=1), list[Sandbox])
    assert_type(store.history("4a33", after=1, limit=10), list[Transition])
    assert_type(store.check(), list[Violation])
    assert_type(store.backup(Path("/backup/registry.db"), progress=print), None)
    assert_type(registry.restore("/backup/registry.db", store.path), registry.Restoration)
    for transition in store.history():
        assert_type(transition.seq, int)
        assert_type(transition.from_state, State | None)
        assert_type(transition.to_state, State | None)
    store.get(7)  # type: ignore[call-overload]
    store.get()  # type: ignore[call-overload]
    store.get("4a33", name="web-0")  # type: ignore[call-overload] # one of both
    store.list(state="SANDBOX_READY")  # type: ignore[arg-type]
    store.list(labels={"app": 1})  # type: ignore[dict-item]


def writing(store: Store, metadata: Metadata, status: Status) -> None:
    """Add, change and delete."""
    assert_type(store.transaction(), AbstractContextManager[None])
    with store.transaction() as nothing:
        assert_type(nothing, None)
    with store.deadline(0.5) as nothing:
        assert_type(nothing, None)
    assert_type(store.add(metadata, status, container=Task(), creator=7), Sandbox)
    assert_type(store.adopt(metadata, status), Sandbox)
    assert_type(store.update_metadata("4a33", lambda old: replace(old, ip="10.0.0.1")), Sandbox)
    assert_type(store.delete("4a33"), bool)
    store.add(metadata)  # type: ignore[call-arg] # a sandbox always has a status
    store.add(metadata, status, container=object())  # type: ignore[arg-type]
    store.update_metadata("4a33", lambda _: None)  # type: ignore[arg-type, return-value]
    with store:
        pass
    asyncio.run(store.transaction())  # type: ignore[arg-type] # it is no coroutine


def recovering(store: Store) -> None:
    """Reconcile, and use the report."""
    report = store.reconcile(dry_run=True)
    assert_type(report, Report)
    assert_type(report.findings, tuple[Finding, ...])
    assert_type(report.counts, Mapping[Verdict, int])
    assert_type(report.orphans, tuple[str, ...])
    assert_type(report.findings[0].verdict, Verdict)
    assert_type(report.findings[0].changed, bool)
    assert_type(store.new_netns_path(), str)
    assert_type(store.remove_orphans(report.orphans), list[str])
    report.findings = ()  # type: ignore[misc] # frozen


def handles(sandbox: Sandbox) -> None:
    """Use a handle and its status."""
    assert_type(sandbox.id, str)
    assert_type(sandbox.name, str)
    assert_type(sandbox.netns_path, str)
    assert_type(sandbox.ip, str)
    assert_type(sandbox.runtime_handler, str)
    assert_type(sandbox.process_label, str)
    assert_type(sandbox.metadata, Metadata)
    assert_type(sandbox.stored["config"], AnyType)
    assert_type(sandbox.config, PodSandboxConfig | None)
    assert_type(sandbox.additional_ips, tuple[str, ...] | None)
    assert_type(sandbox.cni_result, CNIResult | None)
    assert_type(sandbox.netns, NetNS | None)
    assert_type(sandbox.open_process(), Process | None)
    assert_type(sandbox.remove_netns(), None)
    assert_type(sandbox.container, Container | None)
    assert_type(sandbox.attach(Task()), None)
    assert_type(sandbox.status, StatusStorage)
    assert_type(sandbox.status.get(), Status)
    assert_type(sandbox.status_as_read, Status)
    assert_type(sandbox.status.update(lambda old: replace(old, pid=7)), Status)
    assert_type(sandbox.delete(), bool)
    sandbox.id = "5b"  # type: ignore[misc]
    _ = sandbox.config.labels  # type: ignore[union-attr] # a sandbox may have no config
    sandbox.open_process().kill()  # type: ignore[union-attr] # it may have ended
    sandbox.status.update(lambda old: old.state)  # type: ignore[arg-type, return-value]
    sandbox.status.update(replace(sandbox.status.get()))  # type: ignore[arg-type]


def own_data(sandbox: Sandbox) -> None:
    """Read and replace the extensions of a sandbox."""
    assert_type(sandbox.extensions, Extensions)
    assert_type(sandbox.extensions["endpoint"], Extension)
    assert_type(sandbox.extensions["endpoint"].value, bytes)
    replaced = sandbox.extensions.update(lambda old: {**old, "a": b"", "b": Extension("", b"")})
    assert_type(replaced, Mapping[str, Extension])
    sandbox.extensions.update(lambda old: {**old, "c": Any(value=b"")})
    sandbox.extensions.update(lambda _: {"a": "text"})  # type: ignore[dict-item]
    sandbox.extensions["a"] = Extension("", b"")  # type: ignore[index]


def watching(store: Store) -> None:
    """Iterate over the transitions that are committed."""
    watch = store.watch(after=1, timeout=0)
    assert_type(watch, Watch)
    assert_type(watch.after, int)
    assert_type(watch.close(), None)
    for transition in watch:
        assert_type(transition, Transition)
    store.watch(1)  # type: ignore[call-arg] # options are given by name


async def watching_in_tasks(store: Store, sandbox: Sandbox) -> None:
    """Iterate and wait in a task of asyncio."""
    async for transition in store.watch():
        assert_type(transition, Transition)
    assert_type(await sandbox.stopped.wait_async(), None)


def stopping(sandbox: Sandbox) -> None:
    """Use the StopCh of a sandbox."""
    assert_type(sandbox.stopped, StopCh)
    assert_type(sandbox.stopped.is_set(), bool)
    assert_type(sandbox.stopped.wait(0.5), bool)
    assert_type(sandbox.stop(), None)
    assert_type(sandbox.stopped.stop(), None)


def values() -> None:
    """Make values, which are immutable; a status names its state."""
    status = Status(State.READY, pid=7)
    assert_type(status.exit_status, int | None)
    assert_type(str(State.READY), str)
    Status()  # type: ignore[call-arg]
    Status("READY")  # type: ignore[arg-type]
    status.pid = 8  # type: ignore[misc]
    metadata = Metadata.unmarshal_json(b"{}")
    assert_type(metadata, Metadata)
    assert_type(metadata.marshal_json(), bytes)
    assert_type(metadata.host_network, bool)
    assert_type(State.parse("SANDBOX_READY"), State)
    Metadata(id="4a33", name="web-0")  # type: ignore[call-arg] # config has no default
    metadata.name = "web-1"  # type: ignore[misc]


def namespaces(netns: NetNS) -> None:
    """Use a namespace, which returns the result of the function inside."""
    assert_type(NetNS.create("/run/netns/a"), NetNS)
    assert_type(NetNS.load("/run/netns/a"), NetNS)
    assert_type(netns.do(lambda: 7), int)
    assert_type(netns.closed, bool)
    assert_type(netns.remove(), None)
    assert_type(netns.identity == netns.identity, bool)
    assert_type(netns.path, str)
    netns.path = "/run/netns/b"  # type: ignore[misc]


def processes(process: Process, sandbox: Sandbox) -> None:
    """Use a process, and the watcher of exits."""
    with Process.of_pid(1) as opened:
        assert_type(opened, Process)
    assert_type(process.pid, int)
    assert_type(process.ended, bool)
    assert_type(process.fileno(), int)
    assert_type(process.close(), None)
    assert_type(process.wait(0.5), bool)
    assert_type(process.kill(), bool)
    assert_type(process.exit_status(), int | None)
    exits = Exits(note)
    assert_type(exits.watch(sandbox, process), None)
    assert_type(exits.watch_all([(sandbox, process)]), None)
    assert_type(exits.retry(exits.close), None)
    Exits(lambda _sandbox, _code: None)  # type: ignore[arg-type, misc] # it gets one sequence
    exits.watch(sandbox, sandbox.open_process())  # type: ignore[arg-type]


def note(ended: Sequence[Exit]) -> None:
    """Take exits: sandboxes with their exit statuses."""
    for sandbox, code in ended:
        assert_type(sandbox, Sandbox)
        assert_type(code, int | None)


def errors(store: Store) -> None:
    """Use operands of errors, which are typed attributes of their classes."""
    try:
        store.delete("4a33")
    except UnavailableError as error:
        assert_type(error.holder, str)
        assert_type(error.since, int)
    except RegistryError as error:
        assert_type(error.sqlite_code, int | None)
        _ = error.holder  # type: ignore[attr-defined] # of UnavailableError alone


def misspelled() -> None:
    """Import names that do not exist."""
    from registry import Stroe  # type: ignore[attr-defined] # noqa: F401, PLC0415
    from registry.cri import PodSandboxConfg  # type: ignore[attr-defined] # noqa: F401, PLC0415


async def tasks(path: str, metadata: Metadata, status: Status) -> None:
    """Use the coroutines of AsyncStore, which have the types of the methods of Store."""
    async with await AsyncStore.open(path, timeout=1) as store:
        assert_type(store, AsyncStore)
    sandbox = await store.add(metadata, status, creator=7)
    assert_type(sandbox, AsyncSandbox)
    assert_type(await store.get(name="web-0"), AsyncSandbox)
    assert_type(await store.list(state=State.READY), list[AsyncSandbox])
    assert_type(await store.history(), list[Transition])
    assert_type(await store.reconcile(), Report)
    assert_type(store.recovery, Report | None)
    async with store.transaction() as nothing:
        assert_type(nothing, None)
    assert_type(await sandbox.status.get(), Status)
    assert_type(await sandbox.status.update(keep), Status)
    assert_type(await sandbox.open_process(), Process | None)
    assert_type(await sandbox.delete(), bool)
    assert_type(sandbox.config, PodSandboxConfig | None)
    assert_type(await sandbox.extensions.read(), dict[str, Extension])
    assert_type(await sandbox.extensions.update(lambda _: {}), Mapping[str, Extension])
    async for transition in store.watch():
        assert_type(transition, Transition)
    assert_type(collector(store, check=True), Collector)
    await store.add(metadata)  # type: ignore[call-arg]
    _ = store.get("4a33").status  # type: ignore[attr-defined] # it was not awaited
    with store.transaction():  # type: ignore[attr-defined]
        pass


def keep(old: Status) -> Status:
    """Return the same status: any function of a status is an UpdateFunc."""
    return old


update: UpdateFunc = keep
