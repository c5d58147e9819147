"""The verb `salvage`."""

from __future__ import annotations

from dataclasses import asdict

import click

from registry.cli import options
from registry.cli.failures import FINE, FOUND
from registry.cli.output.formats import write_json
from registry.cli.output.streams import write


@click.command()
@click.argument("old", metavar="OLD", help="The damaged registry; it stays as it is.")
@click.argument("new", metavar="NEW", help="Path of the copy, where no file is.")
@options.timeout
@options.as_json
def salvage(*, old: str, new: str, timeout: float, as_json: bool) -> int:
    """Copy every readable record of the damaged registry OLD into a new one; this writes NEW.

    OLD stays as it is. Exit code 1 if anything was lost.
    """
    from registry.maintenance.salvage import salvage as copy  # noqa: PLC0415 - only here

    found = copy(old, new, timeout=timeout)
    if as_json:
        write_json(asdict(found))
    else:
        write("".join(f"{line}\n" for line in found.lines()))
    return FINE if found.complete else FOUND
