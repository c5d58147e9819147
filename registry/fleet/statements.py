"""SQL that a pusher runs, with psycopg's named parameters.

`tables` describes the tables. Columns are named everywhere, so that a later revision may add some.
Rows of a batch are sent as one array for each column: one statement, which needs no preparation
and which row level security permits, unlike COPY.
"""

from __future__ import annotations

from typing import Final

LEVEL: Final = 1
"""Revision of the fleet's database that this code was written for, as a number."""
TRANSITION: Final = (
    *("seq", "sandbox_id", "name", "pod", "namespace", "uid", "event", "from_state", "to_state"),
    *("pid", "reason", "message", "actor", "boot_id", "at"),
)
"""Columns of a transition as in a registry, `at` in nanoseconds."""
SANDBOX: Final = (
    *("sandbox_id", "name", "namespace", "pod", "uid", "state", "pid", "ip", "netns_path"),
    *("reason", "message", "created_at", "changed_at", "since", "exited_at", "exit_status"),
    *("attempt", "host_network", "runtime_handler", "labels"),
)
"""Columns of a present sandbox."""
NUMBERS: Final = {
    *("seq", "pid", "micros", "rest", "created_at", "changed_at", "since", "exited_at"),
    *("exit_status", "attempt", "host_network"),
}


def _columns(names: tuple[str, ...], prefix: str = "") -> str:
    return ", ".join(f"{prefix}{name}" for name in names)


def _arrays(names: tuple[str, ...]) -> str:
    """Return the table `new` with the columns *names*, from one array for each."""
    typed = (f"%({name})s::{'bigint' if name in NUMBERS else 'text'}[]" for name in names)
    return f"unnest({', '.join(typed)}) AS new ({', '.join(names)})"


_COPIED: Final = TRANSITION[:-1]
_SANDBOX_REST: Final = SANDBOX[1:]
INSERT_TRANSITIONS: Final = (
    f"INSERT INTO fleet_transitions (registry_id, incarnation, at, at_rest, {_columns(_COPIED)})"  # noqa: S608
    " SELECT %(registry_id)s, %(incarnation)s,"
    # In two steps: an interval is multiplied by a double, which has 53 bits.
    " 'epoch'::timestamptz + micros / 1000000 * interval '1 second'"
    " + micros %% 1000000 * interval '1 microsecond', rest,"
    f" {_columns(_COPIED)} FROM {_arrays((*_COPIED, 'micros', 'rest'))}"
)
UPSERT_SANDBOXES: Final = (
    f"INSERT INTO fleet_sandboxes AS old (registry_id, {_columns(SANDBOX)})"  # noqa: S608
    f" SELECT %(registry_id)s, {_columns(SANDBOX[:-1])}, labels::jsonb FROM {_arrays(SANDBOX)}"
    " ON CONFLICT (registry_id, sandbox_id) DO UPDATE"
    f" SET ({_columns(_SANDBOX_REST)}) = ROW ({_columns(_SANDBOX_REST, 'excluded.')})"
    f" WHERE ({_columns(_SANDBOX_REST, 'old.')})"
    f" IS DISTINCT FROM ({_columns(_SANDBOX_REST, 'excluded.')})"
)
DELETE_OTHERS: Final = (
    "DELETE FROM fleet_sandboxes WHERE registry_id = %(registry_id)s"
    " AND sandbox_id <> ALL (%(ids)s::text[])"
)
DELETE_SANDBOXES: Final = (
    "DELETE FROM fleet_sandboxes WHERE registry_id = %(registry_id)s"
    " AND sandbox_id = ANY (%(ids)s::text[])"
)

_BEAT: Final = (
    "seen_at = clock_timestamp(), every = %(every)s, problem = '',"
    " skew_ms = %(now_ms)s - (extract(epoch FROM clock_timestamp()) * 1000)::bigint,"
    " boot_id = %(boot_id)s, kernel = %(kernel)s"
)
_WRITABLE: Final = f"EXISTS (SELECT FROM fleet_meta WHERE {LEVEL} BETWEEN min_writer AND level)"
_UNCHANGED: Final = (
    "WHERE registry_id = %(registry_id)s AND incarnation = %(incarnation)s AND cursor = %(cursor)s"
    " AND batch = %(batch)s AND machine_id = %(machine_id)s AND path = %(path)s"
    f" AND ended_at IS NULL AND {_WRITABLE}"
)
"""The row is as this pusher left it, and this pusher may still write it."""
ADVANCE: Final = (
    "UPDATE fleet_registries SET cursor = %(new_cursor)s, batch = %(new_batch)s,"  # noqa: S608
    f" fingerprint = %(new_fingerprint)s, newest = %(newest)s, {_BEAT} {_UNCHANGED}"
)
BEGIN_LINE: Final = (
    "UPDATE fleet_registries SET incarnation = %(new_incarnation)s, cursor = %(new_cursor)s,"  # noqa: S608
    " batch = %(new_batch)s, source_incarnation = %(new_source_incarnation)s,"
    f" fingerprint = %(new_fingerprint)s {_UNCHANGED}"
)
PROBLEM: Final = (
    "UPDATE fleet_registries SET problem = %(problem)s, seen_at = clock_timestamp()"
    " WHERE machine_id = %(machine_id)s AND path = %(path)s AND ended_at IS NULL"
)
INSERT_BREAK: Final = (
    "INSERT INTO fleet_breaks (registry_id, incarnation, after, before, kind)"
    " VALUES (%(registry_id)s, %(incarnation)s, %(after)s, %(before)s, %(kind)s)"
    " ON CONFLICT DO NOTHING"
)
INSERT_BOOT: Final = (
    "INSERT INTO fleet_boots (registry_id, boot_id, kernel)"
    " VALUES (%(registry_id)s, %(boot_id)s, %(kernel)s) ON CONFLICT DO NOTHING"
)

VERSION: Final = "SELECT level, min_writer FROM fleet_meta"
REGISTERED: Final = (
    "SELECT incarnation, source_incarnation, cursor, batch, fingerprint, machine_id, path, node,"
    " ended_at IS NULL AND seen_at > clock_timestamp() - every * interval '3 seconds' AS is_fresh"
    " FROM fleet_registries WHERE registry_id = %(registry_id)s FOR UPDATE"
)
OTHERS: Final = (
    "SELECT registry_id::text, incarnation, cursor,"
    " seen_at > clock_timestamp() - every * interval '3 seconds' AS is_fresh"
    " FROM fleet_registries WHERE node = %(node)s AND path = %(path)s AND ended_at IS NULL"
    " AND registry_id <> %(registry_id)s FOR UPDATE"
)
REGISTER: Final = (
    "INSERT INTO fleet_registries (registry_id, incarnation, source_incarnation, node, path,"
    " machine_id, boot_id, kernel, cursor, fingerprint, newest, every, skew_ms)"
    " VALUES (%(registry_id)s, %(source_incarnation)s, %(source_incarnation)s, %(node)s, %(path)s,"
    " %(machine_id)s, %(boot_id)s, %(kernel)s, 0, '', 0, %(every)s, 0)"
    " ON CONFLICT DO NOTHING"
)
TAKE_OVER: Final = (
    "UPDATE fleet_registries SET machine_id = %(machine_id)s, path = %(path)s, node = %(node)s,"
    " every = %(every)s, seen_at = clock_timestamp(), ended_at = NULL"
    " WHERE registry_id = %(registry_id)s"
)
END: Final = (
    "UPDATE fleet_registries SET ended_at = clock_timestamp() WHERE registry_id = %(other)s"
)
EMPTY: Final = "DELETE FROM fleet_sandboxes WHERE registry_id = %(other)s"

LINES: Final = (
    "SELECT incarnation, after FROM fleet_breaks WHERE registry_id = %(registry_id)s"
    " AND kind = 'restored' ORDER BY incarnation DESC"
)
LAST_UP_TO: Final = (
    f"SELECT {_columns(_COPIED)},"  # noqa: S608
    " (extract(epoch FROM at) * 1000000000 + at_rest)::bigint FROM fleet_transitions"
    " WHERE registry_id = %(registry_id)s AND incarnation = %(incarnation)s"
    " AND seq > %(low)s AND seq <= %(high)s ORDER BY seq DESC LIMIT 1"
)
