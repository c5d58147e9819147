"""The verb `salvage`."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

from registry.cli import complete, options
from registry.cli.failures import FINE, FOUND
from registry.cli.output.formats import sentences, show
from registry.cli.output.progress import Progress
from registry.cli.output.views import Format, View

if TYPE_CHECKING:
    from registry.maintenance.salvage_report import Loss

VIEW: Final = View(
    ("table", "sandbox_id", "source", "reason", "record"),
    table={"TABLE": "table", "ID": "sandbox_id", "SOURCE": "source", "REASON": "reason"},
    name="sandbox_id",
    id="sandbox_id",
)


@click.command(
    epilog=options.examples("sandbox-registry salvage registry.db salvaged.db"),
)
@click.argument(
    "old",
    metavar="OLD",
    help="The damaged registry; it stays as it is.",
    shell_complete=complete.files,
)
@click.argument(
    "new",
    metavar="NEW",
    help="Path of the copy, where no file is.",
    shell_complete=complete.files,
)
@options.timeout
@options.output(VIEW)
def salvage(*, old: str, new: str, timeout: float, form: Format) -> int:
    """Copy every readable record of the damaged registry OLD into a new one; this writes NEW.

    OLD stays as it is. Exit code 1 if anything was lost.
    """
    from registry.maintenance.salvage import salvage as copy  # noqa: PLC0415 - only here

    with Progress("salvage"):
        found = copy(old, new, timeout=timeout)
    lost_all = not found.written["sandboxes"] and any(
        _is_of_sandboxes(each) for each in found.losses
    )
    step = f"`sandbox-registry --db {shlex.quote(old)} restore"
    if lost_all:
        step = f"the copy has no sandbox; prefer a backup: {step} BACKUP`"
    else:
        step = f"to put the copy in the place of the old one: {step} {shlex.quote(new)}`"
    lines = [*found.lines(), f"{step} (--force, if SQLite cannot read the old one at all)"]
    text = sentences(lines)
    show([asdict(each) for each in found.losses], VIEW, form, whole=asdict(found), text=text)
    return FINE if found.complete else FOUND


def _is_of_sandboxes(loss: Loss) -> bool:
    """Return whether *loss* may have cost a sandbox; one of unknown pages may."""
    return loss.table in {"", "sandboxes", "sandbox_statuses"}
