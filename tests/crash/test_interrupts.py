"""An exception that a signal handler raises into a call: whole or absent, and the store goes on."""

from __future__ import annotations

import pytest

from tests.tools import run

pytestmark = pytest.mark.crash

CODE = """
    import random, signal, sys
    from dataclasses import replace
    from registry import Metadata, State, Status, Store

    class Stop(BaseException):
        pass

    def strike(signum, frame):
        raise Stop

    path, kind, seed = sys.argv[1:]
    moments = random.Random(int(seed))
    signal.signal(signal.SIGALRM, strike)
    store = Store.open(path, timeout=5)
    handle = store.add(Metadata("a", "a", None), Status(State.READY))
    struck = whole = 0

    def call(n):
        if kind == "update":
            handle.status.update(lambda old: replace(old, exited_at=n))
        elif kind == "nested":
            with store.transaction():
                handle.status.update(lambda old: replace(old, exited_at=n))
                with store.transaction():
                    handle.status.update(lambda old: replace(old, message=str(n)))
        elif kind == "add":
            store.add(Metadata(f"s{n}", f"s{n}", None), Status(State.READY))
        elif kind == "read":
            store.list()
            store.get("a")

    def done(n):
        if kind == "add":
            return f"s{n}" in [each.id for each in store.list()]
        status = handle.status.get()
        assert kind != "nested" or str(status.exited_at or "") == status.message, status
        return status.exited_at == n

    for n in range(1, 400):
        try:
            signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-6, 8e-4))
            call(n)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Stop:
            struck += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            whole += done(n)
        else:
            assert kind == "read" or done(n)
        # Whatever was struck, nothing is held: a call of another thread would wait for ever.
        assert store._session.engine.writes.mutex.holder is None
        assert store._session.engine.writes.transaction is None
        assert store._session.engine.writes._group is None
        assert not store._session.engine.writer._has_turn
    store.add(Metadata("last", "last", None), Status(State.READY))
    print(struck > 20, store.check())
    store.close()
    """


@pytest.mark.parametrize("kind", ["update", "nested", "add", "read"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_call_that_a_signal_handler_interrupts_is_whole_or_absent(
    path: str, kind: str, seed: int
) -> None:
    """Hundreds of times, at random moments; afterwards nothing is held."""
    assert "True []" == run(CODE, path, kind, seed).strip()


BESIDE_OTHERS = """
    import random, signal, sys, threading
    from dataclasses import replace
    from registry import Metadata, State, Status, Store

    class Stop(BaseException):
        pass

    def strike(signum, frame):
        raise Stop

    path, seed = sys.argv[1:]
    moments = random.Random(int(seed))
    signal.signal(signal.SIGALRM, strike)
    store = Store.open(path, timeout=20)
    ours, *theirs = (store.add(Metadata(id, id, None), Status(State.READY)) for id in "abcd")
    done, written = threading.Event(), {}

    def write(handle):
        n = 0
        while not done.is_set():
            n += 1
            handle.status.update(lambda old: replace(old, exited_at=n))
        written[handle.id] = n

    threads = [threading.Thread(target=write, args=[handle]) for handle in theirs]
    for thread in threads:
        thread.start()
    struck = 0
    for n in range(1, 400):
        try:
            signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-6, 3e-3))
            ours.status.update(lambda old: replace(old, exited_at=n))
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Stop:
            struck += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
        else:
            assert ours.status.get().exited_at == n
    done.set()
    for thread in threads:
        thread.join()
    engine = store._session.engine
    assert (engine.writes.mutex.holder, engine.writes._group) == (None, None)
    assert not engine.writer._has_turn and not engine.writer.connection.in_transaction
    assert written == {each.id: each.status.get().exited_at for each in theirs}
    print(struck > 20, min(written.values()) > 20, store.check())
    store.close()
    """


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_who_is_interrupted_in_a_group_strands_nobody(path: str, seed: int) -> None:
    """Wherever it is struck, running or waiting: the others lose nothing and go on."""
    assert "True True []" == run(BESIDE_OTHERS, path, seed).strip()


STRIKING = """
    import dis, itertools, sys, time

    LOOKS = {"CALL", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD"}  # after these, for signals

    class Stop(BaseException):
        pass

    def strike(nth, files, call, error=Stop):
        \"\"\"Return where, in one of *files*, the nth look for signals in *call* was struck, and
        whether it told; None where it had fewer.\"\"\"
        seen, before, struck = itertools.count(1), {}, []

        def trace(frame, event, arg):
            if not frame.f_code.co_filename.endswith(files):
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                last, before[frame] = before.get(frame), dis.opname[
                    frame.f_code.co_code[frame.f_lasti]
                ]
                if last in LOOKS and next(seen) == nth:
                    sys.settrace(None)
                    struck.append((frame.f_code.co_qualname, frame.f_lineno))
                    raise error
            return trace

        sys.settrace(trace)
        try:
            call()
        except error:
            return struck[0], True
        finally:
            sys.settrace(None)
        return (struck[0], False) if struck else None
    """

AT_THE_TURNSTILE = (
    STRIKING
    + """
    import os
    from registry.engine.turnstile import Turnstile

    FILES = ("turnstile.py", "waiting.py", "lockfile.py")
    database, kind = sys.argv[1:]
    holder, third = Turnstile(database), Turnstile(database)
    for nth in itertools.count(1):
        assert holder.acquire(time.monotonic() + 5), nth
        struck = Turnstile(database)
        if kind == "again":
            struck.acquire(time.monotonic() + 0.002)
            struck.release()
        if kind == "committing":
            holder.leave_queue()
        if kind == "removed":
            holder.leave_queue()
            os.unlink(f"{database}-lock")
            os.unlink(f"{database}-queue")
        look = holder.release if kind == "committing" else None
        hit = strike(nth, FILES, lambda: struck.acquire(time.monotonic() + 0.01, look))
        struck.release()
        holder.release()
        for turnstile in (third, struck):
            assert turnstile.acquire(time.monotonic() + 5), (nth, hit, turnstile is struck)
            turnstile.release()
        struck.close()
        if hit is None:
            break
    print(nth > 10)
    """
)


@pytest.mark.parametrize("kind", ["first", "again", "committing", "removed"])
def test_who_is_interrupted_at_the_turnstile_keeps_nobody_out(path: str, kind: str) -> None:
    """Wherever Python looks for signals while another one holds the lock; nor itself."""
    assert "True" == run(AT_THE_TURNSTILE, path, kind).strip()


def test_a_close_that_is_interrupted_keeps_nobody_out(path: str) -> None:
    """Wherever Python looks for signals in it; nor is the file left open in this process."""
    code = """
    from registry import Metadata, State, Status, Store
    from registry.engine.turnstile import Turnstile

    FILES = ("engine/file.py", "writer.py", "turnstile.py", "lockfile.py", "tripwire.py")
    with Store.open(sys.argv[1], timeout=5) as store:
        store.add(Metadata("a", "a", None), Status(State.READY))
    other = Turnstile(sys.argv[1])
    for nth in itertools.count(1):
        store = Store.open(sys.argv[1], reconcile=False, timeout=5)
        hit = strike(nth, FILES, store.close)
        assert other.acquire(time.monotonic() + 1), hit
        other.release()
        if hit is None:
            break
    print(nth > 30)
    """
    assert "True" == run(STRIKING + code, path).strip()


def test_the_timeout_of_a_signal_handler_is_no_answer_of_the_system(path: str) -> None:
    """It is an OSError too; but it comes out, and the store goes on."""
    code = """
    import sqlite3
    from dataclasses import replace
    from registry import Metadata, State, Status, Store

    FILES = ("engine/wal.py", "engine/paths.py", "lockfile.py")

    def update():
        handle.status.update(lambda old: replace(old, pid=old.pid + 1))

    def shorten_the_log():
        other = sqlite3.connect(sys.argv[1])
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        other.close()

    with Store.open(sys.argv[1], timeout=5) as store:
        handle = store.add(Metadata("a", "a", None), Status(State.READY))
        for nth in itertools.count(1):
            shorten_the_log()
            update()
            hit = strike(nth, FILES, update, TimeoutError)
            if hit is None:
                break
            assert hit[1], hit
            update()
        print(nth > 10)
    """
    assert "True" == run(STRIKING + code, path).strip()


def test_a_signal_handler_that_writes_in_the_middle_of_a_write_is_told_so(path: str) -> None:
    """At once: it would wait for what goes on only after it. Elsewhere it may write."""
    out = run(
        """
        import random, signal, sys, time
        from collections import Counter
        from dataclasses import replace
        from registry import FailedPreconditionError, Metadata, State, Status, Store

        with Store.open(sys.argv[1], timeout=20) as store:
            ours, theirs = (store.add(Metadata(id, id, None), Status(State.READY)) for id in "ab")
            told = Counter()

            def write(signum, frame):
                try:
                    theirs.status.update(lambda old: replace(old, exited_at=old.exited_at + 1))
                    told["written"] += 1
                except FailedPreconditionError as error:
                    told["refused"] += 1
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 1e-3))

            signal.signal(signal.SIGALRM, write)
            signal.setitimer(signal.ITIMER_REAL, 1e-3)
            n, end = 0, time.monotonic() + 30
            while min(told["written"], told["refused"]) < 5 and time.monotonic() < end:
                n += 1
                ours.status.update(lambda old: replace(old, exited_at=n))
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            print(min(told["written"], told["refused"]) >= 5, ours.status.get().exited_at == n)
            print(theirs.status.get().exited_at == told["written"], store.check())
        """,
        path,
    )
    assert ["True True", "True []"] == out.splitlines()
