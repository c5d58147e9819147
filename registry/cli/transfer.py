"""The verbs `import` and `export`: sandboxes from and to containerd's JSON."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

import click

from registry.cli import options
from registry.cli.failures import FINE, FOUND, UNAVAILABLE, complain, complain_all
from registry.cli.output import table, write, write_bytes, write_json
from registry.errors import MetadataError, NotFoundError
from registry.handles.sandbox import Sandbox
from registry.sync.interrupts import reraise_interrupt

if TYPE_CHECKING:
    from registry.cli.import_export import Outcome

T = TypeVar("T")


@click.command("import")
@click.argument(
    *("files",),
    metavar="FILE...",
    nargs=-1,
    required=True,
    help="JSON documents, each on a line or several; - is stdin.",
)
@options.db
@click.option(
    "--status", metavar="FILE", help="Statuses and extensions of the sandboxes, as JSON by id."
)
@click.option("--keep-going", is_flag=True, help="Import the others when some are refused.")
@click.option("--create", is_flag=True, help="Create the registry if there is none.")
@options.timeout
@options.as_json
def import_sandboxes(
    *,
    files: Sequence[str],
    db: str,
    status: str | None,
    keep_going: bool,
    create: bool,
    timeout: float,
    as_json: bool,
) -> int:
    """Import sandboxes from the JSON that containerd stores, all or none; this writes.

    Without a status they are UNKNOWN, and UNVERIFIED to a reconcile.
    """
    from registry.cli import documents, import_export  # noqa: PLC0415 - the help does without

    if [*files, status].count(documents.STDIN) > 1:
        message = "- is given twice, and stdin can be read only once"
        raise click.BadParameter(message, param_hint="FILE")
    statuses = {} if status is None else import_export.read_statuses(status)
    given = (document for path in files for document in documents.read(path))
    candidates = import_export.prepare(given, statuses)
    try:
        store = options.open_to_write(db, timeout, create=create)
    except NotFoundError as error:
        if create:
            raise
        message = str(error)  # which may end with a question
        joined = f"{message} if so," if message.endswith("?") else f"{message};"
        return complain(f"{joined} --create makes a registry", UNAVAILABLE)
    with store:
        outcomes = import_export.load(store, candidates, keep_going=keep_going)
    unused = len(statuses.keys() - {outcome.id for outcome in outcomes})
    _write_outcomes(outcomes, unused, len(statuses), as_json=as_json)
    return _code_of(outcomes, keep_going=keep_going)


def _code_of(outcomes: Sequence[Outcome], *, keep_going: bool) -> int:
    """Return the exit code of an import; report on stderr how many documents were refused."""
    refused = sum(bool(outcome.error) for outcome in outcomes)
    if not refused:
        return FINE
    left = f"{sum(outcome.imported for outcome in outcomes)} imported"
    if refused < len(outcomes) and not keep_going:
        left += "; --keep-going imports the others"
    return complain(f"import: {refused} of {len(outcomes)} refused, {left}", FOUND)


def _write_outcomes(
    outcomes: Sequence[Outcome], unused: int, statuses: int, *, as_json: bool
) -> None:
    """Write the outcome of each document.

    Args:
        outcomes: one for each document, in order.
        unused: number of statuses that belong to no document.
        statuses: number of all statuses.
        as_json: print JSON instead of a table.
    """
    found = [asdict(each) | {"state": each.state and str(each.state)} for each in outcomes]
    imported = sum(outcome.imported for outcome in outcomes)
    if as_json:
        refused = sum(bool(outcome.error) for outcome in outcomes)
        counts = {"imported": imported, "refused": refused, "unused_statuses": unused}
        write_json({"sandboxes": found} | counts)
        return
    columns = ("source", "id", "state", "imported", "holder", "error")
    write(table(found, columns) if found else "")
    write(f"imported {imported} of {len(found)}\n")
    if unused:
        write(f"{unused} of {statuses} statuses belong to no document\n")


@click.command("export")
@click.argument("ids", metavar="[ID...]", nargs=-1, help="Full ids, or unique prefixes.")
@options.db
@click.option(
    "--status", metavar="FILE", help="Write their statuses and extensions to FILE, for import."
)
def export_sandboxes(*, ids: Sequence[str], db: str, status: str | None) -> int:
    """Write the named sandboxes, or all of them, as the JSON that containerd stores."""
    from registry.cli import documents  # noqa: PLC0415 - the help does without

    if status == documents.STDIN:
        message = "- stands for stdout, where the sandboxes go"
        raise click.BadParameter(message, param_hint="'--status'")
    with options.open_to_show(db) as store:
        if status is not None and _is_of(store.path, os.path.realpath(status)):
            message = f"{status!r} is the registry, or a file of it"
            raise click.BadParameter(message, param_hint="'--status'")
        found = [options.find(store, id, f"export sandbox {id!r}") for id in ids]
        sandboxes = {each.id: each for each in found or store.list(include_unknown=True)}.values()
        failed: list[str] = []
        if status is not None:
            try:
                _write_statuses(status, sandboxes, failed)
            except OSError as error:
                reraise_interrupt(error)
                return complain(f"write statuses {status!r}: {error.strerror}", UNAVAILABLE)
    for line in _readable(lambda each: each.metadata.marshal_json() + b"\n", sandboxes, failed):
        write_bytes(line)
    return complain_all(failed)


def _write_statuses(path: str, sandboxes: Iterable[Sandbox], failed: list[str]) -> None:
    """Write the statuses of *sandboxes*, with their extensions, to a file of mode 0600.

    Args:
        path: of the file; one that exists keeps its mode.
        sandboxes: of a store that is open.
        failed: gets the reasons for which a status is left out, or the file cannot be imported.
    """
    from registry.cli import import_export  # noqa: PLC0415 - the help does without

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
