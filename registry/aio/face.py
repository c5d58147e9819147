"""AsyncStore: the methods of Store and Sandbox as coroutines.

Each coroutine is made from the method of the same name, with its parameters and its docstring. The
method itself runs in a thread; see `calls`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial, wraps
from types import TracebackType
from typing import Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar, overload

from registry.aio.calls import READERS_MAX, Call, Calls, Hold, require_loop, run_in
from registry.engine import owner
from registry.errors import FailedPreconditionError, StoreClosedError
from registry.handles.extensions import Extensions
from registry.handles.sandbox import Sandbox
from registry.handles.watch import Watch
from registry.host.netns import NetNS
from registry.model.extensions import Extension
from registry.model.status import Status, StatusStorage
from registry.model.validation import invalid
from registry.recovery.findings import Report
from registry.store import Store

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


class _Face(Generic[S]):
    """Object whose methods run in a thread."""

    __slots__ = ("__weakref__", "_calls", "_id", "_sync")

    def __init__(self, calls: Calls, sync: S, id: str = "") -> None:
        """Use `AsyncStore.open`.

        Args:
            calls: runs the methods.
            sync: has the methods.
            id: of the sandbox; "" for a store.
        """
        self._calls = calls
        self._sync: Final = sync
        self._id: Final = id

    def __repr__(self) -> str:
        """Show the object behind it."""
        return f"Async{self._sync!r}"


class _Field(Generic[T]):
    """Attribute of a sandbox that is read from memory."""

    def __init__(self, read: Callable[[Sandbox], T]) -> None:
        self._read: Final = read

    @overload
    def __get__(self, face: None, kind: type) -> Self: ...
    @overload
    def __get__(self, face: AsyncSandbox, kind: type) -> T: ...
    def __get__(self, face: AsyncSandbox | None, kind: type) -> Self | T:
        return self if face is None else self._read(face._sync)  # noqa: SLF001 - for `face` itself


def _write(
    method: Callable[Concatenate[S, P], T], doing: str
) -> Callable[Concatenate[_Face[S], P], Coroutine[Any, Any, T]]:
    """Return *method*, a write, as a coroutine function that shares commits.

    Args:
        method: of the object behind a face.
        doing: operation, for messages; the id of the sandbox follows it.
    """
    name = method.__name__

    @wraps(method)
    async def call(self: _Face[S], /, *args: P.args, **kwargs: P.kwargs) -> T:
        id = self._id or _id_of(args, kwargs)
        operation = f"{doing} {id!r}"
        _refuse_coroutine_functions(operation, args, kwargs)
        bound = getattr(self._sync, name)
        return await self._calls.write(lambda: bound(*args, **kwargs), operation, str(id))

    return call


def _read(
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[_Face[S], P], Coroutine[Any, Any, T]]:
    """Return *method*, which is no write or takes its time before it writes, as the same."""
    name = method.__name__

    @wraps(method)
    async def call(self: _Face[S], /, *args: P.args, **kwargs: P.kwargs) -> T:
        bound = getattr(self._sync, name)
        return await self._calls.read(lambda: bound(*args, **kwargs), name)

    return call


def _handle(
    method: Callable[Concatenate[_Face[S], P], Coroutine[Any, Any, Sandbox]],
) -> Callable[Concatenate[_Face[S], P], Coroutine[Any, Any, AsyncSandbox]]:
    """Return *method* with its sandbox as an AsyncSandbox."""

    @wraps(method)
    async def call(self: _Face[S], /, *args: P.args, **kwargs: P.kwargs) -> AsyncSandbox:
        return _sandbox(self._calls, await method(self, *args, **kwargs))

    return call


def _handles(
    method: Callable[Concatenate[_Face[S], P], Coroutine[Any, Any, list[Sandbox]]],
) -> Callable[Concatenate[_Face[S], P], Coroutine[Any, Any, list[AsyncSandbox]]]:
    """Return *method* with its sandboxes as AsyncSandboxes."""

    @wraps(method)
    async def call(self: _Face[S], /, *args: P.args, **kwargs: P.kwargs) -> list[AsyncSandbox]:
        return [_sandbox(self._calls, each) for each in await method(self, *args, **kwargs)]

    return call


def _id_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """Return the id that a method of Store is called with, of whatever type that is."""
    first = args[0] if args else kwargs.get("id", kwargs.get("metadata"))
    return getattr(first, "id", first)


def _refuse_coroutine_functions(doing: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for each in (*args, *kwargs.values()):
        if inspect.iscoroutinefunction(each):
            why = "is an async function, and runs in a thread: pass a plain function"
            raise invalid(doing, "fn", each, why)


def _sandbox(calls: Calls, sandbox: Sandbox) -> AsyncSandbox:
    return AsyncSandbox(calls, sandbox, sandbox.id)


class AsyncStatusStorage(_Face[StatusStorage]):
    """Status of one sandbox: StatusStorage with coroutines."""

    __slots__ = ()

    async def get(self) -> Status:
        """Return the latest committed status, or that of the task's open transaction."""
        return await self._calls.read(self._sync.get, "get status", self._id)

    update = _write(StatusStorage.update, "update status of sandbox")


class AsyncExtensions(_Face[Extensions]):
    """Extensions of one sandbox; `read` returns what Extensions has as a mapping."""

    __slots__ = ()

    async def read(self) -> dict[str, Extension]:
        """Return the extensions by name; as Extensions, one object reads them once."""
        return await self._calls.read(lambda: dict(self._sync), "read extensions")

    update = _write(Extensions.update, "update extensions of sandbox")


class AsyncSandbox(_Face[Sandbox]):
    """A handle on one creation of one sandbox: the fields of Sandbox, its methods as coroutines.

    The fields, `attach` and `stop` are those of Sandbox, without `await`: they use memory alone.
    """

    __slots__ = ()

    id = _Field(lambda sandbox: sandbox.id)
    name = _Field(lambda sandbox: sandbox.name)
    netns_path = _Field(lambda sandbox: sandbox.netns_path)
    ip = _Field(lambda sandbox: sandbox.ip)
    runtime_handler = _Field(lambda sandbox: sandbox.runtime_handler)
    process_label = _Field(lambda sandbox: sandbox.process_label)
    metadata = _Field(lambda sandbox: sandbox.metadata)
    stored = _Field(lambda sandbox: sandbox.stored)
    config = _Field(lambda sandbox: sandbox.config)
    additional_ips = _Field(lambda sandbox: sandbox.additional_ips)
    cni_result = _Field(lambda sandbox: sandbox.cni_result)
    status_as_read = _Field(lambda sandbox: sandbox.status_as_read)
    container = _Field(lambda sandbox: sandbox.container)
    stopped = _Field(lambda sandbox: sandbox.stopped)
    attach = _Field(lambda sandbox: sandbox.attach)
    stop = _Field(lambda sandbox: sandbox.stop)

    delete = _write(Sandbox.delete, "delete sandbox")
    remove_netns = _read(Sandbox.remove_netns)
    open_process = _read(Sandbox.open_process)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncSandbox) and self._sync == other._sync

    def __hash__(self) -> int:
        return hash(self._sync)

    @property
    def status(self) -> AsyncStatusStorage:
        """The status, to be read and changed."""
        return AsyncStatusStorage(self._calls, self._sync.status, self._id)

    @property
    def extensions(self) -> AsyncExtensions:
        """The extensions, to be read and changed."""
        return AsyncExtensions(self._calls, self._sync.extensions, self._id)

    async def netns(self) -> NetNS | None:
        """Return the network namespace that the latest record names; see `Sandbox.netns`."""
        return await self._calls.read(lambda: self._sync.netns, "inspect network namespace")


def _opening(method: Callable[P, Store]) -> Callable[P, Coroutine[Any, Any, AsyncStore]]:
    """Return *method* as a coroutine function that returns an AsyncStore."""

    @wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> AsyncStore:
        doing = "open registry"
        require_loop(doing)
        _refuse_coroutine_functions(doing, args, kwargs)
        pool = ThreadPoolExecutor(READERS_MAX, "registry-aio")
        opening = Call(lambda: method(*args, **kwargs), doing)
        begun = run_in(pool, opening)

        def undo() -> None:
            begun.result()
            for store in opening.results:
                store.close()

        try:
            store = await opening.outcome()
        except BaseException:
            pool.submit(undo)
            pool.shutdown(wait=False)
            raise
        session = store._session  # noqa: SLF001 - this module is a second face of the session
        return AsyncStore(Calls(session, pool), store)

    return call


class AsyncStore(_Face[Store]):
    """Sandboxes of one registry file, for tasks of asyncio.

    Its coroutines never block the event loop. Writes that tasks await at the same time share a
    commit. The functions that they are given run in a thread, inside the transaction.
    """

    __slots__ = ()

    open = staticmethod(_opening(Store.open))

    async def __aenter__(self) -> Self:
        self._calls.require_open("enter store")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the store, for good; a second time does nothing.

        Queued writes and reads end first, within the store's timeout; an open transaction of the
        calling task is rolled back.
        """
        await self._calls.close(self._sync.close)

    @property
    def path(self) -> str:
        """The file, with no symlink in it."""
        return self._sync.path

    @property
    def recovery(self) -> Report | None:
        """The report of the reconcile made by `open`; None if it made none."""
        return self._sync.recovery

    @overload
    async def get(self, id: str, *, include_unknown: bool = False) -> AsyncSandbox: ...
    @overload
    async def get(self, *, name: str, include_unknown: bool = False) -> AsyncSandbox: ...
    async def get(
        self, id: str | None = None, *, name: str | None = None, include_unknown: bool = False
    ) -> AsyncSandbox:
        """Return the sandbox with *id*, or the one with *name*; see `Store.get`."""
        get: Callable[..., Sandbox] = self._sync.get
        read = partial(get, id, name=name, include_unknown=include_unknown)
        cached = id or "" if name is None else ""
        return _sandbox(self._calls, await self._calls.read(read, "get", cached))

    list = _handles(_read(Store.list))
    history = _read(Store.history)
    check = _read(Store.check)
    backup = _read(Store.backup)
    add = _handle(_write(Store.add, "add sandbox"))
    adopt = _handle(_write(Store.adopt, "adopt sandbox"))
    update_metadata = _handle(_write(Store.update_metadata, "update metadata of sandbox"))
    delete = _write(Store.delete, "delete sandbox")
    reconcile = _read(Store.reconcile)
    remove_orphans = _read(Store.remove_orphans)
    new_netns_path = _read(Store.new_netns_path)

    def deadline(self, seconds: float) -> AbstractContextManager[None]:
        """Return a context manager whose calls wait at most *seconds* in all; see `Store.deadline`.

        It is entered by `with`, without `await`.
        """
        return self._sync.deadline(seconds)

    def watch(self, *, after: int | None = None, timeout: float | None = None) -> Watch:
        """Return an asynchronous iterator of the transitions that any process commits.

        It is iterated by `async for`, without a thread; see `Store.watch`.
        """
        watch = self._sync.watch(after=after, timeout=timeout)
        watch._task_transaction = self._calls.own_hold  # noqa: SLF001 - the second face of a watch
        return watch

    def transaction(self) -> AbstractAsyncContextManager[None]:
        """Return a context manager that makes the calls in its body one commit; it yields None.

        It belongs to the task that enters it, and has the writer until it ends: writes of other
        tasks wait. It nests by savepoint. An exception in the body, a cancellation included, rolls
        it back.

        Raises:
            UnavailableError: the store's timeout passed before it could begin.
            FailedPreconditionError: called by a task that was started inside one.
        """
        return _Transaction(self._calls)


class _Transaction:
    """Transaction of one task, as the body of an `async with`."""

    def __init__(self, calls: Calls) -> None:
        self._calls: Final = calls
        self._hold: Hold | None = None

    async def __aenter__(self) -> None:
        calls = self._calls
        calls.require_open("transaction")
        task = asyncio.current_task()
        if task is None:
            raise FailedPreconditionError("transaction: no task is running; begin it in a task")
        if self._hold is not None:
            raise FailedPreconditionError(
                "transaction: this one was entered before; call transaction() for each `async with`"
            )
        self._hold = hold = Hold(calls.session, calls.own_hold())
        try:
            await calls.submit(hold)
            calls.require_open(hold.doing)  # it may have been closed meanwhile
        except BaseException:
            hold.abandon()
            raise
        self._task, calls.holds[task] = task, hold
        self._scopes = owner.enter_scope(hold.scope)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        calls, hold = self._calls, self._hold
        assert hold is not None, "it was entered"
        owner.leave_scope(self._scopes)
        in_order = calls.leave(self._task, hold)
        if error is not None or not in_order:
            hold.abandon()
        hold.queue.close()
        if kind is GeneratorExit:  # the task is destroyed, and cannot wait
            return
        committed = await hold.outcome(1)
        if error is None and not in_order:
            raise FailedPreconditionError(
                "transaction: the task began another one inside this one, and did not end it "
                "first; nothing of both is stored, end transactions in the reverse order"
            )
        if error is None and not committed:
            raise StoreClosedError(
                "transaction: the store was closed; nothing of it is stored",
                path=calls.session.engine.path,
            )
