"""The verb `fleet`: the registries of many nodes in one PostgreSQL database."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from registry.cli import options
from registry.cli.failures import FINE, FOUND, UNAVAILABLE, complain
from registry.cli.moments import Moment
from registry.cli.output.formats import show
from registry.cli.output.streams import write
from registry.cli.output.views import Format, Row, View
from registry.cli.verbs import listing, transitions
from registry.errors import UnavailableError
from registry.sync.interrupts import reraise_interrupt
from registry.tables import filters

if TYPE_CHECKING:
    from registry.fleet.figures import Figures
    from registry.fleet.postgres import Target

LIMIT: Final = 10_000
"""Rows that are shown unless the caller says more: a fleet has millions."""
NODE_COLUMNS: Final = {
    "NODE": "node",
    "STATUS": "status",
    "READY": "ready",
    "NOTREADY": "not_ready",
    "BEHIND": "behind",
    "SEEN": "seen_ago",
    "SKEW": "skew_ms",
    "KERNEL": "kernel",
    "BREAKS": "breaks",
}
NODES: Final = View(
    (
        *("node", "status", "ready", "not_ready", "seen_ago", "skew_ms", "kernel", "breaks"),
        *("problem", "path", "registry_id", "role", "machine_id", "boot_id", "incarnation"),
        *("cursor", "newest", "every", "behind"),
    ),
    table=NODE_COLUMNS | {"PROBLEM": "problem"},
    wide=NODE_COLUMNS | {"PATH": "path", "REGISTRY_ID": "registry_id", "PROBLEM": "problem"},
    name="node",
    id="node",
    cuts=True,
    paged=True,
    nothing="no registry matches",
)
SANDBOXES: Final = replace(
    listing.VIEW,
    fields=("node", *listing.VIEW.fields, "kernel", "registry_id"),
    table={"NODE": "node", **listing.VIEW.table},
    wide={"NODE": "node", **listing.VIEW.wide, "KERNEL": "kernel"},
)
TRANSITIONS: Final = replace(
    transitions.VIEW,
    fields=("node", *transitions.VIEW.fields, "kernel", "incarnation", "registry_id"),
    table={"NODE": "node", **transitions.VIEW.table},
    wide={"NODE": "node", **transitions.VIEW.wide, "KERNEL": "kernel"},
)
METRICS_EVERY: Final = 5.0
"""Seconds between two writes of the metrics of a follower, at least, if its state is the same."""

log = logging.getLogger("registry")


def _target(_: click.Context, __: click.Parameter, value: str) -> Target:
    from registry.fleet.postgres import target  # noqa: PLC0415 - psycopg is an extra

    return target(value)


to = click.option(
    "--to",
    metavar="URL",
    envvar="SANDBOX_REGISTRY_FLEET",
    show_envvar=True,
    required=True,
    callback=_target,
    help="The database: postgresql://ROLE@HOST/DATABASE, with options of libpq.",
)
of_node = click.option(
    "--node", metavar="NAME", multiple=True, help="Only this node; may be repeated."
)


@click.group(
    "fleet",
    no_args_is_help=False,
    epilog=options.examples(
        "sandbox-registry fleet silent --to postgresql://dashboard@db/fleet",
        "sandbox-registry fleet history --reason NetNSReplaced --since 30d",
    ),
)
def fleet() -> None:
    """See the sandboxes of many nodes in one PostgreSQL database.

    A pusher on each node copies its registry there.
    """


@fleet.command()
@to
def migrate(*, to: Target) -> int:
    """Create or upgrade tables, views, roles and policies, as their owner; this writes."""
    from registry.fleet.maintain import maintain, migrate  # noqa: PLC0415 - the help does without

    revision = migrate(to)
    made = "".join(f"made {name}\n" for name in maintain(to).made)
    write(f"{made}{to.shown} is at revision {revision}\n")
    return FINE


@fleet.command("maintain")
@to
@click.option(
    *("--keep-days", "days"),
    metavar="N",
    type=options.Count(1),
    default=90,
    show_default=True,
    help="Days for which transitions are kept at least.",
)
def maintain_partitions(*, to: Target, days: int) -> int:
    """Make the partitions of the next months and drop old ones, as the owner; this writes."""
    from registry.fleet.maintain import maintain  # noqa: PLC0415 - the help does without

    done = maintain(to, keep_days=days)
    lines = [f"made {name}" for name in done.made] + [f"dropped {name}" for name in done.dropped]
    lines = lines or ["made and dropped no partition"]
    counts = f"moved {done.moved} and deleted {done.deleted} rows of the default partition"
    write("".join(f"{line}\n" for line in (*lines, counts)))
    return FINE


@fleet.command()
@to
@options.db
@click.option("--once/--follow", default=True, help="Push what there is (default), or each commit.")
@click.option(
    "--every",
    metavar="SECONDS",
    type=options.Seconds(),
    default=30.0,
    show_default=True,
    help="Time between two heartbeats, or runs of --once; silent after three.",
)
@click.option("--node", metavar="NAME", default="", help="Name of the node; default: the role.")
@click.option(
    "--machine", metavar="ID", default="", help="Id of the machine; default: of /etc/machine-id."
)
@click.option("--metrics", metavar="FILE", help="Write figures for Prometheus' node_exporter.")
def push(
    *, to: Target, db: str, once: bool, every: float, node: str, machine: str, metrics: str | None
) -> int:
    """Copy the registry, which is only read, to the database; this writes there."""
    from registry.fleet.follow import catch_up, follow  # noqa: PLC0415 - psycopg is an extra
    from registry.fleet.push import Pusher, SourceError  # noqa: PLC0415
    from registry.fleet.source import Source  # noqa: PLC0415

    if not every:
        raise click.BadParameter("--every is 0; a lease must last for some time")
    pusher = Pusher(Source(db), to, node=node, machine_id=machine, every=every)
    try:
        if once:
            done = catch_up(pusher, _shows(metrics, progress=True))
            write(f"pushed {done.transitions} transitions to {to.shown}\n")
            return FINE
        _log_to_stderr()
        follow(pusher, _shows(metrics))
    except SourceError as error:
        return complain(str(error), UNAVAILABLE)
    except UnavailableError as error:
        return complain(f"{error}; it is retried with --follow", UNAVAILABLE)
    finally:
        pusher.close()
    return FINE


def _log_to_stderr() -> None:
    """Write the log of the package to stderr, one record on each line, for journald."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def _shows(path: str | None, *, progress: bool = False) -> Callable[[Figures], None]:
    """Return a function that writes figures to the file *path*, and shows the *progress*."""
    is_shown = progress and sys.stderr is not None and sys.stderr.isatty()
    written_at, written = 0.0, None
    if path is not None:
        _require_writable(path)

    def show(figures: Figures) -> None:
        if is_shown:
            sys.stderr.write(f"\r{figures.transitions} transitions, {figures.behind} to go ")
            sys.stderr.write("\r\x1b[K" if not figures.behind else "")
            sys.stderr.flush()
        nonlocal written_at, written
        # A change is written at once: the next round may be a heartbeat away.
        now = time.monotonic()
        state = (bool(figures.behind), figures.problem, figures.retries)
        if path is None or (state == written and now - written_at < METRICS_EVERY and not progress):
            return
        written_at, written = now, state
        try:
            figures.write(path)
        except OSError as error:  # of a full disk, say: the registry is pushed all the same
            reraise_interrupt(error)
            log.warning(
                "write figures to %r: %s",
                path,
                error.strerror,
                extra={"event": "figures_not_written", "path": path, "error": type(error).__name__},
            )

    return show


def _require_writable(path: str) -> None:
    """Raise unless figures can be written to the file *path*."""
    from registry.fleet.figures import Figures  # noqa: PLC0415 - psycopg is an extra

    try:
        Figures().write(path)
    except OSError as error:
        reraise_interrupt(error)
        why = f"cannot write {path!r}: {error.strerror}; name a file in a directory that exists"
        raise click.BadParameter(why, param_hint="--metrics") from error


@fleet.command("nodes")
@to
@of_node
@options.output(NODES)
def nodes(*, to: Target, node: Sequence[str], form: Format) -> int:
    """Show each registry: whether it is alive, silent, broken or ended, and its clock's skew."""
    from registry.fleet import queries  # noqa: PLC0415 - psycopg is an extra

    if unknown := queries.unknown_nodes(to, node):
        return complain(_unknown(to, unknown), FOUND)
    show(queries.nodes(to, node=list(node) or None), NODES, form)
    return FINE


@fleet.command("silent")
@to
@of_node
@options.output(NODES)
def silent(*, to: Target, node: Sequence[str], form: Format) -> int:
    """Show the nodes that sent no heartbeat three times; exit with 1 if there is one."""
    from registry.fleet import queries  # noqa: PLC0415 - psycopg is an extra

    if unknown := queries.unknown_nodes(to, node):
        return complain(_unknown(to, unknown), FOUND)
    found = queries.nodes(to, node=list(node) or None, status=["silent"])
    show(found, replace(NODES, nothing="no node is silent"), form)
    return FOUND if found else FINE


@fleet.command("list")
@to
@of_node
@click.option("--all", "-a", "every", is_flag=True, help="Include UNKNOWN sandboxes.")
@click.option(
    *("--state", "-s", "states"),
    metavar="STATE",
    multiple=True,
    help="UNKNOWN, READY or NOTREADY; may be repeated.",
)
@click.option("--namespace", metavar="NAME", help="Kubernetes namespace of the pod.")
@click.option("--pod", metavar="NAME", help="Name of the pod.")
@click.option("--name", metavar="NAME", help="Name of the sandbox.")
@click.option("--id", metavar="PREFIX", help="Beginning of the id.")
@click.option("--reason", metavar="WORD", help="Reason of the state, in any case of its letters.")
@click.option(
    *("--label", "labels"),
    metavar="KEY=VALUE",
    multiple=True,
    help="A label of the pod; may be repeated.",
)
@click.option(
    *("--selector", "-l", "selectors"),
    metavar="SELECTOR",
    multiple=True,
    help="A label selector of Kubernetes, such as 'app=web,tier in (a,b),!canary'.",
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
@click.option("--oldest-first", is_flag=True, help="Reverse the order.")
@options.output(SANDBOXES, lists=True)
def list_sandboxes(
    *,
    to: Target,
    node: Sequence[str],
    form: Format,
    every: bool,
    since: int | None,
    oldest_first: bool,
    **params: Any,
) -> int:
    """List the sandboxes of all nodes that match every filter, newest first."""
    from registry.fleet import queries  # noqa: PLC0415 - psycopg is an extra

    if unknown := queries.unknown_nodes(to, node):
        return complain(_unknown(to, unknown), FOUND)

    def find(
        *, include_unknown: bool, state: Any, labels: Any, selector: Any, **exact: Any
    ) -> Sequence[Any]:
        return queries.sandboxes(
            to,
            requirements=filters.requirements("list sandboxes", labels, selector),
            oldest_first=oldest_first,
            limit=_limit(form) + 1,
            node=list(node) or None,
            state=sorted(map(str, state or ())) or None,
            hide_unknown=not include_unknown,
            state_since=since,
            **exact,
        )

    found = find(**listing.Filters(params).params(every=every))
    return _show_some(found, SANDBOXES, form)


@fleet.command("history")
@click.argument(
    "sandbox",
    metavar="[SANDBOX]",
    required=False,
    help="Full id; else all with this prefix of the id, name, NAMESPACE/POD or pod.",
)
@to
@of_node
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
@click.option("--reason", metavar="WORD", help="Only with this reason, in any case of its letters.")
@click.option(
    "--after",
    metavar="SEQ",
    type=options.Count(),
    help="Only transitions with a greater seq, which each node counts by itself.",
)
@click.option("--oldest-first", is_flag=True, help="Reverse the order.")
@options.output(TRANSITIONS, lists=True)
def history(
    *, sandbox: str | None, to: Target, node: Sequence[str], form: Format, **filters: Any
) -> int:
    """Show every change of state, newest first, of all nodes or of a sandbox, even if deleted."""
    from registry.fleet import queries  # noqa: PLC0415 - psycopg is an extra

    if sandbox == "":
        raise click.BadParameter("the id is empty; give an id, a name or NAMESPACE/POD")
    if unknown := queries.unknown_nodes(to, node):
        return complain(_unknown(to, unknown), FOUND)
    limit = _limit(form) + 1
    found = queries.history(to, sandbox, node=list(node) or None, limit=limit, **filters)
    return _show_some(found, TRANSITIONS, form)


def _unknown(to: Target, names: Sequence[str]) -> str:
    """Return the message for *names* of nodes that no registry has."""
    shown = ", ".join(map(repr, names))
    return (
        f"query the fleet's database {to.shown!r}: no registry has the node {shown}; "
        "`sandbox-registry fleet nodes` shows their names"
    )


def _limit(form: Format) -> int:
    """Return the number of rows that are read: all, to be sorted, up to `LIMIT`."""
    return form.limit if form.limit is not None and not form.sort else LIMIT


def _show_some(found: Sequence[Row], view: View, form: Format) -> int:
    """Show *found*, and report on stderr if there are more rows than `LIMIT`."""
    limit = _limit(form)
    show(found[:limit], view, form)
    if len(found) > limit == LIMIT:
        return complain(f"there are more than {limit}; filter, or give --limit", FOUND)
    return FINE
