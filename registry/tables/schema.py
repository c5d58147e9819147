"""The tables of a registry: one SQLite file.

    registry                one row: id of the registry, and the levels of code that may use it
    sandboxes               one row for each sandbox: metadata, identities, creator
    ├── sandbox_statuses    one row for each sandbox: state, process, reason, audit columns
    ├── sandbox_labels      one row for each label, for selectors
    └── sandbox_extensions  one row for each extension: data of the embedding program
    sandbox_transitions     append-only: every change of state, also of deleted sandboxes

`triggers` has the triggers, and `views` the views, which are the contract with operators.

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
   the package uses, and the tables of docs/schema.md.
6. Each table and column has its meaning for people as `comment`, with the unit and the meaning of
   NULL: `document` writes docs/schema.md from them, and `browse` shows them.
"""

from __future__ import annotations

from typing import Any, Final

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
from registry.tables.triggers import NOW, STATES, TRIGGERS
from registry.tables.version import APPLICATION_ID, HISTORY_MAX, LEVEL, REVISION

metadata: Final = MetaData(
    naming_convention={
        "ix": "%(table_name)s_by_%(column_0_N_name)s",
        "uq": "%(table_name)s_unique_%(column_0_N_name)s",
        "ck": "%(table_name)s_check_%(constraint_name)s",
        "fk": "%(table_name)s_fk_%(column_0_name)s",
        "pk": "%(table_name)s_pk",
    }
)

NANOSECONDS: Final = "ns"
"""Unit of a time: nanoseconds since the Unix epoch, UTC."""


def column(
    name: str,
    type: type[Any],
    meaning: str,
    *of: ForeignKey,
    null: str = "",
    unit: str = "",
    **options: Any,
) -> Column[Any]:
    """Return a column that says what it means.

    Args:
        name: of the column.
        type: of its values.
        meaning: for people; Markdown.
        of: the foreign key.
        null: what NULL means; "" makes the column NOT NULL.
        unit: of its values.
        options: of `Column`.
    """
    said = {"null": null, "unit": unit}
    return Column(name, type, *of, comment=meaning, info=said, nullable=bool(null), **options)


def _time(name: str, meaning: str, null: str = "") -> Column[Any]:
    return column(name, Integer, meaning, null=null, unit=NANOSECONDS)


def _text(name: str, meaning: str) -> Column[Any]:
    """Return a text column that is "" when unset."""
    return column(name, Text, meaning, server_default="")


def _number(name: str, meaning: str, default: int = 0) -> Column[Any]:
    return column(name, Integer, meaning, server_default=text(str(default)))


def _sandbox() -> Column[Any]:
    """Return the column that names the sandbox of a row."""
    sandbox = ForeignKey(sandboxes.c.id, ondelete="CASCADE")
    return column("sandbox_id", Text, "Id of the sandbox.", sandbox, primary_key=True)


def _process(prefix: str, whose: str) -> tuple[Column[Any], ...]:
    """Return the columns that identify a process beside its pid, named with *prefix*."""
    unread = f"no process is identified, or the value could not be read for {whose}"
    return (
        column(
            f"{prefix}_boot_id", Text, f"Boot id under which {whose} was observed.", null=unread
        ),
        column(
            f"{prefix}_pid_ns", Integer, "Inode of the pid namespace of the observer.", null=unread
        ),
        column(
            f"{prefix}_time_ns",
            Integer,
            "Inode of the time namespace of the observer.",
            null=unread,
        ),
        column(
            f"{prefix}_inode",
            Integer,
            f"Inode of the pidfd of {whose}, unique in one boot.",
            null=f"{unread}; the kernel is older than Linux 6.9",
        ),
        column(
            f"{prefix}_start_time",
            Integer,
            f"Start of {whose}.",
            unit="clock ticks since the boot",
            null=f"{unread}; /proc hides the process",
        ),
    )


def _positive(column: str) -> CheckConstraint:
    return CheckConstraint(f"{column} > 0", name=column)


def _json(column: str, kind: str) -> str:
    """Require a *kind* of JSON, or NULL; json_type alone raises for invalid JSON."""
    return f"iif(json_valid({column}), json_type({column}) = '{kind}', {column} IS NULL)"


registry: Final = Table(
    "registry",
    metadata,
    column("one", Integer, "Always 1.", primary_key=True, autoincrement=False),
    column(
        "registry_id", Text, "Random id: 32 hexadecimal digits, a part of the names of namespaces."
    ),
    _time("created_at", "Creation of the registry."),
    column("level", Integer, "Newest revision that was applied."),
    column("min_reader", Integer, "Lowest level whose code may read the file."),
    column("min_writer", Integer, "Lowest level whose code may write the file."),
    _number(
        "incarnation",
        "Lines of history: a restored backup, or a copy that is opened, begins the next one.",
        default=1,
    ),
    _time(
        "copied_at",
        "When this copy of a registry was made.",
        null="it is no copy, or has begun its own incarnation",
    ),
    CheckConstraint("one = 1", name="one_row"),
    _positive("incarnation"),
    _positive("copied_at"),
    CheckConstraint(
        "length(registry_id) = 32 AND registry_id NOT GLOB '*[^0-9a-f]*'", name="registry_id"
    ),
    comment="one row: what the file is",
    sqlite_strict=True,
)

sandboxes: Final = Table(
    "sandboxes",
    metadata,
    column(
        "creation",
        Integer,
        "Number of this creation, never reused: an id that is added again is another sandbox.",
        primary_key=True,
    ),
    column("id", Text, "Id of the sandbox."),
    column("name", Text, "Name of the sandbox, unique; the CRI makes it of the pod's fields."),
    _text("netns_path", "Path of its network namespace; empty on the host network."),
    _text("ip", "Its first IP address; empty if it has none."),
    column("additional_ips", Text, "Its other IP addresses, a JSON array.", null="not recorded"),
    _text("runtime_handler", "Runtime handler of the CRI's RunPodSandbox; empty: the default one."),
    column("cni_result", Text, "Result of the CNI plugins, a JSON object.", null="not recorded"),
    _text("process_label", "SELinux label of its process; empty if it has none."),
    column(
        "config",
        LargeBinary,
        "`PodSandboxConfig` of the CRI, a protobuf message.",
        null="no config",
    ),
    column("config_json", Text, "The same as JSON, with proto names as keys.", null="no config"),
    _text("pod", "Name of its pod, from the config."),
    _text("namespace", "Kubernetes namespace of its pod, from the config."),
    _text("uid", "UID of its pod, from the config."),
    _number("attempt", "Attempt of the kubelet to create the sandbox of this pod, from 0."),
    _number("host_network", "1: it uses the network of the host; 0: it has a network namespace."),
    column(
        "netns_boot_id",
        Text,
        "Boot id under which its network namespace was observed.",
        null="no namespace was observed, or the boot id could not be read",
    ),
    column(
        "netns_number",
        Integer,
        "Kernel id of the namespace: `NS_GET_ID` or `SO_NETNS_COOKIE`.",
        null="no namespace was observed, or the kernel gives no id",
    ),
    column("netns_inode", Integer, "Inode of the namespace.", null="no namespace was observed"),
    column(
        "netns_mount_ns",
        Integer,
        "Inode of the mount namespace in which its path was observed.",
        null="no namespace was observed, or the mount namespace is not known",
    ),
    column(
        "creator_pid",
        Integer,
        "Process that is responsible for the sandbox while it is UNKNOWN.",
        null="the sandbox was adopted",
    ),
    *_process("creator", "the creator"),
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
    comment="one row for each sandbox: metadata and identities",
    sqlite_strict=True,
    sqlite_autoincrement=True,
)

sandbox_statuses: Final = Table(
    "sandbox_statuses",
    metadata,
    _sandbox(),
    column("state", Text, "`SANDBOX_UNKNOWN`, `SANDBOX_READY` or `SANDBOX_NOTREADY`."),
    _number("pid", "Process of the sandbox; 0: none, or it has ended."),
    _time("created_at", "Creation of the sandbox, as the shim says.", null="not recorded"),
    _time("exited_at", "End of its process.", null="it runs, or its end is not known"),
    column(
        "exit_status",
        Integer,
        "Exit code of its process, as the shim says.",
        null="it runs, or the exit code is not known",
    ),
    _text("reason", "Why it is in its state: one CamelCase word; empty if none is recorded."),
    _text("message", "The same in a sentence."),
    # Audit columns.
    _time(
        "changed_at", "Last write to the status.", null="only inside the transaction of an insert"
    ),
    _text("actor", "Program that made that write: its name and pid, or `sql`."),
    column(
        "boot_id",
        Text,
        "Boot id of the host at that write.",
        null="plain SQL wrote it, or the boot id could not be read",
    ),
    *_process("process", "the process"),
    # It tells the trigger that changed_at and actor are those of the deletion.
    _number("leaving", "1 while one transaction deletes the sandbox, else 0."),
    CheckConstraint(f"state IN {STATES}", name="state"),
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
    comment="one row for each sandbox: what changes",
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

sandbox_labels: Final = Table(
    "sandbox_labels",
    metadata,
    _sandbox(),
    column("key", Text, "Key of a label of the config.", primary_key=True),
    column("value", Text, "Its value."),
    Index(None, "key", "value", "sandbox_id"),
    comment="one row for each label",
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

sandbox_extensions: Final = Table(
    "sandbox_extensions",
    metadata,
    # With a rowid: values are long, and a B-tree without one holds few such rows on a page.
    _sandbox(),
    column("name", Text, "Name of an extension, chosen by the shim.", primary_key=True),
    _text("type_url", "Name of the protobuf message that the value is; empty: plain bytes."),
    column("value", LargeBinary, f"Data of the shim, at most {VALUE_MAX // 1024} KiB."),
    CheckConstraint(f"length(name) BETWEEN 1 AND {NAME_MAX}", name="name"),
    CheckConstraint(f"length(type_url) <= {TYPE_URL_MAX}", name="type_url"),
    CheckConstraint(f"length(value) <= {VALUE_MAX}", name="value"),
    comment=f"one row for each extension, at most {COUNT_MAX} of a sandbox",
    sqlite_strict=True,
)

sandbox_transitions: Final = Table(
    "sandbox_transitions",
    metadata,
    column("seq", Integer, "Number of the change, in the order of commits.", primary_key=True),
    column("sandbox_id", Text, "Id of the sandbox, which may be deleted."),
    column("name", Text, "Its name."),
    column("pod", Text, "Name of its pod."),
    column("namespace", Text, "Kubernetes namespace of its pod."),
    column("uid", Text, "UID of its pod."),
    column("event", Text, "`created`, `changed` (the state) or `deleted`."),
    column("from_state", Text, "State before the change.", null="the sandbox was created"),
    column("to_state", Text, "State after the change.", null="the sandbox was deleted"),
    column("pid", Integer, "Process of the sandbox after the change; 0: none."),
    column("reason", Text, "Reason that the change recorded; empty: none."),
    column("message", Text, "Message that the change recorded."),
    column("actor", Text, "Program that made the change: its name and pid, or `sql`."),
    column(
        "boot_id",
        Text,
        "Boot id of the host at that time.",
        null="plain SQL made the change, or the boot id could not be read",
    ),
    _time("at", "Time of the change, by the clock of the program that made it."),
    CheckConstraint(
        "CASE event WHEN 'created' THEN from_state IS NULL AND to_state IS NOT NULL"
        " WHEN 'changed' THEN from_state IS NOT NULL AND to_state IS NOT NULL"
        " WHEN 'deleted' THEN from_state IS NOT NULL AND to_state IS NULL ELSE 0 END",
        name="event",
    ),
    CheckConstraint(f"from_state IN {STATES}", name="from_state"),
    CheckConstraint(f"to_state IN {STATES}", name="to_state"),
    Index(None, "sandbox_id", "seq"),
    comment=f"one row for each change of state; the last {HISTORY_MAX:,} are kept",
    sqlite_strict=True,
    sqlite_autoincrement=True,
)

for _statement in TRIGGERS:
    event.listen(metadata, "after_create", DDL(_statement.strip().replace("%", "%%")))

INITIAL: Final = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    (
        "INSERT INTO registry (one, registry_id, created_at, level, min_reader, min_writer)"
        f" VALUES (1, lower(hex(randomblob(16))), {NOW}, {LEVEL}, 1, 1)"
    ),
    (
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL,"
        " CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
    ),
    f"INSERT INTO alembic_version (version_num) VALUES ('{REVISION}')",
)
"""Statements that make a database of this schema a registry with an id, at the newest revision."""
