"""The verb `serve`."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import click

from registry.cli import options
from registry.cli.failures import FINE
from registry.visible import visible, visible_record


class OneLine(logging.Formatter):
    """Formatter whose records begin a line of their own, whatever a client has sent.

    The lines of a traceback, which quote errors of other programs, are indented.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return *record* as one line, and its traceback as lines that begin with a tab."""
        visible_record(record)
        return super().format(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name is that of logging
        """Return the traceback of *ei* as lines that begin with a tab."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"\t{visible(line)}" for line in lines)


@click.command(
    epilog=options.examples("sandbox-registry --db registry.db serve --listen unix:///run/sr.sock"),
)
@click.option(
    "--listen",
    metavar="unix:///PATH",
    default="unix:///run/sandbox-registry.sock",
    show_default=True,
    help="Socket to serve at.",
)
@options.db
def serve(*, listen: str, db: str) -> int:
    """Serve the CRI's sandbox calls until SIGTERM; this writes.

    The server creates a missing registry. The sandboxes keep running when the server ends.
    """
    # Errors are reported by this program; gRPC would write its own to stderr first.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from registry.shim import server  # noqa: PLC0415 - gRPC is an extra of its own

    log = logging.StreamHandler(sys.stderr)
    log.setFormatter(OneLine("%(asctime)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[log])
    logging.getLogger("registry").setLevel(logging.INFO)
    server.serve(db, listen)
    return FINE
