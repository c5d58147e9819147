"""The verb `history`: transitions, except damaged ones."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Final

import click

from registry.cli import options
from registry.cli.failures import complain_all
from registry.cli.output.formats import write_all
from registry.errors import MetadataError, NotFoundError
from registry.store import Store
from registry.tables.rows import Transition

PAGE: Final = 1000
"""Transitions per read of a history that has damaged ones."""
COLUMNS: Final = (
    *("seq", "at", "sandbox_id", "from_state", "to_state"),
    *("pid", "reason", "actor", "message"),
)
"""Fields that the table shows."""


@click.command()
@click.argument(
    "id", metavar="[ID]", required=False, help="Full id; or a unique prefix, unless deleted."
)
@options.db
@click.option(
    "--after",
    metavar="SEQ",
    type=options.Count(),
    default=0,
    show_default=True,
    help="Only transitions with a greater seq.",
)
@click.option(
    "--limit", metavar="N", type=options.Count(), help="At most N transitions, the oldest."
)
@options.as_json
def history(*, id: str | None, db: str, after: int, limit: int | None, as_json: bool) -> int:
    """Show every change of state, oldest first, of all sandboxes or of one, even if deleted."""
    failed: list[str] = []
    with options.open_to_show(db) as store:
        full = None if id is None else _full_id(store, id)
        most = sys.maxsize if limit is None else limit
        transitions = _readable_history(store, full, after, most, failed)
    found = [asdict(each) | _states(each) for each in transitions]
    code = complain_all(failed)
    write_all(found, COLUMNS, as_json=as_json)
    return code


def _states(transition: Transition) -> dict[str, str | None]:
    """Return both states of *transition* as text."""
    states = {"from_state": transition.from_state, "to_state": transition.to_state}
    return {name: None if state is None else str(state) for name, state in states.items()}


def _readable_history(
    store: Store, id: str | None, after: int, limit: int, failed: list[str]
) -> list[Transition]:
    """Return the readable transitions, and append to *failed* why each of the others is not."""
    try:
        return store.history(id, after=after, limit=limit)
    except MetadataError:  # at least one transition is damaged: find out which, step by step
        return list(_history_by_pages(store, id, after, limit, failed))


def _history_by_pages(
    store: Store, id: str | None, after: int, left: int, failed: list[str]
) -> Iterator[Transition]:
    """Yield page after page; of a page with a damaged transition one after the other."""
    page = PAGE
    while left > 0:
        size, before = min(page, left), after
        try:
            found = store.history(id, after=after, limit=size)
        except MetadataError as error:
            if size > 1:
                page = 1
                continue
            failed.append(str(error))
            after, page = error.seq, PAGE
        else:
            yield from found
            if len(found) < size:
                return
            after = found[-1].seq
        left -= size
        if after <= before:  # the next page would be this one again
            failed.append(
                f"read history: the transitions after seq {before} are not in order, and the rest "
                "is not shown; the registry is damaged"
            )
            return


def _full_id(store: Store, id: str) -> str:
    """Return *id* if the history has it, else the id of the sandbox that it is a prefix of."""
    with contextlib.suppress(MetadataError):  # the history has it, with damage
        if not store.history(id, limit=1):
            return _id_of_prefix(store, id)
    return id


def _id_of_prefix(store: Store, id: str) -> str:
    doing = f"read history of sandbox {id!r}"
    try:
        return options.find(store, id, doing).id
    except NotFoundError as error:
        message = f"{doing}: there is no such sandbox, and no history of one is kept"
        raise NotFoundError(message, id=id) from error
