"""Forked children: they can use nothing of the store, and harm nothing of the parent."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from registry import Store
from tests.tools import READY, query, run, sandbox

EXITS = ["os._exit", "sys.exit", "exception", "collected", "closed", "end"]
LEAVE = """
    def leave(how, store):
        if how == "os._exit":
            os._exit(0)
        if how == "sys.exit":
            sys.exit(0)
        if how == "exception":
            sys.stderr = open(os.devnull, "w")
            raise RuntimeError("on purpose")
        if how == "closed":
            store.close()
            sys.exit(0)
        if how == "collected":
            from registry.engine import Engine
            for engine in [o for o in gc.get_objects() if isinstance(o, Engine)]:
                engine.__dict__.clear()
            del store
            gc.collect()
            os._exit(0)
"""


@pytest.mark.parametrize("how", EXITS)
def test_a_child_in_an_open_transaction_leaves_the_commit_whole(path: str, how: str) -> None:
    """With many dirty pages, spilled into the WAL already; however the child ends."""
    out = run(
        """
    import gc, os, sys
    from dataclasses import replace
    from registry import Metadata, State, Status, Store
    """
        + LEAVE
        + """
    path, how = sys.argv[1:]
    store = Store.open(path)
    store._session.engine.writer.connection.execute("PRAGMA cache_size = 5")
    with store.transaction():
        for n in range(400):
            store.add(Metadata(f"s{n}", f"n{n}", None, ip="x" * 500), Status(State.READY))
            if n == 200:
                child = os.fork()
                if child == 0:
                    leave(how, store)
                    break
                os.waitpid(child, 0)
    if child == 0:
        sys.exit(0)
    print(len(store.list()), store.check())
    store.close()
    """,
        path,
        how,
    )
    assert "400 []" == out.strip()
    assert [(400,)] == query(path, "SELECT count(*) FROM sandboxes")


@pytest.mark.parametrize("how", EXITS)
def test_a_child_of_a_random_moment_leaves_the_other_threads_write_whole(
    path: str, how: str
) -> None:
    """The child is forked while another thread writes without pause."""
    out = run(
        """
    import gc, os, sys, threading, time, warnings
    warnings.simplefilter("ignore")  # Python 3.12 warns of fork beside threads
    from dataclasses import replace
    from registry import Metadata, State, Status, Store
    """
        + LEAVE
        + """
    path, how = sys.argv[1:]
    store = Store.open(path)
    handle = store.add(Metadata("a", "a", None), Status(State.READY))
    acknowledged, stop = [0], threading.Event()

    def write():
        while not stop.is_set():
            with store.transaction():
                store.add(Metadata(f"s{acknowledged[0]}", f"s{acknowledged[0]}", None),
                          Status(State.READY))
                handle.status.update(lambda old: replace(old, exited_at=old.exited_at + 1))
            acknowledged[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    for n in range(8):
        time.sleep(n * 0.0017)
        child = os.fork()
        if child == 0:
            leave(how, store)
            os._exit(0)
        os.waitpid(child, 0)
    stop.set()
    writer.join()
    print(len(store.list()) - 1 == acknowledged[0] == handle.status.get().exited_at, store.check())
    store.close()
    """,
        path,
        how,
    )
    assert "True []" == out.strip()


def test_every_use_in_a_child_raises_store_closed_error(path: str) -> None:
    """Through the store, a handle, a new open of the same file; closing is harmless."""
    out = run(
        """
    import os, sys
    from registry import Metadata, State, Status, Store, StoreClosedError
    path = sys.argv[1]
    store = Store.open(path)
    handle = store.add(Metadata("a", "a", None), Status(State.READY))

    def raises(call):
        try:
            call()
        except StoreClosedError:
            return True
        return False

    def enter():
        with store.transaction():
            pass

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        results = [raises(call) for call in (
            store.list, store.history, store.check, store.reconcile, enter,
            lambda: store.get("a"), lambda: store.delete("a"), handle.delete,
            lambda: store.add(Metadata("b", "b", None), Status(State.READY)),
            handle.status.get, lambda: handle.status.update(lambda old: old),
            lambda: Store.open(path), lambda: Store.open(path, read_only=True),
            store.__enter__, store.new_netns_path, store.transaction,
            lambda: store.remove_orphans([]), lambda: store.update_metadata("a", lambda old: old),
            lambda: handle.netns, handle.remove_netns, handle.open_process,
        )]
        store.close()
        os.write(write, repr(all(results)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    print(os.read(read, 10).decode(), store.get("a").id, store.delete("a"))
    store.close()
    """,
        path,
    )
    assert "True a True" == out.strip()


def test_a_child_may_open_another_file(path: str) -> None:
    """Only what was open at the fork is barred."""
    out = run(
        """
    import os, sys
    from registry import Store
    path = sys.argv[1]
    store = Store.open(path)
    child = os.fork()
    if child == 0:
        with Store.open(path + ".other") as other:
            sys.stdout.write(str(other.list()))
            sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
    store.close()
    """,
        path,
    )
    assert "[]" == out.strip()


def test_a_lock_that_the_parent_held_is_not_kept_by_the_child(path: str) -> None:
    """The parent is killed in a transaction while its child lives: others may write at once."""
    out = run(
        """
    import os, signal, sys
    from registry import Metadata, State, Status, Store
    path = sys.argv[1]
    alive, child_up = os.pipe(), os.pipe()
    parent = os.fork()
    if parent == 0:
        store = Store.open(path)
        with store.transaction():
            if os.fork() == 0:
                os.write(child_up[1], b"x")
                os.close(alive[1])
                os.read(alive[0], 1)  # until the test ends
                os._exit(0)
            os.read(child_up[0], 1)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    with Store.open(path, timeout=5) as store:
        store.add(Metadata("a", "a", None), Status(State.READY))
        print(len(store.list()))
    """,
        path,
    )
    assert "1" == out.strip()


def open_descriptors() -> list[str]:
    """Return the numbers of our descriptors."""
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]


def test_a_child_of_a_closing_store_keeps_no_lock(path: str) -> None:
    """One thread writes, another waits to close, and a third forks: then the parent is killed."""
    child = run(
        """
        import os, signal, sys, threading, time
        from registry import Metadata, State, Status, Store
        store = Store.open(sys.argv[1])
        handle = store.add(Metadata("a", "a", None), Status(State.READY))
        begun = threading.Event()
        def slow(old):
            begun.set()
            time.sleep(60)
        threading.Thread(target=lambda: handle.status.update(slow), daemon=True).start()
        begun.wait()
        mutex = store._session.engine.writes.mutex
        threading.Thread(target=store.close, daemon=True).start()
        while mutex.next_waiter is None:
            time.sleep(0.001)
        child = os.fork()
        if child == 0:
            os.close(1)
            os.close(2)
            signal.pause()
        print(child, flush=True)
        os.close(1)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        path,
        expected=-signal.SIGKILL,
    )
    try:
        with Store.open(path, timeout=5) as store:
            store.add(sandbox("b"), READY)
            assert [] == store.check()
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_subprocesses_inherit_no_descriptor(store: Store) -> None:
    """Neither of the database nor of a lock file."""
    store.add(sandbox("a"), READY)
    store.list()
    done = subprocess.run(
        ["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, text=True, check=True
    )
    assert "registry.db" not in done.stdout
    ours = [os.readlink(f"/proc/self/fd/{fd}") for fd in open_descriptors()]
    assert any(target.endswith("registry.db") for target in ours)
