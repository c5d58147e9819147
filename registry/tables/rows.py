"""What stands in the rows of a sandbox, in both directions: values to columns, columns to values.

All SQL that the package runs on sandboxes is here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from operator import attrgetter, itemgetter
from typing import Any, Final, NamedTuple, get_type_hints

from sqlalchemy import (
    BindParameter,
    Column,
    ColumnElement,
    ScalarSelect,
    Select,
    Table,
    Text,
    bindparam,
    cast,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from registry.cri import PodSandboxConfig
from registry.errors import MetadataError
from registry.host.namespaces import NetNSIdentity
from registry.host.process import ProcessIdentity
from registry.model import cni
from registry.model.cni import CNIResult
from registry.model.metadata import Metadata
from registry.model.status import PID_MAX, State, Status
from registry.sync.interrupts import reraise_interrupt
from registry.tables import columns
from registry.tables.columns import Shape
from registry.tables.schema import sandbox_labels, sandbox_statuses, sandbox_transitions, sandboxes
from registry.tables.statements import Core, Statement, compiled

ID_BYTES_MAX: Final = 4 * 76
"""Of an id in UTF-8."""
STATUS_FIELDS: Final = tuple(Status.__dataclass_fields__)
status_of: Final = attrgetter(*STATUS_FIELDS)
"""Returns the columns of a row that `status_columns` writes, in that order."""
METADATA_FIELDS: Final = (
    *("id", "name", "netns_path", "ip", "additional_ips", "runtime_handler", "cni_result"),
    *("process_label", "config", "host_network"),
)
CREATOR_FIELDS: Final = (
    *("creator_pid", "creator_boot_id", "creator_pid_ns", "creator_time_ns"),
    *("creator_inode", "creator_start_time"),
)
"""Columns of a `ProcessIdentity`, in its order."""
metadata_of: Final = attrgetter(*METADATA_FIELDS)
"""Returns the columns of a row that `Row.metadata` decodes."""
_TEXTS: Final = (
    *("name", "netns_path", "ip", "runtime_handler", "process_label"),
    *("additional_ips", "cni_result"),
)
"""Columns of metadata that were UTF-8 when they were written; what is no more has no encoding."""


class Row(NamedTuple):
    """A sandbox as it is stored: its row and its status row, column by column."""

    creation: int
    id: str
    name: str
    netns_path: str
    ip: str
    additional_ips: str | None
    runtime_handler: str
    cni_result: str | None
    process_label: str
    config: bytes | None
    host_network: int
    netns_boot_id: str | None
    netns_number: int | None
    netns_inode: int | None
    netns_mount_ns: int | None
    creator_pid: int | None
    creator_boot_id: str | None
    creator_pid_ns: int | None
    creator_time_ns: int | None
    creator_inode: int | None
    creator_start_time: int | None
    state: str
    pid: int
    created_at: int | None
    exited_at: int | None
    exit_status: int | None
    reason: str
    message: str
    changed_at: int | None
    boot_id: str | None
    process_boot_id: str | None
    process_pid_ns: int | None
    process_time_ns: int | None
    process_inode: int | None
    process_start_time: int | None

    def metadata(self) -> Metadata:
        """Return the metadata, with a config of its own.

        Raises:
            MetadataError: the stored bytes cannot be decoded.
        """
        mistyped = _METADATA.mistyped(metadata_of(self))
        if mistyped:
            raise self._unreadable(mistyped)
        try:
            config = None if self.config is None else PodSandboxConfig.FromString(self.config)
            ips = None if self.additional_ips is None else _load_ips(self.additional_ips)
            result = None if self.cni_result is None else _load_cni_result(self.cni_result)
            for field in _TEXTS:
                (getattr(self, field) or "").encode()
        except Exception as error:
            reraise_interrupt(error)
            raise self._unreadable(error) from error
        return Metadata(
            id=self.id,
            name=self.name,
            config=config,
            netns_path=self.netns_path,
            ip=self.ip,
            additional_ips=ips,
            runtime_handler=self.runtime_handler,
            cni_result=result,
            process_label=self.process_label,
        )

    def _unreadable(self, why: object) -> MetadataError:
        return MetadataError(
            f"read metadata of sandbox {self.id!r}: {why}; "
            "its id and name stay reserved until it is deleted",
            id=as_text(self.id),
        )


class StatusRow(NamedTuple):
    """A `Row` without what nobody needs once it has left UNKNOWN: the metadata and its creator."""

    creation: int
    id: str
    netns_path: str
    host_network: int
    netns_boot_id: str | None
    netns_number: int | None
    netns_inode: int | None
    netns_mount_ns: int | None
    state: str
    pid: int
    created_at: int | None
    exited_at: int | None
    exit_status: int | None
    reason: str
    message: str
    changed_at: int | None
    boot_id: str | None
    process_boot_id: str | None
    process_pid_ns: int | None
    process_time_ns: int | None
    process_inode: int | None
    process_start_time: int | None


AnyRow = Row | StatusRow
"""What can be changed: the whole row while it is UNKNOWN."""

_ROW: Final = get_type_hints(Row)
_SHAPES: Final = {Row: Shape(_ROW), StatusRow: Shape(get_type_hints(StatusRow))}
_METADATA: Final = Shape({field: _ROW[field] for field in METADATA_FIELDS})
_CREATOR: Final = Shape({field: _ROW[field] for field in CREATOR_FIELDS})
_STATUS: Final = Shape({field: _ROW[field] for field in STATUS_FIELDS})


def damage(row: AnyRow) -> str:
    """Return what in *row* contradicts the schema; "" if nothing does.

    A row that is damaged in one place may be damaged in any: nothing may be concluded from it.
    """
    if isinstance(row, StatusRow) and _is_plain(row):
        return ""
    found = _SHAPES[type(row)].damage(row)
    if not found and isinstance(row, StatusRow):
        _remember_plain(row)
    return found


def require_sound(row: AnyRow, doing: str) -> None:
    """Raise MetadataError, which begins with *doing*, if *row* is damaged."""
    found = damage(row)
    if found:
        message = f"{doing}: its record is damaged: {found}; restore a backup"
        raise MetadataError(message, id=as_text(row.id))


# A reconcile checks thousands of rows of which nearly all are sound. So what was found to be valid
# is cached: the types of the row, and the combination of its words, which recur in most rows.

_plain_types: Final[dict[tuple[type, ...], Callable[[StatusRow], tuple[int, ...]]]] = {}
"""With what returns the numbers of such a row that are not NULL."""
_plain_words: Final[set[tuple[object, ...]]] = set()
_words_of: Final = attrgetter(
    "state", "host_network", "netns_boot_id", "process_boot_id", "boot_id"
)
WORDS_MAX: Final = 1024
"""Combinations of words that are cached."""


def _is_plain(row: StatusRow) -> bool:
    """Return whether *row* is sound, as far as the cache can tell."""
    numbers_of = _plain_types.get(tuple(map(type, row)))
    return (
        numbers_of is not None
        and _words_of(row) in _plain_words
        and min(numbers_of(row)) >= 0
        and row.pid <= PID_MAX
        and columns.is_inode(row.netns_inode or 0)
        and columns.is_path(row.netns_path)
    )


def _remember_plain(row: StatusRow) -> None:
    fields = enumerate(StatusRow._fields)
    numbers = [n for n, field in fields if columns.is_number(field) and row[n] is not None]
    # With the creation, which is never negative, they are at least two, and so a tuple.
    _plain_types[tuple(map(type, row))] = itemgetter(0, *numbers)
    if len(_plain_words) >= WORDS_MAX:
        _plain_words.clear()
    _plain_words.add(_words_of(row))


@dataclass(frozen=True, slots=True)
class Transition:
    """A committed change of state, creation and deletion included.

    *seq* orders the history, whatever the clock did; *event* is `created`, `changed` or `deleted`,
    *from_state* None at a creation and *to_state* None at a deletion; *at* is ns since the Unix
    epoch by the clock of who wrote.
    """

    seq: int
    sandbox_id: str
    name: str
    pod: str
    namespace: str
    uid: str
    event: str
    from_state: State | None
    to_state: State | None
    pid: int
    reason: str
    message: str
    actor: str
    boot_id: str
    at: int

    @classmethod
    def load(cls, row: tuple[Any, ...]) -> Transition:
        """Return the transition of a row of `history`.

        Raises:
            MetadataError: a value has a wrong type, or a state is none that is known here.
        """
        fields = dict(zip(cls.__dataclass_fields__, row, strict=True))
        doing = f"read transition {fields['seq']} of sandbox"
        mistyped = _TRANSITION.mistyped(row)
        if mistyped:
            raise _damaged(doing, fields["sandbox_id"], mistyped, fields["seq"])
        for end in ("from_state", "to_state"):
            text, id, seq = fields[end], fields["sandbox_id"], fields["seq"]
            fields[end] = None if text is None else _load_state(text, doing, id, seq)
        return cls(**{**fields, "boot_id": fields["boot_id"] or ""})


_TRANSITION: Final = Shape(
    {
        **get_type_hints(Transition),
        **dict.fromkeys(("from_state", "to_state", "boot_id"), str | None),
    }
)


def _load_ips(text: str) -> tuple[str, ...]:
    ips = json.loads(text)
    if not isinstance(ips, list) or not all(isinstance(ip, str) for ip in ips):
        raise ValueError(f"additional_ips {text!r} is no array of strings")
    return tuple(ips)


def _load_cni_result(text: str) -> CNIResult:
    value = json.loads(text)
    result = cni.load(value)
    if cni.dump(result) != value:  # what is not known here would be lost
        raise ValueError("cni_result has a layout that is not known here")
    return result


def _load_state(text: str, doing: str, id: str, seq: int = 0) -> State:
    try:
        return State.parse(text)
    except ValueError as error:
        raise _damaged(doing, id, str(error), seq) from error


def _damaged(doing: str, id: object, found: str, seq: int = 0) -> MetadataError:
    message = f"{doing} {id!r}: {found}; it is damaged, or a newer program has written it"
    return MetadataError(message, id=as_text(id), seq=seq)


def as_text(value: object) -> str:
    """Return a column that should be text, and may be damaged, as text to show."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return "" if value is None else str(value)


def load_status(row: AnyRow) -> Status:
    """Return the status in *row*.

    Raises:
        MetadataError: its state is none that is known here, or a value has a wrong type.
    """
    doing = "read status of sandbox"
    mistyped = _STATUS.mistyped(status_of(row))
    if mistyped:
        raise _damaged(doing, row.id, mistyped)
    return Status(
        _load_state(row.state, doing, row.id),
        row.pid,
        row.created_at or 0,
        row.exited_at or 0,
        row.exit_status,
        row.reason,
        row.message,
    )


def load_netns(row: AnyRow) -> NetNSIdentity | None:
    """Return which namespace `netns_path` named when it was noted; None before that."""
    if row.netns_inode is None:
        return None
    return NetNSIdentity(
        row.netns_boot_id or "", row.netns_number, row.netns_inode, row.netns_mount_ns
    )


def load_process(row: AnyRow) -> ProcessIdentity | None:
    """Return which process `pid` named when it was noted; None where there is no pid."""
    if row.pid == 0:
        return None
    return ProcessIdentity(
        row.pid,
        row.process_boot_id or "",
        row.process_pid_ns,
        row.process_time_ns,
        row.process_inode,
        row.process_start_time,
    )


def process_noted(row: AnyRow) -> bool:
    """Return whether the identity of the process is recorded, also if as not determined."""
    identity = (row.process_boot_id, row.process_pid_ns, row.process_time_ns)
    return any(part is not None for part in (*identity, row.process_inode, row.process_start_time))


def load_creator(row: Row) -> ProcessIdentity | None:
    """Return which process is creating, or created, the sandbox; None for an imported one."""
    if row.creator_pid is None:
        return None
    return ProcessIdentity(
        row.creator_pid,
        row.creator_boot_id or "",
        row.creator_pid_ns,
        row.creator_time_ns,
        row.creator_inode,
        row.creator_start_time,
    )


def creator_of(row: Sequence[Any]) -> ProcessIdentity | None:
    """Return the process of a row of `CREATORS`; None if the row is damaged."""
    if _CREATOR.damage(row):
        return None
    pid, boot_id, *numbers = row
    return ProcessIdentity(pid, boot_id or "", *numbers)


def metadata_columns(metadata: Metadata) -> dict[str, object]:
    """Return the columns of `sandboxes` that hold *metadata*."""
    config, ips = metadata.config, metadata.additional_ips
    result = metadata.cni_result
    pod = PodSandboxConfig().metadata if config is None else config.metadata
    return {
        "id": metadata.id,
        "name": metadata.name,
        "netns_path": metadata.netns_path,
        "ip": metadata.ip,
        "additional_ips": None if ips is None else _compact(ips),
        "runtime_handler": metadata.runtime_handler,
        "cni_result": None if result is None else _compact(cni.dump(result)),
        "process_label": metadata.process_label,
        "config": None if config is None else config.SerializeToString(deterministic=True),
        "config_json": None if config is None else config_json(config),
        "pod": pod.name,
        "namespace": pod.namespace,
        "uid": pod.uid,
        "attempt": pod.attempt,
        "host_network": int(metadata.host_network),
    }


def config_json(config: PodSandboxConfig) -> str:
    """Return *config* as JSON for people: proto names as keys, enums by name."""
    from google.protobuf import json_format  # noqa: PLC0415 - 46 ms that only a write needs

    value = json_format.MessageToDict(config, preserving_proto_field_name=True)
    return _compact(value)


def label_rows(metadata: Metadata) -> list[dict[str, object]]:
    """Return the rows of `sandbox_labels` that hold the labels of *metadata*."""
    labels = {} if metadata.config is None else metadata.config.labels
    return [
        {"sandbox_id": metadata.id, "key": key, "value": value} for key, value in labels.items()
    ]


def status_columns(status: Status) -> dict[str, object]:
    """Return the columns of `sandbox_statuses` that hold *status*."""
    return {
        "state": str(status.state),
        "pid": status.pid,
        "created_at": status.created_at or None,
        "exited_at": status.exited_at or None,
        "exit_status": status.exit_status,
        "reason": status.reason,
        "message": status.message,
    }


def netns_columns(identity: NetNSIdentity | None) -> dict[str, object]:
    """Return the columns of `sandboxes` that say which namespace netns_path names."""
    if identity is None:
        return dict.fromkeys(("netns_boot_id", "netns_number", "netns_inode", "netns_mount_ns"))
    return {
        "netns_boot_id": identity.boot_id or None,
        "netns_number": identity.number,
        "netns_inode": identity.inode,
        "netns_mount_ns": identity.mount_ns,
    }


def process_columns(identity: ProcessIdentity | None, prefix: str = "process") -> dict[str, object]:
    """Return the columns, named with *prefix*, that say which process a pid names."""
    columns = ("boot_id", "pid_ns", "time_ns", "inode", "start_time")
    if identity is None:
        return {f"{prefix}_{column}": None for column in columns}
    return {f"{prefix}_{column}": getattr(identity, column) or None for column in columns}


def creator_columns(identity: ProcessIdentity | None) -> dict[str, object]:
    """Return the columns of `sandboxes` that say who is creating; all NULL for an imported one."""
    pid = None if identity is None else identity.pid
    return {"creator_pid": pid, **process_columns(identity, "creator")}


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _rows(fields: Collection[str] = Row._fields) -> Select[Any]:
    tables = (sandboxes.c, sandbox_statuses.c)
    columns = [next(c[name] for c in tables if name in c) for name in fields]
    return select(*columns).select_from(
        sandboxes.join(sandbox_statuses, sandbox_statuses.c.sandbox_id == sandboxes.c.id)
    )


def _row_where(column: Column[Any], fields: Collection[str] = Row._fields) -> Callable[[], Core]:
    return lambda: _rows(fields).where(column == bindparam(column.name))


def _in_order(fields: Collection[str]) -> Select[Any]:
    return _rows(fields).order_by(sandbox_statuses.c.created_at, sandboxes.c.id)


def _id_of(parameter: str) -> ScalarSelect[str]:
    """Return the id of a creation: the id alone may have been deleted and added anew."""
    return (
        select(sandboxes.c.id).where(sandboxes.c.creation == bindparam(parameter)).scalar_subquery()
    )


def _is_past_unknown() -> ColumnElement[bool]:
    """Include a state that is damaged, NULL too: nothing hides such a record."""
    return sandbox_statuses.c.state.is_distinct_from(_literal(str(State.UNKNOWN)))


def _begins(column: Column[Any]) -> ColumnElement[bool]:
    """Compare by bytes from `:prefix` up to `:end`, its bytes and those that UTF-8 does not have.

    A range, which an index answers, and in which `%` and `_` are ordinary: LIKE has neither.
    """
    return (column >= bindparam("prefix")) & (column < cast(bindparam("end"), Text))


def prefix_params(prefix: str) -> dict[str, object]:
    """Return the parameters of a look-up by *prefix*."""
    return {"prefix": prefix, "end": prefix.encode() + b"\xff" * ID_BYTES_MAX}


ROW_BY_ID: Final = Statement(_row_where(sandboxes.c.id))
ROW_BY_CREATION: Final = Statement(_row_where(sandboxes.c.creation))
STATUS_BY_CREATION: Final = Statement(_row_where(sandboxes.c.creation, StatusRow._fields))
ROWS: Final = Statement(lambda: _in_order(Row._fields))
UNKNOWNS: Final = Statement(
    lambda: _in_order(Row._fields).where(sandbox_statuses.c.state == _literal(str(State.UNKNOWN)))
)
"""What can be changed of those that are UNKNOWN: the whole row."""
PAST_UNKNOWN: Final = Statement(lambda: _in_order(StatusRow._fields).where(_is_past_unknown()))
"""What can be changed of all others: the status."""
IDS_BY_PREFIX: Final = Statement(
    lambda: (
        select(sandboxes.c.id, sandboxes.c.creation)
        .where(_begins(sandboxes.c.id))
        .order_by(sandboxes.c.id)
    )
)
NETNS_PATHS: Final = Statement(
    lambda: select(sandboxes.c.netns_path).where(sandboxes.c.netns_path != _literal(""))
)
CREATORS: Final = Statement(
    lambda: (
        select(*(sandboxes.c[name] for name in CREATOR_FIELDS))
        .where(sandboxes.c.creator_pid.is_not(None))
        .distinct()
    )
)
"""The processes that have created sandboxes, each once."""
CREATIONS: Final = Statement(lambda: select(sandboxes.c.creation))
TAKEN: Final = Statement(
    lambda: select(sandboxes.c.id, sandboxes.c.name).where(
        or_(sandboxes.c.id == bindparam("id"), sandboxes.c.name == bindparam("name"))
    )
)
INSERT_SANDBOX: Final = Statement(lambda: insert(sandboxes).values(_values(sandboxes)))
INSERT_STATUS: Final = Statement(
    lambda: insert(sandbox_statuses).values(_values(sandbox_statuses, without={"leaving"}))
)
INSERT_LABEL: Final = Statement(lambda: insert(sandbox_labels).values(_values(sandbox_labels)))
DELETE_LABELS: Final = Statement(
    lambda: delete(sandbox_labels).where(sandbox_labels.c.sandbox_id == bindparam("id"))
)
UPDATE_METADATA: Final = Statement(
    lambda: (
        update(sandboxes)
        .where(sandboxes.c.creation == bindparam("of"))
        .values(_values(sandboxes, without={"creation", *creator_columns(None)}))
    )
)
NOTE_NETNS: Final = Statement(
    lambda: (
        update(sandboxes)
        .where(sandboxes.c.creation == bindparam("of"))
        .where(sandboxes.c.netns_path == bindparam("at_path"))
        .where(sandboxes.c.netns_inode.is_(None))
        .values({name: bindparam(name) for name in netns_columns(None)})
    )
)
NOTE_PROCESS: Final = Statement(
    lambda: (
        update(sandbox_statuses)
        .where(sandbox_statuses.c.sandbox_id == _id_of("of"))
        .where(sandbox_statuses.c.pid == bindparam("of_pid"))
        .where(*(sandbox_statuses.c[name].is_(None) for name in process_columns(None)))
        .values({name: bindparam(name) for name in process_columns(None)})
    )
)
ANNOUNCE_DELETION: Final = Statement(
    lambda: (
        update(sandbox_statuses)
        .where(sandbox_statuses.c.sandbox_id == _id_of("of"))
        .values({name: bindparam(name) for name in ("changed_at", "actor", "boot_id", "leaving")})
    )
)
DELETE: Final = Statement(
    lambda: delete(sandboxes).where(sandboxes.c.creation == bindparam("creation"))
)
# Each by itself: SQLite finds either end of an index at once, but not both in one query.
KEPT: Final = Statement(
    lambda: select(
        select(func.min(sandbox_transitions.c.seq)).scalar_subquery(),
        select(func.max(sandbox_transitions.c.seq)).scalar_subquery(),
    )
)
DELETIONS: Final = Statement(
    lambda: (
        select(sandbox_transitions.c.seq)
        .where(sandbox_transitions.c.seq > bindparam("after"))
        .where(sandbox_transitions.c.event == _literal("deleted"))
    )
)


@cache
def updating_status(columns: tuple[str, ...]) -> str:
    """Return the SQL that writes *columns* of the status of `:of`.

    Only those that change: each that is named costs its index and its triggers.
    """
    return compiled(
        update(sandbox_statuses)
        .where(sandbox_statuses.c.sandbox_id == _id_of("of"))
        .values({name: bindparam(name) for name in columns})
    )


@cache
def listing(filters: frozenset[str], labels: int) -> str:
    """Return the SQL that lists the sandboxes which every filter in *filters* lets through.

    Its parameters are named as the filters; `prefix` and `end` for `id`, and `key0`, `value0`, ...
    for each of *labels* labels.
    """
    statement = _in_order(Row._fields)
    if "hide_unknown" in filters:
        statement = statement.where(_is_past_unknown())
    if "id" in filters:
        statement = statement.where(_begins(sandboxes.c.id))
    for name in sorted(filters & {"name", "pod", "namespace"}):
        statement = statement.where(sandboxes.c[name] == bindparam(name))
    if "state" in filters:
        statement = statement.where(sandbox_statuses.c.state == bindparam("state"))
    label = sandbox_labels.c
    for n in range(labels):
        holders = select(label.sandbox_id).where(
            label.key == bindparam(f"key{n}"), label.value == bindparam(f"value{n}")
        )
        statement = statement.where(sandboxes.c.id.in_(holders))
    return compiled(statement)


@cache
def history(filters: frozenset[str]) -> str:
    """Return the SQL of the transitions after `:after`, of `:id` and up to `:limit` if asked."""
    transition = sandbox_transitions.c
    statement = (
        select(*(transition[name] for name in Transition.__dataclass_fields__))
        .where(transition.seq > bindparam("after"))
        .order_by(transition.seq)
    )
    if "id" in filters:
        statement = statement.where(transition.sandbox_id == bindparam("id"))
    if "limit" in filters:
        statement = statement.limit(bindparam("limit")).offset(literal_column("0"))
    return compiled(statement)


def _literal(text: str) -> ColumnElement[str]:
    """Return *text* of ours as SQL; as a plain value Core would make it a parameter."""
    return literal_column(f"'{text}'")


def _values(table: Table, without: Collection[str] = ()) -> dict[str, BindParameter[Any]]:
    return {name: bindparam(name) for name in table.c.keys() if name not in without}  # noqa: SIM118
