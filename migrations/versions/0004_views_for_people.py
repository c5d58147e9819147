"""Views for people: more columns of the overview, and the view of the history.

Code of revisions 0001 to 0003 may still read and write: it never reads a view, and its `check`
leaves the schema of a newer registry out. So `min_reader` and `min_writer` stay as they are.
"""

from __future__ import annotations

from typing import Final, NoReturn

from alembic import op

revision: Final = "0004"
down_revision: Final = "0003"

# SQLite cannot change a view: it is dropped, and created again in the same transaction.
STATEMENTS: Final = (
    "DROP VIEW sandbox_overview",
    "DROP VIEW why_not_ready",
    """
CREATE VIEW sandbox_overview AS
SELECT s.id, s.name, s.namespace, s.pod, t.state, t.pid, s.ip, s.netns_path, t.reason,
  t.message,
  strftime('%Y-%m-%dT%H:%M:%S', t.created_at / 1000000000, 'unixepoch') || printf('.%09dZ',
    t.created_at % 1000000000) AS created_at,
  strftime('%Y-%m-%dT%H:%M:%S', t.changed_at / 1000000000, 'unixepoch') || printf('.%09dZ',
    t.changed_at % 1000000000) AS changed_at,
  strftime('%Y-%m-%dT%H:%M:%S', coalesce(h.at, t.changed_at) / 1000000000, 'unixepoch') ||
    printf('.%09dZ', coalesce(h.at, t.changed_at) % 1000000000) AS since,
  (SELECT json_group_object(key, value) FROM sandbox_labels WHERE sandbox_id = s.id) AS
    labels,
  s.uid, s.attempt, s.host_network, s.runtime_handler,
  strftime('%Y-%m-%dT%H:%M:%S', t.exited_at / 1000000000, 'unixepoch') || printf('.%09dZ',
    t.exited_at % 1000000000) AS exited_at,
  t.exit_status,
  (SELECT json_group_array(name) FROM sandbox_extensions WHERE sandbox_id = s.id) AS
    extensions
FROM sandboxes AS s JOIN sandbox_statuses AS t ON t.sandbox_id = s.id
LEFT JOIN sandbox_transitions AS h ON h.seq = (
  SELECT max(seq) FROM sandbox_transitions WHERE sandbox_id = s.id)
ORDER BY t.created_at, s.id""",
    """
CREATE VIEW why_not_ready AS
SELECT s.id, s.name, t.reason, t.message,
  strftime('%Y-%m-%dT%H:%M:%S', coalesce(h.at, t.changed_at) / 1000000000, 'unixepoch') ||
    printf('.%09dZ', coalesce(h.at, t.changed_at) % 1000000000) AS since,
  h.from_state AS previous_state,
  coalesce(h.actor, t.actor) AS actor,
  s.namespace, s.pod, t.pid, s.netns_path,
  strftime('%Y-%m-%dT%H:%M:%S', t.exited_at / 1000000000, 'unixepoch') || printf('.%09dZ',
    t.exited_at % 1000000000) AS exited_at,
  t.exit_status
FROM sandboxes AS s JOIN sandbox_statuses AS t ON t.sandbox_id = s.id
LEFT JOIN sandbox_transitions AS h ON h.seq = (
  SELECT max(seq) FROM sandbox_transitions WHERE sandbox_id = s.id)
WHERE t.state = 'SANDBOX_NOTREADY'
ORDER BY coalesce(h.at, t.changed_at), s.id""",
    """
CREATE VIEW sandbox_history AS
SELECT seq,
  strftime('%Y-%m-%dT%H:%M:%S', at / 1000000000, 'unixepoch') || printf('.%09dZ', at %
    1000000000) AS at,
  sandbox_id AS id, name, namespace, pod, uid, event, from_state, to_state, reason, message,
  actor, pid, boot_id
FROM sandbox_transitions
ORDER BY seq DESC""",
    "UPDATE registry SET level = 4",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.get_bind().exec_driver_sql(statement.strip())


def downgrade() -> NoReturn:
    """Refuse: older code uses the registry as it is."""
    raise NotImplementedError("downgrade from revision 0004: older code uses it as it is")
