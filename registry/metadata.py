"""What a sandbox is: everything about it that is fixed once it has been created."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from registry import cni
from registry.cni import CNIResult
from registry.cri import NamespaceMode, PodSandboxConfig
from registry.errors import InvalidArgumentError, ResourceExhaustedError
from registry.values import check_line, check_path, check_text, invalid

ID_MAX: Final = 76
"""Characters in an id; containerd's own bound (pkg/identifiers)."""
TEXT_MAX: Final = 4096
"""Characters in a name, a path or another single value."""
CONFIG_MAX: Final = 4 * 1024 * 1024
"""Bytes of an encoded config; gRPC, by which it comes, stops there too."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """The identity and configuration of a sandbox.

    A plain value: `Store.add` validates it, and keeps its own copy of *config*.

    Source: containerd pkg/store/sandbox/metadata.go, Metadata.
    """

    id: str
    """Unique on the node; at most 76 characters, without `/`."""
    name: str
    """`NAME_NAMESPACE_UID_ATTEMPT` at the CRI; unique on the node while the sandbox exists."""
    config: PodSandboxConfig | None
    """What the kubelet asked for; None when the sandbox was not made through the CRI."""
    netns_path: str = ""
    """Absolute path of the network namespace; "" on the host network."""
    ip: str = ""
    additional_ips: tuple[str, ...] | None = None
    """Further addresses. Go tells nil and empty apart, so None is not `()`."""
    runtime_handler: str = ""
    cni_result: CNIResult | None = None
    process_label: str = ""
    """SELinux label of the init process."""

    @property
    def host_network(self) -> bool:
        """Whether the sandbox lives in the network namespace of the node."""
        if self.config is None:
            return False
        options = self.config.linux.security_context.namespace_options
        return options.network == NamespaceMode.NODE


def validate(metadata: object, doing: str) -> Metadata:
    """Return *metadata* if it can be stored, and say what is wrong with it otherwise.

    Args:
        metadata: what a caller handed over.
        doing: what is being done and to which object; it begins the message.
    Raises:
        InvalidArgumentError: with `.field` and `.value`.
        ResourceExhaustedError: the config is over `CONFIG_MAX` bytes.
    """
    if not isinstance(metadata, Metadata):
        raise invalid(doing, "metadata", metadata, "is not a registry.Metadata")
    _check_id(doing, metadata.id)
    check_line(doing, "name", metadata.name, TEXT_MAX)
    if metadata.name == "":
        raise invalid(doing, "name", metadata.name, "is empty; names are unique on a node")
    for field in ("ip", "runtime_handler", "process_label"):
        check_line(doing, field, getattr(metadata, field), TEXT_MAX)
    if metadata.netns_path != "":
        check_path(doing, "netns_path", metadata.netns_path)
    _check_additional_ips(doing, metadata.additional_ips)
    _check_cni_result(doing, metadata.cni_result)
    _check_config(doing, metadata.config)
    return metadata


def check_prefix(doing: str, id: object) -> str:
    """Return *id* if it can be looked up, whole or as a prefix.

    Raises:
        InvalidArgumentError: it is no text, or empty, which would match every sandbox.
    """
    text = check_text(doing, "id", id, TEXT_MAX)
    if text == "":
        raise invalid(doing, "id", id, "is empty; give an id or the beginning of one")
    return text


def _check_id(doing: str, id: object) -> None:
    check_prefix(doing, id)
    text = check_line(doing, "id", id, ID_MAX)
    if "/" in text or text in {".", ".."}:
        raise invalid(doing, "id", id, "is a path, and an id also names files")


def _check_additional_ips(doing: str, ips: object) -> None:
    if ips is None:
        return
    if not isinstance(ips, tuple):
        raise invalid(doing, "additional_ips", ips, "is neither a tuple nor None")
    for ip in ips:
        check_line(doing, "additional_ips", ip, TEXT_MAX)


def _check_cni_result(doing: str, result: object) -> None:
    if result is None:
        return
    if not isinstance(result, CNIResult):
        raise invalid(doing, "cni_result", result, "is not a registry.CNIResult")
    try:
        text = json.dumps(cni.dump(result), ensure_ascii=False)
        same = cni.load(json.loads(text)) == result
    except (TypeError, KeyError, AttributeError, ValueError):
        same = False
    if not same:
        raise invalid(doing, "cni_result", result, "holds something else than its types say")
    check_text(doing, "cni_result", text, CONFIG_MAX)


def _check_config(doing: str, config: object) -> None:
    if config is None:
        return
    if not isinstance(config, PodSandboxConfig):
        kind = f"{type(config).__module__}.{type(config).__qualname__}"
        raise InvalidArgumentError(
            f"{doing}: config is a {kind}, not a registry.cri.PodSandboxConfig; "
            "parse its bytes with registry.cri.PodSandboxConfig.FromString",
            field="config",
            value=config,
        )
    size = config.ByteSize()
    if size > CONFIG_MAX:
        raise ResourceExhaustedError(
            f"{doing}: config has {size} bytes, over the limit of {CONFIG_MAX}",
            field="config",
            size=size,
            limit=CONFIG_MAX,
        )
    # What has a column of its own.
    pod = config.metadata
    for text in (pod.name, pod.namespace, pod.uid, *config.labels, *config.labels.values()):
        if "\0" in text:
            raise invalid(doing, "config", text, "holds a NUL, at which SQL text ends")
