"""The verb `delete`."""

from __future__ import annotations

import contextlib
from typing import Final

import click

from registry.cli import lookup, options
from registry.cli.failures import FINE, FOUND, complain
from registry.cli.output.formats import sentences, show
from registry.cli.output.views import Format, View
from registry.errors import NotFoundError, RegistryError
from registry.handles.sandbox import Sandbox
from registry.sync.interrupts import reraise_interrupt

VIEW: Final = View(("id", "deleted"), table={"ID": "id", "DELETED": "deleted"})


@click.command(epilog=options.examples("sandbox-registry delete 3f2a9c41"))
@options.id
@options.timeout
@options.output(VIEW)
@options.db
def delete(*, id: str, db: str, timeout: float, form: Format) -> int:
    """Delete the record of one sandbox; this writes.

    The processes and the network namespace of the sandbox stay.
    """
    deleted, left = False, ""
    with options.open_to_write(db, timeout) as store, contextlib.suppress(NotFoundError):
        command = f"{options.command(db)} delete"
        sandbox = lookup.find_by_id(store, id, f"delete sandbox {id!r}", command)
        id, left = sandbox.id, _left(sandbox)
        deleted = sandbox.delete()
    found = {"id": id, "deleted": deleted}
    text = sentences([f"deleted {id}{left}"] if deleted else [])
    show([found], VIEW, form, whole=found, text=text)
    if not deleted:
        return complain(f"delete sandbox {id!r}: there is no such sandbox", FOUND)
    return FINE


def _left(sandbox: Sandbox) -> str:
    """Return what the line on a deletion says of the network namespace; "" if there was none."""
    path = sandbox.netns_path
    if not path:
        return ""
    try:
        is_open = sandbox.netns is not None
    except RegistryError as error:  # its record may be damaged, or the path not be seen
        reraise_interrupt(error)
        return f"; network namespace {path}, if it still exists, is left alone"
    if is_open:
        return f"; network namespace {path} is left alone"
    return f"; network namespace {path} is gone"
