"""A list that goes on: drawn again on a terminal, or continued line by line in a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import Final, NoReturn

from registry.cli.output.formats import drawn, show
from registry.cli.output.rows import arranged
from registry.cli.output.streams import is_terminal, require_reader, write
from registry.cli.output.views import PEOPLE, Format, Records, Row, View
from registry.cli.signals import exit_by_signals
from registry.errors import MetadataError
from registry.store import Store

LOOK: Final = 1.0
"""Seconds after which a list is read again though there was no transition: ages go on, and a write
that keeps the state makes none."""
DELETED: Final = "DELETED"
"""Shown as the state of a sandbox that is no longer in the list."""

Read = Callable[[], tuple[Records | Sequence[Row], Iterable[str]]]
"""Returns the rows of the list now, and the ids that a short id must not begin."""


def follow(store: Store, read: Read, view: View, form: Format) -> NoReturn:
    """Show the list that *read* returns, again and again, until Ctrl-C or the end of the reader.

    Raises:
        KeyboardInterrupt: the operator has ended it.
        BrokenPipeError: the pipe at stdout has no reader.
    """
    if is_terminal() and form.kind in PEOPLE and not form.quiet:
        _redraw(store, read, view, form)
    _go_on(store, read, view, form)


def _redraw(store: Store, read: Read, view: View, form: Format) -> NoReturn:
    """Draw the list on the screen of the terminal, which shows its former text afterwards."""
    from rich.console import Console  # noqa: PLC0415 - only on a terminal
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    exit_by_signals()  # or the terminal would keep the other screen, and no cursor
    console = Console(highlight=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for _ in _moments(store):
            rows, ids = _read(read, form)
            live.update(Text.from_ansi(drawn(rows, view, form, ids), no_wrap=True), refresh=True)
    raise AssertionError  # pragma: no cover - the loop has no end


def _go_on(store: Store, read: Read, view: View, form: Format) -> NoReturn:
    """Write the list, and afterwards each sandbox again that has changed."""
    known: dict[str, Row] | None = None
    for _ in _moments(store):
        require_reader()
        rows, ids = _read(read, form)
        now = {row[view.id]: row for row in rows}
        if known is None:
            _write(list(now.values()), list(now.values()), view, form, ids)
        else:
            changed = [row for id, row in now.items() if known.get(id) != row]
            changed += [{**row, "state": DELETED} for id, row in known.items() if id not in now]
            _write(changed, list(now.values()), view, replace(form, headers=False), ids)
        known = now
    raise AssertionError  # pragma: no cover - the loop has no end


def _write(
    changed: Sequence[Row], rows: Sequence[Row], view: View, form: Format, ids: Iterable[str]
) -> None:
    """Write the rows *changed*; the columns are as wide as those of all *rows* need them."""
    if form.kind not in PEOPLE or form.quiet:
        for row in changed:
            show([row], view, form, whole=row)
        return
    if changed or form.headers:
        lines = drawn([*rows, *changed], view, form, ids).splitlines(keepends=True)
        titles = lines[:1] if form.headers else []
        write("".join([*titles, *lines[len(lines) - len(changed) :]]))


def _read(read: Read, form: Format) -> tuple[Sequence[Row], Iterable[str]]:
    """Return what *read* returns, as objects that are sorted and limited as *form* asks for."""
    rows, ids = read()
    if isinstance(rows, Records):
        rows = [dict(zip(rows.fields, row, strict=True)) for row in rows.rows]
    return arranged(rows, form), ids


def _moments(store: Store) -> Iterator[None]:
    """Yield at first, after each transition, and after `LOOK` seconds without one."""
    while True:
        with closing(store.watch()) as newest:
            after = newest.after
        yield
        with closing(store.watch(after=after, timeout=LOOK)) as found, suppress(MetadataError):
            next(found, None)
