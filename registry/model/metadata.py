"""Metadata of a sandbox: the values that are fixed once the sandbox has been created."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from registry import cri
from registry.errors import InvalidArgumentError, ResourceExhaustedError
from registry.model import cni, text
from registry.model.cni import CNIResult
from registry.model.validation import check_line, check_path, check_text, invalid
from registry.sync.imports import late_import

ID_MAX: Final = 76
"""Characters in an id; containerd's own bound (pkg/identifiers)."""
TEXT_MAX: Final = 4096
"""Characters in a name, a path or another single value."""
IPS_MAX: Final = 1000
"""Additional addresses."""
CONFIG_MAX: Final = 4 * 1024 * 1024
"""Maximum bytes of an encoded config; gRPC, which transports it, has the same limit."""


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
    config: cri.PodSandboxConfig | None
    """Config that the kubelet sent; None if the sandbox was not created through the CRI."""
    netns_path: str = ""
    """Absolute path of the network namespace, which UTF-8 encodes in every locale; "" on the host
    network."""
    ip: str = ""
    additional_ips: tuple[str, ...] | None = None
    """Further addresses; None stands for Go's nil, `()` for an empty slice."""
    runtime_handler: str = ""
    cni_result: CNIResult | None = None
    process_label: str = ""
    """SELinux label of the init process."""

    @property
    def host_network(self) -> bool:
        """Return whether the sandbox is in the network namespace of the node."""
        if self.config is None:
            return False
        options = self.config.linux.security_context.namespace_options
        return options.network == cri.NamespaceMode.NODE

    def marshal_json(self) -> bytes:
        """Return the bytes that containerd stores for the metadata, in its current layout.

        They omit unknown fields of *config*, which a newer CRI has added, as containerd's do.

        Source: containerd pkg/store/sandbox/metadata.go, MarshalJSON.

        Raises:
            MetadataError: a value has another type or cannot be encoded in UTF-8, or an address of
                *cni_result* is invalid.
        """
        with late_import("registry.model.containerd"):
            from registry.model import containerd  # noqa: PLC0415 - it builds on this module
        return containerd.marshal(self)

    @classmethod
    def unmarshal_json(cls, data: bytes | str) -> Metadata:
        """Return the metadata that any version of containerd has written as *data*.

        The result is never another than Go's. docs/differences.md lists the documents that are
        refused here and accepted by Go.

        Source: containerd pkg/store/sandbox/metadata.go, UnmarshalJSON.

        Raises:
            MetadataError: with `.field` and `.value`: *data* is not such a document or of another
                version, is larger than `containerd.DOCUMENT_MAX`, or its config is larger than
                `CONFIG_MAX`.
        """
        with late_import("registry.model.containerd"):
            from registry.model import containerd  # noqa: PLC0415 - it builds on this module
        return containerd.unmarshal(data)


def validate(metadata: object, doing: str) -> Metadata:
    """Return *metadata* if it can be stored.

    Args:
        metadata: argument of the caller.
        doing: the operation and its object; they begin the message.
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
    """Return *id* if it is a valid argument of a look-up, full or as a prefix.

    Raises:
        InvalidArgumentError: *id* is not a string, or empty, which would match every sandbox.
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
    if len(ips) > IPS_MAX:
        raise invalid(doing, "additional_ips", ips[:3], f"and more are {len(ips)}, over {IPS_MAX}")
    for ip in ips:
        check_line(doing, "additional_ips", ip, TEXT_MAX)


def _check_cni_result(doing: str, result: object) -> None:
    if result is None:
        return
    if not isinstance(result, CNIResult):
        raise invalid(doing, "cni_result", result, "is not a registry.CNIResult")
    try:
        cni.canonical(result)
        encoded = text.dumps(cni.dump(result))
        same = cni.load(text.loads(encoded)) == result
    except (TypeError, AttributeError):
        same = False
    except ValueError as error:
        raise invalid(doing, "cni_result", result, f"holds what is no address: {error}") from error
    if not same:
        raise invalid(doing, "cni_result", result, "holds something else than its types say")
    check_text(doing, "cni_result", encoded, CONFIG_MAX)


def _check_config(doing: str, config: object) -> None:
    if config is None:
        return
    if not isinstance(config, cri.PodSandboxConfig):
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
    # Values that have a column of their own.
    pod = config.metadata
    for value in (pod.name, pod.namespace, pod.uid, *config.labels, *config.labels.values()):
        if "\0" in value:
            raise invalid(doing, "config", value, "holds a NUL, at which SQL text ends")
