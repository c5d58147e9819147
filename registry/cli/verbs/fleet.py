"""The verb `fleet`: the registries of many nodes in one PostgreSQL database."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from registry.cli import options
from registry.cli.failures import FINE, FOUND, UNAVAILABLE, complain
from registry.cli.output.formats import write_all
from registry.cli.output.streams import write
from registry.cli.verbs.listing import parse_states
from registry.model.selector import parse
from registry.model.status import State

if TYPE_CHECKING:
    from registry.fleet.figures import Figures
    from registry.fleet.postgres import Target

LIMIT: Final = 10_000
"""Rows that are shown unless the caller says more: a fleet has millions."""
NODES: Final = (
    *("node", "status", "ready", "not_ready", "seen_ago", "skew_ms", "kernel", "breaks"),
    *("path", "problem"),
)
SANDBOXES: Final = ("node", "id", "state", "namespace", "pod", "pid", "ip", "created_at", "reason")
TRANSITIONS: Final = (
    *("node", "seq", "at", "sandbox_id", "from_state", "to_state"),
    *("pid", "reason", "actor", "message"),
)
"""Fields that the tables show."""
METRICS_EVERY: Final = 5.0
"""Seconds between two writes of the metrics of a follower, at least."""


def _import_psycopg() -> None:
    """Import psycopg without the module ssl.

    asyncio, which psycopg imports and nothing here uses, would import it and load OpenSSL, 4 MB in
    each pusher. libpq has its own.
    """
    if "ssl" in sys.modules:
        return
    sys.modules["ssl"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        import psycopg  # noqa: F401, PLC0415 - an extra
    finally:
        del sys.modules["ssl"]


def _target(_: click.Context, __: click.Parameter, value: str) -> Target:
    _import_psycopg()
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


@click.group("fleet", no_args_is_help=False)
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
    maintain(to)
    write(f"{to.shown} is at revision {revision}\n")
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
    finally:
        pusher.close()
    return FINE


def _log_to_stderr() -> None:
    """Write the warnings of the package to stderr, one on each line, for journald."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logging.getLogger("registry").addHandler(handler)


def _shows(path: str | None, *, progress: bool = False) -> Callable[[Figures], None]:
    """Return a function that writes figures to the file *path*, and shows the *progress*."""
    written = [-METRICS_EVERY]
    is_shown = progress and sys.stderr is not None and sys.stderr.isatty()

    def show(figures: Figures) -> None:
        if is_shown:
            sys.stderr.write(f"\r{figures.transitions} transitions, {figures.behind} to go ")
            sys.stderr.write("\r\x1b[K" if not figures.behind else "")
            sys.stderr.flush()
        now = time.monotonic()
        if path is not None and (now - written[0] >= METRICS_EVERY or progress):
            figures.write(path)
            written[0] = now

    return show


@fleet.command("nodes")
@to
@of_node
@options.as_json
def nodes(*, to: Target, node: Sequence[str], as_json: bool) -> int:
    """Show each registry: whether it is alive, silent, broken or ended, and its clock's skew."""
    from registry.fleet import queries  # noqa: PLC0415 - psycopg is an extra

    write_all(queries.nodes(to, node=list(node) or None), NODES, as_json=as_json)
    return FINE


@fleet.command("silent")
@to
@of_node
@options.as_json
def silent(*, to: Target, node: Sequence[str], as_json: bool) -> int:
    """Show the nodes that sent no heartbeat three times; exit with 1 if there is one."""
    from registry.fleet import queries  # noqa: PLC0415 - psycopg is an extra

    found = queries.nodes(to, node=list(node) or None, status=["silent"])
    write_all(found, NODES, as_json=as_json)
    return FOUND if found else FINE


@fleet.command("list")
@to
@of_node
@click.option("--all", "every", is_flag=True, help="Include UNKNOWN sandboxes.")
@click.option(
    *("--state", "states"),
    metavar="STATE",
    multiple=True,
    callback=parse_states,
    help="UNKNOWN, READY or NOTREADY; may be repeated.",
)
@click.option(*("--selector", "-l"), metavar="SELECTOR", help="Label selector of Kubernetes.")
@click.option("--pod", metavar="NAME", help="Name of the pod.")
@click.option("--namespace", metavar="NAME", help="Kubernetes namespace of the pod.")
@click.option("--name", metavar="NAME", help="Name of the sandbox.")
@click.option("--id", metavar="PREFIX", help="Beginning of the id.")
@click.option("--newest-first", is_flag=True, help="List the newest sandbox first.")
@click.option(
    "--limit", metavar="N", type=options.Count(1), default=LIMIT, help="At most N sandboxes."
)
@options.as_json
def list_sandboxes(
    *,
    to: Target,
    node: Sequence[str],
    every: bool,
    states: set[State],
    selector: str | None,
    limit: int,
    as_json: bool,
    **filters: Any,
) -> int:
    """List the sandboxes of all nodes that match every filter, oldest first."""
    from registry.fleet import queries  # noqa: PLC0415 - psycopg is an extra

    found = queries.sandboxes(
        to,
        requirements=() if selector is None else parse(selector, "list sandboxes"),
        limit=limit + 1,
        node=list(node) or None,
        state=sorted(map(str, states)) or None,
        hide_unknown=not (every or State.UNKNOWN in states),
        **filters,
    )
    write_all(found[:limit], SANDBOXES, as_json=as_json)
    return _complain_of_more(found, limit)


def _parse_time(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """Return *value*, an ISO 8601 time that is UTC unless it says more, as a Unix time."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no time such as 2026-11-27T12:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@fleet.command("history")
@click.argument("id", metavar="[ID]", required=False, help="Full id of a sandbox.")
@to
@of_node
@click.option("--since", metavar="TIME", callback=_parse_time, help="From this ISO 8601 time on.")
@click.option("--reason", metavar="REASON", help="Only transitions with this reason.")
@click.option("--after", metavar="SEQ", type=options.Count(), help="Only with a greater seq.")
@click.option(
    "--limit", metavar="N", type=options.Count(1), default=LIMIT, help="At most N, the oldest."
)
@options.as_json
def history(
    *, id: str | None, to: Target, node: Sequence[str], limit: int, as_json: bool, **filters: Any
) -> int:
    """Show every change of state of all nodes or of one sandbox, oldest first."""
    from registry.fleet import queries  # noqa: PLC0415 - psycopg is an extra

    found = queries.history(to, sandbox=id, node=list(node) or None, limit=limit + 1, **filters)
    write_all(found[:limit], TRANSITIONS, as_json=as_json)
    return _complain_of_more(found, limit)


def _complain_of_more(found: Sequence[object], limit: int) -> int:
    """Report on stderr that *found* has more rows than *limit*; return the exit code."""
    if len(found) > limit:
        return complain(f"there are more than {limit}; filter, or give --limit", FOUND)
    return FINE
