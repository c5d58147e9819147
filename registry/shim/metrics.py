"""Metrics of the calls and of the registry, served to Prometheus."""

from __future__ import annotations

import io
import logging
import socket
import socketserver
import time
from collections.abc import Callable
from typing import Any, Final

from prometheus_client import CollectorRegistry, Histogram, MetricsHandler

from registry import FailedPreconditionError, InvalidArgumentError, Store
from registry.metrics import collector
from registry.sync.interrupts import reraise_interrupt

log = logging.getLogger("registry.shim")

BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30)
"""Bounds of the durations in seconds: a status takes less than a millisecond, a run some 50."""
TIMEOUT: Final = 5.0
"""Seconds that a client may take for its whole request; others wait meanwhile."""
RETRY: Final = 1.0
"""Seconds until a client is accepted for which no descriptor was left."""
PORT_MAX: Final = 65_535


class Metrics:
    """Metrics of one server."""

    def __init__(self, store: Store) -> None:
        """Collect those of *store*, too."""
        self._registry: Final = CollectorRegistry()
        self._registry.register(collector(store))
        self._calls: Final = Histogram(
            "sandbox_registry_cri_call_seconds",
            "Duration of the calls of the CRI",
            ("method", "code"),
            registry=self._registry,
            buckets=BUCKETS,
        )

    def observe(self, method: str, code: str, seconds: float) -> None:
        """Count a call; *code* is the name of its status code."""
        self._calls.labels(method, code).observe(seconds)

    def listen(self, address: str) -> Callable[[], None]:
        """Listen at *address*, HOST:PORT, and return the function that answers for ever.

        One client is answered after the other, so that no thread has to be started for it.

        Raises:
            InvalidArgumentError: *address* is not HOST:PORT.
            FailedPreconditionError: the port is not free.
        """
        host, _, port = address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isdecimal() or int(port) > PORT_MAX:
            why = "not HOST:PORT, such as 127.0.0.1:9464"
            message = f"serve metrics at {address!r}: {why}"
            raise InvalidArgumentError(message, field="metrics_listen", value=address)

        class Handler(MetricsHandler.factory(self._registry)):  # type: ignore[misc]
            timeout = TIMEOUT

            def setup(self) -> None:
                super().setup()
                self.rfile = io.BufferedReader(_Request(self.connection))

        try:
            server = _Server((host, int(port)), Handler)
        except OSError as error:
            reraise_interrupt(error)
            message = f"serve metrics at {address!r}: {error.strerror}"
            raise FailedPreconditionError(message, errno=error.errno or 0) from error
        found = f"{host}:{server.server_address[1]}"
        log.info("serving metrics at %s", found, extra={"event": "metrics", "address": found})
        return server.serve_forever


class _Request(io.RawIOBase):
    """Bytes that a client sends, all of them within `TIMEOUT`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection: Final = connection
        self._deadline: Final = time.monotonic() + TIMEOUT

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request is not complete")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Server(socketserver.TCPServer):
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], handler: Any) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as error:
            reraise_interrupt(error)
            time.sleep(RETRY)  # the client still waits, and this would be called again at once
            raise

    def handle_error(self, *_: object) -> None:
        """Ignore a client that has left or is too slow."""
