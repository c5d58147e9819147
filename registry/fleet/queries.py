"""Questions that the command line asks of the fleet's database, by its views and tables.

Results are mappings by column. Times are integer nanoseconds since the Unix epoch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from psycopg.rows import dict_row

from registry.fleet import postgres
from registry.fleet.postgres import Target
from registry.model.selector import Operator, Requirement

Found = list[dict[str, Any]]

_NODES: Final = (
    "SELECT node, status, ready, not_ready, round(extract(epoch FROM now() - seen_at), 1)::float8"
    " AS seen_ago, skew_ms, kernel, breaks, problem, path, registry_id::text, role, machine_id,"
    " boot_id, incarnation, cursor, newest, every,"
    " greatest(newest - cursor, 0) AS behind FROM fleet_nodes"
)
_LIST: Final = (
    "SELECT r.node, s.sandbox_id AS id, s.name, s.namespace, s.pod, s.uid, s.state, s.pid, s.ip,"
    " s.netns_path, s.reason, s.message, s.created_at, s.since, s.exited_at,"
    " s.exit_status, s.attempt, s.host_network <> 0 AS host_network, s.runtime_handler, s.labels,"
    " r.kernel, r.registry_id::text FROM fleet_sandboxes AS s"
    " JOIN fleet_registries AS r ON r.registry_id = s.registry_id"
)
_HISTORY: Final = (
    "SELECT node, seq, (extract(epoch FROM at) * 1000000000 + at_rest)::bigint AS at, sandbox_id,"
    " name, pod, namespace, uid, event, from_state, to_state, pid, reason, message, actor, boot_id,"
    " kernel, incarnation, registry_id::text FROM fleet_history"
)
_LIST_ORDER: Final = ("s.created_at", "r.node", "s.sandbox_id")
_HISTORY_ORDER: Final = ("fleet_history.at", "node", "seq")
_TIME: Final = "'epoch'::timestamptz + %({})s / 1000 * interval '1 microsecond'"
CONDITIONS: Final = {
    "node": "node = ANY (%(node)s)",
    "status": "status = ANY (%(status)s)",
    "state": "s.state = ANY (%(state)s)",
    "id": "starts_with(s.sandbox_id, %(id)s)",
    "name": "s.name = %(name)s",
    "pod": "s.pod = %(pod)s",
    "namespace": "s.namespace = %(namespace)s",
    "hide_unknown": "s.state <> 'SANDBOX_UNKNOWN'",
    "sandbox": "sandbox_id = %(sandbox)s",
    "of_pod": "namespace = %(namespace_of)s AND pod = %(of_pod)s",
    "named": "(starts_with(sandbox_id, %(named)s) OR name = %(named)s OR pod = %(named)s)",
    "after": "seq > %(after)s",
    "since": f"fleet_history.at >= {_TIME.format('since')}",
    "until": f"fleet_history.at < {_TIME.format('until')}",
    "state_since": "s.since >= %(state_since)s",
    "reason": "lower(reason) = lower(%(reason)s)",
}
"""Conditions by the name of the filter, which is that of its parameter."""
_INTEGER: Final = r"'^[+-]?[0-9]{{1,18}}$'"
_LABELS: Final = {
    # The containment uses the index; a list of values is one containment for each.
    Operator.IN: "s.labels @> ANY (%(labels{n})s::jsonb[])",
    Operator.NOT_IN: "NOT s.labels @> ANY (%(labels{n})s::jsonb[])",
    Operator.EXISTS: "jsonb_exists(s.labels, %(key{n})s)",
    Operator.ABSENT: "NOT jsonb_exists(s.labels, %(key{n})s)",
    Operator.GREATER: f"CASE WHEN s.labels ->> %(key{{n}})s ~ {_INTEGER}"
    " THEN (s.labels ->> %(key{n})s)::bigint > %(value{n})s::bigint ELSE false END",
    Operator.LESS: f"CASE WHEN s.labels ->> %(key{{n}})s ~ {_INTEGER}"
    " THEN (s.labels ->> %(key{n})s)::bigint < %(value{n})s::bigint ELSE false END",
}


def unknown_nodes(to: Target, names: Sequence[str]) -> list[str]:
    """Return those of *names* that no registry has, ended ones included; errors as `nodes`."""
    if not names:
        return []
    found = _run(to, "SELECT node FROM fleet_registries", "node", {"node": list(names)})
    known = {each["node"] for each in found}
    return [name for name in names if name not in known]


def nodes(to: Target, **filters: object) -> Found:
    """Return the registries, by node and path; *filters*: `node`, `status`.

    Raises:
        RegistryError: PostgreSQL refuses, or cannot be reached.
    """
    return _run(to, _NODES, "node, path, registry_id", filters)


def sandboxes(
    to: Target,
    *,
    requirements: Sequence[Requirement] = (),
    oldest_first: bool = False,
    limit: int | None = None,
    **filters: object,
) -> Found:
    """Return present sandboxes, newest first.

    Args:
        to: database of the fleet.
        requirements: of a label selector.
        oldest_first: reverse the order.
        limit: maximum number of sandboxes.
        filters: those of `CONDITIONS` that begin with `s.`, and `node`.
    Raises:
        RegistryError: PostgreSQL refuses, or cannot be reached.
    """
    conditions, params = [], dict(filters)
    for number, each in enumerate(requirements):
        conditions.append(_LABELS[each.operator].format(n=number))
        labels = [json.dumps({each.key: value}) for value in each.values]
        params |= {f"key{number}": each.key, f"labels{number}": labels}
        params[f"value{number}"] = each.values[0] if each.values else None
    order = ", ".join(_direction(name, oldest_first) for name in _LIST_ORDER)
    return _run(to, _LIST, order, params, conditions=conditions, limit=limit)


def history(
    to: Target,
    sandbox: str | None = None,
    *,
    oldest_first: bool = False,
    limit: int | None = None,
    **filters: object,
) -> Found:
    """Return transitions of the present lines, newest first.

    Args:
        to: database of the fleet.
        sandbox: full id; if no transition has it, a prefix of ids, a name, `NAMESPACE/POD`, or the
            name of a pod. Several nodes may have such sandboxes: those of all are returned.
        oldest_first: reverse the order.
        limit: maximum number of transitions.
        filters: `node`, `after` (a seq), `since` and `until` (ns since the epoch), `reason`.
    Raises:
        RegistryError: PostgreSQL refuses, or cannot be reached.
    """
    order = ", ".join(_direction(name, oldest_first) for name in _HISTORY_ORDER)
    found = _run(to, _HISTORY, order, filters | {"sandbox": sandbox}, limit=limit)
    if found or sandbox is None:
        return found
    namespace, slash, pod = sandbox.partition("/")
    named = {"namespace_of": namespace, "of_pod": pod} if slash else {"named": sandbox}
    return _run(to, _HISTORY, order, filters | named, limit=limit)


def _direction(name: str, oldest_first: bool) -> str:  # noqa: FBT001 - of two
    """Return *name* with its direction; NULL is the oldest, as in SQLite."""
    return f"{name} {'ASC NULLS FIRST' if oldest_first else 'DESC NULLS LAST'}"


def _run(
    to: Target,
    select: str,
    order: str,
    params: dict[str, Any],
    *,
    conditions: Sequence[str] = (),
    limit: int | None = None,
) -> Found:
    """Return the rows of *select* that meet all conditions; a parameter of None is no condition."""
    params = {name: value for name, value in params.items() if value is not None}
    named = [text for name, text in CONDITIONS.items() if params.get(name, False) is not False]
    found = [*named, *conditions]
    where = f" WHERE {' AND '.join(found)}" if found else ""
    query = f"{select}{where} ORDER BY {order}"
    if limit is not None:
        query, params["limit"] = f"{query} LIMIT %(limit)s", limit
    with postgres.errors(f"query the fleet's database {to.shown!r}", postgres.READER):
        connection = postgres.connect(to, postgres.READER)
        with connection, connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query, params).fetchall()
