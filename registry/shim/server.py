"""The unix socket, from the first call to SIGTERM."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import grpc

from registry import FailedPreconditionError, InvalidArgumentError, Store
from registry.shim.sandboxer import Sandboxer
from registry.shim.service import services

log = logging.getLogger("registry.shim")

CHANGES: Final = 48
ANSWERS: Final = 16
"""Calls at the same time: those that may wait for the database, and all others."""
GRACE: Final = 5.0
"""Seconds that calls under way have to end after a signal."""
MESSAGE_MAX: Final = 16 << 20
"""Bytes; as containerd has it."""
ENDS: Final = (signal.SIGINT, signal.SIGTERM)


def serve(store: Store, listen: str) -> None:
    """Serve the CRI at *listen* (`unix:///path`), until SIGTERM or SIGINT; the sandboxes go on.

    For the main thread of a process of its own: the signals stay blocked.

    Raises:
        InvalidArgumentError: *listen* is no unix socket.
        FailedPreconditionError: another process serves there, or it cannot be made.
    """
    path = _path_of(listen)
    # Before any thread is made, so that none is interrupted.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    with _claimed(path), contextlib.closing(Sandboxer(store)) as sandboxer:
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
        raise FailedPreconditionError(f"serve at {path!r}: {error}") from error
    finally:
        os.umask(before)


def _path_of(listen: str) -> str:
    path = listen.removeprefix("unix:").replace("///", "/", 1)
    if not listen.startswith("unix:") or not os.path.isabs(path):
        raise InvalidArgumentError(
            f"serve at {listen!r}: it is no unix socket such as unix:///run/sandbox-registry.sock",
            field="listen",
            value=listen,
        )
    return path


@contextlib.contextmanager
def _claimed(path: str) -> Iterator[None]:
    """Keep other servers from *path*.

    gRPC removes a socket that is there, of a living server too. The kernel drops the lock when we
    die, however that is.
    """
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FailedPreconditionError(f"serve at {path!r}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FailedPreconditionError(f"serve at {path!r}: another process does") from error
        yield
    finally:
        os.close(fd)
