"""The verb `restore`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import click

from registry.cli import complete, options
from registry.cli.failures import FINE
from registry.cli.output import formats
from registry.cli.output.formats import sentences, show
from registry.cli.output.progress import Progress
from registry.cli.output.views import Format, View
from registry.cli.verbs import report

if TYPE_CHECKING:
    from registry.maintenance.restore import Restoration


VIEW: Final = View(
    ("path", "backup", "incarnation", "replaced", "lost", "recovery"),
    table={"PATH": "path", "BACKUP": "backup", "INCARNATION": "incarnation"},
    name="path",
    id="path",
)


@click.command(epilog=options.examples("sandbox-registry --db registry.db restore copy.db"))
@click.argument(
    "backup",
    metavar="BACKUP",
    help="File that `backup` has made.",
    shell_complete=complete.files,
)
@click.option(
    "--force",
    is_flag=True,
    help="Also replace newer history, another registry, or an unreadable file.",
)
@options.output(VIEW)
@options.db
def restore(*, backup: str, force: bool, db: str, form: Format) -> int:
    """Put BACKUP in the place of the registry, and reconcile it; this writes.

    The registry may be in use, damaged or gone. What is replaced is kept beside it.
    """
    from registry.maintenance.restore import restore as put_in_place  # noqa: PLC0415

    with Progress("restore"):
        done = put_in_place(backup, db, force=force, actor=options.actor())
    found = _whole(done)
    show([found], VIEW, form, whole=found, text=_text(done))
    return FINE


def _whole(done: Restoration) -> dict[str, Any]:
    """Return *done* as one object."""
    lost = done.lost and [{"first": each[0], "last": each[-1]} for each in done.lost]
    return {
        "path": done.path,
        "backup": done.backup,
        "incarnation": done.incarnation,
        "replaced": done.replaced,
        "lost": None if done.lost is None else lost or [],
        "recovery": report.whole(done.recovery),
    }


def _text(done: Restoration) -> str:
    """Return *done* for people."""
    lines = [f"restored {done.path} from {done.backup}, as incarnation {done.incarnation}"]
    lines.append(_loss(done))
    if done.replaced:
        there = os.path.lexists(done.replaced)
        lines.append(f"what was replaced is kept as {done.replaced}{'' if there else '-*'}")
    text = sentences(lines)
    found = report.findings(done.recovery)
    return (
        text + (formats.table(found, report.VIEW) if found else "") + report.lines_of(done.recovery)
    )


def _loss(done: Restoration) -> str:
    """Return the sentence about the transitions that are lost."""
    from registry.maintenance.restore import shown  # noqa: PLC0415 - as `restore`

    if done.lost:
        kept = f"`sandbox-registry --db {done.replaced} history --after {done.lost[0][0] - 1}`"
        return f"lost: {shown(done.lost)} after the backup; {kept} shows what is lost"
    if done.lost is not None:
        return "lost: nothing; no transition came after the backup"
    if not done.replaced:
        return f"there was no registry at {done.path}"
    kept = f"`sandbox-registry --db {done.replaced} history`"
    return (
        "lost: unknown, for what was replaced is damaged or another registry; compare "
        f"{kept}; if it cannot be opened, `sandbox-registry salvage {done.replaced} NEW`"
    )
