"""The views of a registry: the contract with operators, which only gains columns.

    sandbox_overview    one row for each sandbox
    why_not_ready       one row for each sandbox that is NOTREADY
    sandbox_history     one row for each transition, newest first

All names begin with what they are about: a file may have tables of other tools, and a plain
`history` would hide one, or be hidden by it (CREATE TABLE IF NOT EXISTS accepts a view).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import DDL, Column, Text, event

from registry.tables.schema import (
    column,
    metadata,
    sandbox_statuses,
    sandbox_transitions,
    sandboxes,
)

ISO: Final = "ISO 8601"
"""Unit of a rendered time: UTC, with nine digits of a second; such texts compare as times do."""


class View(NamedTuple):
    """A view: its name, what it shows, its columns in order, and its SQL."""

    name: str
    meaning: str
    columns: Mapping[str, Column[Any]]
    sql: str


def _iso(column: str) -> str:
    """Render nanoseconds as ISO 8601 UTC; NULL stays NULL."""
    return (
        f"strftime('%Y-%m-%dT%H:%M:%S', {column} / 1000000000, 'unixepoch')"
        f" || printf('.%09dZ', {column} % 1000000000)"
    )


def _rendered(of: Column[Any]) -> Column[Any]:
    """Return the column of a view that renders the time in the column *of* a table."""
    return column(of.name, Text, of.comment or "", null=of.info["null"], unit=ISO)


_s, _t, _h = sandboxes.c, sandbox_statuses.c, sandbox_transitions.c

_SINCE: Final = column(
    "since",
    Text,
    "Time at which the present state began. If the history no longer has that change, `changed_at`:"
    " the state began then or before.",
    unit=ISO,
)
# The newest transition of a sandbox began its present state: every change of state writes one.
_NEWEST = """LEFT JOIN sandbox_transitions AS h ON h.seq = (
  SELECT max(seq) FROM sandbox_transitions WHERE sandbox_id = s.id)"""

VIEWS: Final = (
    View(
        "sandbox_overview",
        "one row for each sandbox, oldest first: what is running",
        {
            **{name: _s[name] for name in ("id", "name", "namespace", "pod")},
            **{name: _t[name] for name in ("state", "pid")},
            **{name: _s[name] for name in ("ip", "netns_path")},
            **{name: _t[name] for name in ("reason", "message")},
            "created_at": _rendered(_t.created_at),
            "changed_at": _rendered(_t.changed_at),
            "since": _SINCE,
            "labels": column("labels", Text, "Labels of the config, a JSON object; `{}`: none."),
            **{name: _s[name] for name in ("uid", "attempt", "host_network", "runtime_handler")},
            "exited_at": _rendered(_t.exited_at),
            "exit_status": _t.exit_status,
            "extensions": column(
                "extensions", Text, "Names of the extensions, a JSON array; `[]`: none."
            ),
        },
        f"""
CREATE VIEW sandbox_overview AS
SELECT s.id, s.name, s.namespace, s.pod, t.state, t.pid, s.ip, s.netns_path, t.reason, t.message,
  {_iso("t.created_at")} AS created_at,
  {_iso("t.changed_at")} AS changed_at,
  {_iso("coalesce(h.at, t.changed_at)")} AS since,
  (SELECT json_group_object(key, value) FROM sandbox_labels WHERE sandbox_id = s.id) AS labels,
  s.uid, s.attempt, s.host_network, s.runtime_handler,
  {_iso("t.exited_at")} AS exited_at,
  t.exit_status,
  (SELECT json_group_array(name) FROM sandbox_extensions WHERE sandbox_id = s.id) AS extensions
FROM sandboxes AS s JOIN sandbox_statuses AS t ON t.sandbox_id = s.id
{_NEWEST}
ORDER BY t.created_at, s.id""",
    ),
    View(
        "why_not_ready",
        "one row for each sandbox that is NOTREADY, in the order in which they became so",
        {
            **{name: _s[name] for name in ("id", "name")},
            **{name: _t[name] for name in ("reason", "message")},
            "since": _SINCE,
            "previous_state": column(
                "previous_state",
                Text,
                "State before.",
                null="it was created NOTREADY, or the history no longer has the change",
            ),
            "actor": column(
                "actor",
                Text,
                "Program that made the sandbox NOTREADY: its name and pid, or `sql`. If the history"
                " no longer has the change, the program of the last write.",
            ),
            **{name: _s[name] for name in ("namespace", "pod")},
            "pid": _t.pid,
            "netns_path": _s.netns_path,
            "exited_at": _rendered(_t.exited_at),
            "exit_status": _t.exit_status,
        },
        f"""
CREATE VIEW why_not_ready AS
SELECT s.id, s.name, t.reason, t.message,
  {_iso("coalesce(h.at, t.changed_at)")} AS since,
  h.from_state AS previous_state,
  coalesce(h.actor, t.actor) AS actor,
  s.namespace, s.pod, t.pid, s.netns_path,
  {_iso("t.exited_at")} AS exited_at,
  t.exit_status
FROM sandboxes AS s JOIN sandbox_statuses AS t ON t.sandbox_id = s.id
{_NEWEST}
WHERE t.state = 'SANDBOX_NOTREADY'
ORDER BY coalesce(h.at, t.changed_at), s.id""",
    ),
    View(
        "sandbox_history",
        "one row for each creation, change of state and deletion, newest first",
        {
            "seq": _h.seq,
            "at": _rendered(_h.at),
            "id": _h.sandbox_id,
            **{name: _h[name] for name in ("name", "namespace", "pod", "uid", "event")},
            **{name: _h[name] for name in ("from_state", "to_state", "reason", "message")},
            **{name: _h[name] for name in ("actor", "pid", "boot_id")},
        },
        f"""
CREATE VIEW sandbox_history AS
SELECT seq,
  {_iso("at")} AS at,
  sandbox_id AS id, name, namespace, pod, uid, event, from_state, to_state, reason, message,
  actor, pid, boot_id
FROM sandbox_transitions
ORDER BY seq DESC""",
    ),
)

for _view in VIEWS:
    event.listen(metadata, "after_create", DDL(_view.sql.strip().replace("%", "%%")))
