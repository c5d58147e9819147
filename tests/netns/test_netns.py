"""NetNS on the real kernel."""

from __future__ import annotations

import contextvars
import errno
import os
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from registry import InvalidArgumentError, NetNS, NetNSError
from registry.host import kernel, namespaces
from registry.host.context import HostContext
from tests import needs
from tests.netns.conftest import Sleeper, inside
from tests.tools import run

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
    pytest.mark.usefixtures("nothing_leaks"),
]


# create


def test_a_new_namespace_is_empty_but_for_a_loopback_that_is_up(made: NetNS) -> None:
    """It answers on 127.0.0.1 at once."""

    def talk() -> bytes:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()) as client,
        ):
            client.sendall(b"x")
            connection, _ = server.accept()
            with connection:
                return connection.recv(1)

    assert b"x" == made.do(talk)
    assert [(1, "lo")] == made.do(socket.if_nameindex)


def test_create_without_descriptors_for_its_imports_says_so() -> None:
    """The first namespace of a process imports pyroute2; the next attempt succeeds."""
    code = """
        import resource
        from registry import NetNS, ResourceExhaustedError

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            NetNS.create()
        except ResourceExhaustedError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        NetNS.create().remove()
    """
    assert run(code).startswith("import pyroute2: ")


def test_create_without_a_path_uses_a_new_name_of_no_registry() -> None:
    """In /run/netns, as sr-UUID: without a registry's id between."""
    first, second = NetNS.create(), NetNS.create()
    try:
        assert first.path != second.path
        for one in (first, second):
            directory, _, name = one.path.rpartition("/")
            assert ("/run/netns", 5 + 1) == (directory, len(name.split("-")))
            assert name.startswith("sr-")
    finally:
        first.remove()
        second.remove()
    assert not os.path.lexists(first.path)


def test_create_keeps_an_object_at_the_path(base_dir: str, made: NetNS) -> None:
    """A file, a namespace: EEXIST, and it is as it was."""
    Path(base_dir, "file").write_text("mine")
    for path in (f"{base_dir}/file", made.path):
        with pytest.raises(NetNSError) as caught:
            NetNS.create(path)
        assert (errno.EEXIST, path) == (caught.value.errno, caught.value.path)
    assert "mine" == Path(base_dir, "file").read_text()
    assert not made.closed


@pytest.mark.parametrize("path", ["relative", "", "/a\0b", "/a\nb"], ids=repr)
def test_create_and_load_refuse_paths_that_are_not_absolute(path: str) -> None:
    """Before anything is made."""
    for call in (NetNS.create, NetNS.load):
        with pytest.raises(InvalidArgumentError) as caught:
            call(path)
        assert "path" == caught.value.field


def test_create_makes_its_directory(base_dir: str) -> None:
    """And those above it."""
    made = NetNS.create(f"{base_dir}/a/b/made")
    assert not made.closed
    made.remove()


def test_without_privileges_create_fails_and_leaves_nothing(tmp_path: Path) -> None:
    """With the kernel's errno."""
    os.chmod(tmp_path, 0o777)
    out = run(
        """
        import os, sys
        import pyroute2  # which the other user may not read
        from registry import NetNS, NetNSError
        os.chdir(sys.argv[1])
        directory = os.open(".", os.O_RDONLY)
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        try:
            NetNS.create(f"/proc/self/fd/{directory}/made")
        except NetNSError as error:
            print(error.errno, os.listdir("."))
        """,
        tmp_path,
    )
    assert f"{errno.EPERM} []" == out.strip()


def test_a_creation_whose_mount_fails_leaves_no_file(base_dir: str) -> None:
    """ENOSPC, as where a mount namespace may have no more mounts; the errno is kept.

    The limit itself, fs.mount-max, is of the whole host, so no test may lower it.
    """
    out = run(
        """
        import errno, os, sys
        from registry import NetNS, NetNSError
        from tests.netns.seccomp import MOUNT, refuse
        directory = sys.argv[1]
        NetNS.create(f"{directory}/first").remove()
        refuse(MOUNT, errno.ENOSPC)
        try:
            NetNS.create(f"{directory}/second")
        except NetNSError as error:
            print(error.errno, os.listdir(directory))
        """,
        base_dir,
    )
    assert f"{errno.ENOSPC} []" == out.strip()


@pytest.mark.parametrize("action", ["interrupt", "time_out"])
def test_an_interrupted_creation_leaves_nothing_or_a_whole_namespace(
    base_dir: str, action: str
) -> None:
    """Nor a thread that waits for ever, and keeps the process from exiting."""
    out = run(
        """
        import os, sys
        from registry import NetNS
        from tests import interrupts

        directory, action = sys.argv[1:]
        NetNS.create(f"{directory}/first").remove()
        attempts = interrupts.Interrupts(getattr(interrupts, action))
        for n, attempt in enumerate(attempts):
            path = f"{directory}/{n}"
            attempt.run(lambda: NetNS.create(path))
            assert attempt.raised or attempt.unraisable or not attempt.points, attempt
            if os.path.lexists(path):
                NetNS.load(path).remove()
            else:
                assert attempt.raised, attempt
            assert [] == os.listdir(directory), attempt
        print(*attempts.functions, sep="\\n")
        """,
        base_dir,
        action,
    )
    assert {"NetNS.create", "_Call.result", "start"} <= set(out.splitlines())


def test_two_interrupts_leave_no_function_running(made: NetNS) -> None:
    """The function has ended when the call has, or it never begins."""
    out = run(
        """
        import _thread, sys
        from collections import deque
        from registry import NetNS
        from tests.interrupts import Interrupts
        from tests.tools import LONG, until

        made, events, threads = NetNS.load(sys.argv[1]), deque(), _thread._count()

        def work():
            events.append("begun")
            events.append("ended")

        attempts = Interrupts(times=2, selected=not LONG, within="run")
        for attempt in attempts:
            events.clear()
            attempt.run(lambda: made.do(work))
            then = list(events)
            until(lambda: _thread._count() == threads)
            assert list(events) == then, attempt
            assert then == ["begun", "ended"] or (then == [] and attempt.raised), attempt
        print(*attempts.functions, sep="\\n")
        """,
        made.path,
        timeout=600,
    )
    assert {"_Call.result", "_Call._advance", "start", "WaitQueue.wait"} <= set(out.splitlines())


def test_interrupts_while_the_function_runs_come_out_when_it_has_ended(made: NetNS) -> None:
    """They wake the caller, who then waits again."""
    out = run(
        """
        import signal, sys, threading
        from registry import NetNS
        from tests.interrupts import Interrupt
        from tests.tools import until

        handled, ended = [], []

        def interrupt(signum, frame):
            handled.append(signum)
            raise Interrupt

        def work():
            for n in (1, 2):
                signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
                until(lambda: len(handled) == n)
            ended.append(True)

        signal.signal(signal.SIGUSR1, interrupt)
        try:
            NetNS.load(sys.argv[1]).do(work)
        except Interrupt:
            print(ended)
        """,
        made.path,
    )
    assert "[True]" == out.strip()


def test_a_thread_lasts_no_longer_than_what_runs_in_it(made: NetNS, base_dir: str) -> None:
    """None is left when it is done; a daemon's is one too, and keeps no process from exiting."""
    before = set(threading.enumerate())
    for _ in range(200):
        made.do(lambda: 0)
        assert set(threading.enumerate()) <= before
    run(
        """
        import sys, threading, time
        from registry import NetNS
        made, begun = NetNS.load(f"{sys.argv[1]}/made"), threading.Event()
        def work():
            begun.set()
            time.sleep(1000)
        threading.Thread(target=made.do, args=[work], daemon=True).start()
        begun.wait()
        """,
        base_dir,
    )


def test_a_thread_that_does_not_start_is_an_error(
    made: NetNS, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever keeps it from starting, and the caller from waiting for it."""

    def refuse(thread: threading.Thread) -> None:
        raise MemoryError(thread.name)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(MemoryError):
        made.do(inside)


def test_without_a_thread_nothing_is_done_and_the_error_says_so(made: NetNS, base_dir: str) -> None:
    """In a process that is at the limit of tasks."""
    out = run(
        """
        import os, sys
        from registry import NetNS, NetNSError
        from tests.netns.seccomp import refuse_threads
        made = NetNS.load(f"{sys.argv[1]}/made")
        refuse_threads()
        for attempt in (lambda: NetNS.create(f"{sys.argv[1]}/new"), lambda: made.do(os.getpid)):
            try:
                attempt()
            except NetNSError as error:
                print(error.errno, error)
        print(os.listdir(sys.argv[1]))
        """,
        base_dir,
    )
    said = f"network namespace '{base_dir}/{{}}': can't start new thread"
    create, enter, files = out.splitlines()
    assert f"{errno.EAGAIN} create " + said.format("new") == create
    assert f"{errno.EAGAIN} enter " + said.format("made") == enter
    assert "['made']" == files


@needs.program("ip")
def test_ip_netns_beside_ours_does_not_keep_it_busy(tmp_path: Path) -> None:
    """Its `add` copies no mount of ours, since the directory is shared already."""
    out = run(
        """
        import os, subprocess, sys
        from registry import NetNS
        from registry.host import kernel
        kernel.unshare(0x20000)  # CLONE_NEWNS: /run/netns is ours alone
        os.makedirs("/run/netns", exist_ok=True)
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "ours", "/run/netns"], check=True)
        made = NetNS.create("/run/netns/ours")
        subprocess.run(["ip", "netns", "add", "theirs"], check=True)
        made.remove()
        print(os.listdir("/run/netns"))
        subprocess.run(["ip", "netns", "delete", "theirs"], check=True)
        """
    )
    assert "['theirs']" == out.strip()


# do


def test_do_runs_inside_and_leaves_the_caller_outside(made: NetNS) -> None:
    """In a thread of its own, from any thread, and with the caller's context."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("seen")
    outside = inside()
    within = made.do(lambda: (inside(), variable.get(), threading.get_ident()))
    assert outside != within[0]
    assert ("seen", outside) == (within[1], inside())
    assert threading.get_ident() != within[2]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: (made.do(inside), inside()), range(40)))
    assert {(within[0], outside)} == set(found)


def test_do_raises_what_its_function_raises(made: NetNS) -> None:
    """The very exception, BaseException and OSError included."""
    for error in (ValueError("no"), OSError(errno.EIO, "x"), SystemExit(3), KeyboardInterrupt()):

        def fail(error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            made.do(fail)
        assert caught.value is error


def test_do_can_be_nested(base_dir: str, made: NetNS) -> None:
    """From inside one into another, and back."""
    other = NetNS.create(f"{base_dir}/other")
    first, second, again = made.do(lambda: (inside(), other.do(inside), inside()))
    assert first == again
    assert {made.do(inside), other.do(inside)} == {first, second}


def test_a_process_started_inside_lives_inside(made: NetNS) -> None:
    """And keeps living there when the path is removed."""
    process = made.do(lambda: subprocess.Popen(["sleep", "1000"]))
    try:
        assert made.do(inside) == os.readlink(f"/proc/{process.pid}/ns/net")
        made.remove()
        assert made.closed
        assert None is process.poll()
    finally:
        process.kill()
        process.wait()


# remove


def test_remove_is_idempotent(made: NetNS) -> None:
    """A second time, an unmounted one, one whose directory is gone."""
    made.remove()
    made.remove()
    Path(made.path).touch()  # what a reboot leaves where /run is on disk
    made.remove()
    assert not os.path.lexists(made.path)
    subprocess.run(["umount", os.path.dirname(made.path)], check=True)
    os.rmdir(os.path.dirname(made.path))
    made.remove()


@pytest.mark.parametrize("what", ["file", "directory", "uts"])
def test_remove_keeps_other_objects_at_the_path(made: NetNS, what: str) -> None:
    """A file with something in it, a directory, a namespace of another type."""
    made.remove()
    if what == "file":
        Path(made.path).write_text("mine")
    elif what == "directory":
        os.mkdir(made.path)
    else:
        Path(made.path).touch()
        kernel.mount("/proc/self/ns/uts", made.path, "none", kernel.MS_BIND)
    before = os.lstat(made.path)
    made.remove()
    assert before == os.lstat(made.path)


def test_remove_unmounts_as_often_as_it_was_mounted(made: NetNS) -> None:
    """Twice at one path."""
    kernel.mount(made.path, made.path, "none", kernel.MS_BIND)
    made.remove()
    assert not os.path.lexists(made.path)


def test_many_threads_remove_one_namespace_at_once(base_dir: str) -> None:
    """All succeed, and it is gone."""
    for n in range(20):
        made = NetNS.create(f"{base_dir}/n{n}")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _, made=made: made.remove(), range(8)))
        assert not os.path.lexists(made.path)


def test_50_threads_create_and_remove_at_once(base_dir: str) -> None:
    """50 namespaces, all different, none left."""
    barrier = threading.Barrier(50)

    def live(n: int) -> tuple[int | None, str]:
        barrier.wait()
        made = NetNS.create(f"{base_dir}/n{n}")
        seen = made.do(inside)
        number = made.identity.number
        made.remove()
        return number, seen

    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(live, range(50)))
    assert 50 == len({number for number, _ in found})
    assert inside() not in {seen for _, seen in found}
    assert [] == os.listdir(base_dir)


def test_a_path_may_hold_any_character(base_dir: str) -> None:
    """Spaces, backslashes, letters beyond ASCII."""
    made = NetNS.create(f"{base_dir}/a b\\ ünï 日本")
    assert not NetNS.load(made.path).closed
    made.remove()
    assert [] == os.listdir(base_dir)


def test_descriptors_are_not_inherited(made: NetNS, sleeper: Sleeper) -> None:
    """A process that is started while namespaces come and go has none of them open."""
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            namespaces.observe(made.path, HostContext.current())
            made.do(inside)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(10):
            pid = sleeper().pid
            opened = []
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with suppress(FileNotFoundError):  # of its own, closed by now
                    opened.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
            assert not [target for target in opened if "net" in target]
    finally:
        stop.set()
        thread.join()
