"""What a CNI plugin chain answered for a sandbox: interfaces, addresses, name servers, routes.

The types are those that containerd keeps (github.com/containerd/go-cni, Result). `dump` and `load`
use Go's JSON keys; nil and empty are told apart as Go tells them, by None and an empty collection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class IPConfig:
    """An address of an interface and its gateway; "" where there is none."""

    ip: str = ""
    gateway: str = ""


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface; *sandbox* is the network namespace path it lives in, "" on the host."""

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
    """A route to *dst* (CIDR) by *gw*, "" for the default gateway."""

    dst: str
    gw: str = ""


@dataclass(frozen=True, slots=True)
class CNIResult:
    """The whole answer; *interfaces* by name."""

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
    """Return what `dump` wrote.

    Raises:
        TypeError, KeyError, AttributeError: *value* is not of that shape.
    """
    return CNIResult(
        interfaces=_maybe(_load_interfaces, value["Interfaces"]),
        dns=_maybe(_tupled(_load_dns), value["DNS"]),
        routes=_maybe(_tupled(_load_route), value["Routes"]),
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
    ips = _maybe(_tupled(_load_ip), value["IPConfigs"])
    return Interface(ip_configs=ips, mac=value["Mac"], sandbox=value["Sandbox"])


def _dump_ip(config: IPConfig) -> dict[str, Any]:
    return {"IP": config.ip, "Gateway": config.gateway}


def _load_ip(value: Mapping[str, Any]) -> IPConfig:
    return IPConfig(ip=value["IP"], gateway=value["Gateway"])


def _dump_dns(dns: DNS) -> dict[str, Any]:
    """Leave out what is empty, as Go's `omitempty` does."""
    fields = {
        "nameservers": list(dns.nameservers),
        "domain": dns.domain,
        "search": list(dns.search),
        "options": list(dns.options),
    }
    return {key: value for key, value in fields.items() if value}


def _load_dns(value: Mapping[str, Any]) -> DNS:
    return DNS(
        nameservers=tuple(value.get("nameservers", ())),
        domain=value.get("domain", ""),
        search=tuple(value.get("search", ())),
        options=tuple(value.get("options", ())),
    )


def _dump_route(route: Route) -> dict[str, Any]:
    return {"dst": route.dst, "gw": route.gw} if route.gw else {"dst": route.dst}


def _load_route(value: Mapping[str, Any]) -> Route:
    return Route(dst=value["dst"], gw=value.get("gw", ""))


def _maybe(fn: Callable[[T], R], value: T | None) -> R | None:
    return None if value is None else fn(value)


def _listed(fn: Callable[[T], R]) -> Callable[[Iterable[T | None]], list[R | None]]:
    return lambda values: [_maybe(fn, value) for value in values]


def _tupled(fn: Callable[[Any], R]) -> Callable[[Iterable[Any]], tuple[Any, ...]]:
    return lambda values: tuple(_maybe(fn, value) for value in values)
