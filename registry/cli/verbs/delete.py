"""The verb `delete`."""

from __future__ import annotations

import contextlib
from typing import Final

import click

from registry.cli import lookup, options
from registry.cli.failures import FINE, FOUND, complain
from registry.cli.output.formats import Format, View, show
from registry.errors import NotFoundError
from registry.visible import visible

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
    deleted, path = False, ""
    with options.open_to_write(db, timeout) as store, contextlib.suppress(NotFoundError):
        sandbox = lookup.find_by_id(store, id, f"delete sandbox {id!r}")
        id, path, deleted = sandbox.id, sandbox.netns_path, sandbox.delete()
    found = {"id": id, "deleted": deleted}
    left = f"; network namespace {path} is left alone" if path else ""
    text = visible(f"deleted {id}{left}") + "\n" if deleted else ""
    show([found], VIEW, form, whole=found, text=text)
    if not deleted:
        return complain(f"delete sandbox {id!r}: there is no such sandbox", FOUND)
    return FINE
