"""The verb `export`: sandboxes as the JSON that containerd stores."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import click

from registry.cli import complete, lookup, options
from registry.cli.failures import UNAVAILABLE, complain, complain_all
from registry.cli.output.progress import Progress
from registry.cli.output.streams import write_bytes
from registry.errors import MetadataError
from registry.handles.sandbox import Sandbox
from registry.sync.interrupts import reraise_interrupt

T = TypeVar("T")


@click.command(
    "export",
    epilog=options.examples("sandbox-registry export --status statuses.jsonl > sandboxes.jsonl"),
)
@click.argument(
    "ids",
    metavar="[ID...]",
    nargs=-1,
    help="Full ids, or unique prefixes.",
    shell_complete=complete.values("id"),
)
@options.db
@click.option(
    "--status",
    metavar="FILE",
    help="Write their statuses and extensions to FILE, for import.",
    shell_complete=complete.files,
)
def export_sandboxes(*, ids: Sequence[str], db: str, status: str | None) -> int:
    """Write the named sandboxes, or all of them, as the JSON that containerd stores."""
    from registry.cli.containerd import documents  # noqa: PLC0415 - the help does without

    if status == documents.STDIN:
        message = "- stands for stdout, where the sandboxes go"
        raise click.BadParameter(message, param_hint="'--status'")
    with options.open_to_show(db) as store:
        if status is not None and _is_of(store.path, os.path.realpath(status)):
            message = f"{status!r} is the registry, or a file of it"
            raise click.BadParameter(message, param_hint="'--status'")
        command = f"{options.command(db)} export"
        found = [lookup.find_by_id(store, id, f"export sandbox {id!r}", command) for id in ids]
        sandboxes = {each.id: each for each in found or store.list(include_unknown=True)}.values()
        failed: list[str] = []
        if status is not None:
            try:
                _write_statuses(status, sandboxes, failed)
            except OSError as error:
                reraise_interrupt(error)
                return complain(f"write statuses {status!r}: {error.strerror}", UNAVAILABLE)
    lines = _readable(lambda each: each.metadata.marshal_json() + b"\n", sandboxes, failed)
    with Progress("export", shown=not sys.stdout.isatty()) as progress:
        for number, line in enumerate(lines, 1):
            write_bytes(line)
            progress(number, len(sandboxes))
    return complain_all(failed)


def _write_statuses(path: str, sandboxes: Iterable[Sandbox], failed: list[str]) -> None:
    """Write the statuses of *sandboxes*, with their extensions, to a file of mode 0600.

    Args:
        path: of the file; one that exists keeps its mode.
        sandboxes: of a store that is open.
        failed: gets the reasons for which a status is left out, or the file cannot be imported.
    """
    from registry.cli.containerd import import_export  # noqa: PLC0415 - the help does without

    size = 0
    with open(path, "wb", opener=_open_private) as file:
        for line in _readable(import_export.status_line, sandboxes, failed):
            size += file.write(line.encode("utf-8", "backslashreplace"))
    if size > import_export.STATUSES_MAX:
        failed.append(
            f"write statuses {path!r}: the file has {size} bytes, and import takes at most "
            f"{import_export.STATUSES_MAX}; export fewer sandboxes at a time"
        )


def _open_private(path: str, flags: int) -> int:
    """Return a descriptor of the file at *path*, which is created with mode 0600 if missing."""
    try:
        fd = os.open(path, flags | os.O_EXCL, 0o600)
    except FileExistsError as error:
        reraise_interrupt(error)
        return os.open(path, flags, 0o600)
    os.fchmod(fd, 0o600)  # the umask may have taken more
    return fd


def _is_of(registry: str, path: str) -> bool:
    """Return whether *path* is the registry, or one of the files beside it."""
    return path == registry or path.startswith(f"{registry}-")


def _readable(
    fn: Callable[[Sandbox], T], sandboxes: Iterable[Sandbox], failed: list[str]
) -> Iterator[T]:
    """Yield *fn* of each sandbox, and append to *failed* why it is missing for the others."""
    for sandbox in sandboxes:
        try:
            yield fn(sandbox)
        except MetadataError as error:
            failed.append(str(error))
