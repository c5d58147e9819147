"""gRPC server on a unix socket, until SIGTERM or SIGINT."""

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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import grpc

from registry import FailedPreconditionError, InvalidArgumentError, Store
from registry.shim.sandboxer import Sandboxer
from registry.shim.service import services
from registry.sync.interrupts import reraise_interrupt, suppress_os_errors

log = logging.getLogger("registry.shim")

CHANGES: Final = 48
ANSWERS: Final = 16
"""Threads for calls that change something, which may wait for the database, and for the others."""
GRACE: Final = 5.0
"""Seconds that calls in progress have to end after a signal."""
MESSAGE_MAX: Final = 16 << 20
"""Bytes of a request; containerd's limit."""
PATH_MAX: Final = 107
"""Bytes of the path of a unix socket (unix(7))."""
PEER: Final = struct.Struct("@iII")
"""struct ucred of unix(7): pid, uid and gid of the process that listens."""
STDERR: Final = 2
ENDS: Final = (signal.SIGINT, signal.SIGTERM)


def serve(db: str, listen: str) -> None:
    """Serve the CRI at *listen* until SIGTERM or SIGINT; the sandboxes keep running.

    Call it in the main thread of a process of its own. It raises the soft limit of descriptors to
    the hard one, marks inherited descriptors close-on-exec, and leaves the two signals blocked.

    Args:
        db: path of the registry, which is created if it is missing.
        listen: address of the socket, `unix:///path`.
    Raises:
        InvalidArgumentError: *listen* is no address of a unix socket.
        FailedPreconditionError: another process serves this socket or this registry, or the
            socket cannot be created.
        RegistryError: the registry cannot be opened.
    """
    path = _path_of(listen)
    _refuse_living(path)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > STDERR:
            with suppress_os_errors():  # the descriptor that listed the directory is closed
                fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    with (
        _claimed(f"{path}.lock", f"serve at {path!r}"),
        # Beside the real file, which symlinks may give several names.
        _claimed(f"{os.path.realpath(db)}-serve", f"serve registry {db!r}"),
        Store.open(db) as store,
    ):
        # Before the first thread starts: threads inherit the mask, so none gets the signals.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
        with contextlib.closing(Sandboxer(store)) as sandboxer:
            _serve(store, sandboxer, path)


def _serve(store: Store, sandboxer: Sandboxer, path: str) -> None:
    server = grpc.server(
        ThreadPoolExecutor(ANSWERS, "cri"),
        handlers=services(store, sandboxer, ThreadPoolExecutor(CHANGES, "cri-changes")),
        options=[
            ("grpc.max_receive_message_length", MESSAGE_MAX),
            ("grpc.max_send_message_length", -1),
        ],
    )
    _bind(server, path)
    server.start()
    log.info(
        "serving %r at %s",
        store,
        path,
        extra={"event": "serving", "path": store.path, "socket": path},
    )
    number = signal.sigwait(ENDS)
    name = signal.Signals(number).name
    log.info("ending on %s", name, extra={"event": "ending", "signal": name})
    server.stop(GRACE).wait()


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
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(path)
            peer = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        reraise_interrupt(error)
        return
    except OSError as error:
        reraise_interrupt(error)
        raise FailedPreconditionError(f"serve at {path!r}: {error.strerror}") from error
    pid, _, _ = PEER.unpack(peer)
    named = f", pid {pid}" if pid else ""  # 0: it is in a pid namespace that is hidden from here
    raise FailedPreconditionError(f"serve at {path!r}: another process does{named}; stop it first")


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
            raise FailedPreconditionError(
                f"{doing}: another process does; stop it first"
            ) from error
        yield
    finally:
        os.close(fd)
