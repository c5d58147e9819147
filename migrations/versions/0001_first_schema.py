"""The first schema: registry, sandboxes, statuses, labels, transitions, two views.

Why, and what each column means: registry/tables/schema.py, which builds the same database; a test
compares the two. What stands here is frozen, so it repeats instead of importing.

Revision 0001, the first. Once released it is never edited.
"""

from __future__ import annotations

from typing import Final, NoReturn

from alembic import op

revision: Final = "0001"
down_revision: Final = None

STATEMENTS: Final = (
    """
CREATE TABLE registry (
  one INTEGER NOT NULL,
  registry_id TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  level INTEGER NOT NULL,
  min_reader INTEGER NOT NULL,
  min_writer INTEGER NOT NULL,
  CONSTRAINT registry_pk PRIMARY KEY (one),
  CONSTRAINT registry_check_one_row CHECK (one = 1),
  CONSTRAINT registry_check_registry_id CHECK (length(registry_id) = 32 AND registry_id NOT GLOB
    '*[^0-9a-f]*')
) STRICT""",
    """
CREATE TABLE sandboxes (
  creation INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL,
  name TEXT NOT NULL,
  netns_path TEXT DEFAULT '' NOT NULL,
  ip TEXT DEFAULT '' NOT NULL,
  additional_ips TEXT,
  runtime_handler TEXT DEFAULT '' NOT NULL,
  cni_result TEXT,
  process_label TEXT DEFAULT '' NOT NULL,
  config BLOB,
  config_json TEXT,
  pod TEXT DEFAULT '' NOT NULL,
  namespace TEXT DEFAULT '' NOT NULL,
  uid TEXT DEFAULT '' NOT NULL,
  attempt INTEGER DEFAULT 0 NOT NULL,
  host_network INTEGER DEFAULT 0 NOT NULL,
  netns_boot_id TEXT,
  netns_number INTEGER,
  netns_inode INTEGER,
  netns_mount_ns INTEGER,
  creator_pid INTEGER,
  creator_boot_id TEXT,
  creator_pid_ns INTEGER,
  creator_time_ns INTEGER,
  creator_inode INTEGER,
  creator_start_time INTEGER,
  CONSTRAINT sandboxes_unique_id UNIQUE (id),
  CONSTRAINT sandboxes_unique_name UNIQUE (name),
  CONSTRAINT sandboxes_check_id CHECK (length(id) BETWEEN 1 AND 76 AND instr(id, '/') = 0),
  CONSTRAINT sandboxes_check_name CHECK (name <> ''),
  CONSTRAINT sandboxes_check_netns_path CHECK (netns_path = '' OR substr(netns_path, 1, 1) =
    '/'),
  CONSTRAINT sandboxes_check_additional_ips CHECK (iif(json_valid(additional_ips),
    json_type(additional_ips) = 'array', additional_ips IS NULL)),
  CONSTRAINT sandboxes_check_cni_result CHECK (iif(json_valid(cni_result),
    json_type(cni_result) = 'object', cni_result IS NULL)),
  CONSTRAINT sandboxes_check_config CHECK ((config IS NULL) = (config_json IS NULL)),
  CONSTRAINT sandboxes_check_config_json CHECK (config_json IS NULL OR json_valid(config_json)),
  CONSTRAINT sandboxes_check_host_network CHECK (host_network IN (0, 1)),
  CONSTRAINT sandboxes_check_netns CHECK (netns_inode IS NOT NULL OR coalesce(netns_boot_id,
    netns_number, netns_mount_ns) IS NULL)
) STRICT""",
    """
CREATE TABLE sandbox_transitions (
  seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
  sandbox_id TEXT NOT NULL,
  name TEXT NOT NULL,
  pod TEXT NOT NULL,
  namespace TEXT NOT NULL,
  uid TEXT NOT NULL,
  event TEXT NOT NULL,
  from_state TEXT,
  to_state TEXT,
  pid INTEGER NOT NULL,
  reason TEXT NOT NULL,
  message TEXT NOT NULL,
  actor TEXT NOT NULL,
  boot_id TEXT,
  at INTEGER NOT NULL,
  CONSTRAINT sandbox_transitions_check_event CHECK (CASE event WHEN 'created' THEN from_state
    IS NULL AND to_state IS NOT NULL WHEN 'changed' THEN from_state IS NOT NULL AND to_state IS
    NOT NULL WHEN 'deleted' THEN from_state IS NOT NULL AND to_state IS NULL ELSE 0 END),
  CONSTRAINT sandbox_transitions_check_from_state CHECK (from_state IN ('SANDBOX_UNKNOWN',
    'SANDBOX_READY', 'SANDBOX_NOTREADY')),
  CONSTRAINT sandbox_transitions_check_to_state CHECK (to_state IN ('SANDBOX_UNKNOWN',
    'SANDBOX_READY', 'SANDBOX_NOTREADY'))
) STRICT""",
    """
CREATE TABLE sandbox_statuses (
  sandbox_id TEXT NOT NULL,
  state TEXT NOT NULL,
  pid INTEGER DEFAULT 0 NOT NULL,
  created_at INTEGER,
  exited_at INTEGER,
  exit_status INTEGER,
  reason TEXT DEFAULT '' NOT NULL,
  message TEXT DEFAULT '' NOT NULL,
  changed_at INTEGER,
  actor TEXT DEFAULT '' NOT NULL,
  boot_id TEXT,
  process_boot_id TEXT,
  process_pid_ns INTEGER,
  process_time_ns INTEGER,
  process_inode INTEGER,
  process_start_time INTEGER,
  leaving INTEGER DEFAULT 0 NOT NULL,
  CONSTRAINT sandbox_statuses_pk PRIMARY KEY (sandbox_id),
  CONSTRAINT sandbox_statuses_check_state CHECK (state IN ('SANDBOX_UNKNOWN', 'SANDBOX_READY',
    'SANDBOX_NOTREADY')),
  CONSTRAINT sandbox_statuses_check_pid CHECK (pid BETWEEN 0 AND 2147483647),
  CONSTRAINT sandbox_statuses_check_created_at CHECK (created_at > 0),
  CONSTRAINT sandbox_statuses_check_exited_at CHECK (exited_at > 0),
  CONSTRAINT sandbox_statuses_check_leaving CHECK (leaving IN (0, 1)),
  CONSTRAINT sandbox_statuses_check_reason CHECK (reason = '' OR (reason GLOB '[A-Za-z]*' AND
    reason GLOB '*[A-Za-z0-9_]' AND reason NOT GLOB '*[^A-Za-z0-9_,:]*')),
  CONSTRAINT sandbox_statuses_fk_sandbox_id FOREIGN KEY(sandbox_id) REFERENCES sandboxes (id)
    ON DELETE CASCADE
) WITHOUT ROWID, STRICT""",
    """
CREATE TABLE sandbox_labels (
  sandbox_id TEXT NOT NULL,
  "key" TEXT NOT NULL,
  value TEXT NOT NULL,
  CONSTRAINT sandbox_labels_pk PRIMARY KEY (sandbox_id, "key"),
  CONSTRAINT sandbox_labels_fk_sandbox_id FOREIGN KEY(sandbox_id) REFERENCES sandboxes (id) ON
    DELETE CASCADE
) WITHOUT ROWID, STRICT""",
    """
CREATE INDEX sandboxes_by_pod ON sandboxes (pod)""",
    """
CREATE INDEX sandboxes_by_namespace_pod ON sandboxes (namespace, pod)""",
    """
CREATE INDEX sandbox_transitions_by_sandbox_id_seq ON sandbox_transitions (sandbox_id, seq)""",
    """
CREATE INDEX sandbox_statuses_by_state ON sandbox_statuses (state)""",
    """
CREATE INDEX sandbox_labels_by_key_value_sandbox_id ON sandbox_labels ("key", value, sandbox_id)""",
    """
CREATE TRIGGER registry_stays BEFORE DELETE ON registry
BEGIN
  SELECT RAISE(ABORT, 'registry: its one row says who may use the file');
END""",
    """
CREATE TRIGGER registry_not_replaced BEFORE INSERT ON registry
WHEN EXISTS (SELECT 1 FROM registry)
BEGIN
  SELECT RAISE(ABORT, 'registry: has its one row');
END""",
    """
CREATE TRIGGER sandboxes_not_replaced BEFORE INSERT ON sandboxes
WHEN EXISTS (SELECT 1 FROM sandboxes
             WHERE creation = NEW.creation OR id = NEW.id OR name = NEW.name)
BEGIN
  SELECT RAISE(ABORT, 'sandboxes: the id or the name is taken');
END""",
    """
CREATE TRIGGER sandboxes_identity_fixed BEFORE UPDATE ON sandboxes
WHEN (OLD.creation, OLD.id, OLD.name, OLD.creator_pid, OLD.creator_boot_id, OLD.creator_pid_ns,
  OLD.creator_time_ns, OLD.creator_inode, OLD.creator_start_time) IS NOT (NEW.creation, NEW.id,
  NEW.name, NEW.creator_pid, NEW.creator_boot_id, NEW.creator_pid_ns, NEW.creator_time_ns,
  NEW.creator_inode, NEW.creator_start_time)
BEGIN
  SELECT RAISE(ABORT, 'sandboxes: id, name and creator are fixed');
END""",
    """
CREATE TRIGGER sandboxes_metadata_fixed BEFORE UPDATE OF netns_path, ip, additional_ips,
  runtime_handler, cni_result, process_label, config, config_json, pod, namespace, uid, attempt,
  host_network ON sandboxes
WHEN (SELECT state FROM sandbox_statuses JOIN sandboxes ON id = sandbox_id WHERE id = OLD.id) <>
  'SANDBOX_UNKNOWN' AND (OLD.netns_path, OLD.ip, OLD.additional_ips, OLD.runtime_handler,
  OLD.cni_result, OLD.process_label, OLD.config, OLD.config_json, OLD.pod, OLD.namespace,
  OLD.uid, OLD.attempt, OLD.host_network) IS NOT (NEW.netns_path, NEW.ip, NEW.additional_ips,
  NEW.runtime_handler, NEW.cni_result, NEW.process_label, NEW.config, NEW.config_json, NEW.pod,
  NEW.namespace, NEW.uid, NEW.attempt, NEW.host_network)
BEGIN
  SELECT RAISE(ABORT, 'sandboxes: metadata is fixed once the sandbox is not SANDBOX_UNKNOWN');
END""",
    """
CREATE TRIGGER sandboxes_netns_noted_once BEFORE UPDATE OF netns_boot_id, netns_number,
  netns_inode, netns_mount_ns ON sandboxes
WHEN OLD.netns_inode IS NOT NULL AND OLD.netns_path IS NEW.netns_path AND (OLD.netns_boot_id,
  OLD.netns_number, OLD.netns_inode, OLD.netns_mount_ns) IS NOT (NEW.netns_boot_id,
  NEW.netns_number, NEW.netns_inode, NEW.netns_mount_ns)
BEGIN
  SELECT RAISE(ABORT, 'sandboxes: the identity of a network namespace is noted once');
END""",
    """
CREATE TRIGGER sandboxes_netns_moved AFTER UPDATE OF netns_path ON sandboxes
WHEN OLD.netns_path IS NOT NEW.netns_path AND NOT ((OLD.netns_boot_id, OLD.netns_number,
  OLD.netns_inode, OLD.netns_mount_ns) IS NOT (NEW.netns_boot_id, NEW.netns_number,
  NEW.netns_inode, NEW.netns_mount_ns))
BEGIN
  UPDATE sandboxes SET netns_boot_id = NULL, netns_number = NULL, netns_inode = NULL,
    netns_mount_ns = NULL WHERE creation = NEW.creation;
END""",
    """
CREATE TRIGGER sandboxes_deleted BEFORE DELETE ON sandboxes
BEGIN
  INSERT INTO sandbox_transitions (sandbox_id, name, pod, namespace, uid, event, from_state,
    to_state, pid, reason, message, actor, boot_id, at)
  SELECT OLD.id, OLD.name, OLD.pod, OLD.namespace, OLD.uid, 'deleted',
    iif(state IN ('SANDBOX_UNKNOWN', 'SANDBOX_READY', 'SANDBOX_NOTREADY'), state,
    coalesce((SELECT to_state FROM sandbox_transitions WHERE sandbox_id = OLD.id AND
    to_state IN ('SANDBOX_UNKNOWN', 'SANDBOX_READY', 'SANDBOX_NOTREADY')
    ORDER BY seq DESC LIMIT 1), 'SANDBOX_UNKNOWN')), NULL, pid, reason, message,
    iif(leaving, actor, 'sql'), iif(leaving, boot_id, NULL),
    iif(leaving, changed_at, CAST(strftime('%s', 'now') AS INTEGER) * 1000000000 +
      CAST(substr(strftime('%f', 'now'), 4) AS INTEGER) * 1000000)
  FROM sandbox_statuses WHERE sandbox_id = OLD.id;
END""",
    """
CREATE TRIGGER sandboxes_rows_follow AFTER DELETE ON sandboxes
BEGIN
  DELETE FROM sandbox_statuses WHERE sandbox_id = OLD.id;
  DELETE FROM sandbox_labels WHERE sandbox_id = OLD.id;
END""",
    """
CREATE TRIGGER sandbox_statuses_not_replaced BEFORE INSERT ON sandbox_statuses
WHEN EXISTS (SELECT 1 FROM sandbox_statuses WHERE sandbox_id = NEW.sandbox_id)
  OR NOT EXISTS (SELECT 1 FROM sandboxes WHERE id = NEW.sandbox_id)
BEGIN
  SELECT RAISE(ABORT, 'sandbox_statuses: one row for each sandbox');
END""",
    """
CREATE TRIGGER sandbox_statuses_stay BEFORE DELETE ON sandbox_statuses
WHEN EXISTS (SELECT 1 FROM sandboxes WHERE id = OLD.sandbox_id)
BEGIN
  SELECT RAISE(ABORT, 'sandbox_statuses: a sandbox always has a status; delete the sandbox');
END""",
    """
CREATE TRIGGER sandbox_statuses_sandbox_fixed BEFORE UPDATE OF sandbox_id ON sandbox_statuses
WHEN OLD.sandbox_id IS NOT NEW.sandbox_id
BEGIN
  SELECT RAISE(ABORT, 'sandbox_statuses: sandbox_id is fixed');
END""",
    """
CREATE TRIGGER sandbox_statuses_never_unknown BEFORE UPDATE OF state ON sandbox_statuses
WHEN NEW.state = 'SANDBOX_UNKNOWN'
  AND iif(OLD.state IN ('SANDBOX_UNKNOWN', 'SANDBOX_READY', 'SANDBOX_NOTREADY'), OLD.state,
  coalesce((SELECT to_state FROM sandbox_transitions WHERE sandbox_id = NEW.sandbox_id AND
  to_state IN ('SANDBOX_UNKNOWN', 'SANDBOX_READY', 'SANDBOX_NOTREADY')
  ORDER BY seq DESC LIMIT 1), 'SANDBOX_UNKNOWN')) <> 'SANDBOX_UNKNOWN'
BEGIN
  SELECT RAISE(ABORT, 'sandbox_statuses: no way leads back to SANDBOX_UNKNOWN');
END""",
    """
CREATE TRIGGER sandbox_statuses_created AFTER INSERT ON sandbox_statuses
BEGIN
  UPDATE sandbox_statuses SET changed_at = CAST(strftime('%s', 'now') AS INTEGER) * 1000000000 +
    CAST(substr(strftime('%f', 'now'), 4) AS INTEGER) * 1000000, actor = 'sql', boot_id = NULL
  WHERE sandbox_id = NEW.sandbox_id AND NEW.changed_at IS NULL;
  INSERT INTO sandbox_transitions (sandbox_id, name, pod, namespace, uid, event, from_state,
    to_state, pid, reason, message, actor, boot_id, at)
  SELECT id, name, pod, namespace, uid, 'created', NULL, NEW.state, NEW.pid, NEW.reason,
    NEW.message, actor, boot_id, changed_at
  FROM sandboxes JOIN sandbox_statuses ON sandbox_id = id WHERE id = NEW.sandbox_id;
END""",
    """
CREATE TRIGGER sandbox_statuses_changed AFTER UPDATE OF state ON sandbox_statuses
WHEN iif(OLD.state IN ('SANDBOX_UNKNOWN', 'SANDBOX_READY', 'SANDBOX_NOTREADY'), OLD.state,
  coalesce((SELECT to_state FROM sandbox_transitions WHERE sandbox_id = NEW.sandbox_id AND
  to_state IN ('SANDBOX_UNKNOWN', 'SANDBOX_READY', 'SANDBOX_NOTREADY')
  ORDER BY seq DESC LIMIT 1), 'SANDBOX_UNKNOWN')) IS NOT NEW.state
BEGIN
  UPDATE sandbox_statuses SET changed_at = CAST(strftime('%s', 'now') AS INTEGER) * 1000000000 +
    CAST(substr(strftime('%f', 'now'), 4) AS INTEGER) * 1000000, actor = 'sql', boot_id = NULL
  WHERE sandbox_id = NEW.sandbox_id AND OLD.changed_at IS NEW.changed_at;
  INSERT INTO sandbox_transitions (sandbox_id, name, pod, namespace, uid, event, from_state,
    to_state, pid, reason, message, actor, boot_id, at)
  SELECT id, name, pod, namespace, uid, 'changed',
    iif(OLD.state IN ('SANDBOX_UNKNOWN', 'SANDBOX_READY', 'SANDBOX_NOTREADY'), OLD.state,
    coalesce((SELECT to_state FROM sandbox_transitions WHERE sandbox_id = NEW.sandbox_id AND
    to_state IN ('SANDBOX_UNKNOWN', 'SANDBOX_READY', 'SANDBOX_NOTREADY')
    ORDER BY seq DESC LIMIT 1), 'SANDBOX_UNKNOWN')), NEW.state, NEW.pid,
    NEW.reason, NEW.message, actor, boot_id, changed_at
  FROM sandboxes JOIN sandbox_statuses ON sandbox_id = id WHERE id = NEW.sandbox_id;
END""",
    """
CREATE TRIGGER sandbox_statuses_written AFTER UPDATE OF state, pid, created_at, exited_at,
  exit_status, reason, message ON sandbox_statuses
WHEN iif(OLD.state IN ('SANDBOX_UNKNOWN', 'SANDBOX_READY', 'SANDBOX_NOTREADY'), OLD.state,
  coalesce((SELECT to_state FROM sandbox_transitions WHERE sandbox_id = NEW.sandbox_id AND
  to_state IN ('SANDBOX_UNKNOWN', 'SANDBOX_READY', 'SANDBOX_NOTREADY')
  ORDER BY seq DESC LIMIT 1), 'SANDBOX_UNKNOWN')) IS NEW.state
  AND OLD.changed_at IS NEW.changed_at
BEGIN
  UPDATE sandbox_statuses SET changed_at = CAST(strftime('%s', 'now') AS INTEGER) * 1000000000 +
    CAST(substr(strftime('%f', 'now'), 4) AS INTEGER) * 1000000, actor = 'sql', boot_id = NULL
  WHERE sandbox_id = NEW.sandbox_id;
END""",
    """
CREATE TRIGGER sandbox_statuses_process_noted_once BEFORE UPDATE OF process_boot_id,
  process_pid_ns, process_time_ns, process_inode, process_start_time ON sandbox_statuses
WHEN (OLD.process_inode IS NOT NULL OR OLD.process_start_time IS NOT NULL)
  AND OLD.pid IS NEW.pid AND (OLD.process_boot_id, OLD.process_pid_ns, OLD.process_time_ns,
  OLD.process_inode, OLD.process_start_time) IS NOT (NEW.process_boot_id, NEW.process_pid_ns,
  NEW.process_time_ns, NEW.process_inode, NEW.process_start_time) AND
  coalesce(NEW.process_boot_id, NEW.process_pid_ns, NEW.process_time_ns, NEW.process_inode,
  NEW.process_start_time) IS NOT NULL
BEGIN
  SELECT RAISE(ABORT, 'sandbox_statuses: the identity of a process is noted once');
END""",
    """
CREATE TRIGGER sandbox_statuses_new_process AFTER UPDATE OF pid ON sandbox_statuses
WHEN OLD.pid IS NOT NEW.pid AND NOT ((OLD.process_boot_id, OLD.process_pid_ns,
  OLD.process_time_ns, OLD.process_inode, OLD.process_start_time) IS NOT (NEW.process_boot_id,
  NEW.process_pid_ns, NEW.process_time_ns, NEW.process_inode, NEW.process_start_time))
BEGIN
  UPDATE sandbox_statuses SET process_boot_id = NULL, process_pid_ns = NULL,
    process_time_ns = NULL, process_inode = NULL, process_start_time = NULL
  WHERE sandbox_id = NEW.sandbox_id;
END""",
    """
CREATE TRIGGER sandbox_labels_fixed_insert BEFORE INSERT ON sandbox_labels
WHEN (SELECT state FROM sandbox_statuses JOIN sandboxes ON id = sandbox_id WHERE id =
  NEW.sandbox_id) <> 'SANDBOX_UNKNOWN' OR NEW.sandbox_id NOT IN (SELECT id FROM sandboxes)
BEGIN
  SELECT RAISE(ABORT, 'sandbox_labels: fixed once the sandbox is not SANDBOX_UNKNOWN');
END""",
    """
CREATE TRIGGER sandbox_labels_fixed_update BEFORE UPDATE ON sandbox_labels
WHEN (SELECT state FROM sandbox_statuses JOIN sandboxes ON id = sandbox_id WHERE id =
  OLD.sandbox_id) <> 'SANDBOX_UNKNOWN' OR OLD.sandbox_id IS NOT NEW.sandbox_id
BEGIN
  SELECT RAISE(ABORT, 'sandbox_labels: fixed once the sandbox is not SANDBOX_UNKNOWN');
END""",
    """
CREATE TRIGGER sandbox_labels_fixed_delete BEFORE DELETE ON sandbox_labels
WHEN (SELECT state FROM sandbox_statuses JOIN sandboxes ON id = sandbox_id WHERE id =
  OLD.sandbox_id) <> 'SANDBOX_UNKNOWN'
BEGIN
  SELECT RAISE(ABORT, 'sandbox_labels: fixed once the sandbox is not SANDBOX_UNKNOWN');
END""",
    """
CREATE TRIGGER sandbox_transitions_not_replaced BEFORE INSERT ON sandbox_transitions
WHEN EXISTS (SELECT 1 FROM sandbox_transitions WHERE seq = NEW.seq)
BEGIN
  SELECT RAISE(ABORT, 'sandbox_transitions: append-only');
END""",
    """
CREATE TRIGGER sandbox_transitions_fixed BEFORE UPDATE ON sandbox_transitions
BEGIN
  SELECT RAISE(ABORT, 'sandbox_transitions: append-only');
END""",
    """
CREATE TRIGGER sandbox_transitions_in_turn AFTER INSERT ON sandbox_transitions
WHEN NEW.seq <> 1 AND NEW.seq - 1 NOT IN (SELECT seq FROM sandbox_transitions)
BEGIN
  SELECT RAISE(ABORT, 'sandbox_transitions: append-only');
END""",
    """
CREATE TRIGGER sandbox_transitions_stay BEFORE DELETE ON sandbox_transitions
WHEN OLD.seq > (SELECT max(seq) FROM sandbox_transitions) - 100000
BEGIN
  SELECT RAISE(ABORT, 'sandbox_transitions: append-only');
END""",
    """
CREATE TRIGGER sandbox_transitions_bounded AFTER INSERT ON sandbox_transitions
BEGIN
  DELETE FROM sandbox_transitions WHERE seq <= NEW.seq - 100000;
END""",
    """
CREATE VIEW sandbox_overview AS
SELECT s.id, s.name, s.namespace, s.pod, t.state, t.pid, s.ip, s.netns_path, t.reason, t.message,
  strftime('%Y-%m-%dT%H:%M:%S', t.created_at / 1000000000, 'unixepoch') || printf('.%09dZ',
    t.created_at % 1000000000) AS created_at,
  strftime('%Y-%m-%dT%H:%M:%S', t.changed_at / 1000000000, 'unixepoch') || printf('.%09dZ',
    t.changed_at % 1000000000) AS changed_at
FROM sandboxes AS s JOIN sandbox_statuses AS t ON t.sandbox_id = s.id
ORDER BY t.created_at, s.id""",
    """
CREATE VIEW why_not_ready AS
SELECT s.id, s.name, t.reason, t.message,
  strftime('%Y-%m-%dT%H:%M:%S', coalesce(h.at, t.changed_at) / 1000000000, 'unixepoch') ||
    printf('.%09dZ', coalesce(h.at, t.changed_at) % 1000000000) AS since,
  h.from_state AS previous_state,
  coalesce(h.actor, t.actor) AS actor
FROM sandboxes AS s JOIN sandbox_statuses AS t ON t.sandbox_id = s.id
LEFT JOIN sandbox_transitions AS h ON h.seq = (
  SELECT max(seq) FROM sandbox_transitions WHERE sandbox_id = s.id)
WHERE t.state = 'SANDBOX_NOTREADY'
ORDER BY coalesce(h.at, t.changed_at), s.id""",
    "PRAGMA application_id = 1397900354",
    """
INSERT INTO registry (one, registry_id, created_at, level, min_reader, min_writer) VALUES
(1, lower(hex(randomblob(16))), CAST(strftime('%s', 'now') AS INTEGER) * 1000000000 +
CAST(substr(strftime('%f', 'now'), 4) AS INTEGER) * 1000000, 1, 1, 1)""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.get_bind().exec_driver_sql(statement.strip())


def downgrade() -> NoReturn:
    """Refuse: there is nothing before it."""
    raise NotImplementedError("downgrade from revision 0001: it is the first")
