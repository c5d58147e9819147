"""Tables of the fleet's database, in SQLAlchemy Core.

    fleet_meta          one row: levels of the schema
    fleet_registries    one row for each registry: its cursor, its lease, its latest heartbeat
    ├── fleet_boots         each boot that a pusher ran under, with its kernel
    ├── fleet_sandboxes     present sandboxes
    ├── fleet_transitions   history, partitioned by month; rows are only inserted
    └── fleet_breaks        where the history has a gap, or parts from an earlier line

Only migrations and tests import this module. Rules:

1. There are no foreign keys: each would be checked for each row of a batch.
2. A heartbeat updates no indexed column, so that it stays a heap-only update.
3. Columns are only added, and statements name their columns: an older pusher keeps running.
4. Times of sandboxes are integer nanoseconds as in a registry. `fleet_transitions.at` is a
   timestamp, by which rows are partitioned; `at_rest` has its nanoseconds below a microsecond.
5. A node chooses the values of its own rows. Constraints refuse those with which a view, or a
   question of the command line, would fail for all nodes.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

VERSION_TABLE: Final = "fleet_version"

metadata: Final = MetaData(
    naming_convention={"pk": "%(table_name)s_pk", "ck": "%(table_name)s_check_%(constraint_name)s"}
)
_TIME: Final = TIMESTAMP(timezone=True)
_EMPTY: Final = text("''")


def _registry() -> Column[object]:
    return Column("registry_id", Uuid, primary_key=True)


def _texts(*names: str) -> list[Column[str]]:
    return [Column(name, Text, nullable=False) for name in names]


meta: Final = Table(
    "fleet_meta",
    metadata,
    Column("one", Boolean, primary_key=True, server_default=text("true")),
    Column("level", Integer, nullable=False),
    Column("min_writer", Integer, nullable=False),
    CheckConstraint("one", name="one_row"),
)

registries: Final = Table(
    "fleet_registries",
    metadata,
    _registry(),
    Column("incarnation", BigInteger, nullable=False),
    # The registry's own number; a restore on the node increments it.
    Column("source_incarnation", BigInteger, nullable=False),
    *_texts("node", "path", "machine_id", "boot_id", "kernel"),
    Column("cursor", BigInteger, nullable=False),
    # Random number of the latest batch: another pusher, or a server that has gone back, changes it.
    Column("batch", BigInteger, nullable=False, server_default=text("0")),
    Column("fingerprint", Text, nullable=False),
    Column("newest", BigInteger, nullable=False),
    Column("seen_at", _TIME, nullable=False, server_default=text("clock_timestamp()")),
    Column("every", Float, nullable=False),
    Column("skew_ms", BigInteger, nullable=False),
    Column("problem", Text, nullable=False, server_default=_EMPTY),
    Column("ended_at", _TIME),
    # In collation C: a comparison with current_user, which is a name, uses no other index.
    Column("role", Text(collation="C"), nullable=False, server_default=text("CURRENT_USER")),
    # The group of all nodes is no node: SET ROLE must not make it one.
    CheckConstraint("role <> 'fleet_node'", name="role"),
    CheckConstraint(
        "every > 0 AND every < 1e9 AND seen_at BETWEEN '2000-01-01Z' AND '3000-01-01Z'"
        " AND ended_at BETWEEN '2000-01-01Z' AND '3000-01-01Z' IS NOT FALSE"
        " AND cursor >= 0 AND newest >= 0 AND skew_ms BETWEEN -1e16 AND 1e16",
        name="bounds",
    ),
    Index("fleet_registries_by_role", "role"),
    postgresql_with={"fillfactor": 50},
)

boots: Final = Table(
    "fleet_boots",
    metadata,
    _registry(),
    Column("boot_id", Text, primary_key=True),
    Column("kernel", Text, nullable=False),
    Column("seen_at", _TIME, nullable=False, server_default=text("clock_timestamp()")),
)

sandboxes: Final = Table(
    "fleet_sandboxes",
    metadata,
    _registry(),
    Column("sandbox_id", Text, primary_key=True),
    *_texts("name", "namespace", "pod", "uid", "state"),
    Column("pid", BigInteger, nullable=False),
    *_texts("ip", "netns_path", "reason", "message"),
    Column("created_at", BigInteger),
    Column("changed_at", BigInteger),
    Column("since", BigInteger),
    Column("exited_at", BigInteger),
    Column("exit_status", BigInteger),
    Column("attempt", BigInteger, nullable=False),
    Column("host_network", BigInteger, nullable=False),
    Column("runtime_handler", Text, nullable=False),
    Column("labels", JSONB, nullable=False),
    CheckConstraint("jsonb_typeof(labels) = 'object'", name="labels"),
    Index("fleet_sandboxes_by_state_reason", "state", "reason"),
    Index("fleet_sandboxes_by_namespace_pod", "namespace", "pod"),
    Index("fleet_sandboxes_by_labels", "labels", postgresql_using="gin"),
)

transitions: Final = Table(
    "fleet_transitions",
    metadata,
    _registry(),
    Column("incarnation", BigInteger, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("at", _TIME, primary_key=True),
    Column("at_rest", SmallInteger, nullable=False),
    *_texts("sandbox_id", "name", "pod", "namespace", "uid", "event"),
    Column("from_state", Text),
    Column("to_state", Text),
    Column("pid", BigInteger, nullable=False),
    *_texts("reason", "message", "actor"),
    Column("boot_id", Text),
    # The nanoseconds since the epoch fit into 64 bits.
    CheckConstraint(
        "at_rest BETWEEN 0 AND 999"
        " AND (at, at_rest) >= (timestamptz '1677-09-21 00:12:43.145224Z', 192)"
        " AND (at, at_rest) <= (timestamptz '2262-04-11 23:47:16.854775Z', 807)",
        name="bounds",
    ),
    Index(
        "fleet_transitions_not_ready",
        *("reason", "at"),
        postgresql_where=text("to_state = 'SANDBOX_NOTREADY'"),
    ),
    Index("fleet_transitions_by_sandbox", "sandbox_id"),
    postgresql_partition_by="RANGE (at)",
)

breaks: Final = Table(
    "fleet_breaks",
    metadata,
    _registry(),
    Column("incarnation", BigInteger, primary_key=True),
    Column("after", BigInteger, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("before", BigInteger, nullable=False),
    Column("found_at", _TIME, nullable=False, server_default=text("clock_timestamp()")),
    CheckConstraint("kind IN ('gap', 'restored', 'replaced')", name="kind"),
)
