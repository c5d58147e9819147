"""The verb `serve`."""

from __future__ import annotations

import logging
import os
import sys

import click

from registry.cli import options
from registry.cli.failures import FINE


@click.command()
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

    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("registry").setLevel(logging.INFO)
    server.serve(db, listen)
    return FINE
