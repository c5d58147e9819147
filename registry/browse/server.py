"""Server of the page on 127.0.0.1, until SIGINT or SIGTERM."""

from __future__ import annotations

import logging
import os
import socket
import threading
import webbrowser
from types import FrameType
from typing import Any, Final

import uvicorn
from datasette.app import Datasette
from datasette.plugins import pm

from registry.browse import plugin
from registry.browse.database import RegistryDatabase
from registry.browse.metadata import DATABASE, metadata
from registry.errors import UnavailableError
from registry.store import Store
from registry.sync.interrupts import reraise_interrupt

HOST: Final = "127.0.0.1"
"""The only address: another host gets in by ssh alone."""
ACTOR: Final = "root"
"""Datasette's name of the user who has the token of the start."""
SETTINGS: Final = {
    "allow_download": False,  # it would open the database file without SQLite
    "default_page_size": 50,
    "facet_time_limit_ms": 1000,
    "max_returned_rows": 1000,
    "num_sql_threads": 2,
    "sql_time_limit_ms": 1000,
    "suggest_facets": False,
}


class Server(uvicorn.Server):
    """Server that ends by SIGINT and SIGTERM, and not by the signal itself."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End after the present answers; at once by a second signal."""
        del sig, frame
        self.force_exit = self.should_exit
        self.should_exit = True


def page(path: str) -> Any:
    """Return the application of the registry at *path*, a Datasette."""
    if not pm.is_registered(plugin):
        pm.register(plugin, name="sandbox-registry")
        pm.unregister(name="datasette.handle_exception")  # it prints tracebacks, with local values
    templates = os.path.join(os.path.dirname(__file__), "templates")
    found = Datasette(
        metadata=metadata(path, ACTOR), settings=SETTINGS, template_dir=templates, memory=False
    )
    found.remove_database("_memory")
    found.add_database(RegistryDatabase(found, path), name=DATABASE)
    return found


def serve(path: str, port: int, *, open_browser: bool, say: Any) -> None:
    """Serve the page of the registry at *path* until a signal ends the program.

    Args:
        path: of the registry.
        port: of 127.0.0.1; 0: any that is free.
        open_browser: open the address in a browser.
        say: called with a line for the operator.
    Raises:
        RegistryError: the registry cannot be read, or the port is in use.
    """
    with Store.open(path, read_only=True, create=False) as store:
        path = os.path.realpath(store.path)
    with _listen(port) as listener:
        app = page(path)
        address = f"http://{HOST}:{listener.getsockname()[1]}/-/auth-token?token={app._root_token}"  # noqa: SLF001 - as Datasette's own command
        say(f"{address}\nOpen this address, which works once. Ctrl-C ends the page.\n")
        if open_browser:
            # In a thread: a browser in the terminal returns when it is closed.
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        config = uvicorn.Config(
            app.app(), log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=2
        )
        Server(config).run(sockets=[listener])


def _listen(port: int) -> socket.socket:
    """Return a socket that listens at *port* of 127.0.0.1."""
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        reraise_interrupt(error)
        raise UnavailableError(
            f"browse: listen at {HOST}:{port}: {os.strerror(error.errno or 0)};"
            " choose another port with --port, or --port 0 for any"
        ) from error
