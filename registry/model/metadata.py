"""What a sandbox is: everything about it that is fixed once it has been created."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from registry.cri import NamespaceMode, PodSandboxConfig, gojson
from registry.cri.gojson.shapes import TEXT, Slice, Struct
from registry.errors import InvalidArgumentError, MetadataError, ResourceExhaustedError
from registry.model import cni
from registry.model.cni import CNIResult
from registry.model.validation import check_line, check_path, check_text, invalid

ID_MAX: Final = 76
"""Characters in an id; containerd's own bound (pkg/identifiers)."""
TEXT_MAX: Final = 4096
"""Characters in a name, a path or another single value."""
IPS_MAX: Final = 1000
"""Additional addresses."""
CONFIG_MAX: Final = 4 * 1024 * 1024
"""Bytes of an encoded config; gRPC, by which it comes, stops there too."""
DOCUMENT_MAX: Final = 8 * CONFIG_MAX
"""Bytes of a JSON document; the longest that a config of `CONFIG_MAX` bytes makes is shorter."""
VERSION: Final = "v1"
"""Of the JSON layout (containerd pkg/store/sandbox/metadata.go, metadataVersion)."""


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
    """Absolute path of the network namespace, which UTF-8 encodes in every locale; "" on the host
    network."""
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

    def marshal_json(self) -> bytes:
        """Return the bytes that containerd stores for it, in its current layout.

        They do not hold fields of *config* that the CRI has added since; nor does containerd's.

        Source: containerd pkg/store/sandbox/metadata.go, MarshalJSON.

        Raises:
            MetadataError: a value is of another type, or no text that UTF-8 can hold; or an address
                of *cni_result* is none.
        """
        doing = f"marshal metadata of sandbox {self.id!r}"
        try:
            return gojson.write({"Version": VERSION, "Metadata": _dump(self)})
        except (AttributeError, TypeError, ValueError) as error:
            raise MetadataError(f"{doing}: {error}", id=str(self.id)) from error

    @classmethod
    def unmarshal_json(cls, data: bytes | str) -> Metadata:
        """Return the metadata that containerd, of whatever version, has written as *data*.

        Never another than Go would read. What is refused although Go takes it is listed in
        docs/differences.md.

        Source: containerd pkg/store/sandbox/metadata.go, UnmarshalJSON.

        Raises:
            MetadataError: with `.field` and `.value`: it is no such document, of another version,
                or larger than `DOCUMENT_MAX` or its config than `CONFIG_MAX`.
        """
        if isinstance(data, str):
            data = data.encode("utf-8", "surrogatepass")
        if not isinstance(data, (bytes, bytearray, memoryview)):
            kind = type(data).__name__
            raise MetadataError(f"unmarshal metadata: {kind} is neither bytes nor str", value=data)
        if len(data) > DOCUMENT_MAX:
            raise MetadataError(
                f"unmarshal metadata: the document has {len(data)} bytes, over the limit of "
                f"{DOCUMENT_MAX}",
                value=len(data),
            )
        document = gojson.read(_DOCUMENT, bytes(data), CONFIG_MAX)
        version = document.get("Version", "")
        if version != VERSION:
            # Go's own words, by which containerd's users know it.
            shown = gojson.quote(version[:TEXT_MAX])
            raise MetadataError(f"unsupported version: {shown}", field="Version", value=version)
        return _load(document.get("Metadata", {}))


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


def _dump(metadata: Metadata) -> dict[str, Any]:
    """Return the fields as Go orders and names them."""
    for field in ("id", "name", "netns_path", "ip", "runtime_handler", "process_label"):
        if not isinstance(getattr(metadata, field), str):
            raise TypeError(f"{field} {getattr(metadata, field)!r} is not a string")
    ips, config, result = metadata.additional_ips, metadata.config, metadata.cni_result
    kinds = {"additional_ips": tuple, "config": PodSandboxConfig, "cni_result": CNIResult}
    for field, kind in kinds.items():
        value = getattr(metadata, field)
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{field} is a {type(value).__name__}, not a {kind.__name__}")
    if not all(isinstance(ip, str) for ip in ips or ()):
        raise TypeError(f"additional_ips {ips!r} are not all strings")
    return {
        "ID": metadata.id,
        "Name": metadata.name,
        "Config": None if config is None else gojson.dump(config),
        "NetNSPath": metadata.netns_path,
        "IP": metadata.ip,
        "AdditionalIPs": ips,
        "RuntimeHandler": metadata.runtime_handler,
        "CNIResult": None if result is None else cni.dump(cni.canonical(result)),
        "ProcessLabel": metadata.process_label,
    }


_LAYOUT: Final = Struct(
    lambda: {
        **dict.fromkeys(("ID", "Name", "NetNSPath", "IP", "RuntimeHandler", "ProcessLabel"), TEXT),
        "Config": gojson.shape_of(PodSandboxConfig.DESCRIPTOR),
        "AdditionalIPs": Slice(TEXT),
        "CNIResult": cni.SHAPE,
    }
)
"""cri v1.0 wrote ID, Name, Config, NetNSPath and IP alone, under the same version."""
_DOCUMENT: Final = Struct(lambda: {"Version": TEXT, "Metadata": _LAYOUT})


def _load(value: Mapping[str, Any]) -> Metadata:
    config, ips, result = map(value.get, ("Config", "AdditionalIPs", "CNIResult"))
    metadata = Metadata(
        id=value.get("ID", ""),
        name=value.get("Name", ""),
        config=None if config is None else PodSandboxConfig(**config),
        netns_path=value.get("NetNSPath", ""),
        ip=value.get("IP", ""),
        additional_ips=None if ips is None else tuple(ips),
        runtime_handler=value.get("RuntimeHandler", ""),
        cni_result=None if result is None else cni.load(result),
        process_label=value.get("ProcessLabel", ""),
    )
    if metadata.config is not None and metadata.config.ByteSize() > CONFIG_MAX:
        size = metadata.config.ByteSize()
        raise MetadataError(
            f"unmarshal metadata: Metadata.Config: it has {size} bytes, over the limit of "
            f"{CONFIG_MAX}",
            field="Metadata.Config",
            value=size,
        )
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
        text = json.dumps(cni.dump(result), ensure_ascii=False)
        same = cni.load(json.loads(text)) == result
    except (TypeError, AttributeError):
        same = False
    except ValueError as error:
        raise invalid(doing, "cni_result", result, f"holds what is no address: {error}") from error
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
