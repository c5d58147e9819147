"""`sandbox-registry serve`."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from registry.cli.commands import FINE, Db, app, path_of


@app.command()
def serve(
    ctx: typer.Context,
    *,
    listen: Annotated[
        str, typer.Option(metavar="unix:///PATH", help="Where to serve.")
    ] = "unix:///run/sandbox-registry.sock",
    db: Db = None,
) -> int:
    """Serve the CRI's sandbox calls until SIGTERM; sandboxes outlive this. Makes the registry."""
    # What it cannot do we say; its own words would go to stderr before ours.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from registry.shim import server  # noqa: PLC0415 - gRPC is an extra of its own

    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("registry").setLevel(logging.INFO)
    server.serve(path_of(ctx, db), listen)
    return FINE
