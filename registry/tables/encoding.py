"""Values as the columns that store them; `rows` reads them back."""

from __future__ import annotations

from functools import cache
from typing import Any

from registry import cri
from registry.model import cni, text
from registry.model.identity import NetNSIdentity, ProcessIdentity
from registry.model.metadata import Metadata
from registry.model.status import Status
from registry.sync.imports import late_import


def metadata_columns(metadata: Metadata) -> dict[str, object]:
    """Return the columns of `sandboxes` that hold *metadata*."""
    config, ips = metadata.config, metadata.additional_ips
    result = metadata.cni_result
    return {
        "id": metadata.id,
        "name": metadata.name,
        "netns_path": metadata.netns_path,
        "ip": metadata.ip,
        "additional_ips": None if ips is None else text.dumps(ips),
        "runtime_handler": metadata.runtime_handler,
        "cni_result": None if result is None else text.dumps(cni.dump(result)),
        "process_label": metadata.process_label,
        "config": None if config is None else config.SerializeToString(deterministic=True),
        "config_json": None if config is None else config_json(config),
        **filter_columns(metadata),
    }


def filter_columns(metadata: Metadata) -> dict[str, object]:
    """Return the columns of `sandboxes` by which people filter, and that repeat the config."""
    return {**_pod_columns(metadata.config), "host_network": int(metadata.host_network)}


def _pod_columns(config: cri.PodSandboxConfig | None) -> dict[str, object]:
    if config is None:
        return {"pod": "", "namespace": "", "uid": "", "attempt": 0}
    pod = config.metadata
    return {
        "pod": pod.name,
        "namespace": pod.namespace,
        "uid": pod.uid,
        "attempt": pod.attempt,
    }


def config_json(config: cri.PodSandboxConfig) -> str:
    """Return *config* as JSON for people: proto names as keys, enums by name."""
    return text.dumps(config_value(config))


def config_value(config: cri.PodSandboxConfig) -> dict[str, Any]:
    """Return the value of `config_json`, as a JSON parser returns it."""
    value: dict[str, Any] = _json_format().MessageToDict(config, preserving_proto_field_name=True)
    return value


@cache
def _json_format() -> Any:
    with late_import("google.protobuf.json_format"):
        from google.protobuf import json_format  # noqa: PLC0415 - 46 ms that only additions need
    return json_format


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
    """Return the columns of `sandboxes` that identify the namespace at `netns_path`."""
    if identity is None:
        return dict.fromkeys(("netns_boot_id", "netns_number", "netns_inode", "netns_mount_ns"))
    return {
        "netns_boot_id": identity.boot_id or None,
        "netns_number": identity.number,
        "netns_inode": identity.inode,
        "netns_mount_ns": identity.mount_ns,
    }


def process_columns(identity: ProcessIdentity | None, prefix: str = "process") -> dict[str, object]:
    """Return the columns, named with *prefix*, that identify the process of a pid."""
    columns = ("boot_id", "pid_ns", "time_ns", "inode", "start_time")
    if identity is None:
        return {f"{prefix}_{column}": None for column in columns}
    return {f"{prefix}_{column}": getattr(identity, column) or None for column in columns}


def creator_columns(identity: ProcessIdentity | None) -> dict[str, object]:
    """Return the columns of `sandboxes` that identify the creator; all NULL for an adopted one."""
    pid = None if identity is None else identity.pid
    return {"creator_pid": pid, **process_columns(identity, "creator")}
