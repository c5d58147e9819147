"""Triggers of a registry: the rules that hold for every writer, the `sqlite3` shell included.

docs/schema.md says the same in words.
"""

from __future__ import annotations

from typing import Final

from registry.model.extensions import COUNT_MAX
from registry.tables.version import BLOCK, HISTORY_MAX

STATES: Final = "('SANDBOX_UNKNOWN', 'SANDBOX_READY', 'SANDBOX_NOTREADY')"
"""States, as a list of SQL."""
NOW: Final = (
    "CAST(strftime('%s', 'now') AS INTEGER) * 1000000000"
    " + CAST(substr(strftime('%f', 'now'), 4) AS INTEGER) * 1000000"
)
"""Now, as nanoseconds; SQLite counts milliseconds."""
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
        f"iif({state} IN {STATES}, {state}, coalesce((SELECT to_state FROM sandbox_transitions"
        f" WHERE sandbox_id = {id} AND to_state IN {STATES} ORDER BY seq DESC LIMIT 1),"
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
    iif(leaving, actor, 'sql'), iif(leaving, boot_id, NULL), iif(leaving, changed_at, {NOW})
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
  UPDATE sandbox_statuses SET changed_at = {NOW}, actor = 'sql', boot_id = NULL
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
  UPDATE sandbox_statuses SET changed_at = {NOW}, actor = 'sql', boot_id = NULL
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
  UPDATE sandbox_statuses SET changed_at = {NOW}, actor = 'sql', boot_id = NULL
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
