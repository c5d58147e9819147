"""The verb `watch`: transitions, as they are committed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Final

import click

from registry.cli import complete, lookup, options
from registry.cli.failures import FINE, FOUND, complain
from registry.cli.output.cells import COLUMN_MAX, GAP, cut, padded, width
from registry.cli.output.formats import show
from registry.cli.output.streams import is_terminal, note, require_reader, write
from registry.cli.output.values import WHOLE, clock_time, shown
from registry.cli.output.views import PEOPLE, Format
from registry.cli.verbs.transitions import VIEW as HISTORY
from registry.cli.verbs.transitions import row_of
from registry.errors import MetadataError
from registry.store import Store
from registry.tables.rows import Transition
from registry.tables.version import BLOCK

LOOK: Final = 1.0
"""Seconds after which an idle watch finds out whether the reader of its output is still there."""
WIDTHS: Final = {
    "table": (4, 9, 12, 8, 8, 8, 19),
    "wide": (4, 30, 12, 8, 8, 12, 8, 7, 16, 19, 0),
}
"""Widths of the columns at first: a line is written before the next one is known."""
ID: Final = 12
"""Characters of an id in the table, as crictl has them."""
VIEW: Final = replace(HISTORY, paged=False, nothing="")


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
    """Show each change of state when any process commits it, until Ctrl-C.

    Times are in UTC. After a restore, SEQ goes on with a multiple of 1000000000, plus 1. The
    formats json and yaml have one document after the other, jsonl has one on each line.
    """
    code, table = FINE, _Table(form) if form.kind in PEOPLE else None
    with options.open_to_show(db) as store:
        id = None
        if sandbox is not None:
            id = lookup.find_in_history(store, sandbox, f"watch sandbox {sandbox!r}")
        if form.headers and table is not None:
            table.write(VIEW.columns(form.kind))
        for each in _transitions(store, after):
            if isinstance(each, MetadataError):
                code = complain(str(each), FOUND)
                continue
            if table is not None and each.seq > BLOCK and each.seq % BLOCK == 1:
                note(f"after a restore, the history goes on with seq {each.seq}")
            if id not in {None, each.sandbox_id}:
                continue
            if table is None:
                show([row_of(each)], VIEW, replace(form, headers=False), whole=row_of(each))
            else:
                table.write_row(row_of(each))
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


class _Table:
    """A table that is written line by line: its columns get wider when a cell has to."""

    def __init__(self, form: Format) -> None:
        """Begin without a line."""
        self._form, self._sizes = form, list(WIDTHS[form.kind])
        self._cuts = form.kind == "table" and form.trunc and is_terminal()

    def write_row(self, row: Mapping[str, object]) -> None:
        """Write the transition *row*."""
        fields = dict(row)
        if self._form.kind == "table":
            fields["at"] = clock_time(int(str(row["at"])), time.time_ns())
            fields["sandbox_id"] = str(row["sandbox_id"])[: ID if self._form.trunc else None]
        self.write(shown(name, fields[name]) for name in VIEW.columns(self._form.kind).values())

    def write(self, cells: Iterable[str]) -> None:
        """Write *cells* as a line."""
        found = list(cells)
        for n, cell in enumerate(found[:-1]):
            self._sizes[n] = max(self._sizes[n], min(width(cell), COLUMN_MAX))
        sizes = self._sizes
        if self._cuts:
            sizes = _fitted(sizes)
            found = [
                cut(cell, size, middle=n < len(sizes) - 1)
                for n, (cell, size) in enumerate(zip(found, sizes, strict=True))
            ]
        filled = [padded(cell, size) for cell, size in zip(found, sizes, strict=True)]
        write(GAP.join(filled).rstrip() + "\n")


def _fitted(sizes: list[int]) -> list[int]:
    """Return the widths *sizes* of the table, made smaller until they fit the terminal."""
    from registry.cli.output.terminal import LEAST, fit, space_for  # noqa: PLC0415 - not in a pipe

    fields = VIEW.table.values()
    least = [size if name in WHOLE else LEAST for name, size in zip(fields, sizes, strict=True)]
    fitted = list(sizes)
    fit(fitted, space_for(len(sizes)), least)
    return fitted
