"""The unix socket, from the first call to SIGTERM."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import resource
import signal
import socket
import stat
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
"""Calls at the same time: those that may wait for the database, and all others."""
GRACE: Final = 5.0
"""Seconds that calls under way have to end after a signal."""
MESSAGE_MAX: Final = 16 << 20
"""Bytes; as containerd has it."""
PATH_MAX: Final = 107
"""Bytes of the path of a unix socket (unix(7))."""
STDERR: Final = 2
ENDS: Final = (signal.SIGINT, signal.SIGTERM)


def serve(db: str, listen: str) -> None:
    """Serve the CRI at *listen* (`unix:///path`), until SIGTERM or SIGINT; the sandboxes go on.

    For the main thread of a process of its own: it takes what its limits allow, keeps inherited
    descriptors from its children, and the signals stay blocked.

    Args:
        db: the registry, which is made if there is none.
        listen: where to serve.
    Raises:
        InvalidArgumentError: *listen* is no unix socket.
        FailedPreconditionError: another process serves there, or this registry; or it cannot be.
        RegistryError: the registry cannot be opened.
    """
    path = _path_of(listen)
    _refuse_living(path)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > STDERR:
            with suppress_os_errors():  # the one by which they are listed
                fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    with (
        _claimed(f"{path}.lock", f"serve at {path!r}"),
        # Beside the real file: it may have several names.
        _claimed(f"{os.path.realpath(db)}-serve", f"serve registry {db!r}"),
        Store.open(db) as store,
    ):
        # Before any thread is made, so that none is interrupted.
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
    log.info("serving %r at %s", store, path)
    number = signal.sigwait(ENDS)
    log.info("ending on %s", signal.Signals(number).name)
    server.stop(GRACE).wait()


def _bind(server: grpc.Server, path: str) -> None:
    """Make the socket, with mode 0600."""
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise FailedPreconditionError(f"serve at {path!r}: the socket cannot be made") from error
    finally:
        os.umask(before)


def _path_of(listen: str) -> str:
    """Return the path of the socket; whatever gRPC would stumble over is refused."""
    path = listen.removeprefix("unix:")
    path = path.removeprefix("//") if path.startswith("//") else path
    why = ""
    if not listen.startswith("unix:") or not os.path.isabs(path) or path.endswith("/"):
        why = "it is no unix socket such as unix:///run/sandbox-registry.sock"
    elif not path.isprintable() or "%" in path:
        why = "its path has a % or what is no printable UTF-8"
    elif len(os.fsencode(path)) > PATH_MAX:
        why = f"its path has {len(os.fsencode(path))} bytes, over {PATH_MAX}"
    elif os.path.exists(path) and not stat.S_ISSOCK(os.stat(path).st_mode):
        why = "something else than a socket is there"
    if why:
        raise InvalidArgumentError(f"serve at {listen!r}: {why}", field="listen", value=listen)
    return path


def _refuse_living(path: str) -> None:
    """Raise if anybody serves at *path*: gRPC would remove the socket of a living server too."""
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(path)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        reraise_interrupt(error)
        return
    except OSError as error:
        reraise_interrupt(error)
        raise FailedPreconditionError(f"serve at {path!r}: {error.strerror}") from error
    raise FailedPreconditionError(f"serve at {path!r}: another process does")


@contextlib.contextmanager
def _claimed(path: str, doing: str) -> Iterator[None]:
    """Keep other servers out by locking the file *path*, which is made and stays.

    The kernel drops the lock when we die, however that is.
    """
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        reraise_interrupt(error)
        why = f"lock file {path!r}: {error.strerror}; make its directory writable"
        raise FailedPreconditionError(f"{doing}: {why}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            reraise_interrupt(error)
            raise FailedPreconditionError(f"{doing}: another process does") from error
        yield
    finally:
        os.close(fd)
