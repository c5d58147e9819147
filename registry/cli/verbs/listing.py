"""The verb `list`: sandboxes that match every filter."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

import click

from registry.cli import complete, lookup, options
from registry.cli.failures import complain_all
from registry.cli.moments import Moment
from registry.cli.output.formats import show
from registry.cli.output.streams import is_terminal, note
from registry.cli.output.views import PEOPLE, Format, Records, View
from registry.cli.verbs.summary import FIELDS, labels, row_of, summaries
from registry.model.status import State, short_state
from registry.store import Store
from registry.tables import sql
from registry.tables.rows import Summary, summary_damages

LATEST: Final = "\0"
"""Value of `-l` without a selector."""
VIEW: Final = View(
    FIELDS,
    table={
        "ID": "id",
        "STATE": "state",
        "SINCE": "since",
        "AGE": "created_at",
        "NAMESPACE": "namespace",
        "POD": "pod",
        "REASON": "reason",
    },
    wide={
        "ID": "id",
        "STATE": "state",
        "SINCE": "since",
        "CREATED": "created_at",
        "NAMESPACE": "namespace",
        "POD": "pod",
        "ATTEMPT": "attempt",
        "PID": "pid",
        "IP": "ip",
        "RUNTIME": "runtime_handler",
        "NAME": "name",
        "NETNS": "netns_path",
        "REASON": "reason",
        "MESSAGE": "message",
    },
    name="name",
    cuts=True,
    paged=True,
    nothing="no sandbox matches",
)


def _states(texts: Iterable[str]) -> set[State]:
    names = {text: short_state(text.upper()) for text in texts}
    for text, name in names.items():
        if name not in State.__members__:
            known = ", ".join(State.__members__)
            raise click.BadParameter(f"{text!r} is none of {known}", param_hint="--state")
    return {State[name] for name in names.values()}


def _labels(texts: Iterable[str]) -> dict[str, str]:
    """Return the labels in *texts*; refuse a selector with operators, which would match nothing."""
    found: dict[str, str] = {}
    for text in texts:
        from registry.model.selector import KEY  # noqa: PLC0415 - most lists have no labels

        key, equals, value = text.partition("=")
        if not equals or not re.fullmatch(KEY, key) or value.startswith("=") or "," in value:
            why = "is not KEY=VALUE with a label key of Kubernetes; use --selector for all else"
            raise click.BadParameter(f"{text!r} {why}", param_hint="--label")
        if found.setdefault(key, value) != value:
            raise click.BadParameter(f"{key!r} cannot have two values", param_hint="--label")
    return found


class Filters:
    """Filters of a list, given by options of their own or by `--filter`."""

    EXACT: Final = ("id", "name", "namespace", "pod", "reason")
    """Filters that have one value."""

    def __init__(self, params: dict[str, Any]) -> None:
        """Take the filters from *params*, the options of the verb."""
        self._states = list(params.pop("states"))
        self._labels = list(params.pop("labels"))
        self._selectors = [each for each in params.pop("selectors") if each]
        self._exact = {name: params.pop(name) for name in self.EXACT}
        for text in params.pop("filters"):
            self._add(text)

    def _add(self, text: str) -> None:
        """Add a filter as `KEY=VALUE`."""
        key, equals, value = text.partition("=")
        if key == "label":
            (self._labels if "=" in value else self._selectors).append(value)
        elif key in {"state", "status"}:
            self._states.append(value)
        elif key not in self.EXACT or not equals:
            known = ", ".join(sorted((*self.EXACT, "label", "state")))
            why = f"{text!r} is not KEY=VALUE with a KEY of {known}"
            raise click.BadParameter(why, param_hint="--filter")
        elif self._exact[key] not in {None, value}:
            raise click.BadParameter(f"{key!r} cannot have two values", param_hint="--filter")
        else:
            self._exact[key] = value

    def params(self, *, every: bool) -> dict[str, Any]:
        """Return the parameters of `summaries`; *every*: include UNKNOWN sandboxes."""
        states = _states(self._states)
        return dict(
            self._exact,
            include_unknown=every or State.UNKNOWN in states,
            state=states or None,
            labels=_labels(self._labels),
            selector=",".join(self._selectors) or None,
        )


@click.command(
    "list",
    context_settings={"allow_extra_args": True},  # refused with a hint
    epilog=options.examples(
        "sandbox-registry list --state notready --since 1h",
        "sandbox-registry list -l app=web -o wide",
    ),
)
@click.option("--all", "-a", "every", is_flag=True, help="Include UNKNOWN sandboxes.")
@click.option(
    *("--state", "-s", "states"),
    metavar="STATE",
    multiple=True,
    help="UNKNOWN, READY or NOTREADY; may be repeated.",
    shell_complete=complete.states,
)
@click.option(
    "--namespace",
    metavar="NAME",
    help="Kubernetes namespace of the pod.",
    shell_complete=complete.values("namespace"),
)
@click.option(
    "--pod", metavar="NAME", help="Name of the pod.", shell_complete=complete.values("pod")
)
@click.option(
    "--name", metavar="NAME", help="Name of the sandbox.", shell_complete=complete.values("name")
)
@click.option(
    "--id", metavar="PREFIX", help="Beginning of the id.", shell_complete=complete.values("id")
)
@click.option(
    "--reason",
    metavar="WORD",
    help="Reason of the state, in any case of its letters.",
    shell_complete=complete.values("reason"),
)
@click.option(
    *("--label", "labels"),
    metavar="KEY=VALUE",
    multiple=True,
    help="A label of the pod; may be repeated.",
)
@click.option(
    "--selector",
    metavar="SELECTOR",
    help="A label selector of Kubernetes, such as 'app=web,tier in (a,b),!canary'.",
)
@click.option(
    *("-l", "short"),
    metavar="[SELECTOR]",
    is_flag=False,
    flag_value=LATEST,
    help="Short for --selector; without SELECTOR, for --latest.",
)
@click.option(
    *("--filter", "-f", "filters"),
    metavar="KEY=VALUE",
    multiple=True,
    help="KEY: id, label, name, namespace, pod, reason or state; may be repeated.",
)
@click.option(
    "--since",
    metavar="TIME",
    type=Moment(),
    help="In its present state only since 1h ago, or since 13:05 or 2026-11-27 (UTC).",
)
@click.option("--latest", is_flag=True, help="Only the newest of them.")
@click.option("--oldest-first", is_flag=True, help="Reverse the order.")
@click.option("--watch", "-w", is_flag=True, help="Go on until Ctrl-C; list again on a change.")
@options.output(VIEW, lists=True)
@options.db
def list_sandboxes(
    *,
    db: str,
    form: Format,
    every: bool,
    selector: str | None,
    short: str | None,
    since: int | None,
    latest: bool,
    oldest_first: bool,
    watch: bool,
    **params: Any,
) -> int:
    """List the sandboxes that match every filter, newest first; also `ls` and `ps`."""
    if (ctx := click.get_current_context()).args:
        named = shlex.quote(ctx.args[0])
        hint = f"Did you mean `inspect {named}` or `--pod {named}`?"
        ctx.fail(f"Got unexpected extra argument {ctx.args[0]!r}. {hint}")
    params["selectors"] = [selector, None if short == LATEST else short]
    newest = latest or short == LATEST
    wanted = Filters(params).params(every=every) | {
        "since": since,
        "newest_first": newest or not oldest_first,
        "limit": 1 if newest else None if form.sort else form.limit,
    }
    fields = tuple(each for each in form.fields(VIEW) if each != "labels")
    with options.open_to_show(db) as store:
        if watch:
            from registry.cli.verbs import live  # noqa: PLC0415 - only here

            live.follow(store, lambda: _read(store, fields, form, wanted)[:2], VIEW, form)
        rows, ids, damages = _read(store, fields, form, wanted)
        hidden = 0 if every else _count_hidden(store, form, wanted)
        found = rows.rows if isinstance(rows, Records) else rows
        none = "" if found else _nothing(store, wanted)
    code = complain_all(damages)
    show(rows, replace(VIEW, nothing=none), form, ids=ids)
    if hidden:
        are = "sandbox is" if hidden == 1 else "sandboxes are"
        them = "it" if hidden == 1 else "them"
        note(f"{hidden} UNKNOWN {are} not shown; --all shows {them}", folds=True)
    return code


def _nothing(store: Store, wanted: dict[str, Any]) -> str:
    """Return what is said of a list without a sandbox.

    Of a damaged registry nothing is known of the sandboxes that cannot be read.
    """
    if options.is_damaged():
        return ""
    found = VIEW.nothing
    for what, query in (("namespace", sql.NAMESPACES), ("reason", sql.REASONS)):
        found = lookup.nothing(store, found, query, what, wanted[what])
    return found


def _count_hidden(store: Store, form: Format, wanted: dict[str, Any]) -> int:
    """Return the number of UNKNOWN sandboxes that match all else; 0 unless a terminal tells it."""
    if wanted["state"] or form.quiet or form.kind not in PEOPLE:
        return 0
    if not is_terminal() or options.is_damaged():
        return 0
    unknown = dict(wanted, include_unknown=True, state=State.UNKNOWN, limit=None)
    return len(summaries(store, ("id",), **unknown))


def _read(
    store: Store, fields: tuple[str, ...], form: Format, wanted: dict[str, Any]
) -> tuple[Records | list[dict[str, Any]], Iterable[str], list[str]]:
    """Return the rows, the ids that a short id must not begin, and why a row is damaged."""
    found = summaries(store, fields, **wanted)
    ids = lookup.ids(store) if form.shortens else ()
    rows: Records | list[dict[str, Any]] = Records(fields, found)
    if fields == Summary._fields:
        of_pods = labels(store)
        rows = [row_of(each) | {"labels": of_pods.get(each[0], {})} for each in found]
    return rows, ids, list(map(str, summary_damages(fields, found)))
