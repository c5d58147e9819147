"""gRPC server on a unix socket, until SIGTERM or SIGINT.

All threads are started before the first call is taken: gRPC does not survive a thread that cannot
be started, and would neither answer nor end then.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import resource
import signal
import socket
import stat
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Final

import grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckRequest

from registry import (
    FailedPreconditionError,
    InvalidArgumentError,
    RegistryError,
    ResourceExhaustedError,
    Store,
)
from registry.host.file_locks import locks_on, process_name
from registry.shim import systemd
from registry.shim.calls import STREAMS, Calls, Method, Observe
from registry.shim.ending import SIGNALS, Ending
from registry.shim.events import ChangeLog
from registry.shim.network import Network
from registry.shim.sandboxer import Sandboxer
from registry.shim.service import Pools, services
from registry.sync import threads
from registry.sync.interrupts import reraise_interrupt, suppress_os_errors

log = logging.getLogger("registry.shim")

RUNS: Final = 48
STOPS: Final = 16
ANSWERS: Final = 16
"""Threads for calls that run a sandbox, for those that change one, and for the others. The first
two may wait for the database and for plugins; a plugin that hangs in ADD keeps no other pod from
being stopped."""
GRACE: Final = 5.0
"""Seconds that calls in progress have to end after a signal."""
MESSAGE_MAX: Final = 16 << 20
"""Bytes of a request; containerd's limit."""
PATH_MAX: Final = 107
"""Bytes of the path of a unix socket (unix(7))."""
PEER: Final = struct.Struct("@iII")
"""struct ucred of unix(7): pid, uid and gid of the process that listens."""
STDERR: Final = 2
DESCRIPTORS: Final = 64
"""Descriptors without which the server does not start; it has some 30 open, and a run opens 10."""
FAILED: Final = 3
"""Exit code of a server that ends for its supervisor to start the next one."""
LOST: Final = "thread started by"
"""Words of CPython about a thread that has ended by an exception outside of `threading`."""


def serve(db: str, listen: str, network: Network, metrics_listen: str = "") -> None:
    """Serve the CRI at *listen* until SIGTERM or SIGINT; the sandboxes keep running.

    Call it in the main thread of a process of its own. It raises the soft limit of descriptors to
    the hard one, marks inherited descriptors close-on-exec, replaces `sys.unraisablehook`, and
    leaves the two signals blocked.

    Args:
        db: path of the registry, which is created if it is missing.
        listen: address of the socket, `unix:///path`.
        network: network of the pods.
        metrics_listen: address to serve metrics at, HOST:PORT; "" serves none.
    Raises:
        InvalidArgumentError: an address is malformed.
        FailedPreconditionError: another process serves this socket or this registry, or the
            socket cannot be created, or the host has no /proc.
        ResourceExhaustedError: the threads cannot be started, or too few descriptors are allowed.
        RegistryError: the registry cannot be opened, or is no longer safe to use.
    """
    path = _path_of(listen)
    systemd.refuse_passed_sockets()
    _refuse_living(path)
    _raise_descriptors()
    _close_on_exec()
    with (
        _claimed(f"{path}.lock", f"serve at {path!r}"),
        # Beside the real file, which symlinks may give several names.
        _claimed(f"{os.path.realpath(db)}-serve", f"serve registry {db!r}"),
        Store.open(db, actor=f"sandbox-registry serve[{os.getpid()}]") as store,
    ):
        # Before the first thread starts: threads inherit the mask, so none gets the signals.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        _start_thread(_end_for_lost_thread, "lost-threads")
        ending = Ending()
        calls = Calls(ending, _observer(store, metrics_listen))
        change_log = ChangeLog(store, ending)  # before the recovery, whose changes are logged too
        with (
            contextlib.closing(Sandboxer(store, network, ending.note)) as sandboxer,
            contextlib.closing(network),
        ):
            _serve(store, sandboxer, path, calls, change_log)


def _raise_descriptors() -> None:
    """Raise the soft limit of descriptors to the hard one.

    Raises:
        ResourceExhaustedError: that is too low, and gRPC would abort the process.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= most < DESCRIPTORS:
        why = f"{most} descriptors are too few; raise their limit (LimitNOFILE=, ulimit -n) to"
        raise ResourceExhaustedError(f"serve: {why} {DESCRIPTORS}, and one for each sandbox")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _close_on_exec() -> None:
    """Keep inherited descriptors from the processes of sandboxes.

    Raises:
        FailedPreconditionError: /proc cannot be read.
    """
    try:
        open_now = os.listdir("/proc/self/fd")
    except OSError as error:
        reraise_interrupt(error)
        why = f"/proc cannot be read: {error.strerror}; mount it, processes are observed there"
        raise FailedPreconditionError(f"serve: {why}") from error
    for fd in map(int, open_now):
        if fd > STDERR:
            with suppress_os_errors():  # the descriptor that listed the directory is closed
                fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)


def _serve(
    store: Store, sandboxer: Sandboxer, path: str, calls: Calls, change_log: ChangeLog
) -> None:
    health, ending = HealthServicer(experimental_non_blocking=False), calls.ending
    threading.excepthook = partial(_end_for_thread, ending)
    server = _new_server(store, sandboxer, calls, health)
    _bind(server, path)
    try:
        threads.require_memory()
        server.start()
    except (RuntimeError, threads.NoThreadError) as error:
        raise _no_thread("the thread of gRPC", error) from error
    log.info(
        "serving %r at %s",
        store,
        path,
        extra={"event": "serving", "path": store.path, "socket": path},
    )
    _start_thread(change_log.run, "change-log")
    systemd.notify("READY=1", f"STATUS=serving {store.path}")
    name = ending.wait(systemd.watchdog_interval(), partial(_beat, path))
    if name:
        log.info("ending on %s", name, extra={"event": "ending", "signal": name})
    systemd.notify(f"STATUS=ending: {name or ending.error}")
    health.enter_graceful_shutdown()
    ending.wait_until_told()
    systemd.notify("STOPPING=1")  # not before: it ends the proxy, through which a client may ask
    calls.close()
    if not ending.is_deaf:
        grace: float | None = GRACE
        try:
            threads.require_memory()
        except threads.NoThreadError:
            grace = None  # the calls are cancelled at once: later, a thread would do it
        with contextlib.suppress(RuntimeError):  # no thread is left to cancel the calls after GRACE
            server.stop(grace)
        server.wait_for_termination(GRACE + 1)
    change_log.close()
    if ending.error is not None:
        raise ending.error


def _new_server(
    store: Store, sandboxer: Sandboxer, calls: Calls, health: HealthServicer
) -> grpc.Server:
    """Return a server of all services, whose threads run."""
    runs, stops = _started(RUNS, "cri-runs"), _started(STOPS, "cri-stops")
    streams = _started(STREAMS + 1, "cri-streams")  # the last one refuses a stream too many
    methods = {
        "Check": Method(HealthCheckRequest, health.Check),
        "Watch": Method(HealthCheckRequest, health.Watch, streams, is_stream=True),
    }
    return grpc.server(
        _started(ANSWERS, "cri"),
        handlers=[
            *services(store, sandboxer, Pools(runs, stops, streams), calls),
            calls.service(HEALTH, methods),
        ],
        options=[
            ("grpc.max_receive_message_length", MESSAGE_MAX),
            ("grpc.max_send_message_length", -1),
        ],
    )


def _observer(store: Store, listen: str) -> Observe:
    """Return the function that counts the calls; serve the metrics if *listen* is an address."""
    if not listen:
        return lambda *_: None
    from registry.shim.metrics import Metrics  # noqa: PLC0415 - prometheus-client is an extra

    metrics = Metrics(store)
    _start_thread(metrics.listen(listen), "metrics")
    return metrics.observe


def _beat(path: str) -> None:
    """Tell the watchdog of the supervisor that calls at *path* are answered, if they are."""
    with grpc.insecure_channel(f"unix:{path}") as channel:
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{HEALTH}/Check")
        with contextlib.suppress(grpc.RpcError):
            check(b"", timeout=systemd.watchdog_interval())
            systemd.notify("WATCHDOG=1")


def _start_thread(run: Callable[[], None], name: str) -> None:
    """Start *run* in a thread that ends with the process.

    Raises:
        ResourceExhaustedError: it cannot be started.
    """
    try:
        threads.start_thread(threading.Thread(target=run, name=name, daemon=True))
    except (RuntimeError, threads.NoThreadError) as error:
        raise _no_thread(f"thread {name}", error) from error


def _started(count: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of *count* threads, all of which run already.

    Raises:
        ResourceExhaustedError: one cannot be started.
    """
    pool, all_run = ThreadPoolExecutor(count, name), threading.Event()
    try:
        for _ in range(count):  # each finds no thread idle
            threads.require_memory()
            pool.submit(all_run.wait)
    except (RuntimeError, threads.NoThreadError) as error:
        raise _no_thread(f"{count} threads", error) from error
    finally:
        all_run.set()
    return pool


def _no_thread(what: str, error: Exception) -> ResourceExhaustedError:
    why = f"{what} cannot be started ({error}); raise the limit of tasks (TasksMax=, pids.max)"
    return ResourceExhaustedError(f"serve: {why} or of memory")


def _end_for_thread(ending: Ending, args: threading.ExceptHookArgs) -> None:
    """End the server after an exception that has ended a thread; that may be the one of gRPC."""
    name = args.thread.name if args.thread else "unknown"
    log.error(
        "thread %s has ended",
        name,
        exc_info=args.exc_value,
        extra={"event": "thread_ended", "error": args.exc_type.__name__},
    )
    error = RegistryError(f"serve: thread {name} has ended: {args.exc_type.__name__}; start again")
    ending.fail(error, is_deaf=True)


def _end_for_lost_thread() -> None:
    """End the process when a thread has ended before it began, for lack of memory.

    The thread that has started it waits for ever, and holds its locks. So nothing is closed: the
    process ends as if it was killed.
    """
    unraisable: SimpleQueue[sys.UnraisableHookArgs] = SimpleQueue()
    sys.unraisablehook = unraisable.put  # of C: there is no memory for a frame of Python
    while True:
        args = unraisable.get()
        try:
            log.error(
                "%s %r",
                args.err_msg or "Exception ignored in",
                args.object,
                exc_info=args.exc_value,
                extra={"event": "exception_ignored"},
            )
        finally:
            if LOST in (args.err_msg or ""):
                os._exit(FAILED)
        del args


def _bind(server: grpc.Server, path: str) -> None:
    """Create the socket, with mode 0600."""
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise FailedPreconditionError(f"serve at {path!r}: the socket cannot be created") from error
    finally:
        os.umask(before)


def _path_of(listen: str) -> str:
    """Return the path of the socket; a path that gRPC would misread is refused."""
    path = listen.removeprefix("unix:")
    path = path.removeprefix("//") if path.startswith("//") else path
    why = ""
    if not listen.startswith("unix:") or not os.path.isabs(path) or path.endswith("/"):
        why = "not the address of a unix socket, such as unix:///run/sandbox-registry.sock"
    elif not path.isprintable() or "%" in path:
        why = "the path contains % or characters that are not printable"
    elif len(os.fsencode(path)) > PATH_MAX:
        why = f"the path has {len(os.fsencode(path))} bytes, more than {PATH_MAX}"
    elif os.path.exists(path) and not stat.S_ISSOCK(os.stat(path).st_mode):
        why = "the file at the path is no socket"
    if why:
        raise InvalidArgumentError(f"serve at {listen!r}: {why}", field="listen", value=listen)
    return path


def _refuse_living(path: str) -> None:
    """Raise if a process serves at *path*: gRPC would remove the socket of a living server too."""
    pid = 0  # that of a process in a pid namespace that is hidden from here, too
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(0)
            probe.connect(path)
            pid, _, _ = PEER.unpack(
                probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
            )
    except (FileNotFoundError, ConnectionRefusedError) as error:
        reraise_interrupt(error)
        return
    except BlockingIOError as error:  # it listens, and accepts nothing: it may be stopped
        reraise_interrupt(error)
    except OSError as error:
        reraise_interrupt(error)
        raise FailedPreconditionError(f"serve at {path!r}: {error.strerror}") from error
    raise _another_serves(f"serve at {path!r}", pid or _holder_of(f"{path}.lock"))


def _holder_of(lock: str) -> int:
    """Return the pid of the process that holds the flock of the file *lock*, 0 if it is unknown."""
    return next((each.pid for each in locks_on(lock) if each.kind == "FLOCK"), 0)


def _another_serves(doing: str, pid: int) -> FailedPreconditionError:
    named = f", pid {pid}{process_name(pid)}" if pid > 0 else ""
    return FailedPreconditionError(f"{doing}: another process does{named}; end it first")


@contextlib.contextmanager
def _claimed(path: str, doing: str) -> Iterator[None]:
    """Exclude other servers by a lock on the file *path*, which is created (0600) and kept.

    The kernel releases the lock when this process ends, also by SIGKILL.
    """
    before = os.umask(0o077)
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        reraise_interrupt(error)
        why = f"lock file {path!r}: {error.strerror}; make its directory writable"
        raise FailedPreconditionError(f"{doing}: {why}") from error
    finally:
        os.umask(before)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            reraise_interrupt(error)
            raise _another_serves(doing, _holder_of(path)) from error
        yield
    finally:
        os.close(fd)
