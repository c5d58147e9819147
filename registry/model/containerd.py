"""The JSON in which containerd stores metadata: read as Go reads it, written as Go writes it.

This module is separate from `metadata`: importing Go's JSON imports protobuf, which a process that
only changes statuses does not need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from registry import cri
from registry.cri import gojson
from registry.cri.gojson.shapes import TEXT, Fresh, Map, Pointer, Slice, Struct, Written
from registry.errors import MetadataError
from registry.model import cni
from registry.model.cni import CNIResult
from registry.model.metadata import CONFIG_MAX, TEXT_MAX, Metadata

DOCUMENT_MAX: Final = 8 * CONFIG_MAX
"""Maximum bytes of a JSON document; every document of a config of `CONFIG_MAX` bytes is shorter."""
VERSION: Final = "v1"
"""Version of the JSON layout (containerd pkg/store/sandbox/metadata.go, metadataVersion)."""


def marshal(metadata: Metadata) -> bytes:
    """Return *metadata* in containerd's JSON; see `Metadata.marshal_json`."""
    doing = f"marshal metadata of sandbox {metadata.id!r}"
    try:
        return gojson.write({"Version": VERSION, "Metadata": _dump(metadata)})
    except (AttributeError, TypeError, ValueError) as error:
        raise MetadataError(f"{doing}: {error}", id=str(metadata.id)) from error


def unmarshal(data: bytes | str) -> Metadata:
    """Return the metadata in containerd's JSON; see `Metadata.unmarshal_json`."""
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
        # Go's own message, which users of containerd know.
        shown = gojson.quote(version[:TEXT_MAX])
        raise MetadataError(f"unsupported version: {shown}", field="Version", value=version)
    return _load(document.get("Metadata", {}))


def _dump(metadata: Metadata) -> dict[str, Any]:
    """Return the fields as Go orders and names them."""
    for field in ("id", "name", "netns_path", "ip", "runtime_handler", "process_label"):
        if not isinstance(getattr(metadata, field), str):
            raise TypeError(f"{field} {getattr(metadata, field)!r} is not a string")
    ips, config, result = metadata.additional_ips, metadata.config, metadata.cni_result
    kinds = {"additional_ips": tuple, "config": cri.PodSandboxConfig, "cni_result": CNIResult}
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


_IP: Final = Written("an IP address", cni.canonical_ip, "")
_IPS: Final = Pointer(lambda: {"IP": _IP, "Gateway": _IP})
_INTERFACE: Final = Pointer(lambda: {"IPConfigs": Slice(_IPS), "Mac": TEXT, "Sandbox": TEXT})
_DNS: Final = Struct(
    lambda: {
        "nameservers": Slice(TEXT),
        "domain": TEXT,
        "search": Slice(TEXT),
        "options": Slice(TEXT),
    }
)
_ROUTE: Final = Fresh(
    lambda: {
        "dst": Written("a network such as 10.1.2.0/24", cni.canonical_network, None),
        "gw": _IP,
    }
)
_CNI_RESULT: Final = Pointer(
    lambda: {"Interfaces": Map(_INTERFACE), "DNS": Slice(_DNS), "Routes": Slice(_ROUTE)}
)
"""Shape of a CNI result, whose values `cni.load` accepts."""
_LAYOUT: Final = Struct(
    lambda: {
        **dict.fromkeys(("ID", "Name", "NetNSPath", "IP", "RuntimeHandler", "ProcessLabel"), TEXT),
        "Config": gojson.shape_of(cri.PodSandboxConfig.DESCRIPTOR),
        "AdditionalIPs": Slice(TEXT),
        "CNIResult": _CNI_RESULT,
    }
)
"""cri v1.0 wrote only ID, Name, Config, NetNSPath and IP, under the same version."""
_DOCUMENT: Final = Struct(lambda: {"Version": TEXT, "Metadata": _LAYOUT})


def _load(value: Mapping[str, Any]) -> Metadata:
    config, ips, result = map(value.get, ("Config", "AdditionalIPs", "CNIResult"))
    metadata = Metadata(
        id=value.get("ID", ""),
        name=value.get("Name", ""),
        config=None if config is None else cri.PodSandboxConfig(**config),
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
