"""Attachment of a sandbox to its network: what ADD was given, and what it gave.

The attachment is recorded before ADD, so that DEL depends neither on a crash nor on the
configuration of that day.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, NamedTuple

from registry import DNS, CNIResult, Interface, IPConfig, MetadataError, Route
from registry.shim import netconf

IF_NAME: Final = "eth0"
"""Interface of a pod."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """Arguments of ADD for one sandbox, and its result once there is one."""

    network: Mapping[str, Any]
    """Name, version and plugins of the configuration."""
    args: str
    """Value of CNI_ARGS."""
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for the plugins that declare the capability of that name."""
    result: Mapping[str, Any] | None = None
    """Result of the last plugin."""

    def dump(self) -> bytes:
        """Return the JSON that `load` reads."""
        return netconf.dump(asdict(self))

    @classmethod
    def load(cls, data: bytes) -> Attachment:
        """Return the attachment that `dump` wrote.

        Raises:
            MetadataError: *data* is something else.
        """
        try:
            return _checked(cls(**netconf.load(data)))
        except (ValueError, TypeError, AttributeError) as error:
            why = f"read attachment: {error}; restore a backup, or delete the extension"
            raise MetadataError(why) from error


def _checked(found: Attachment) -> Attachment:
    """Return *found* if DEL can use it.

    Raises:
        ValueError, AttributeError: a field has another type, or a later version of this program
            has recorded it.
    """
    objects = isinstance(found.capabilities, dict) and isinstance(found.result or {}, dict)
    if not objects or not isinstance(found.args, str):
        raise ValueError("a field has another type")
    return replace(found, network=netconf.used(found.network, is_list=True))


class Attached(NamedTuple):
    """Outcome of ADD; the last three are what containerd keeps of it."""

    attachment: Attachment
    """With the result."""
    ip: str
    """The first IPv4 address; without one, the first address."""
    additional_ips: tuple[str, ...] | None
    cni_result: CNIResult


def attached(attachment: Attachment) -> Attached | None:
    """Return the outcome of an ADD whose result *attachment* has; None without an address.

    Raises:
        ValueError: the result has another structure.
    """
    try:
        result = _typed(attachment.result or {})
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        why = f"the result of the plugins is malformed: {error!r}; repair the last one"
        raise ValueError(why) from error
    interface = (result.interfaces or {}).get(IF_NAME)
    ips = [each.ip for each in (interface and interface.ip_configs) or () if each and each.ip]
    if not ips:
        return None
    first = next((ip for ip in ips if ":" not in ip), ips[0])
    ips.remove(first)
    return Attached(attachment, first, tuple(ips) or None, result)


def _typed(raw: Mapping[str, Any]) -> CNIResult:
    """Return the result of the last plugin as containerd keeps it.

    Source: github.com/containerd/go-cni result.go, createResult.

    Raises:
        TypeError, AttributeError, LookupError, ValueError: it has another structure.
    """
    listed = raw.get("interfaces") or []
    ips: dict[str, list[IPConfig]] = {IF_NAME: []} | {each["name"]: [] for each in listed}
    for each in raw.get("ips") or []:
        index = each.get("interface")
        name = IF_NAME if index is None else listed[range(len(listed)).index(index)]["name"]
        address = _address(each["address"].partition("/")[0])
        ips[name].append(IPConfig(address, _address(each.get("gateway") or "")))
    macs, paths = (
        {each["name"]: each.get(key) or "" for each in listed} for key in ("mac", "sandbox")
    )
    interfaces = {
        name: Interface(tuple(configs) or None, macs.get(name, ""), paths.get(name, ""))
        for name, configs in ips.items()
    }
    dns = raw.get("dns") or {}
    lists = {name: tuple(dns.get(name) or ()) for name in ("nameservers", "search", "options")}
    settings = DNS(domain=dns.get("domain") or "", **lists)
    routes = [Route(each["dst"], each.get("gw") or "") for each in raw.get("routes") or []]
    return CNIResult(interfaces, (settings,), tuple(routes) or None)


def _address(text: str) -> str:
    """Return an address in its canonical form; "" for "".

    Raises:
        ValueError: *text* is no address.
    """
    from ipaddress import ip_address  # noqa: PLC0415 - takes 4 ms

    return text and str(ip_address(text))
