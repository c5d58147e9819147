"""The tables, triggers and views of a registry: one SQLite file.

    registry                one row: id of the registry, and the levels of code that may use it
    sandboxes               one row for each sandbox: metadata, identities, creator
    ├── sandbox_statuses    one row for each sandbox: state, process, reason, audit columns
    ├── sandbox_labels      one row for each label, for selectors
    └── sandbox_extensions  one row for each extension: data of the embedding program
    sandbox_transitions     append-only: every change of state, also of deleted sandboxes

    sandbox_overview        view: one row for each sandbox     ┐ the contract with operators:
    why_not_ready           view: one row for each NOTREADY    ┘ views only gain columns

Rules:

1. The code reads every column. Only the config is stored twice (bytes for the program, JSON for
   people), and its fields that a list filters by. `check` compares the copies.
2. Times are integer nanoseconds since the Unix epoch, UTC, and NULL when unset. States are text.
3. A CHECK or a trigger enforces each rule for every writer, the `sqlite3` shell included. Foreign
   keys do not suffice: the shell does not enable them.
4. Triggers write the transitions from the columns changed_at, actor, boot_id, reason and message.
   If a writer does not change changed_at, the triggers set the time of SQLite and the actor `sql`.
5. A change here needs a revision in `migrations/`, and increments `LEVEL` in `version`. A test
   proves that the chain of revisions builds this schema. `make sql` then generates `sql.py`, which
   the package uses: the package never imports this module.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    DDL,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    event,
    text,
)

from registry.model.extensions import COUNT_MAX, NAME_MAX, TYPE_URL_MAX, VALUE_MAX
from registry.tables.version import APPLICATION_ID, BLOCK, HISTORY_MAX, LEVEL, REVISION

metadata: Final = MetaData(
    naming_convention={
        "ix": "%(table_name)s_by_%(column_0_N_name)s",
        "uq": "%(table_name)s_unique_%(column_0_N_name)s",
        "ck": "%(table_name)s_check_%(constraint_name)s",
        "fk": "%(table_name)s_fk_%(column_0_name)s",
        "pk": "%(table_name)s_pk",
    }
)

_STATES = "('SANDBOX_UNKNOWN', 'SANDBOX_READY', 'SANDBOX_NOTREADY')"


def _positive(column: str) -> CheckConstraint:
    return CheckConstraint(f"{column} > 0", name=column)


def _json(column: str, kind: str) -> str:
    """Require a *kind* of JSON, or NULL; json_type alone raises for invalid JSON."""
    return f"iif(json_valid({column}), json_type({column}) = '{kind}', {column} IS NULL)"


registry: Final = Table(
    "registry",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("registry_id", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
    # Newest revision that was applied, and oldest levels of code that may read or write.
    Column("level", Integer, nullable=False),
    Column("min_reader", Integer, nullable=False),
    Column("min_writer", Integer, nullable=False),
    # Lines of history: each restore of a backup, and each copy that is opened, begins the next one.
    Column("incarnation", Integer, nullable=False, server_default=text("1")),
    # When this copy of a registry was made; NULL: it is no copy, or has begun its own incarnation.
    Column("copied_at", Integer),
    CheckConstraint("one = 1", name="one_row"),
    _positive("incarnation"),
    _positive("copied_at"),
    # The id is a part of the names of namespaces.
    CheckConstraint(
        "length(registry_id) = 32 AND registry_id NOT GLOB '*[^0-9a-f]*'", name="registry_id"
    ),
    sqlite_strict=True,
)

sandboxes: Final = Table(
    "sandboxes",
    metadata,
    # Number of this creation, never reused: an id that is added again is another sandbox.
    Column("creation", Integer, primary_key=True),
    Column("id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("netns_path", Text, nullable=False, server_default=""),
    Column("ip", Text, nullable=False, server_default=""),
    Column("additional_ips", Text),
    Column("runtime_handler", Text, nullable=False, server_default=""),
    Column("cni_result", Text),
    Column("process_label", Text, nullable=False, server_default=""),
    Column("config", LargeBinary),
    Column("config_json", Text),
    # Fields of the config, for filters.
    Column("pod", Text, nullable=False, server_default=""),
    Column("namespace", Text, nullable=False, server_default=""),
    Column("uid", Text, nullable=False, server_default=""),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("host_network", Integer, nullable=False, server_default=text("0")),
    # Identity of the network namespace at netns_path.
    Column("netns_boot_id", Text),
    Column("netns_number", Integer),
    Column("netns_inode", Integer),
    Column("netns_mount_ns", Integer),
    # Identity of the creator; NULL for an imported sandbox.
    Column("creator_pid", Integer),
    Column("creator_boot_id", Text),
    Column("creator_pid_ns", Integer),
    Column("creator_time_ns", Integer),
    Column("creator_inode", Integer),
    Column("creator_start_time", Integer),
    UniqueConstraint("id"),
    UniqueConstraint("name"),
    CheckConstraint("length(id) BETWEEN 1 AND 76 AND instr(id, '/') = 0", name="id"),
    CheckConstraint("name <> ''", name="name"),
    CheckConstraint("netns_path = '' OR substr(netns_path, 1, 1) = '/'", name="netns_path"),
    CheckConstraint(_json("additional_ips", "array"), name="additional_ips"),
    CheckConstraint(_json("cni_result", "object"), name="cni_result"),
    CheckConstraint("(config IS NULL) = (config_json IS NULL)", name="config"),
    CheckConstraint("config_json IS NULL OR json_valid(config_json)", name="config_json"),
    CheckConstraint("host_network IN (0, 1)", name="host_network"),
    CheckConstraint(
        "netns_inode IS NOT NULL OR coalesce(netns_boot_id, netns_number, netns_mount_ns) IS NULL",
        name="netns",
    ),
    Index(None, "pod"),
    Index(None, "namespace", "pod"),
    sqlite_strict=True,
    sqlite_autoincrement=True,
)

sandbox_statuses: Final = Table(
    "sandbox_statuses",
    metadata,
    Column("sandbox_id", Text, ForeignKey(sandboxes.c.id, ondelete="CASCADE"), primary_key=True),
    Column("state", Text, nullable=False),
    Column("pid", Integer, nullable=False, server_default=text("0")),
    Column("created_at", Integer),
    Column("exited_at", Integer),
    Column("exit_status", Integer),
    Column("reason", Text, nullable=False, server_default=""),
    Column("message", Text, nullable=False, server_default=""),
    # Audit columns: time, author and boot id of the last write.
    Column("changed_at", Integer),
    Column("actor", Text, nullable=False, server_default=""),
    Column("boot_id", Text),
    # Identity of the process of pid.
    Column("process_boot_id", Text),
    Column("process_pid_ns", Integer),
    Column("process_time_ns", Integer),
    Column("process_inode", Integer),
    Column("process_start_time", Integer),
    # 1 from the announcement of a deletion to the deletion, in one transaction: it tells the
    # trigger that changed_at and actor are those of the deletion.
    Column("leaving", Integer, nullable=False, server_default=text("0")),
    CheckConstraint(f"state IN {_STATES}", name="state"),
    CheckConstraint("pid BETWEEN 0 AND 2147483647", name="pid"),
    _positive("created_at"),
    _positive("exited_at"),
    CheckConstraint("leaving IN (0, 1)", name="leaving"),
    CheckConstraint(
        "reason = '' OR (reason GLOB '[A-Za-z]*' AND reason GLOB '*[A-Za-z0-9_]'"
        " AND reason NOT GLOB '*[^A-Za-z0-9_,:]*')",
        name="reason",
    ),
    Index(None, "state"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

sandbox_labels: Final = Table(
    "sandbox_labels",
    metadata,
    Column("sandbox_id", Text, ForeignKey(sandboxes.c.id, ondelete="CASCADE"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Index(None, "key", "value", "sandbox_id"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

sandbox_extensions: Final = Table(
    "sandbox_extensions",
    metadata,
    # With a rowid: values are long, and a B-tree without one holds few such rows on a page.
    Column("sandbox_id", Text, ForeignKey(sandboxes.c.id, ondelete="CASCADE"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("type_url", Text, nullable=False, server_default=""),
    Column("value", LargeBinary, nullable=False),
    CheckConstraint(f"length(name) BETWEEN 1 AND {NAME_MAX}", name="name"),
    CheckConstraint(f"length(type_url) <= {TYPE_URL_MAX}", name="type_url"),
    CheckConstraint(f"length(value) <= {VALUE_MAX}", name="value"),
    sqlite_strict=True,
)

sandbox_transitions: Final = Table(
    "sandbox_transitions",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("sandbox_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("pod", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("uid", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("from_state", Text),
    Column("to_state", Text),
    Column("pid", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("boot_id", Text),
    Column("at", Integer, nullable=False),
    CheckConstraint(
        "CASE event WHEN 'created' THEN from_state IS NULL AND to_state IS NOT NULL"
        " WHEN 'changed' THEN from_state IS NOT NULL AND to_state IS NOT NULL"
        " WHEN 'deleted' THEN from_state IS NOT NULL AND to_state IS NULL ELSE 0 END",
        name="event",
    ),
    CheckConstraint(f"from_state IN {_STATES}", name="from_state"),
    CheckConstraint(f"to_state IN {_STATES}", name="to_state"),
    Index(None, "sandbox_id", "seq"),
    sqlite_strict=True,
    sqlite_autoincrement=True,
)

_NOW = (
    "CAST(strftime('%s', 'now') AS INTEGER) * 1000000000"
    " + CAST(substr(strftime('%f', 'now'), 4) AS INTEGER) * 1000000"
)
_FIXED = (
    "netns_path, ip, additional_ips, runtime_handler, cni_result, process_label, config,"
    " config_json, pod, namespace, uid, attempt, host_network"
)
_NETNS = "netns_boot_id, netns_number, netns_inode, netns_mount_ns"
_CREATOR = (
    "creator_pid, creator_boot_id, creator_pid_ns, creator_time_ns, creator_inode,"
    " creator_start_time"
)
_PROCESS = "process_boot_id, process_pid_ns, process_time_ns, process_inode, process_start_time"
_STATUS = "pid, created_at, exited_at, exit_status, reason, message"
_TRANSITION = (
    "INSERT INTO sandbox_transitions (sandbox_id, name, pod, namespace, uid, event, from_state,"
    " to_state, pid, reason, message, actor, boot_id, at)"
)


def _row(alias: str, columns: str) -> str:
    """Return *columns* as a row value of OLD or NEW."""
    return "(" + ", ".join(f"{alias}.{column.strip()}" for column in columns.split(",")) + ")"


def _changed(columns: str) -> str:
    return f"{_row('OLD', columns)} IS NOT {_row('NEW', columns)}"


def _state_of(id: str) -> str:
    """Return the state; NULL while the rows of the sandbox are being deleted one by one."""
    return f"(SELECT state FROM sandbox_statuses JOIN sandboxes ON id = sandbox_id WHERE id = {id})"


def _left(state: str, id: str) -> str:
    """Return the state before the change; for a damaged state, the last valid one in the history.

    The history accepts only valid states, so a damaged state could not be repaired or deleted.
    """
    return (
        f"iif({state} IN {_STATES}, {state}, coalesce((SELECT to_state FROM sandbox_transitions"
        f" WHERE sandbox_id = {id} AND to_state IN {_STATES} ORDER BY seq DESC LIMIT 1),"
        " 'SANDBOX_UNKNOWN'))"
    )


def _labels_fixed(verb: str, alias: str, also: str = "") -> str:
    """Refuse a change to a label if the metadata of its sandbox is fixed, or if *also* holds."""
    return f"""
CREATE TRIGGER sandbox_labels_fixed_{verb.lower()} BEFORE {verb} ON sandbox_labels
WHEN {_state_of(f"{alias}.sandbox_id")} <> 'SANDBOX_UNKNOWN'{f" OR {also}" if also else ""}
BEGIN
  SELECT RAISE(ABORT, 'sandbox_labels: fixed once the sandbox is not SANDBOX_UNKNOWN');
END"""


TRIGGERS: Final = (
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
    # REPLACE deletes the conflicting row and its children without firing a delete trigger.
    """
CREATE TRIGGER sandboxes_not_replaced BEFORE INSERT ON sandboxes
WHEN EXISTS (SELECT 1 FROM sandboxes
             WHERE creation = NEW.creation OR id = NEW.id OR name = NEW.name)
BEGIN
  SELECT RAISE(ABORT, 'sandboxes: the id or the name is taken');
END""",
    f"""
CREATE TRIGGER sandboxes_identity_fixed BEFORE UPDATE ON sandboxes
WHEN {_changed("creation, id, name, " + _CREATOR)}
BEGIN
  SELECT RAISE(ABORT, 'sandboxes: id, name and creator are fixed');
END""",
    f"""
CREATE TRIGGER sandboxes_metadata_fixed BEFORE UPDATE OF {_FIXED} ON sandboxes
WHEN {_state_of("OLD.id")} <> 'SANDBOX_UNKNOWN' AND {_changed(_FIXED)}
BEGIN
  SELECT RAISE(ABORT, 'sandboxes: metadata is fixed once the sandbox is not SANDBOX_UNKNOWN');
END""",
    f"""
CREATE TRIGGER sandboxes_netns_noted_once BEFORE UPDATE OF {_NETNS} ON sandboxes
WHEN OLD.netns_inode IS NOT NULL AND OLD.netns_path IS NEW.netns_path AND {_changed(_NETNS)}
BEGIN
  SELECT RAISE(ABORT, 'sandboxes: the identity of a network namespace is noted once');
END""",
    # Another path is another namespace, whichever program wrote it.
    f"""
CREATE TRIGGER sandboxes_netns_moved AFTER UPDATE OF netns_path ON sandboxes
WHEN OLD.netns_path IS NOT NEW.netns_path AND NOT ({_changed(_NETNS)})
BEGIN
  UPDATE sandboxes SET netns_boot_id = NULL, netns_number = NULL, netns_inode = NULL,
    netns_mount_ns = NULL WHERE creation = NEW.creation;
END""",
    f"""
CREATE TRIGGER sandboxes_deleted BEFORE DELETE ON sandboxes
BEGIN
  {_TRANSITION}
  SELECT OLD.id, OLD.name, OLD.pod, OLD.namespace, OLD.uid, 'deleted',
    {_left("state", "OLD.id")}, NULL, pid, reason, message,
    iif(leaving, actor, 'sql'), iif(leaving, boot_id, NULL), iif(leaving, changed_at, {_NOW})
  FROM sandbox_statuses WHERE sandbox_id = OLD.id;
END""",
    """
CREATE TRIGGER sandboxes_rows_follow AFTER DELETE ON sandboxes
BEGIN
  DELETE FROM sandbox_statuses WHERE sandbox_id = OLD.id;
  DELETE FROM sandbox_labels WHERE sandbox_id = OLD.id;
  DELETE FROM sandbox_extensions WHERE sandbox_id = OLD.id;
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
    f"""
CREATE TRIGGER sandbox_statuses_never_unknown BEFORE UPDATE OF state ON sandbox_statuses
WHEN NEW.state = 'SANDBOX_UNKNOWN'
  AND {_left("OLD.state", "NEW.sandbox_id")} <> 'SANDBOX_UNKNOWN'
BEGIN
  SELECT RAISE(ABORT, 'sandbox_statuses: no way leads back to SANDBOX_UNKNOWN');
END""",
    f"""
CREATE TRIGGER sandbox_statuses_created AFTER INSERT ON sandbox_statuses
BEGIN
  UPDATE sandbox_statuses SET changed_at = {_NOW}, actor = 'sql', boot_id = NULL
  WHERE sandbox_id = NEW.sandbox_id AND NEW.changed_at IS NULL;
  {_TRANSITION}
  SELECT id, name, pod, namespace, uid, 'created', NULL, NEW.state, NEW.pid, NEW.reason,
    NEW.message, actor, boot_id, changed_at
  FROM sandboxes JOIN sandbox_statuses ON sandbox_id = id WHERE id = NEW.sandbox_id;
END""",
    f"""
CREATE TRIGGER sandbox_statuses_changed AFTER UPDATE OF state ON sandbox_statuses
WHEN {_left("OLD.state", "NEW.sandbox_id")} IS NOT NEW.state
BEGIN
  UPDATE sandbox_statuses SET changed_at = {_NOW}, actor = 'sql', boot_id = NULL
  WHERE sandbox_id = NEW.sandbox_id AND OLD.changed_at IS NEW.changed_at;
  {_TRANSITION}
  SELECT id, name, pod, namespace, uid, 'changed',
    {_left("OLD.state", "NEW.sandbox_id")}, NEW.state, NEW.pid, NEW.reason,
    NEW.message, actor, boot_id, changed_at
  FROM sandboxes JOIN sandbox_statuses ON sandbox_id = id WHERE id = NEW.sandbox_id;
END""",
    # The same audit columns for a write that keeps the state, so that changed_at is never older
    # than the row.
    f"""
CREATE TRIGGER sandbox_statuses_written AFTER UPDATE OF state, {_STATUS} ON sandbox_statuses
WHEN {_left("OLD.state", "NEW.sandbox_id")} IS NEW.state AND OLD.changed_at IS NEW.changed_at
BEGIN
  UPDATE sandbox_statuses SET changed_at = {_NOW}, actor = 'sql', boot_id = NULL
  WHERE sandbox_id = NEW.sandbox_id;
END""",
    f"""
CREATE TRIGGER sandbox_statuses_process_noted_once BEFORE UPDATE OF {_PROCESS} ON sandbox_statuses
WHEN (OLD.process_inode IS NOT NULL OR OLD.process_start_time IS NOT NULL)
  AND OLD.pid IS NEW.pid AND {_changed(_PROCESS)} AND coalesce({_row("NEW", _PROCESS)[1:-1]})
  IS NOT NULL
BEGIN
  SELECT RAISE(ABORT, 'sandbox_statuses: the identity of a process is noted once');
END""",
    # A new pid is a new process: if a writer kept the old identity beside it, a running process
    # would seem gone.
    f"""
CREATE TRIGGER sandbox_statuses_new_process AFTER UPDATE OF pid ON sandbox_statuses
WHEN OLD.pid IS NOT NEW.pid AND NOT ({_changed(_PROCESS)})
BEGIN
  UPDATE sandbox_statuses SET process_boot_id = NULL, process_pid_ns = NULL,
    process_time_ns = NULL, process_inode = NULL, process_start_time = NULL
  WHERE sandbox_id = NEW.sandbox_id;
END""",
    # The first labels come before the status; without a sandbox the next one would inherit them.
    _labels_fixed("INSERT", "NEW", "NEW.sandbox_id NOT IN (SELECT id FROM sandboxes)"),
    _labels_fixed("UPDATE", "OLD", "OLD.sandbox_id IS NOT NEW.sandbox_id"),
    _labels_fixed("DELETE", "OLD"),
    # Without a sandbox the next one of that id would inherit it.
    f"""
CREATE TRIGGER sandbox_extensions_bounded BEFORE INSERT ON sandbox_extensions
WHEN NEW.sandbox_id NOT IN (SELECT id FROM sandboxes)
  OR (SELECT count(*) FROM sandbox_extensions WHERE sandbox_id = NEW.sandbox_id) >= {COUNT_MAX}
BEGIN
  SELECT RAISE(ABORT, 'sandbox_extensions: at most {COUNT_MAX}, of a sandbox that exists');
END""",
    """
CREATE TRIGGER sandbox_extensions_sandbox_fixed BEFORE UPDATE OF sandbox_id ON sandbox_extensions
WHEN OLD.sandbox_id IS NOT NEW.sandbox_id
BEGIN
  SELECT RAISE(ABORT, 'sandbox_extensions: sandbox_id is fixed');
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
    # A transition with a far greater seq may come only after a jump of a new incarnation, which has
    # set the AUTOINCREMENT counter: see `incarnation.begin`.
    f"""
CREATE TRIGGER sandbox_transitions_in_turn AFTER INSERT ON sandbox_transitions
WHEN NEW.seq <> 1 AND NEW.seq - 1 NOT IN (SELECT seq FROM sandbox_transitions)
  AND (NEW.seq % {BLOCK} <> 1 OR NEW.seq - 1 NOT IN (
    SELECT seq FROM sqlite_sequence WHERE name = 'sandbox_transitions'))
BEGIN
  SELECT RAISE(ABORT, 'sandbox_transitions: append-only');
END""",
    # The history is bounded by its count, which the seq tells within a block. Older blocks stay
    # until the block of the newest transition has that many; then a few go with each new one.
    f"""
CREATE TRIGGER sandbox_transitions_stay BEFORE DELETE ON sandbox_transitions
WHEN OLD.seq > (SELECT max(seq) FROM sandbox_transitions) - {HISTORY_MAX}
  OR ((SELECT max(seq) FROM sandbox_transitions) - 1) % {BLOCK} < {HISTORY_MAX}
BEGIN
  SELECT RAISE(ABORT, 'sandbox_transitions: append-only');
END""",
    f"""
CREATE TRIGGER sandbox_transitions_bounded AFTER INSERT ON sandbox_transitions
WHEN (NEW.seq - 1) % {BLOCK} >= {HISTORY_MAX}
BEGIN
  DELETE FROM sandbox_transitions WHERE seq IN (
    SELECT seq FROM sandbox_transitions WHERE seq <= NEW.seq - {HISTORY_MAX} ORDER BY seq LIMIT 64);
END""",
)


def _iso(column: str) -> str:
    """Render nanoseconds as ISO 8601 UTC; NULL stays NULL."""
    return (
        f"strftime('%Y-%m-%dT%H:%M:%S', {column} / 1000000000, 'unixepoch')"
        f" || printf('.%09dZ', {column} % 1000000000)"
    )


VIEWS: Final = (
    f"""
CREATE VIEW sandbox_overview AS
SELECT s.id, s.name, s.namespace, s.pod, t.state, t.pid, s.ip, s.netns_path, t.reason, t.message,
  {_iso("t.created_at")} AS created_at,
  {_iso("t.changed_at")} AS changed_at
FROM sandboxes AS s JOIN sandbox_statuses AS t ON t.sandbox_id = s.id
ORDER BY t.created_at, s.id""",
    # If the history no longer has the change, the last write is the best approximation.
    f"""
CREATE VIEW why_not_ready AS
SELECT s.id, s.name, t.reason, t.message,
  {_iso("coalesce(h.at, t.changed_at)")} AS since,
  h.from_state AS previous_state,
  coalesce(h.actor, t.actor) AS actor
FROM sandboxes AS s JOIN sandbox_statuses AS t ON t.sandbox_id = s.id
LEFT JOIN sandbox_transitions AS h ON h.seq = (
  SELECT max(seq) FROM sandbox_transitions WHERE sandbox_id = s.id)
WHERE t.state = 'SANDBOX_NOTREADY'
ORDER BY coalesce(h.at, t.changed_at), s.id""",
)

for _statement in (*TRIGGERS, *VIEWS):
    event.listen(metadata, "after_create", DDL(_statement.strip().replace("%", "%%")))

INITIAL: Final = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    (
        "INSERT INTO registry (one, registry_id, created_at, level, min_reader, min_writer)"
        f" VALUES (1, lower(hex(randomblob(16))), {_NOW}, {LEVEL}, 1, 1)"
    ),
    (
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL,"
        " CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
    ),
    f"INSERT INTO alembic_version (version_num) VALUES ('{REVISION}')",
)
"""Statements that make a database of this schema a registry with an id, at the newest revision."""
