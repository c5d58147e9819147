"""Records as messages of the CRI."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from typing import Any, Final

from registry import (
    InvalidArgumentError,
    MetadataError,
    NetNSError,
    Sandbox,
    State,
    Status,
    Store,
)
from registry.cri import PodSandboxConfig, PodSandboxMetadata
from registry.shim import cgroups, mounts
from registry.shim import runtime_pb2 as api
from registry.shim.validate import has_resolv, options_of

log = logging.getLogger("registry.shim")

ITEMS_MAX: Final = 1024
"""Items of lists that are cached, of about 1 KiB each; a node runs some 250 pods at most."""


class Answers:
    """Items of lists and statuses of the sandboxes of one store."""

    def __init__(self, store: Store) -> None:
        """Translate the records of *store*."""
        self._store: Final = store
        self._items: Final[dict[tuple[object, ...], api.PodSandbox]] = {}
        """Items of lists by the columns that they are made of: a kubelet lists once a second."""
        self._damages: Final[set[str]] = set()
        """Messages about damaged records that were logged already."""

    def status(self, sandbox: Sandbox) -> api.PodSandboxStatus:
        """Return the status of a sandbox; a damaged record raises."""
        config = sandbox.config or PodSandboxConfig()
        fields = self._fields(sandbox, config, sandbox.status_as_read)
        status = api.PodSandboxStatus(**fields)
        if _is_closed(sandbox):
            # The plugins have released the addresses, and may have given them to another pod. A
            # kubelet takes an empty address for a broken sandbox, and runs another one.
            if status.state == api.SANDBOX_READY:
                status.network.SetInParent()
        elif sandbox.ip:
            status.network.ip = sandbox.ip
            for ip in sandbox.additional_ips or ():
                status.network.additional_ips.add(ip=ip)
        status.linux.namespaces.options.CopyFrom(options_of(config))
        return status

    def item(self, sandbox: Sandbox) -> api.PodSandbox:
        """Return a list's item; that of a damaged record is made of the columns that are left."""
        stored = sandbox.stored
        columns = (stored["config"], stored["state"], stored["created_at"])
        key = (sandbox.id, sandbox.runtime_handler, *columns)
        item = self._items.get(key)
        if item is not None:
            return item
        try:
            config = sandbox.config or PodSandboxConfig()
            item = api.PodSandbox(**self._fields(sandbox, config, sandbox.status_as_read))
        except MetadataError as error:
            if str(error) not in self._damages:
                self._damages.add(str(error))
                log.warning(
                    "list sandboxes: %s",
                    error,
                    extra={
                        "event": "config_unreadable",
                        "sandbox_id": sandbox.id,
                        "error": type(error).__name__,
                    },
                )
            return api.PodSandbox(**self._fields(sandbox, _config_of(sandbox), None))
        if len(self._items) >= ITEMS_MAX:
            self._items.clear()
        self._items[key] = item
        return item

    def _fields(
        self, sandbox: Sandbox, config: PodSandboxConfig, status: Status | None
    ) -> dict[str, Any]:
        """Return the fields that PodSandbox and PodSandboxStatus have in common.

        Args:
            sandbox: record to translate.
            config: its config, or the part of it that could be read.
            status: its status; None if the record is damaged, whose columns are used then.
        """
        if status is None:
            ready = sandbox.stored["state"] == str(State.READY)
            created_at = sandbox.stored["created_at"]
        else:
            ready, created_at = status.state is State.READY, status.created_at
        if not isinstance(created_at, int) or created_at <= 0:
            created_at = self._added_at(sandbox)
        return {
            "id": _utf8(sandbox.id),
            "metadata": config.metadata,
            "state": api.SANDBOX_READY if ready else api.SANDBOX_NOTREADY,
            "created_at": created_at,
            "labels": config.labels,
            "annotations": config.annotations,
            "runtime_handler": _utf8(sandbox.runtime_handler),
        }

    def _added_at(self, sandbox: Sandbox) -> int:
        """Return when the record was added (ns since the epoch), or 1 if that is unknown.

        It stands for a missing time of creation: clients show 0 as 1970.
        """
        with contextlib.suppress(InvalidArgumentError):  # the id of a damaged record may be no text
            return next((change.at for change in self._store.history(sandbox.id, limit=1)), 1)
        return 1


def to_json(value: object) -> str:
    """Return *value* as JSON, for verbose information."""
    import json  # noqa: PLC0415 - a server that is not asked for it starts without

    return json.dumps(value)


def _config_of(sandbox: Sandbox) -> PodSandboxConfig:
    """Return the config of a damaged record, or one with the metadata that its name contains."""
    with contextlib.suppress(MetadataError):
        return sandbox.config or PodSandboxConfig()
    return PodSandboxConfig(metadata=metadata_of(_utf8(sandbox.name)))


def _utf8(text: object) -> str:
    """Return the text of a column; a message cannot hold characters that have no UTF-8."""
    return text.encode(errors="replace").decode() if isinstance(text, str) else ""


def metadata_of(name: str) -> PodSandboxMetadata:
    """Return the pod's metadata that `name_of` has composed *name* from."""
    if not re.fullmatch(r"(.+_){3}[0-9]{1,9}", name):
        return PodSandboxMetadata(name=name)
    pod, namespace, uid, attempt = name.rsplit("_", 3)
    return PodSandboxMetadata(name=pod, namespace=namespace, uid=uid, attempt=int(attempt))


def info(sandbox: Sandbox, registry: str, network: str | None) -> dict[str, Any]:
    """Return the verbose information of a status; keys are containerd's where it has one.

    Args:
        sandbox: record to translate.
        registry: path of the registry.
        network: what the plugins say of its network.
    """
    import json  # noqa: PLC0415 - a server that is not asked for it starts without

    status, config = sandbox.status_as_read, sandbox.config or PodSandboxConfig()
    cgroup = cgroups.path_of(config, sandbox.id)
    metadata = json.loads(sandbox.metadata.marshal_json())["Metadata"]
    return {
        "config": metadata["Config"],
        "cniResult": metadata["CNIResult"],
        "cniCheck": network,
        "pid": status.pid,
        "netNamespaceClosed": _is_closed(sandbox),
        "netNamespacePath": sandbox.netns_path,
        "reason": status.reason,
        "message": status.message,
        "exitStatus": status.exit_status,
        "exitedAt": _timestamp(status.exited_at),
        "runtimeHandler": sandbox.runtime_handler,
        "cgroupPath": f"/{cgroup}" if cgroup else "",
        "resolvConfPath": mounts.resolv_path(registry, sandbox.id) if has_resolv(config) else "",
    }


def _timestamp(ns: int) -> str:
    """Return a time as RFC 3339 has it, "" if unset; crictl would round a number of its size."""
    seconds, fraction = divmod(ns, 10**9)
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{at}.{fraction:09}Z" if ns else ""


def _is_closed(sandbox: Sandbox) -> bool | None:
    """Return whether the sandbox's own namespace is closed; None when it cannot be observed."""
    try:
        return bool(sandbox.netns_path) and sandbox.netns is None
    except NetNSError:
        return None
