"""The verb `delete`."""

from __future__ import annotations

import contextlib

import click

from registry.cli import options
from registry.cli.failures import FINE, FOUND, complain
from registry.cli.output.formats import write_json
from registry.cli.output.streams import write
from registry.errors import NotFoundError
from registry.visible import visible


@click.command()
@options.id
@options.db
@options.timeout
@options.as_json
def delete(*, id: str, db: str, timeout: float, as_json: bool) -> int:
    """Delete the record of one sandbox; this writes.

    The processes and the network namespace of the sandbox stay.
    """
    deleted, path = False, ""
    with options.open_to_write(db, timeout) as store, contextlib.suppress(NotFoundError):
        sandbox = options.find(store, id, f"delete sandbox {id!r}")
        id, path, deleted = sandbox.id, sandbox.netns_path, sandbox.delete()
    if as_json:
        write_json({"id": id, "deleted": deleted})
    elif deleted:
        left = f"; network namespace {path} is left alone" if path else ""
        write(visible(f"deleted {id}{left}") + "\n")
    if not deleted:
        return complain(f"delete sandbox {id!r}: there is no such sandbox", FOUND)
    return FINE
