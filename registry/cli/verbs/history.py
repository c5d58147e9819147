"""The verb `history`: transitions, except damaged ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from registry.cli import complete, lookup, options
from registry.cli.failures import complain_all
from registry.cli.moments import Moment
from registry.cli.output.formats import show
from registry.cli.output.views import Format
from registry.cli.verbs.transitions import VIEW, row_of
from registry.errors import MetadataError
from registry.store import Store, session_of
from registry.tables import queries, sql
from registry.tables.rows import Transition


@click.command(
    epilog=options.examples(
        "sandbox-registry history --since 13:05 --until 13:30",
        "sandbox-registry history shop/web -o wide",
    ),
)
@options.past_sandbox(
    metavar="[SANDBOX]",
    required=False,
    help="Id or unique prefix, name, NAMESPACE/POD, or a unique pod; also a deleted one.",
)
@click.option(
    "--since",
    metavar="TIME",
    type=Moment(),
    is_eager=True,  # before --until
    help="Only since 1h ago, or since 13:05 or 2026-11-27T09:12:03Z (UTC).",
)
@click.option(
    "--until", metavar="TIME", type=Moment(), help="Only before TIME, which is as for --since."
)
@click.option(
    "--reason",
    metavar="WORD",
    help="Only with this reason, in any case of its letters.",
    shell_complete=complete.values("reason", "past reason"),
)
@click.option(
    "--after",
    metavar="SEQ",
    type=options.Count(),
    default=0,
    show_default=True,
    help="Only transitions with a greater seq.",
)
@click.option("--oldest-first", is_flag=True, help="Reverse the order.")
@options.output(VIEW, lists=True)
@options.db
def history(
    *,
    sandbox: str | None,
    db: str,
    form: Format,
    since: int | None,
    until: int | None,
    reason: str | None,
    after: int,
    oldest_first: bool,
) -> int:
    """Show every change of state, newest first, of all sandboxes or of one, even if deleted.

    Times are in UTC. After a restore, SEQ goes on with a multiple of 1000000000, plus 1.
    """
    filters = {"since": since, "until": until, "reason": reason}
    params = {"after": after, **{name: each for name, each in filters.items() if each is not None}}
    doing = "read history" if sandbox is None else f"read history of sandbox {sandbox!r}"
    if form.limit is not None and not form.sort:
        params["limit"] = form.limit
    with options.open_to_show(db) as store:
        if sandbox is not None:
            params["id"] = lookup.find_in_history(store, sandbox, doing)
        found, failed = transitions(store, params, doing, oldest_first=oldest_first)
        ids = lookup.ids(store) if form.shortens else ()
        none = ""
        if not found and not options.is_damaged():
            none = lookup.nothing(store, VIEW.nothing, sql.PAST_REASONS, "reason", reason)
    code = complain_all(failed)
    show(list(map(row_of, found)), replace(VIEW, nothing=none), form, ids=ids)
    return code


def transitions(
    store: Store, params: dict[str, Any], doing: str, *, oldest_first: bool
) -> tuple[list[Transition], list[str]]:
    """Return the readable transitions, and why each of the others is not.

    Args:
        store: of the history.
        params: `after`, and any of `id`, `since`, `until`, `reason` and `limit`.
        doing: operation and object, for messages.
        oldest_first: whether the order is reversed.
    """
    is_damaged = options.is_damaged()
    limit = params.pop("limit", None) if is_damaged else None  # read from one end, then the other
    names = frozenset(params) - {"after"}
    query = queries.history(names, newest_first=not (oldest_first or is_damaged))
    rows = session_of(store).history(query, params, doing)
    if is_damaged:
        rows = (rows if oldest_first else rows[::-1])[:limit]
    found, failed = list[Transition](), list[str]()
    for row in rows:
        try:
            found.append(Transition.load(row))
        except MetadataError as error:
            failed.append(str(error))
    return found, failed
