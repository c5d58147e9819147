"""The verb `backup`."""

from __future__ import annotations

import os
import re
import time
from typing import Final

import click

from registry.cli import complete, options
from registry.cli.failures import FINE
from registry.cli.output.formats import sentences, show
from registry.cli.output.progress import Progress
from registry.cli.output.views import Format, View
from registry.host import paths
from registry.sync.interrupts import reraise_interrupt

VIEW: Final = View(
    ("path", "bytes", "removed"), table={"PATH": "path", "BYTES": "bytes"}, name="path", id="path"
)


@click.command(
    epilog=options.examples(
        "sandbox-registry backup /backup/registry.db",
        "sandbox-registry backup /backup --keep 7",
    ),
)
@click.argument(
    "path",
    metavar="PATH",
    help="File for the copy; with --keep, a directory.",
    shell_complete=complete.files,
)
@click.option(
    "--keep",
    metavar="NUMBER",
    type=options.Count(1),
    help="PATH is a directory: name the backup after the time, and keep this many of them.",
)
@options.output(VIEW)
@options.db
def backup(*, path: str, keep: int | None, db: str, form: Format) -> int:
    """Copy the registry to PATH, while it is in use.

    PATH may have an earlier backup, which is replaced, and nothing else.
    """
    target, removed = path, list[str]()
    if keep is not None:
        if not os.path.isdir(path):
            raise click.BadParameter(f"{path!r} is no directory, which --keep needs")
        target = os.path.join(path, f"{_stem(db)}-{time.strftime(_TIME, time.gmtime())}.db")
    with options.open_to_read(db) as store, Progress("backup") as progress:
        store.backup(target, progress=progress)
    if keep is not None:
        removed = _remove_oldest(target, _stem(db), keep)
    found = {"path": target, "bytes": paths.size(target), "removed": removed}
    lines = [f"backed up {db} to {target}", *(f"removed {each}" for each in removed)]
    show([found], VIEW, form, whole=found, text=sentences(lines))
    return FINE


_TIME = "%Y%m%dT%H%M%SZ"


def _stem(db: str) -> str:
    """Return the beginning of the names of the backups of the registry at *db*."""
    return os.path.basename(os.path.realpath(db)).removesuffix(".db")


def _remove_oldest(newest: str, stem: str, keep: int) -> list[str]:
    """Remove the oldest backups beside *newest*, and return their paths.

    A file that was opened for writing since is no backup any more: it is left alone.

    Args:
        newest: path of the new backup, which stays, whatever the clock said before.
        stem: beginning of the names of the backups.
        keep: number of backups that stay.
    Raises:
        RegistryError: one cannot be removed.
    """
    from registry.tables.backup import is_backup  # noqa: PLC0415 - the help does without

    folder, name = os.path.split(newest)
    named = re.compile(rf"{re.escape(stem)}-\d{{8}}T\d{{6}}Z\.db")
    removed = []
    try:
        found = sorted(
            entry.name
            for entry in os.scandir(folder)
            if named.fullmatch(entry.name)
            and entry.is_file(follow_symlinks=False)
            and is_backup(entry.path)
        )
        found.remove(name)
        for each in found[: max(0, len(found) - keep + 1)]:
            os.unlink(os.path.join(folder, each))
            removed.append(os.path.join(folder, each))
    except OSError as error:
        reraise_interrupt(error)
        doing = f"remove old backups in {folder!r}, after {name!r} was made"
        raise paths.refused(doing, newest, "remove a file", error) from error
    return removed
