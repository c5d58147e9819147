"""The verb `check`."""

from __future__ import annotations

from dataclasses import asdict

import click

from registry.cli import options
from registry.cli.failures import FINE, FOUND
from registry.cli.output.formats import write_all
from registry.cli.output.streams import write
from registry.store import Store


@click.command()
@options.db
@options.as_json
def check(*, db: str, as_json: bool) -> int:
    """Report every violated invariant of the registry; exit code 1 if there is one."""
    with Store.open(db, damaged="read") as store:
        found = [asdict(violation) for violation in store.check()]
    if found or as_json:
        write_all(found, ("rule", "sandbox_id", "found", "expected"), as_json=as_json)
    else:
        write("no violations\n")
    return FOUND if found else FINE
