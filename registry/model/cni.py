"""Result of a CNI plugin chain for a sandbox: interfaces, addresses, name servers, routes.

The types are those that containerd keeps (github.com/containerd/go-cni, Result). `dump` and `load`
use Go's JSON keys; None and an empty collection stand for Go's nil and empty. Addresses are text
here and bytes in Go, which prints them in one form: see `canonical`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from registry.sync.imports import late_import

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class IPConfig:
    """Address of an interface and its gateway; "" if there is none."""

    ip: str = ""
    gateway: str = ""


@dataclass(frozen=True, slots=True)
class Interface:
    """Interface; *sandbox* is the path of its network namespace, "" on the host."""

    ip_configs: tuple[IPConfig | None, ...] | None = None
    mac: str = ""
    sandbox: str = ""


@dataclass(frozen=True, slots=True)
class DNS:
    """Resolver settings of one plugin."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """Route to *dst* (CIDR) by *gw*, "" for the default gateway."""

    dst: str
    gw: str = ""


@dataclass(frozen=True, slots=True)
class CNIResult:
    """Result of all plugins; *interfaces* by name."""

    interfaces: Mapping[str, Interface | None] | None = None
    dns: tuple[DNS, ...] | None = None
    routes: tuple[Route | None, ...] | None = None


def dump(result: CNIResult) -> dict[str, Any]:
    """Return *result* as the JSON object that Go would write."""
    return {
        "Interfaces": _maybe(_dump_interfaces, result.interfaces),
        "DNS": _maybe(_listed(_dump_dns), result.dns),
        "Routes": _maybe(_listed(_dump_route), result.routes),
    }


def load(value: Mapping[str, Any]) -> CNIResult:
    """Return the result that `dump` wrote as *value*.

    Raises:
        TypeError, KeyError, AttributeError: *value* does not have the structure of a result.
    """
    return CNIResult(
        interfaces=_maybe(_load_interfaces, value.get("Interfaces")),
        dns=_maybe(_tupled(_load_dns), value.get("DNS")),
        routes=_maybe(_tupled(_load_route), value.get("Routes")),
    )


def _dump_interfaces(interfaces: Mapping[str, Interface | None]) -> dict[str, Any]:
    names = sorted(interfaces, key=str.encode)
    return {name: _maybe(_dump_interface, interfaces[name]) for name in names}


def _load_interfaces(value: Mapping[str, Any]) -> dict[str, Interface | None]:
    return {name: _maybe(_load_interface, interface) for name, interface in value.items()}


def _dump_interface(interface: Interface) -> dict[str, Any]:
    return {
        "IPConfigs": _maybe(_listed(_dump_ip), interface.ip_configs),
        "Mac": interface.mac,
        "Sandbox": interface.sandbox,
    }


def _load_interface(value: Mapping[str, Any]) -> Interface:
    ips = _maybe(_tupled(_load_ip), value.get("IPConfigs"))
    return Interface(ip_configs=ips, mac=value.get("Mac", ""), sandbox=value.get("Sandbox", ""))


def _dump_ip(config: IPConfig) -> dict[str, Any]:
    return {"IP": config.ip, "Gateway": config.gateway}


def _load_ip(value: Mapping[str, Any]) -> IPConfig:
    return IPConfig(ip=value.get("IP", ""), gateway=value.get("Gateway", ""))


def _dump_dns(dns: DNS) -> dict[str, Any]:
    """Omit empty values, as Go's `omitempty` does."""
    fields = {
        "nameservers": list(dns.nameservers),
        "domain": dns.domain,
        "search": list(dns.search),
        "options": list(dns.options),
    }
    return {key: value for key, value in fields.items() if value}


def _load_dns(value: Mapping[str, Any]) -> DNS:
    return DNS(
        nameservers=tuple(value.get("nameservers") or ()),
        domain=value.get("domain", ""),
        search=tuple(value.get("search") or ()),
        options=tuple(value.get("options") or ()),
    )


def _dump_route(route: Route) -> dict[str, Any]:
    return {"dst": route.dst, "gw": route.gw} if route.gw else {"dst": route.dst}


def _load_route(value: Mapping[str, Any]) -> Route:
    return Route(dst=value.get("dst", ""), gw=value.get("gw", ""))


def _maybe(fn: Callable[[T], R], value: T | None) -> R | None:
    return None if value is None else fn(value)


def _listed(fn: Callable[[T], R]) -> Callable[[Iterable[T | None]], list[R | None]]:
    return lambda values: [_maybe(fn, value) for value in values]


def _tupled(fn: Callable[[Any], R]) -> Callable[[Iterable[Any]], tuple[Any, ...]]:
    return lambda values: tuple(_maybe(fn, value) for value in values)


# As Go has it.


def canonical(result: CNIResult) -> CNIResult:
    """Return *result* with its addresses as Go prints them.

    Raises:
        ValueError: a text is not an address.
        TypeError: a value is not a string.
    """
    interfaces = result.interfaces
    if interfaces is not None:
        interfaces = {
            _text(name): _maybe(_canonical_interface, each) for name, each in interfaces.items()
        }
    return CNIResult(
        interfaces=interfaces,
        dns=_maybe(_tupled(_canonical_dns), result.dns),
        routes=_maybe(_tupled(_canonical_route), result.routes),
    )


def _canonical_interface(interface: Interface) -> Interface:
    return Interface(
        ip_configs=_maybe(_tupled(_canonical_ips), interface.ip_configs),
        mac=_text(interface.mac),
        sandbox=_text(interface.sandbox),
    )


def _canonical_dns(dns: DNS) -> DNS:
    nameservers, search, options = (
        tuple(map(_text, texts)) for texts in (dns.nameservers, dns.search, dns.options)
    )
    return DNS(nameservers, _text(dns.domain), search, options)


def _text(value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _canonical_ips(config: IPConfig) -> IPConfig:
    return IPConfig(ip=canonical_ip(config.ip), gateway=canonical_ip(config.gateway))


def _canonical_route(route: Route) -> Route:
    """Return the route with the text that Go prints for a nil network and cannot read again."""
    dst = canonical_network(route.dst) if route.dst else "<nil>"
    return Route(dst=dst, gw=canonical_ip(route.gw))


def canonical_ip(text: str) -> str:
    """Return an address as Go prints it; "" for "".

    Raises:
        ValueError: *text* is not an address.
    """
    with late_import("ipaddress"):
        from ipaddress import IPv4Address, IPv6Address  # noqa: PLC0415 - 4 ms
    if text == "":
        return ""
    if ":" not in text:
        return str(IPv4Address(text))
    address = IPv6Address(text)
    if address.scope_id is not None:
        raise ValueError(f"{text!r} has a zone")
    return str(address.ipv4_mapped or address)


def canonical_network(text: str) -> str:
    """Return an address and the length of its prefix, `10.1.2.3/24`, as Go prints them.

    Raises:
        ValueError: *text* is not an address with a prefix length.
    """
    address, _, length = text.partition("/")
    shown = canonical_ip(address)
    wide = ":" in address
    digits = length.lstrip("0") or length[-1:]
    if shown == "" or not re.fullmatch("[0-9]{1,3}", digits) or int(digits) > (128 if wide else 32):
        raise ValueError(f"{text!r} is no address with the length of its prefix")
    ones = int(digits)
    if wide and ":" not in shown:  # IPv4 in IPv6: Go prints the IPv4 part
        ones = max(0, ones - 96)
    return f"{shown}/{ones}"
