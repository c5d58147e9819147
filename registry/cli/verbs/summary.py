"""Fields of a sandbox, as it is stored, that several verbs show."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from registry import cri
from registry.errors import MetadataError
from registry.handles.sandbox import Sandbox
from registry.model.status import Status


class Pod(NamedTuple):
    """Pod of a sandbox; both names are empty for a sandbox without a config."""

    namespace: str = ""
    name: str = ""


def unreadable(sandbox: Sandbox) -> Iterator[str]:
    """Yield why the stored status or metadata cannot be read, if so."""
    for part in ("status_as_read", "metadata"):
        try:
            getattr(sandbox, part)
        except MetadataError as error:
            yield str(error)


def pod_of(sandbox: Sandbox) -> Pod | None:
    """Return the pod of *sandbox*; None if its metadata cannot be read."""
    with contextlib.suppress(MetadataError):
        return pod_of_config(sandbox.config)
    return None


def pod_of_config(config: cri.PodSandboxConfig | None) -> Pod:
    """Return the pod of *config*."""
    return Pod() if config is None else Pod(config.metadata.namespace, config.metadata.name)


def summary(sandbox: Sandbox, pod: Pod | None) -> dict[str, Any]:
    """Return the fields that `list` and `inspect` have in common, with the status as stored."""
    stored = sandbox.stored
    return {
        "id": sandbox.id,
        "name": sandbox.name,
        "namespace": None if pod is None else pod.namespace,
        "pod": None if pod is None else pod.name,
        **{name: stored[name] for name in Status.__dataclass_fields__},
        "netns_path": sandbox.netns_path,
        "ip": sandbox.ip,
        "runtime_handler": sandbox.runtime_handler,
    }
