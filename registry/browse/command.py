"""The verb `browse`."""

from __future__ import annotations

import logging

import click

from registry.cli import options
from registry.cli.failures import FINE
from registry.cli.output.streams import write


@click.command(
    epilog=options.examples("sandbox-registry --db registry.db browse --open"),
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="N",
    default=8001,
    show_default=True,
    help="Port of 127.0.0.1 to listen at; 0: any that is free.",
)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
@options.db
def browse(*, port: int, open_browser: bool, db: str) -> int:
    """Show the registry as a page in a browser, until Ctrl-C.

    Only this user can see it: the address that is printed contains a token.
    """
    from registry.browse import server  # noqa: PLC0415 - Datasette is an extra of its own

    logging.getLogger("registry").addHandler(options.Warner())
    server.serve(db, port, open_browser=open_browser, say=write)
    return FINE
