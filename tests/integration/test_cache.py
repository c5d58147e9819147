"""The cache, which is never older than a commit of any process."""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest

from registry import Metadata, NotFoundError, Sandbox, State, Status, Store
from registry.cri import PodSandboxConfig
from registry.errors import RegistryError
from registry.handles import cache
from tests.conftest import OpenStore
from tests.convoy import more
from tests.tools import READY, execute, ids, line, run, running, sandbox, say, until


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    """Note what all connections that read run."""
    engine, seen = store._session.engine, list[str]()
    engine.data_version.read("test")
    engine.fetch("SELECT 1", {}, "test")
    connections = [*engine._readers._idle, engine.data_version._connection]
    assert 2 == len(connections)
    for each in connections:
        assert each is not None
        each.set_trace_callback(seen.append)
    yield seen
    for each in connections:
        assert each is not None
        each.set_trace_callback(None)


def test_unchanged_sandbox_is_not_read_again(store: Store) -> None:
    """Each call, of any kind, reads one number."""
    handle = store.add(sandbox("abc", config=PodSandboxConfig(hostname="h")), READY)
    store.get("a")
    store.list(state=State.READY)
    with statements(store) as seen:
        assert "h" == store.get("a").config.hostname  # type: ignore[union-attr]
        assert "h" == store.list(state=State.READY)[0].config.hostname  # type: ignore[union-attr]
        assert State.READY is handle.status.get().state
    assert ["PRAGMA data_version"] * 3 == seen


def test_threads_that_wait_for_the_data_version_share_the_next_read(store: Store) -> None:
    """It begins after their calls, so it is as new as one of their own would be."""
    version = store._session.engine.data_version
    store.add(sandbox("a"), READY)
    with statements(store) as seen, ThreadPoolExecutor(8) as pool:
        with version._mutex:
            readers = [pool.submit(version.read, "test") for _ in range(8)]
            until(lambda: 8 == threads_in("DataVersion.read", holding="begun"))
            execute(store.path, "DELETE FROM sandboxes")
        assert 1 == len({reader.result() for reader in readers})
        assert ["PRAGMA data_version"] == seen
        assert readers[0].result() == version.read("test")


def test_a_read_of_the_data_version_that_fails_is_not_shared(store: Store) -> None:
    """The next thread reads it for itself."""
    version = store._session.engine.data_version
    before = version.read("test")
    assert version._connection is not None
    fail_once = list[int]()
    version._connection.set_progress_handler(lambda: fail_once.pop() if fail_once else 0, 1)
    store.add(sandbox("a"), READY)
    fail_once.append(1)
    with ThreadPoolExecutor(2) as pool:
        with version._mutex:
            readers = [pool.submit(version.read, "test") for _ in range(2)]
            until(lambda: 2 == threads_in("DataVersion.read", holding="begun"))
        failed = [reader for reader in readers if reader.exception()]
        (read,) = set(readers) - set(failed)
    assert isinstance(failed[0].exception(), RegistryError)
    assert before != read.result()


def threads_in(function: str, *, holding: str) -> int:
    """Return how many threads are in *function* and have set its local variable *holding*."""
    frames = sys._current_frames().values()
    return sum(
        frame.f_code.co_qualname == function and holding in frame.f_locals for frame in frames
    )


WRITER = """
    import sys
    from dataclasses import replace
    from registry import Metadata, State, Status, Store
    with Store.open(sys.argv[1], reconcile=False) as store:
        print("open", flush=True)
        for n in range(1, 301):
            with store.transaction():
                for id in "ab":
                    store.get(id).status.update(lambda old: replace(old, exited_at=n))
                if n % 10 == 0:
                    store.add(Metadata(f"n{n}", f"n{n}", None), Status(State.READY))
                    store.delete(f"n{n - 10}")
            print(n, flush=True)
        sys.stdin.readline()
    """


def test_a_read_is_never_older_than_a_commit_of_another_process(store: Store, path: str) -> None:
    """That was acknowledged before it began: the other process says so through a pipe."""
    handle = store.add(sandbox("a"), READY)
    store.add(sandbox("b"), READY)
    store.add(sandbox("n0"), READY)
    with running(WRITER, path) as child:
        assert "open" == line(child)
        for n in range(1, 301):
            acknowledged = int(line(child))
            assert n == acknowledged
            assert handle.status.get().exited_at >= n
            assert store.get("b").status_as_read.exited_at >= n
            if n % 10 == 0:
                with pytest.raises(NotFoundError):
                    store.get(f"n{n - 10}")
            found = {each.id: each.status_as_read.exited_at for each in store.list()}
            assert found["a"] == found["b"] >= n
        say(child)


def test_threads_that_read_see_what_threads_that_write_have_committed(store: Store) -> None:
    """The same, of one process: a number that only grows, and lists that are one snapshot."""
    one, two = store.add(sandbox("a"), READY), store.add(sandbox("b"), READY)
    committed, stop = [0], threading.Event()

    def write() -> None:
        for n in range(1, 300):
            with store.transaction():
                for handle in (one, two):
                    handle.status.update(lambda old: replace(old, exited_at=n))  # noqa: B023
            committed[0] = n
        stop.set()

    def read(_: int) -> int:
        reads = 0
        while not stop.is_set():
            least = committed[0]
            assert one.status.get().exited_at >= least
            first, second = store.list()
            assert first.status_as_read.exited_at == second.status_as_read.exited_at >= least
            reads += 1
        return reads

    with ThreadPoolExecutor(4) as pool:
        writing = pool.submit(write)
        assert min(pool.map(read, range(3))) > 0
        writing.result()


def test_a_commit_of_the_shell_is_seen_by_the_next_read(store: Store, path: str) -> None:
    """Of each kind."""
    handle = store.add(sandbox("a"), READY)
    for n in range(1, 20):
        execute(path, f"UPDATE sandbox_statuses SET message = '{n}'")
        reads: list[Callable[[], Status]] = [
            handle.status.get,
            lambda: store.get("a").status_as_read,
            lambda: store.list()[0].status_as_read,
        ]
        for read in (*reads[n % 3 :], *reads[: n % 3]):
            assert str(n) == read().message
    execute(path, "DELETE FROM sandboxes")
    assert [] == store.list()
    with pytest.raises(NotFoundError):
        handle.status.get()


def test_read_beside_a_commit_is_not_cached(store: Store, path: str) -> None:
    """It may be older or newer than the commit; the next call reads again."""
    handle = store.add(sandbox("a"), READY)
    session = store._session
    known, row = session._cache, handle._entry.row

    def read() -> cache.Entry:
        found = session.entry(row)
        handle.status.update(more)
        return found

    assert 0 == known.one(row.creation, "test", read).status().exited_at  # type: ignore[union-attr]
    assert 1 == handle.status.get().exited_at
    execute(path, "UPDATE sandbox_statuses SET exited_at = 7")
    assert ("a",) == tuple(
        ids(
            [
                Sandbox(session, each)
                for each in known.several("q", "t", lambda: (read(),), by_state=False)
            ]
        )
    )
    assert 8 == handle.status.get().exited_at


def test_an_open_transaction_reads_its_own_writes_which_are_not_cached(store: Store) -> None:
    """Nor after it was rolled back."""
    handle = store.add(sandbox("a"), READY)

    def seen() -> list[int]:
        return [
            handle.status.get().exited_at,
            store.get("a").status_as_read.exited_at,
            len(store.list()),
        ]

    assert [0, 0, 1] == seen()
    with pytest.raises(LookupError), store.transaction():
        handle.status.update(more)
        store.add(sandbox("b"), READY)
        assert [1, 1, 2] == seen()
        with ThreadPoolExecutor(1) as other:
            assert [0, 0, 1] == other.submit(seen).result()
        raise LookupError
    assert [0, 0, 1] == seen()


def test_every_handle_has_a_config_of_its_own(store: Store) -> None:
    """A change of one is in no other."""
    store.add(sandbox("a", config=PodSandboxConfig(hostname="before")), READY)
    for _ in range(2):
        for handle in (store.get("a"), *store.list()):
            assert handle.config is not None
            assert "before" == handle.config.hostname
            handle.config.hostname = "changed"
            assert "changed" == handle.config.hostname


def test_the_cache_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox for which there is no space is read each time, and right."""
    handles = [store.add(sandbox(f"s{n}"), READY) for n in range(20)]
    monkeypatch.setattr(cache, "BYTES_MAX", 3 * cache.ROW_BYTES)
    for n in range(1, 4):
        for handle in handles:
            handle.status.update(more)
        assert [n] * 20 == [each.status_as_read.exited_at for each in store.list()]
        assert [n] * 20 == [each.status.get().exited_at for each in handles]
        assert [n] * 20 == [store.get(each.id).status_as_read.exited_at for each in handles]
        cached = store._session._cache
        assert len(cached.entries) <= 3
        assert cached.weight <= 3 * cache.ROW_BYTES


def test_two_stores_of_one_file_see_each_other(open_store: OpenStore) -> None:
    """And one that only reads sees both."""
    one, two = open_store(), open_store()
    reader = open_store(read_only=True)
    one.add(sandbox("a"), READY)
    for n in range(10):
        (one, two)[n % 2].get("a").status.update(more)
        for store in (one, two, reader):
            assert (
                n + 1
                == store.get("a").status.get().exited_at
                == store.list()[0].status_as_read.exited_at
            )


def test_a_stranger_that_holds_a_lock_does_not_keep_a_read_waiting(store: Store, path: str) -> None:
    """Nor is anything of its open transaction seen."""
    handle = store.add(sandbox("a"), READY)
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        shell.execute("UPDATE sandbox_statuses SET message = 'open'")
        assert "" == handle.status.get().message == store.list()[0].status_as_read.message
        shell.execute("COMMIT")
        assert "open" == handle.status.get().message == store.list()[0].status_as_read.message


def test_a_signal_handler_may_read_in_the_middle_of_a_call(path: str) -> None:
    """It neither waits for the call that it interrupts, nor reads an older commit."""
    out = run(
        """
        import sys
        from dataclasses import replace
        from registry import Metadata, State, Status, Store
        from tests.interrupts import Interrupts

        with Store.open(sys.argv[1]) as store:
            handle = store.add(Metadata("a", "a", None), Status(State.READY))
            committed, answers = 0, set()

            def read():
                least = committed
                one, two = handle.status.get(), store.list()[0].status_as_read
                answers.add(least <= one.exited_at == two.exited_at)

            def call():
                global committed
                handle.status.update(lambda old: replace(old, exited_at=n))
                committed = n
                for _ in "12":
                    assert n == handle.status.get().exited_at
                    assert n == store.get("a").status.get().exited_at
                assert [] == store.list(name=f"none-{n}")  # which no cache has

            attempts = Interrupts(read)
            for n, attempt in enumerate(attempts, 1):
                attempt.run(call)
                assert not attempt.raised, attempt
                assert answers <= {True}, attempt
            print(*attempts.functions, sep="\\n")
        """,
        path,
    )
    points = {"DataVersion.read", "Readers.give_back", "Writer.commit", "Cache.follow"}
    assert points <= set(out.splitlines())


def test_a_stored_status_is_the_callers_to_keep(store: Store) -> None:
    """It is a value; what comes later does not change it."""
    handle = store.add(Metadata("a", "a", None), Status(State.READY, message="first"))
    before = handle.status.get()
    handle.status.update(lambda old: replace(old, message="second"))
    assert ("first", "second") == (before.message, handle.status.get().message)


def test_questions_that_are_answered_with_nothing_are_bounded_too(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Look-ups of missing sandboxes fill no memory, and a closed store keeps none."""
    monkeypatch.setattr(cache, "BYTES_MAX", 20 * cache.ANSWER_BYTES)
    store.add(sandbox("a"), READY)
    for n in range(200):
        with pytest.raises(NotFoundError):
            store.get(f"gone-{n}")
        assert [] == store.list(name=f"none-{n}")
    assert store._session._cache.questions <= 20
    handle = store.get("a")
    store.close()
    assert not store._session._cache.questions
    assert "a" == handle.id


def test_long_messages_are_weighed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only configs."""
    monkeypatch.setattr(cache, "BYTES_MAX", 10 * cache.ROW_BYTES)
    handle = store.add(sandbox("a"), READY)
    handle.status.update(lambda old: replace(old, message="x" * 32_000))
    assert 32_000 == len(handle.status.get().message)
    assert not store._session._cache.entries


def test_a_signal_handler_may_close_the_store_in_the_middle_of_a_read(path: str) -> None:
    """As on SIGTERM; nothing hangs, and nothing stays open."""
    code = """
        import os, sys
        from contextlib import suppress
        from registry import Metadata, State, Status, Store, StoreClosedError
        from tests.interrupts import Interrupts

        path = sys.argv[1]
        with Store.open(path) as store:
            store.add(Metadata("a", "a", None), Status(State.READY))

        def read():
            with suppress(StoreClosedError):
                for _ in "12":
                    store.get("a").status.get()

        def descriptors():
            for fd in os.listdir("/proc/self/fd"):
                with suppress(FileNotFoundError):
                    yield os.readlink(f"/proc/self/fd/{fd}")

        attempts = Interrupts(lambda: store.close())
        for attempt in attempts:
            store = Store.open(path)
            attempt.run(read)
            assert not attempt.raised, attempt
            store.close()
            assert [] == [each for each in descriptors() if each.startswith(path)], attempt
        print(*attempts.functions, sep="\\n")
        """
    out = run(code, path)
    assert {"DataVersion.read", "Readers.give_back", "Connection.fetch"} <= set(out.splitlines())
