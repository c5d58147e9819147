"""The verb `watch`: transitions, as they are committed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any, Final

import click

from registry.cli import complete, lookup, options
from registry.cli.failures import FINE, FOUND, complain
from registry.cli.output.cells import GAP, padded
from registry.cli.output.formats import PEOPLE, Format, View, show
from registry.cli.output.streams import require_reader, write
from registry.cli.output.values import shown, timestamp
from registry.cli.verbs.history import VIEW as HISTORY
from registry.errors import MetadataError
from registry.store import Store
from registry.tables.rows import Transition

LOOK: Final = 1.0
"""Seconds after which an idle watch finds out whether the reader of its output is still there."""
WIDTHS: Final = {
    "table": (4, 9, 12, 8, 8, 8, 0),
    "wide": (4, 30, 12, 12, 8, 8, 8, 7, 16, 19, 0),
}
"""Widths of the columns, which are fixed: a line is written before the next one is known."""
ID: Final = 12
"""Characters of an id in the table, as crictl has them."""
CLOCK: Final = slice(11, 19)
"""Part of a timestamp that is the time of the day."""
VIEW: Final = View(
    tuple(Transition.__dataclass_fields__),
    table={
        "SEQ": "seq",
        "TIME": "at",
        "ID": "sandbox_id",
        "FROM": "from_state",
        "TO": "to_state",
        "POD": "pod",
        "REASON": "reason",
    },
    wide=HISTORY.wide,
    name="name",
    id="sandbox_id",
)


@click.command(
    epilog=options.examples(
        "sandbox-registry watch",
        "sandbox-registry watch shop/web -o jsonl | jq -r .reason",
    )
)
@click.argument(
    "sandbox",
    metavar="[SANDBOX]",
    required=False,
    help=options.NAMES,
    shell_complete=complete.sandboxes,
)
@click.option(
    "--after",
    metavar="SEQ",
    type=options.Count(),
    help="Begin after this transition; 0: with the oldest. Default: from now on.",
)
@options.output(VIEW)
@options.db
def watch(*, sandbox: str | None, db: str, after: int | None, form: Format) -> int:
    """Show each change of state when any process commits it, until Ctrl-C."""
    code = FINE
    with options.open_to_show(db) as store:
        id = None
        if sandbox is not None:
            id = lookup.find_in_history(store, sandbox, f"watch sandbox {sandbox!r}")
        if form.headers and form.kind in PEOPLE:
            write(_line(VIEW.columns(form.kind), form.kind))
        for each in _transitions(store, after):
            if isinstance(each, MetadataError):
                code = complain(str(each), FOUND)
            elif id in {None, each.sandbox_id}:
                _write(each, form)
    return code


def _transitions(store: Store, after: int | None) -> Iterator[Transition | MetadataError]:
    """Yield each transition, or why it cannot be read; end when stdout has no reader any more.

    Raises:
        BrokenPipeError: stdout has none.
    """
    while True:
        with closing(store.watch(after=after, timeout=LOOK)) as found:
            after = found.after
            while True:
                try:
                    yield next(found)
                except StopIteration:
                    break
                except MetadataError as error:
                    yield error
            after = found.after
        require_reader()


def _write(each: Transition, form: Format) -> None:
    """Write *each* as a line of the table, or in the format that *form* asks for."""
    fields: dict[str, Any] = asdict(each)
    for name in ("from_state", "to_state"):
        fields[name] = None if fields[name] is None else str(fields[name])
    if form.kind not in PEOPLE:
        show([fields], VIEW, replace(form, headers=False), whole=fields)
        return
    if form.kind == "table":
        clock = f"{timestamp(each.at)[CLOCK]}Z"
        fields |= {"at": clock, "sandbox_id": each.sandbox_id[: ID if form.trunc else None]}
    columns = VIEW.columns(form.kind).values()
    write(_line((shown(name, fields[name]) for name in columns), form.kind))


def _line(cells: Iterable[str], kind: str) -> str:
    filled = (padded(cell, size) for cell, size in zip(cells, WIDTHS[kind], strict=True))
    return GAP.join(filled).rstrip() + "\n"
