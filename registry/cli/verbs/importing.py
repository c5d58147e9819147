"""The verb `import`: sandboxes from the JSON that containerd stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

from registry.cli import complete, options
from registry.cli.failures import FINE, FOUND, UNAVAILABLE, complain
from registry.cli.output.formats import show
from registry.cli.output.progress import Progress
from registry.cli.output.views import Format, View
from registry.errors import NotFoundError

if TYPE_CHECKING:
    from registry.cli.containerd.import_export import Outcome


VIEW: Final = View(
    ("source", "id", "name", "state", "imported", "holder", "error"),
    table={
        "SOURCE": "source",
        "ID": "id",
        "STATE": "state",
        "IMPORTED": "imported",
        "HOLDER": "holder",
        "ERROR": "error",
    },
    name="name",
    folds=True,
)


@click.command(
    "import",
    epilog=options.examples(
        "sandbox-registry import sandboxes.jsonl --status statuses.jsonl",
        "sandbox-registry export | sandbox-registry --db b.db import --create -",
    ),
)
@click.argument(
    *("files",),
    metavar="FILE...",
    nargs=-1,
    required=True,
    help="JSON documents, each on a line or several; - is stdin.",
    shell_complete=complete.files,
)
@options.db
@click.option(
    "--status",
    metavar="FILE",
    help="Statuses and extensions of the sandboxes, as JSON by id.",
    shell_complete=complete.files,
)
@click.option("--keep-going", is_flag=True, help="Import the others when some are refused.")
@click.option("--create", is_flag=True, help="Create the registry if there is none.")
@options.timeout
@options.output(VIEW)
def import_sandboxes(
    *,
    files: Sequence[str],
    db: str,
    status: str | None,
    keep_going: bool,
    create: bool,
    timeout: float,
    form: Format,
) -> int:
    """Import sandboxes from the JSON that containerd stores, all or none; this writes.

    Without a status they are UNKNOWN, and UNVERIFIED to a reconcile.
    """
    from registry.cli.containerd import documents, import_export  # noqa: PLC0415 - the help does without

    if [*files, status].count(documents.STDIN) > 1:
        message = "- is given twice, and stdin can be read only once"
        raise click.BadParameter(message, param_hint="FILE")
    statuses = {} if status is None else import_export.read_statuses(status)
    given = (document for path in files for document in documents.read(path))
    with Progress("read documents"):
        candidates = import_export.prepare(given, statuses)
    try:
        store = options.open_to_write(db, timeout, create=create)
    except NotFoundError as error:
        if create:
            raise
        message = str(error)  # which may end with a question
        joined = f"{message} if so," if message.endswith("?") else f"{message};"
        return complain(f"{joined} --create makes a registry", UNAVAILABLE)
    with store, Progress("import") as progress:
        outcomes = import_export.load(store, candidates, keep_going=keep_going, progress=progress)
    unused = len(statuses.keys() - {outcome.id for outcome in outcomes})
    _show(outcomes, unused, len(statuses), form)
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


def _show(outcomes: Sequence[Outcome], unused: int, statuses: int, form: Format) -> None:
    """Print the outcome of each document.

    Args:
        outcomes: one for each document, in order.
        unused: number of statuses that belong to no document.
        statuses: number of all statuses.
        form: the format.
    """
    found = [
        asdict(each) | {"state": None if each.state is None else str(each.state)}
        for each in outcomes
    ]
    imported = sum(outcome.imported for outcome in outcomes)
    refused = sum(bool(outcome.error) for outcome in outcomes)
    counts = {"imported": imported, "refused": refused, "unused_statuses": unused}
    after = f"imported {imported} of {len(found)}\n"
    if unused:
        after += f"{unused} of {statuses} statuses belong to no document\n"
    text = None if found else ""
    show(found, VIEW, form, whole={"sandboxes": found} | counts, text=text, after=after)
