"""Writers that have to wait for each other, so that they share a commit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from registry import Sandbox, Status, Store
from tests.tools import until

Call = Callable[[], object]


def more(old: Status) -> Status:
    """Count one up."""
    return replace(old, exited_at=old.exited_at + 1)


def waiting(store: Store) -> int:
    """Return how many writers of this process wait for the mutex."""
    return max(0, len(store._session.engine.writes.mutex.queue) - 1)


@contextmanager
def convoy(store: Store, blocker: Sandbox, *calls: Call) -> Iterator[list[Future[object]]]:
    """Have all *calls* wait, in this order, until the body of the `with` ends.

    What they wait for is an update of *blocker*, which counts one up and is in their group.
    """
    gate = threading.Event()

    def block(old: Status) -> Status:
        assert gate.wait(30)
        return more(old)

    with ThreadPoolExecutor(len(calls) + 1) as pool:
        futures: list[Future[object]] = [pool.submit(blocker.status.update, block)]
        until(lambda: store._session.engine.writes.transaction is not None)
        for n, call in enumerate(calls):
            futures.append(pool.submit(call))
            until(lambda n=n: waiting(store) == n + 1)  # type: ignore[misc]
        try:
            yield futures
        finally:
            gate.set()
