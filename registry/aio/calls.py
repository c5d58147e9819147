"""Calls that tasks await while a thread runs them.

    Call      a function, and the task that awaits its outcome
    Hold      the call that is a task's open transaction: it runs the calls of that task
    Worker    the thread of the writes: all that are queued share one COMMIT
    Calls     the threads of one AsyncStore

1. A call runs or does not run, never half: the thread that is to run it, a cancellation and the
   deadline each try to claim it, and the first one decides.
2. A batch of writes is one transaction. Each write is a savepoint of it, and fails alone. Where the
   COMMIT fails, each write of the batch gets an error of its own.
3. Only the tasks' loops wake tasks, once for each batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, Generic, TypeVar
from weakref import WeakKeyDictionary

from registry.engine import Transaction, owner
from registry.engine.lock_holder import group_failure
from registry.errors import (
    FailedPreconditionError,
    NotFoundError,
    RegistryError,
    ResourceExhaustedError,
    StoreClosedError,
    retold,
)
from registry.handles.session import Session
from registry.sync import threads
from registry.sync.interrupts import reraise_interrupt
from registry.sync.locks import WaitQueue

T = TypeVar("T")

BATCH_MAX: Final = 64
"""Writes after which a batch is committed although others are queued, as in a group commit."""
READERS_MAX: Final = 4
"""Threads for calls that are no writes; the engine keeps as many idle readers."""
QUEUE_MIN: Final = 0.1
"""Seconds that a write may be queued even if the store's timeout is shorter: a thread must wake."""


class Call(Generic[T]):
    """A function that a thread runs, and the task that awaits its outcome."""

    alone: bool = False
    """Whether it shares no transaction with other calls."""

    def __init__(
        self, fn: Callable[[], T], doing: str, timeout: float = 0.0, sandbox_id: str = ""
    ) -> None:
        """Belong to the running task, and keep its context.

        Args:
            fn: called once, in a copy of the context, or never.
            doing: operation, for messages.
            timeout: seconds for which it may wait in all.
            sandbox_id: full id or prefix with which *doing* ends; "" if it ends otherwise.
        """
        self.doing: Final = doing
        self.sandbox_id: Final = sandbox_id
        self.loop: Final = asyncio.get_running_loop()
        self.futures = [self.loop.create_future()]
        """Set one after the other by `wake`."""
        self.error: BaseException | None = None
        self.results: list[T] = []
        self._fn: Final = fn
        self._context: Final = contextvars.copy_context()
        self.timeout: Final = timeout
        self._deadline: Final = time.monotonic() + timeout
        self._claim: Final = threading.Lock()

    def claim(self) -> bool:
        """Return True to the first caller alone, who decides what becomes of the call."""
        return self._claim.acquire(blocking=False)

    def is_claimed(self) -> bool:
        """Return whether it was claimed."""
        return self._claim.locked()

    def remaining(self) -> float:
        """Return the seconds for which it may still wait."""
        return max(0.0, self._deadline - time.monotonic())

    def run(self) -> None:
        """Call the function, and keep its result or its exception."""
        try:
            self.results.append(self._context.run(self._fn))
        except BaseException as error:  # noqa: BLE001 - raised by `outcome`
            self.error = error

    def go(self) -> None:
        """Run the call unless it was withdrawn, and wake its task."""
        if self.claim():
            self.run_and_wake()

    def run_and_wake(self) -> None:
        """Run the call, which was claimed, and wake its task."""
        self.run()
        wake([self])

    def wake(self) -> None:
        """Wake the task, in its loop."""
        for future in self.futures:
            if not future.done():
                future.set_result(None)
                return

    async def outcome(self, number: int = 0) -> T:
        """Wait for one of the futures; return the result or raise the exception.

        A cancellation withdraws the call, unless it runs: it then runs to its end.
        """
        try:
            await self.futures[number]
        finally:
            self.claim()
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # or its traceback and this frame refer to each other
        return self.results.pop() if self.results else None  # type: ignore[return-value]


def wake(calls: Sequence[Call[Any]]) -> None:
    """Wake the tasks of *calls*: one callback in each loop."""
    for loop in {each.loop for each in calls}:
        of_loop = [each for each in calls if each.loop is loop]
        with contextlib.suppress(RuntimeError):  # the loop is closed: no task of it waits
            loop.call_soon_threadsafe(_wake_all, of_loop)


def _wake_all(calls: Sequence[Call[Any]]) -> None:
    for each in calls:
        each.wake()


class Queue:
    """Calls that wait for a thread, in order."""

    def __init__(self) -> None:
        """Begin empty and open."""
        self.calls: Final[deque[Call[Any]]] = deque()
        """Only the thread that runs them removes calls."""
        self._closed = False
        self._changed: Final = WaitQueue()

    def put(self, call: Call[Any]) -> None:
        """Append *call*."""
        self.calls.append(call)
        self._changed.wake()

    def close(self) -> None:
        """Have `wait` return False once the queue is empty."""
        self._closed = True
        self._changed.wake()

    def wait(self) -> bool:
        """Wait for a call; return whether there is one, or False if none is to come."""
        self._changed.wait(lambda: bool(self.calls) or self._closed, None)
        return bool(self.calls)


class _RolledBackError(Exception):
    """Ends the transaction of a task."""


class Hold(Call[bool]):
    """Open transaction of one task: it occupies the worker, and runs the calls of that task."""

    alone = True

    def __init__(self, session: Session, outer: Hold | None) -> None:
        """Begin outside of the queue.

        Args:
            session: of the store.
            outer: the transaction of the same task that it is a savepoint of.
        """
        super().__init__(self._serve, "transaction", session.wait())
        self.futures.append(self.loop.create_future())  # the end, after the beginning
        self.queue: Final = Queue()
        self.outer: Final = outer
        self.rolled_back = False
        self.scope: object = None
        self._session: Final = session

    def _serve(self) -> bool:
        """Run the calls of the task until the end of the body; return whether it is committed."""
        committed = False
        write = self._session.caller_write(self.doing, timeout=self.remaining())
        with contextlib.suppress(_RolledBackError), write:
            transaction = self._session.engine.own_transaction()
            self.scope = None if transaction is None else transaction.scope
            wake([self])
            while self.queue.wait():
                self.queue.calls.popleft().go()
            if self.rolled_back:
                raise _RolledBackError
            committed = True
        return committed

    def abandon(self) -> None:
        """Roll back, now or as soon as it has begun."""
        self.rolled_back = True
        self.queue.close()


class Worker:
    """Thread that runs queued writes: those that wait at the same time share a COMMIT."""

    def __init__(self, session: Session) -> None:
        """Start no thread yet."""
        self.queue: Final = Queue()
        self.thread: threading.Thread | None = None
        self._session: Final = session
        self._starting: Final = threading.Lock()

    def put(self, call: Call[Any]) -> None:
        """Queue *call*, and start the thread with the first one.

        Raises:
            ResourceExhaustedError: no thread can be started.
        """
        if self.thread is None:
            with self._starting:
                if self.thread is None:
                    self.thread = start(self._work, call.doing)
        self.queue.put(call)

    def _work(self) -> None:
        while self.queue.wait():
            first = self.queue.calls[0]
            alone = first.alone or first.is_claimed()
            del first  # or the idle thread keeps the call, and its store, from being collected
            if alone:
                self.queue.calls.popleft().go()
            else:
                self._run_batch()

    def _run_batch(self) -> None:
        """Run what is queued in one transaction, and wake the tasks after its COMMIT."""
        first, ran, session = self.queue.calls[0], list[Call[Any]](), self._session
        transaction: Transaction | None = None
        try:
            # The first call stays in the queue, and may be withdrawn, while the lock is waited for.
            write = session.write(
                first.doing,
                sandbox_id=first.sandbox_id,
                exclusive=True,
                timeout=first.remaining(),
            )
            with write as transaction:
                self._run_members(transaction, ran)
        except BaseException as error:  # noqa: BLE001 - of each call that has run
            if transaction is None:
                self.queue.calls.popleft()
                if first.claim():
                    first.error = error
                    ran.append(first)
            else:
                _fail(ran, error, transaction)
        if any(isinstance(each.error, NotFoundError) or False in each.results for each in ran):
            session.look_for_deletions()
        wake(ran)

    def _run_members(self, transaction: Transaction, ran: list[Call[Any]]) -> None:
        calls, latest = self.queue.calls, time.monotonic() + self._session.timeout / 10
        while True:
            call = calls.popleft()
            if call.claim():
                ran.append(call)
                call.run()
                transaction.calls = len(ran)
            if transaction.ended_by is not None or not calls or calls[0].alone:
                return
            if len(ran) >= BATCH_MAX or time.monotonic() >= latest:
                return


def _fail(ran: Sequence[Call[Any]], error: BaseException, transaction: Transaction) -> None:
    """Give each call that has *ran*, and has no error of its own, one for *error* of the batch."""
    if transaction.ended_by is not None:
        error = group_failure(transaction, transaction.ended_by, transaction.path)
    known = isinstance(error, RegistryError)
    source = error if isinstance(error, RegistryError) else RegistryError(repr(error))
    why = str(source).removeprefix(f"{transaction.doing}: ")
    for each in ran:
        if each.error is None:
            each.error = retold(source, f"{each.doing}: {why}")
            each.error.__cause__ = error.__cause__ if known else error


def start(work: Callable[[], None], doing: str) -> threading.Thread:
    """Start a thread that keeps no interpreter from exiting, and return it.

    Raises:
        ResourceExhaustedError: no thread can be started.
    """
    thread = threading.Thread(target=work, name="registry-aio", daemon=True)
    try:
        threads.start_thread(thread)
    except (OSError, RuntimeError) as error:
        reraise_interrupt(error)
        raise _no_thread(doing, error) from error
    return thread


def _no_thread(doing: str, error: BaseException) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"{doing}: no thread can be started ({error}); end other threads, or raise the limit"
    )


class Calls:
    """Threads of one AsyncStore, and the transactions that its tasks have open."""

    def __init__(self, session: Session, pool: ThreadPoolExecutor) -> None:
        """Use *pool* for what is no write."""
        self.session: Final = session
        self.holds: Final[WeakKeyDictionary[asyncio.Task[Any], Hold]] = WeakKeyDictionary()
        """The innermost open transaction, by task. A destroyed task has its rolled back."""
        self.closing = False
        self._pool: Final = pool
        self._worker: Final = Worker(session)

    def __del__(self) -> None:
        # Every handle refers to this object, and may write after its AsyncStore was dropped. The
        # Store behind it warns that it is not closed.
        self._worker.queue.close()

    # Calls.

    async def write(self, fn: Callable[[], T], doing: str, sandbox_id: str) -> T:
        """Return what *fn* returns, a write, once that is committed, or in the task's transaction.

        Args:
            fn: called in the thread of the writes.
            doing: operation and object, for messages.
            sandbox_id: full id or prefix with which *doing* ends.
        Raises:
            UnavailableError: the store's timeout passed while it was queued.
            FailedPreconditionError: the transaction that the task was started in awaits it.
        """
        self.require_open(doing)
        return await self.submit(Call(fn, doing, self.session.wait(), sandbox_id))

    async def submit(self, call: Call[T]) -> T:
        """Queue *call* in the task's open transaction, or else for the worker; as `write`."""
        hold = self.own_hold()
        if hold is not None:
            hold.queue.put(call)
            return await call.outcome()
        self._require_other_task(call.doing)
        self._worker.put(call)
        timer = call.loop.call_later(max(QUEUE_MIN, call.remaining()), self._expire, call)
        try:
            return await call.outcome()
        finally:
            timer.cancel()

    async def read(self, fn: Callable[[], T], doing: str, cached: str = "") -> T:
        """Return what *fn* returns, which is no write, or takes its time before it writes.

        Args:
            fn: runs in a thread; in that of the transaction, if the task has one open.
            doing: operation, for messages.
            cached: id of the sandbox that *fn* reads; *fn* runs at once if that one is in memory.
        """
        self.require_open(doing)
        hold = self.own_hold()
        if hold is None and cached and self.session.is_cached(cached, doing):
            return fn()
        call = Call(fn, doing)
        if hold is None:
            run_in(self._pool, call)
        else:
            hold.queue.put(call)
        return await call.outcome()

    def require_open(self, doing: str) -> None:
        """Raise unless the store is open, and asyncio runs the caller.

        Raises:
            StoreClosedError: it is closed or closing, or belongs to the process that forked us.
            FailedPreconditionError: as `require_loop`.
        """
        require_loop(doing)
        self.session.require_open(doing)
        if self.closing:
            path = self.session.engine.path
            raise StoreClosedError(f"{doing}: the store is closed", path=path)

    def leave(self, task: asyncio.Task[Any], hold: Hold) -> bool:
        """End *hold*, a transaction of *task*; return whether it was the innermost one.

        Those inside of it are rolled back: they would be waited for, and their end may never come.
        """
        inside, innermost = list[Hold](), self.holds.get(task)
        while innermost is not None and innermost is not hold:
            inside.append(innermost)
            innermost = innermost.outer
        if innermost is None:  # a transaction around it has ended before
            return False
        if hold.outer is None:
            del self.holds[task]
        else:
            self.holds[task] = hold.outer
        for each in inside:
            each.abandon()
        return not inside

    def own_hold(self) -> Hold | None:
        """Return the innermost open transaction of the running task; None without a task."""
        try:
            task = asyncio.current_task()
        except RuntimeError:  # no loop: a watch is iterated in a thread
            return None
        return None if task is None else self.holds.get(task)

    def _require_other_task(self, doing: str) -> None:
        """Raise if the open transaction waits for the caller, who would wait for its end."""
        if threading.current_thread() is self._worker.thread:
            raise FailedPreconditionError(
                f"{doing}: called by the function of another write, which would wait for it; "
                "return the new value instead, or call it after that write"
            )
        running = self.session.engine.writes.transaction
        if running is not None and owner.is_in_scope(running.scope):
            raise FailedPreconditionError(
                f"{doing}: called inside the open transaction ({running.doing}) by another task "
                "than its owner, or through another store, and would wait for its end; call it in "
                "the task that began the transaction, or after its end"
            )

    def _expire(self, call: Call[Any]) -> None:
        if call.claim():
            call.error = self.session.engine.writes.timed_out(call.doing, call.timeout)
            call.wake()

    # The end.

    async def close(self, close: Callable[[], None]) -> None:
        """Let queued writes and reads end, then call *close*; no thread is left.

        Transactions that are open after the store's timeout are rolled back, and that of the
        calling task at once. A cancellation does not stop it.
        """
        require_loop("close store")
        self.closing = True
        hold = self.own_hold()
        while hold is not None:
            hold.abandon()
            hold = hold.outer
        self._worker.queue.close()
        call = Call(partial(self._end, close), "close store")
        call.claim()
        thread = start(call.run_and_wake, call.doing)
        await call.outcome()
        thread.join()

    def _end(self, close: Callable[[], None]) -> None:
        """Wait for the threads, the worker's at most for the store's timeout; then call *close*."""
        worker = self._worker.thread
        if worker is not None:
            worker.join(self.session.timeout)
            for task in [each() for each in self.holds.keyrefs()]:  # others may begin meanwhile
                hold = None if task is None else self.holds.get(task)
                if hold is not None:
                    hold.abandon()
            worker.join(QUEUE_MIN)
        self._pool.shutdown()
        close()


def require_loop(doing: str) -> None:
    """Raise unless a loop of asyncio runs in this thread.

    Raises:
        FailedPreconditionError: it is another one's, such as trio's, or there is none.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError as error:
        raise FailedPreconditionError(
            f"{doing}: an AsyncStore needs a running loop of asyncio; under trio use Store by "
            "anyio.to_thread or trio.to_thread"
        ) from error


def run_in(pool: ThreadPoolExecutor, call: Call[Any]) -> Future[None]:
    """Run *call* in a thread of *pool*, and return a future of its end.

    Raises:
        ResourceExhaustedError: no thread can be started.
    """
    try:
        return pool.submit(call.go)
    except RuntimeError as error:
        call.claim()
        reraise_interrupt(error)
        raise _no_thread(call.doing, error) from error
