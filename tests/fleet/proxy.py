"""Proxy of a PostgreSQL server that loses the connection at a COMMIT."""

from __future__ import annotations

import os
import select
import socket
import tempfile
import threading
from typing import Final, Self

COMMIT: Final = b"COMMIT\0"


class Proxy:
    """Server at a unix socket that forwards to the socket of another one, during a `with` block."""

    def __init__(self, folder: str, port: str = "5432") -> None:
        """Prepare; *folder*: of the server's socket."""
        self.lose = ""
        """`before`: the next COMMIT does not reach the server; `after`: its answer is lost."""
        self._server = f"{folder}/.s.PGSQL.{port}"
        self._folder = tempfile.TemporaryDirectory(prefix="proxy-")
        self.folder: Final = self._folder.name
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(f"{self.folder}/.s.PGSQL.{port}")
        self._listening.listen()
        self._over, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._wake)
        self._thread.join()
        os.close(self._over)
        self._listening.close()
        self._folder.cleanup()

    def _run(self) -> None:
        """Serve one connection after the other."""
        while True:
            ready, _, _ = select.select([self._listening.fileno(), self._over], [], [])
            if self._over in ready:
                return
            client = self._listening.accept()[0]
            with client, socket.socket(socket.AF_UNIX) as server:
                server.connect(self._server)
                self._forward(client, server)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        """Forward until one of both ends, or a COMMIT is lost."""
        while True:
            fds = [client.fileno(), server.fileno(), self._over]
            ready, _, _ = select.select(fds, [], [])
            if self._over in ready:
                return
            for source, target in ((client, server), (server, client)):
                if source.fileno() not in ready:
                    continue
                data = source.recv(65536)
                if not data:
                    return
                is_lost = source is client and COMMIT in data and self.lose
                if is_lost == "before":
                    self.lose = ""
                    return
                target.sendall(data)
                if is_lost:
                    self.lose = ""
                    server.recv(65536)  # the server has committed once it answers
                    return
