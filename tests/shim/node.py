"""Node with real CNI plugins, whose host network is a namespace of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from registry import NetNS
from tests.shim.client import Client
from tests.shim.conftest import Server

PLUGINS = "/usr/lib/cni"
"""Where Debian's containernetworking-plugins are."""
NAME = "tests"
"""Name of the network."""

plugins = pytest.mark.skipif(
    not os.path.exists(f"{PLUGINS}/bridge"), reason="containernetworking-plugins are not installed"
)


def bridged(data: Path, *more: Any, version: str = "1.0.0") -> dict[str, Any]:
    """Return a network of two subnets; *data* is the directory of host-local, *more* are plugins.

    The gateway is the host. `ipMasq` makes an iptables rule for each pod.
    """
    ipam = {
        "type": "host-local",
        "dataDir": str(data),
        "ranges": [[{"subnet": "10.93.0.0/16"}], [{"subnet": "fd00:93::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    bridge = {"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True, "ipam": ipam}
    return {"cniVersion": version, "name": NAME, "plugins": [bridge, *more]}


PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}


class Node:
    """Host network, configuration, addresses and rules of a server."""

    def __init__(self, directory: Path, host: NetNS) -> None:
        self.host = host
        self.data = directory / "addresses"
        self.conf_dir = directory / "net.d"
        self.conf_dir.mkdir()
        self.server = Server(directory)
        self.server.netns = host.path
        self.server.cni_conf_dir, self.server.cni_bin_dir = str(self.conf_dir), PLUGINS

    def configure(self, network: dict[str, Any]) -> None:
        """Write the configuration; it is there at once and as a whole."""
        new = self.conf_dir / "new"
        new.write_text(json.dumps(network), encoding="utf-8")
        new.rename(self.conf_dir / "10-tests.conflist")

    def addresses(self) -> set[str]:
        """Return the addresses that host-local has given, of all networks."""
        found = {path.name for path in self.data.glob("*/*")}
        return {name for name in found if not name.startswith(("lock", "last_reserved"))}

    def rules(self, *words: str) -> list[str]:
        """Return the rules of iptables, IPv6 included, that have one of *words*."""
        found = []
        for program in ("iptables", "ip6tables"):
            saved = self.run(f"{program}-save", "-t", "nat").splitlines()
            found += [line for line in saved if any(word in line for word in words)]
        return found

    def links(self) -> set[str]:
        """Return the interfaces of the host that lead to pods."""
        names = self.host.do(lambda: [name for _, name in socket.if_nameindex()])
        return {name for name in names if name.startswith("veth")}

    def run(self, *command: str) -> str:
        """Return what *command* prints in the host network."""
        enter = ["nsenter", f"--net={self.host.path}"]
        return subprocess.check_output([*enter, *command], text=True)

    def left(self, *ids: str) -> tuple[set[str], set[str], list[str]]:
        """Return addresses, interfaces and rules that are left of the sandboxes *ids*."""
        rules = self.rules(*ids, "CNI-DN-") if ids else []  # the chain of a forwarded port
        return self.addresses(), self.links(), rules


NO_NETWORK: tuple[set[str], set[str], list[str]] = (set(), set(), [])
"""What `Node.left` returns once nothing is left."""


@contextmanager
def node(directory: Path) -> Iterator[Node]:
    """Return a node; its host network is removed at the end."""
    host = NetNS.create()
    # The host reaches pods at once, not only after a second of looking for duplicate addresses.
    accept_dad = Path("/proc/sys/net/ipv6/conf/default/accept_dad")
    host.do(lambda: accept_dad.write_text("0", encoding="ascii"))
    try:
        yield Node(directory, host)
    finally:
        host.remove()


def netns_of(cri: Client, id: str) -> NetNS:
    """Return the network namespace of a sandbox."""
    return NetNS.load(cri.info(id)["netNamespacePath"])


def connects(client: NetNS, server: NetNS, ip: str, port: int = 8080, at: int = 0) -> bool:
    """Return whether a process in *client* reaches one in *server* that listens at *ip*, *port*.

    Args:
        client: where the connection begins.
        server: where it ends.
        ip: address that the client asks for; the server listens at all of its own.
        port: port of the server.
        at: port that the client asks for, if it is another one.
    """
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with server.do(lambda: socket.create_server(("", port), family=family)) as listener:
        try:
            with client.do(lambda: socket.create_connection((ip, at or port), timeout=10)) as sent:
                got, _ = listener.accept()
                with got:
                    sent.sendall(b"x")
                    return got.recv(1) == b"x"
        except OSError:
            return False
