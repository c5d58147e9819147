"""Protocol of systemd: notifications of state, the watchdog, and sockets that it passes."""

from __future__ import annotations

import os
import socket
from typing import Final

from registry import FailedPreconditionError
from registry.sync.interrupts import suppress_os_errors

ADDRESS_MAX: Final = 108
"""Bytes of the address of a unix socket (unix(7))."""
NEVER: Final = 86_400.0
"""Seconds between two beats that no watchdog waits for."""


def notify(*assignments: str) -> None:
    """Tell the supervisor each of *assignments*, such as READY=1 (sd_notify(3)).

    Without a supervisor that listens this does nothing: the server does not depend on it.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or len(os.fsencode(address)) > ADDRESS_MAX:
        return
    if address.startswith("@"):  # an abstract socket
        address = f"\0{address[1:]}"
    with suppress_os_errors(), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(0)  # a stopped supervisor delays nothing
        manager.connect(address)
        manager.send("\n".join(assignments).encode())


def watchdog_interval() -> float:
    """Return the seconds between two WATCHDOG=1, half of what the supervisor waits for."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or pid not in {"", str(os.getpid())}:
        return NEVER
    return min(NEVER, int(usec) / 2e6)


def refuse_passed_sockets() -> None:
    """Raise if the supervisor passes sockets to this process (sd_listen_fds(3)).

    The server core of gRPC can serve a descriptor, but grpcio has no call for that. To ignore the
    socket would leave its clients waiting for ever.
    """
    passed = os.environ.get("LISTEN_FDS", "0") not in {"", "0"}
    if passed and os.environ.get("LISTEN_PID") == str(os.getpid()):
        raise FailedPreconditionError(
            "serve: a socket is passed by the supervisor, and grpcio cannot serve one; pass it to "
            "systemd-socket-proxyd, as examples/sandbox-registry-proxy.service does"
        )
