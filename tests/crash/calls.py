"""Calls of a store for the interrupt tests, in a process of their own."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from registry import Metadata, NotFoundError, State, Status, Store
from tests import interrupts
from tests.tools import READY, UNKNOWN


@dataclass(frozen=True)
class Call:
    """One call; each function is given the number of the attempt."""

    run: Callable[[int], object]
    is_stored: Callable[[int], bool] = lambda _: True
    """Whether what the call writes is in the database; raises if only a part of it is."""
    prepare: Callable[[int], object] = lambda _: None


class Calls:
    """The calls, by name; the processes and the namespace that their sandboxes name exist."""

    def __init__(self, store: Store, pids: list[int]) -> None:
        """Add the sandboxes that are updated and read."""
        self._store, self._pids = store, pids
        self._end_wait: Callable[[], object] | None = None
        self._netns_path = f"/proc/{pids[0]}/ns/net"
        self._ours = store.add(Metadata("ours", "ours", None, netns_path=self._netns_path), READY)
        self._copy = f"{store.path}-copy"
        nowhere = os.path.join(os.path.dirname(store.path), "nowhere")
        self._lost = store.add(Metadata("lost", "lost", None, netns_path=nowhere), READY)

    def named(self, name: str) -> Call:
        """Return the call *name*."""
        store = self._store
        return {
            "update": Call(self._update, self._is_updated),
            "traced": Call(self._update, self._is_updated, _begin_tracing),
            "nested": Call(self._update_nested, self._is_updated),
            "deadline": Call(self._update_in_time, self._is_updated),
            "add": Call(self._add, self._is_there),
            "delete": Call(
                lambda n: store.delete(f"s{n}"), lambda n: not self._is_there(n), self._add
            ),
            "extensions": Call(self._replace, self._is_replaced),
            "update_metadata": Call(self._complete, self._is_complete, self._begin),
            "get": Call(lambda _: store.get("ours").status.get(), prepare=self.write),
            "list": Call(lambda _: store.list(namespace=""), prepare=self.write),
            "history": Call(lambda _: store.history("ours"), prepare=self.write),
            "watch": Call(lambda _: list(self._watch), prepare=self._begin_watch),
            "wait": Call(lambda _: self._awaited.stopped.wait(), prepare=self._begin_stop),
            "backup": Call(lambda _: store.backup(self._copy), self._is_copied, self.write),
            "reconcile": Call(lambda _: store.reconcile(), self._is_marked, self._bring_back),
        }[name]

    def _update(self, n: int) -> None:
        """Write another pid, whose identity is recorded."""
        pid = self._pids[n % 2]
        self._ours.status.update(lambda old: replace(old, message=str(n), exited_at=n, pid=pid))

    def _update_nested(self, n: int) -> None:
        with self._store.transaction():
            self._ours.status.update(lambda old: replace(old, exited_at=n))
            with self._store.transaction():
                self._update(n)

    def _update_in_time(self, n: int) -> None:
        with self._store.deadline(60):
            self._update(n)

    def _is_updated(self, n: int) -> bool:
        status = self._ours.status.get()
        assert status.message == str(status.exited_at or ""), status
        return status.exited_at == n

    def _replace(self, n: int) -> None:
        """Replace two extensions."""
        value = str(n).encode()
        self._ours.extensions.update(lambda _: {"one": value, "two": value})

    def _is_replaced(self, n: int) -> bool:
        one, two = (self._ours.extensions[name] for name in ("one", "two"))
        assert one == two
        return one.value == str(n).encode()

    def _add(self, n: int) -> None:
        metadata = Metadata(f"s{n}", f"s{n}", None, netns_path=self._netns_path)
        self._store.add(metadata, Status(State.READY, pid=self._pids[0]))

    def _begin(self, n: int) -> None:
        self._store.add(Metadata(f"s{n}", f"s{n}", None), UNKNOWN)

    def _complete(self, n: int) -> None:
        self._store.update_metadata(f"s{n}", lambda old: replace(old, ip="10.88.0.7"))

    def _is_complete(self, n: int) -> bool:
        return self._store.get(f"s{n}", include_unknown=True).metadata.ip != ""

    def _is_there(self, n: int) -> bool:
        try:
            return bool(self._store.get(f"s{n}").status.get())
        except NotFoundError:
            return False

    def _begin_watch(self, n: int) -> None:
        """Prepare a watch that is closed once it waits."""
        self._watch = self._store.watch(after=0)
        self.write(n)
        self._end_wait_by(self._watch.close)

    def _begin_stop(self, n: int) -> None:
        """Prepare a sandbox that is stopped once its StopCh is waited for."""
        self._add(n)
        self._awaited = self._store.get(f"s{n}")
        self._end_wait_by(self._awaited.stop)

    def _end_wait_by(self, end: Callable[[], object]) -> None:
        if self._end_wait is None:
            threading.Thread(target=self._end_waits, daemon=True).start()
        self._end_wait = end

    def _end_waits(self) -> None:
        waiting = self._store._session.engine.commits._threads
        while True:
            if waiting and self._end_wait is not None:
                self._end_wait()
            time.sleep(0.0005)

    def write(self, n: int) -> None:
        """Commit something, after which nothing is answered from the cache."""
        self._lost.status.update(lambda old: replace(old, exited_at=n))

    def _is_copied(self, n: int) -> bool:
        """Return whether the backup has the latest commit; it is whole in any case."""
        with closing(sqlite3.connect(self._copy)) as copy:
            assert [("ok",)] == copy.execute("PRAGMA integrity_check").fetchall()
            found = copy.execute("SELECT exited_at FROM sandbox_statuses WHERE exited_at = ?", (n,))
            return len(found.fetchall()) == 1

    def _bring_back(self, _: int) -> None:
        """Have the next reconcile find a READY sandbox without its network namespace."""
        self._lost.status.update(lambda old: replace(old, state=State.READY))

    def _is_marked(self, _: int) -> bool:
        return self._lost.status.get().state is State.NOTREADY


def _begin_tracing(_: int) -> None:
    """Have this process make spans, which no exporter gets."""
    from opentelemetry import trace  # noqa: PLC0415 - its import begins the tracing
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415

    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        trace.set_tracer_provider(TracerProvider())


@contextmanager
def two_processes() -> Iterator[list[int]]:
    """Return the pids of two processes that run meanwhile."""
    children = [subprocess.Popen(["cat"], stdin=subprocess.PIPE) for _ in "12"]
    try:
        yield [child.pid for child in children]
    finally:
        for child in children:
            child.communicate()


def main(path: str, name: str, action: str, options: str) -> None:
    """Interrupt the call *name* at its points, and print the functions that were interrupted.

    Args:
        path: the database.
        name: of the call.
        action: name of the function of `tests.interrupts` that the signal handler calls.
        options: arguments of `Interrupts`, as JSON.
    """
    attempts = interrupts.Interrupts(getattr(interrupts, action), **json.loads(options))
    with two_processes() as pids, Store.open(path, timeout=5) as store:
        calls = Calls(store, pids)
        call = calls.named(name)
        call.prepare(1)
        call.run(1)  # without interrupts: imports are not tested
        for n, attempt in enumerate(attempts, 2):
            call.prepare(n)
            attempt.run(partial(call.run, n), meanwhile=partial(calls.write, n))
            assert [] == interrupts.held(store), attempt
            assert attempt.raised or attempt.unraisable or not attempt.points, attempt
            assert call.is_stored(n) or attempt.raised, attempt
        assert [] == store.check()
    sys.stdout.write("\n".join(attempts.functions))


if __name__ == "__main__":
    main(*sys.argv[1:])
