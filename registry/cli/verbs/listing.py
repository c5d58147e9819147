"""The verb `list`: sandboxes that match every filter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import click

from registry.cli import options
from registry.cli.failures import complain_all
from registry.cli.output.formats import write_all
from registry.cli.verbs.summary import pod_of, summary, unreadable
from registry.model.status import State

COLUMNS: Final = ("id", "state", "namespace", "pod", "pid", "ip", "created_at", "reason")
"""Fields that the table of `list` shows."""


def _parse_states(_: click.Context, __: click.Parameter, texts: Sequence[str]) -> set[State]:
    names = {text: text.upper().removeprefix("SANDBOX_") for text in texts}
    for text, name in names.items():
        if name not in State.__members__:
            raise click.BadParameter(f"{text!r} is none of {', '.join(State.__members__)}")
    return {State[name] for name in names.values()}


def _parse_labels(_: click.Context, __: click.Parameter, texts: Sequence[str]) -> dict[str, str]:
    """Return the labels in *texts*; refuse a selector with operators, which would match nothing."""
    labels: dict[str, str] = {}
    if texts:
        from registry.model.selector import KEY  # noqa: PLC0415 - most lists have no labels
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not re.fullmatch(KEY, key) or value.startswith("=") or "," in value:
            why = "is not KEY=VALUE with a label key of Kubernetes; use --selector for all else"
            raise click.BadParameter(f"{text!r} {why}")
        if labels.setdefault(key, value) != value:
            raise click.BadParameter(f"{key!r} cannot have two values")
    return labels


@click.command("list")
@options.db
@click.option("--all", "every", is_flag=True, help="Include UNKNOWN sandboxes.")
@click.option(
    *("--state", "states"),
    metavar="STATE",
    multiple=True,
    callback=_parse_states,
    help="UNKNOWN, READY or NOTREADY; may be repeated.",
)
@click.option(
    *("--selector", "-l"),
    metavar="SELECTOR",
    help="Label selector of Kubernetes: 'app=web,tier!=db,env in (a,b),!canary'.",
)
@click.option(
    *("--label", "labels"),
    metavar="KEY=VALUE",
    multiple=True,
    callback=_parse_labels,
    help="Label of the pod; may be repeated.",
)
@click.option("--pod", metavar="NAME", help="Name of the pod.")
@click.option("--namespace", metavar="NAME", help="Kubernetes namespace of the pod.")
@click.option("--name", metavar="NAME", help="Name of the sandbox.")
@click.option("--id", metavar="PREFIX", help="Beginning of the id.")
@click.option("--newest-first", is_flag=True, help="List the newest sandbox first.")
@click.option(
    "--limit",
    metavar="N",
    type=options.Count(1),
    help="Maximum number of sandboxes, the first in the order.",
)
@options.as_json
def list_sandboxes(
    *,
    db: str,
    every: bool,
    states: set[State],
    as_json: bool,
    **filters: Any,
) -> int:
    """List the sandboxes that match every filter, oldest first."""
    with options.open_to_show(db) as store:
        sandboxes = store.list(
            include_unknown=every or State.UNKNOWN in states, state=states or None, **filters
        )
    code = complain_all(error for each in sandboxes for error in unreadable(each))
    write_all([summary(each, pod_of(each)) for each in sandboxes], COLUMNS, as_json=as_json)
    return code
