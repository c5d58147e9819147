"""The tables, views, roles and policies of the fleet.

Roles belong to the whole server. They are made here if they are missing, and left where they are
by a database that is dropped.
"""

from __future__ import annotations

from typing import Final, NoReturn

from alembic import op

revision: Final = "0001"
down_revision: Final = None
branch_labels: Final = None
depends_on: Final = None

ROLES: Final = (
    f"""
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN
    CREATE ROLE {name} NOLOGIN;
  END IF;
END $$"""
    for name in ("fleet_node", "fleet_reader")
)

TABLES: Final = (
    """
CREATE TABLE fleet_meta (
  one boolean DEFAULT true NOT NULL,
  level integer NOT NULL,
  min_writer integer NOT NULL,
  CONSTRAINT fleet_meta_pk PRIMARY KEY (one),
  CONSTRAINT fleet_meta_check_one_row CHECK (one)
)""",
    """
CREATE TABLE fleet_registries (
  registry_id uuid NOT NULL,
  incarnation bigint NOT NULL,
  source_incarnation bigint NOT NULL,
  node text NOT NULL,
  path text NOT NULL,
  machine_id text NOT NULL,
  boot_id text NOT NULL,
  kernel text NOT NULL,
  cursor bigint NOT NULL,
  batch bigint DEFAULT 0 NOT NULL,
  fingerprint text NOT NULL,
  newest bigint NOT NULL,
  seen_at timestamptz DEFAULT clock_timestamp() NOT NULL,
  every double precision NOT NULL,
  skew_ms bigint NOT NULL,
  problem text DEFAULT '' NOT NULL,
  ended_at timestamptz,
  role text COLLATE "C" DEFAULT CURRENT_USER NOT NULL,
  CONSTRAINT fleet_registries_pk PRIMARY KEY (registry_id),
  CONSTRAINT fleet_registries_check_role CHECK (role <> 'fleet_node'),
  CONSTRAINT fleet_registries_check_bounds CHECK (every > 0 AND every < 1e9
    AND seen_at BETWEEN '2000-01-01Z' AND '3000-01-01Z'
    AND ended_at BETWEEN '2000-01-01Z' AND '3000-01-01Z' IS NOT FALSE
    AND cursor >= 0 AND newest >= 0 AND skew_ms BETWEEN -1e16 AND 1e16)
) WITH (fillfactor = 50)""",
    "CREATE INDEX fleet_registries_by_role ON fleet_registries (role)",
    """
CREATE TABLE fleet_boots (
  registry_id uuid NOT NULL,
  boot_id text NOT NULL,
  kernel text NOT NULL,
  seen_at timestamptz DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT fleet_boots_pk PRIMARY KEY (registry_id, boot_id)
)""",
    """
CREATE TABLE fleet_sandboxes (
  registry_id uuid NOT NULL,
  sandbox_id text NOT NULL,
  name text NOT NULL,
  namespace text NOT NULL,
  pod text NOT NULL,
  uid text NOT NULL,
  state text NOT NULL,
  pid bigint NOT NULL,
  ip text NOT NULL,
  netns_path text NOT NULL,
  reason text NOT NULL,
  message text NOT NULL,
  created_at bigint,
  changed_at bigint,
  since bigint,
  exited_at bigint,
  exit_status bigint,
  attempt bigint NOT NULL,
  host_network bigint NOT NULL,
  runtime_handler text NOT NULL,
  labels jsonb NOT NULL,
  CONSTRAINT fleet_sandboxes_pk PRIMARY KEY (registry_id, sandbox_id),
  CONSTRAINT fleet_sandboxes_check_labels CHECK (jsonb_typeof(labels) = 'object')
)""",
    "CREATE INDEX fleet_sandboxes_by_state_reason ON fleet_sandboxes (state, reason)",
    "CREATE INDEX fleet_sandboxes_by_namespace_pod ON fleet_sandboxes (namespace, pod)",
    "CREATE INDEX fleet_sandboxes_by_labels ON fleet_sandboxes USING gin (labels)",
    """
CREATE TABLE fleet_transitions (
  registry_id uuid NOT NULL,
  incarnation bigint NOT NULL,
  seq bigint NOT NULL,
  at timestamptz NOT NULL,
  at_rest smallint NOT NULL,
  sandbox_id text NOT NULL,
  name text NOT NULL,
  pod text NOT NULL,
  namespace text NOT NULL,
  uid text NOT NULL,
  event text NOT NULL,
  from_state text,
  to_state text,
  pid bigint NOT NULL,
  reason text NOT NULL,
  message text NOT NULL,
  actor text NOT NULL,
  boot_id text,
  CONSTRAINT fleet_transitions_pk PRIMARY KEY (registry_id, incarnation, seq, at),
  CONSTRAINT fleet_transitions_check_bounds CHECK (at_rest BETWEEN 0 AND 999
    AND (at, at_rest) >= (timestamptz '1677-09-21 00:12:43.145224Z', 192)
    AND (at, at_rest) <= (timestamptz '2262-04-11 23:47:16.854775Z', 807))
) PARTITION BY RANGE (at)""",
    """
CREATE INDEX fleet_transitions_not_ready ON fleet_transitions (reason, at)
WHERE to_state = 'SANDBOX_NOTREADY'""",
    "CREATE INDEX fleet_transitions_by_sandbox ON fleet_transitions (sandbox_id)",
    "CREATE TABLE fleet_transitions_default PARTITION OF fleet_transitions DEFAULT",
    """
CREATE TABLE fleet_breaks (
  registry_id uuid NOT NULL,
  incarnation bigint NOT NULL,
  after bigint NOT NULL,
  kind text NOT NULL,
  before bigint NOT NULL,
  found_at timestamptz DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT fleet_breaks_pk PRIMARY KEY (registry_id, incarnation, after, kind),
  CONSTRAINT fleet_breaks_check_kind CHECK (kind IN ('gap', 'restored', 'replaced'))
)""",
    "INSERT INTO fleet_meta (level, min_writer) VALUES (1, 1)",
)

TIME: Final = "'epoch'::timestamptz + s.{0} / 1000 * interval '1 microsecond' AS {0}"

VIEWS: Final = (
    """
CREATE VIEW fleet_nodes AS
SELECT r.node, r.path, r.registry_id, r.role,
  CASE WHEN r.ended_at IS NOT NULL THEN 'ended'
    WHEN r.seen_at < now() - r.every * interval '3 seconds' THEN 'silent'
    WHEN r.problem <> '' THEN 'broken' ELSE 'alive' END AS status,
  r.seen_at, r.every, r.skew_ms, r.problem, r.kernel, r.boot_id, r.machine_id,
  r.incarnation, r.cursor, r.newest, r.ended_at,
  s.ready, s.not_ready,
  (SELECT count(*) FROM fleet_breaks AS b WHERE b.registry_id = r.registry_id) AS breaks
FROM fleet_registries AS r LEFT JOIN LATERAL (
  SELECT count(*) FILTER (WHERE state = 'SANDBOX_READY') AS ready,
    count(*) FILTER (WHERE state = 'SANDBOX_NOTREADY') AS not_ready
  FROM fleet_sandboxes WHERE registry_id = r.registry_id) AS s ON true""",
    """
CREATE VIEW fleet_silent AS
SELECT r.node, r.path, r.registry_id, r.seen_at, now() - r.seen_at AS silent_for, r.every,
  r.problem, r.kernel, r.cursor, r.newest
FROM fleet_registries AS r
WHERE r.ended_at IS NULL AND r.seen_at < now() - r.every * interval '3 seconds'""",
    # A LEFT JOIN, though each row has a registry: it is left out of a query that needs no node.
    f"""
CREATE VIEW fleet_overview AS
SELECT r.node, s.sandbox_id AS id, s.name, s.namespace, s.pod, s.uid, s.state, s.pid, s.ip,
  s.netns_path, s.reason, s.message, {TIME.format("created_at")}, {TIME.format("changed_at")},
  {TIME.format("since")}, {TIME.format("exited_at")}, s.exit_status, s.attempt, s.host_network,
  s.runtime_handler, s.labels, r.kernel, r.seen_at, r.registry_id
FROM fleet_sandboxes AS s LEFT JOIN fleet_registries AS r ON r.registry_id = s.registry_id""",
    f"""
CREATE VIEW fleet_not_ready AS
SELECT r.node, s.sandbox_id AS id, s.name, s.namespace, s.pod, s.reason, s.message,
  {TIME.format("since")}, s.exit_status, s.labels, r.kernel, r.seen_at, r.registry_id
FROM fleet_sandboxes AS s LEFT JOIN fleet_registries AS r ON r.registry_id = s.registry_id
WHERE s.state = 'SANDBOX_NOTREADY'""",
    # A row of an earlier line belongs to the present one unless a later line parts before it. The
    # first condition spares nearly all rows the search: an anti-join would take twice the time.
    """
CREATE VIEW fleet_history AS
SELECT r.node, t.incarnation, t.seq, t.at, t.at_rest, t.event, t.sandbox_id, t.name, t.namespace,
  t.pod, t.uid, t.from_state, t.to_state, t.pid, t.reason, t.message, t.actor, t.boot_id,
  b.kernel, t.registry_id
FROM fleet_transitions AS t
JOIN fleet_registries AS r ON r.registry_id = t.registry_id
LEFT JOIN fleet_boots AS b ON b.registry_id = t.registry_id AND b.boot_id = t.boot_id
WHERE t.incarnation = r.incarnation OR NOT EXISTS (
  SELECT FROM fleet_breaks AS x WHERE x.registry_id = t.registry_id AND x.kind = 'restored'
    AND x.incarnation > t.incarnation AND x.after < t.seq)""",
)

OWN: Final = "registry_id IN (SELECT registry_id FROM fleet_registries WHERE role = CURRENT_USER)"
"""Rows of the caller's registries. A role that is a reader too sees all of fleet_registries."""
COLUMNS: Final = (
    "incarnation, source_incarnation, node, path, machine_id, boot_id, kernel, cursor, batch,"
    " fingerprint, newest, seen_at, every, skew_ms, problem, ended_at"
)
BREAK: Final = "registry_id, incarnation, after, kind, before"
PARTS: Final = "fleet_boots, fleet_sandboxes, fleet_breaks, fleet_transitions"
NAMES: Final = "fleet_nodes, fleet_silent, fleet_overview, fleet_not_ready, fleet_history"
NODE: Final = "USING (role = CURRENT_USER) WITH CHECK (role = CURRENT_USER AND node = role)"
GRANTS: Final = (
    f"GRANT SELECT ON fleet_meta, fleet_registries, {PARTS} TO fleet_reader",
    f"GRANT SELECT ON {NAMES} TO fleet_reader",
    "GRANT SELECT ON fleet_meta, fleet_registries TO fleet_node",
    # Neither the role nor the id of a registry can be chosen, or changed later.
    f"GRANT INSERT (registry_id, {COLUMNS}), UPDATE ({COLUMNS}) ON fleet_registries TO fleet_node",
    "GRANT SELECT, INSERT ON fleet_transitions TO fleet_node",
    # The server alone sets the times of both.
    "GRANT SELECT, INSERT (registry_id, boot_id, kernel) ON fleet_boots TO fleet_node",
    f"GRANT SELECT, INSERT ({BREAK}) ON fleet_breaks TO fleet_node",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON fleet_sandboxes TO fleet_node",
    "ALTER TABLE fleet_registries ENABLE ROW LEVEL SECURITY",
    # A node is named after its role, so that a stolen certificate can forge that node only.
    f"CREATE POLICY fleet_node ON fleet_registries TO fleet_node {NODE}",
    "CREATE POLICY fleet_reader ON fleet_registries FOR SELECT TO fleet_reader USING (true)",
    *(
        statement
        for table in ("fleet_boots", "fleet_sandboxes", "fleet_transitions", "fleet_breaks")
        for statement in (
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            f"CREATE POLICY fleet_node ON {table} TO fleet_node USING ({OWN}) WITH CHECK ({OWN})",
            f"CREATE POLICY fleet_reader ON {table} FOR SELECT TO fleet_reader USING (true)",
        )
    ),
)


def upgrade() -> None:
    for statement in (*ROLES, *TABLES, *VIEWS, *GRANTS):
        op.get_bind().exec_driver_sql(statement.strip())


def downgrade() -> NoReturn:
    """Refuse: the first revision holds the whole history."""
    raise NotImplementedError("downgrade from revision 0001: drop the database instead")
