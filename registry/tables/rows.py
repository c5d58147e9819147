"""Rows of a sandbox, and their decoding to values; `encoding` encodes values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, NamedTuple, get_type_hints

from registry import cri
from registry.errors import MetadataError, ResourceExhaustedError
from registry.model import cni
from registry.model.cni import CNIResult
from registry.model.extensions import Extension
from registry.model.identity import NetNSIdentity, ProcessIdentity
from registry.model.metadata import Metadata
from registry.model.status import State, Status
from registry.model.text import loads
from registry.sync.interrupts import reraise_interrupt
from registry.tables.columns import Shape

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
"""Columns of metadata that are text; a damaged value cannot be encoded in UTF-8."""


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
            ResourceExhaustedError: no file descriptor is left to import protobuf.
        """
        mistyped = _METADATA.mistyped(metadata_of(self))
        if mistyped:
            raise self._unreadable(mistyped)
        try:
            config = None if self.config is None else cri.PodSandboxConfig.FromString(self.config)
            ips = None if self.additional_ips is None else _load_ips(self.additional_ips)
            result = None if self.cni_result is None else _load_cni_result(self.cni_result)
            for field in _TEXTS:
                (getattr(self, field) or "").encode()
        except ResourceExhaustedError:
            raise  # raised by a late import, before the bytes were decoded
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
    """Columns of a `Row` that can change after UNKNOWN: without the metadata and the creator."""

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


class Summary(NamedTuple):
    """A sandbox as a list for people shows it, without what has to be decoded.

    *since* is the time of its last change of state, in ns since the Unix epoch.
    """

    id: str
    name: str
    namespace: str
    pod: str
    uid: str
    attempt: int
    state: str
    pid: int
    created_at: int | None
    exited_at: int | None
    exit_status: int | None
    reason: str
    message: str
    since: int | None
    netns_path: str
    host_network: int
    ip: str
    runtime_handler: str


AnyRow = Row | StatusRow
"""Columns that can be changed: the whole row while the sandbox is UNKNOWN."""

_ROW: Final = get_type_hints(Row)
_SHAPES: Final = {
    Row: Shape(_ROW),
    StatusRow: Shape({field: _ROW[field] for field in StatusRow._fields}),
}
_METADATA: Final = Shape({field: _ROW[field] for field in METADATA_FIELDS})
_CREATOR: Final = Shape({field: _ROW[field] for field in CREATOR_FIELDS})
_STATUS: Final = Shape({field: _ROW[field] for field in STATUS_FIELDS})


def damage(row: AnyRow) -> str:
    """Return the contradictions of *row* to the schema; "" if there is none.

    If one value is damaged, any other may be damaged too: the row allows no conclusion.
    """
    return _SHAPES[type(row)].damage(row)


def summary_damages(
    fields: tuple[str, ...], found: Sequence[tuple[Any, ...]]
) -> list[MetadataError]:
    """Return an error for each of *found* that contradicts the schema.

    Args:
        fields: of `Summary`, in the order of the values.
        found: summaries with these fields.
    """
    hints = get_type_hints(Summary)
    shape, place = Shape({name: hints[name] for name in fields}), fields.index("id")
    if shape.are_sound(found):
        return []
    damages = [(row[place], shape.damage(row)) for row in found]
    return [_damaged("read sandbox", id, damage) for id, damage in damages if damage]


def require_sound(row: AnyRow, doing: str) -> None:
    """Raise MetadataError, which begins with *doing*, if *row* is damaged."""
    found = damage(row)
    if found:
        message = f"{doing}: its record is damaged: {found}; restore a backup"
        raise MetadataError(message, id=as_text(row.id))


@dataclass(frozen=True, slots=True)
class Transition:
    """A committed change of state, creation and deletion included.

    *seq* orders the history, independently of the clock. *event* is `created`, `changed` or
    `deleted`; *from_state* is None at a creation, and *to_state* is None at a deletion. *at* is ns
    since the Unix epoch, by the clock of the writer.
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
            MetadataError: a value has a wrong type, or a state is unknown here.
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
    ips = loads(text)
    if not isinstance(ips, list) or not all(isinstance(ip, str) for ip in ips):
        raise ValueError(f"additional_ips {text!r} is no array of strings")
    return tuple(ips)


def _load_cni_result(text: str) -> CNIResult:
    value = loads(text)
    result = cni.load(value)
    if cni.dump(result) != value:  # unknown fields would be lost
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
        MetadataError: a value has a wrong type, or is out of range; the state is unknown here.
    """
    found = _STATUS.damage(status_of(row))
    if found:
        raise _damaged("read status of sandbox", row.id, found)
    return Status(
        State.parse(row.state),
        row.pid,
        row.created_at or 0,
        row.exited_at or 0,
        row.exit_status,
        row.reason,
        row.message,
    )


_EXTENSION: Final = Shape({"name": str, "type_url": str, "value": bytes})


def load_extension(row: tuple[Any, ...], id: str) -> tuple[str, Extension]:
    """Return the extension in a row of `EXTENSIONS`, and its name first.

    Raises:
        MetadataError: a value has a wrong type, or is not UTF-8.
    """
    found = _EXTENSION.mistyped(row)
    if not found:
        name, type_url, value = row
        try:
            (name + type_url).encode()
        except UnicodeEncodeError as error:
            found = str(error)
        else:
            return name, Extension(type_url, value)
    message = f"read extensions of sandbox {id!r}: {as_text(row[0])!r}: {found}; it is damaged"
    raise MetadataError(message, id=as_text(id))


def load_netns(row: AnyRow) -> NetNSIdentity | None:
    """Return the recorded identity of the namespace at `netns_path`; None if not recorded."""
    if row.netns_inode is None:
        return None
    return NetNSIdentity(
        row.netns_boot_id or "", row.netns_number, row.netns_inode, row.netns_mount_ns
    )


def load_process(row: AnyRow) -> ProcessIdentity | None:
    """Return the recorded identity of the process of `pid`; None if there is no pid."""
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
    """Return whether the identity of the process is recorded, even as not determined."""
    identity = (row.process_boot_id, row.process_pid_ns, row.process_time_ns)
    return any(part is not None for part in (*identity, row.process_inode, row.process_start_time))


def load_creator(row: Row) -> ProcessIdentity | None:
    """Return the identity of the creator of the sandbox; None for an imported one."""
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
    """Return the creator in a row of `CREATORS`; None if the row is damaged."""
    if _CREATOR.damage(row):
        return None
    pid, boot_id, *numbers = row
    return ProcessIdentity(pid, boot_id or "", *numbers)
