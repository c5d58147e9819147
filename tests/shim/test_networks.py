"""Pods on real networks: the plugins of Debian's containernetworking-plugins."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests import needs
from tests.shim.client import NOTREADY, READY, Client, pod_config, refused
from tests.shim.conftest import serving
from tests.shim.node import (
    NO_NETWORK,
    PORTMAP,
    Node,
    bridged,
    connects,
    netns_of,
    node,
    plugins,
)
from tests.shim.test_docs import DOCS
from tests.tools import until

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
    plugins,
    needs.program("iptables"),
]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Node]:
    """Return a node with a bridge and forwarded ports."""
    with node(tmp_path) as made:
        made.configure(bridged(made.data, PORTMAP))
        yield made


@pytest.fixture
def cri(place: Node) -> Iterator[Client]:
    """Return a client of the server of the node; no address, interface or rule may be left."""
    with serving(place.server) as server, Client(server.socket) as client:
        yield client
        ids = [item.id for item in client.list()]
        for id in ids:
            client.remove(id)
        assert NO_NETWORK == place.left(*ids)


def ips_of(status: Any) -> list[str]:
    """Return all addresses of a status."""
    return [status.network.ip, *(each.ip for each in status.network.additional_ips)]


def test_network_of_docs_connects_pods_and_host(place: Node, cri: Client) -> None:
    """Two pods reach each other and the host, by IPv4 and IPv6."""
    network = json.loads(re.findall(r"```text\n(.*?)```", DOCS, re.DOTALL)[0])
    network["plugins"][0]["ipam"]["dataDir"] = str(place.data)
    place.configure(network)
    first, second = (cri.run(pod_config(name)) for name in ("a", "b"))
    one, two = netns_of(cri, first), netns_of(cri, second)
    for ip in ips_of(cri.status(second)):
        assert connects(one, two, ip)
        assert connects(place.host, two, ip)
    for ip in ("10.88.0.1", "fd00:88::1"):
        assert connects(one, place.host, ip)


def test_status_has_the_addresses_and_the_result(place: Node, cri: Client) -> None:
    """The IPv4 address comes first; the result has containerd's form."""
    id = cri.run(pod_config("a"))
    assert ["10.93.0.2", "fd00:93::2"] == ips_of(cri.status(id))
    assert {"10.93.0.2", "fd00:93::2"} == place.addresses()
    info = cri.info(id)
    assert "a" == info["config"]["metadata"]["name"]
    result = info["cniResult"]
    (veth,) = place.links()
    assert {"eth0", "br0", veth} == result["Interfaces"].keys()
    eth0 = result["Interfaces"]["eth0"]
    assert info["netNamespacePath"] == eth0["Sandbox"]
    assert [
        {"IP": "10.93.0.2", "Gateway": "10.93.0.1"},
        {"IP": "fd00:93::2", "Gateway": "fd00:93::1"},
    ] == eth0["IPConfigs"]
    assert [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}] == result["Routes"]
    assert [{}] == result["DNS"]


def test_information_says_whether_the_network_is_as_the_plugins_made_it(
    place: Node, cri: Client
) -> None:
    """Only what is shown changes: the sandbox stays READY."""
    id = cri.run(pod_config("a"))
    assert "OK" == cri.info(id)["cniCheck"]
    inside = ["nsenter", f"--net={netns_of(cri, id).path}"]
    place.run(*inside, "ip", "route", "delete", "default")
    assert 'plugin type="bridge" name="tests" failed (CHECK): ' in cri.info(id)["cniCheck"]
    assert READY == cri.status(id).state
    cri.stop(id)
    assert cri.info(id)["cniCheck"] is None
    assert not cri.status(id).HasField("network")  # another pod may have the addresses now


def test_address_is_shown_until_it_is_released(cri: Client) -> None:
    """A pod whose process has ended keeps its network until it is stopped."""
    id = cri.run(pod_config("a"))
    os.kill(cri.info(id)["pid"], signal.SIGKILL)
    until(lambda: NOTREADY == cri.status(id).state)
    assert ["10.93.0.2", "fd00:93::2"] == ips_of(cri.status(id))
    cri.stop(id)
    assert not cri.status(id).HasField("network")


def test_sandbox_without_an_address_has_no_network_in_its_status(cri: Client) -> None:
    """A kubelet takes an empty address for a broken sandbox, and runs another one."""
    id = cri.run(pod_config("host", host_network=True))
    assert not cri.status(id).HasField("network")
    assert (None, None) == tuple(cri.info(id)[key] for key in ("cniResult", "cniCheck"))


def test_host_port_is_forwarded_until_the_pod_is_stopped(place: Node, cri: Client) -> None:
    """By iptables; a connection to the gateway at that port ends in the pod."""
    config = pod_config("web")
    config.port_mappings.add(container_port=8080, host_port=30080)
    id = cri.run(config)
    pod = netns_of(cri, id)
    assert connects(place.host, pod, "10.93.0.1", at=30080)
    assert place.rules(id, "30080")
    cri.stop(id)
    assert not place.rules(id, "30080")
    assert NO_NETWORK == place.left(id)


@needs.program("tc")
def test_bandwidth_of_annotations_is_limited(place: Node, cri: Client) -> None:
    """By a token bucket on the interface of the host."""
    limit = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
    place.configure(bridged(place.data, limit))
    config = pod_config("web")
    config.annotations["kubernetes.io/ingress-bandwidth"] = "10M"
    try:
        id = cri.run(config)
    except grpc.RpcError as error:
        if "operation not supported" in str(error.details()):
            pytest.skip(f"the kernel limits no rates: {error.details()}")
        raise
    assert "qdisc tbf" in (shown := place.run("tc", "qdisc", "show"))
    assert "rate 10Mbit" in shown
    cri.stop(id)
    assert "qdisc tbf" not in place.run("tc", "qdisc", "show")


def test_stop_releases_the_address_of_a_namespace_that_is_gone(place: Node, cri: Client) -> None:
    """DEL is run with an empty CNI_NETNS."""
    place.configure(
        {
            **bridged(place.data),
            "plugins": [{**bridged(place.data)["plugins"][0], "ipMasq": False}],
        }
    )  # bridge 1.1 keeps the rules of a namespace that is gone
    id = cri.run(pod_config("a"))
    netns_of(cri, id).remove()
    assert place.addresses()
    cri.stop(id)
    until(lambda: NO_NETWORK == place.left(id))  # the kernel removes the interface in its own time


def test_delete_uses_the_recorded_configuration(place: Node, cri: Client) -> None:
    """The node has got another network meanwhile, and then none."""
    first = cri.run(pod_config("a"))
    place.configure({**bridged(place.data), "name": "other"})
    second = cri.run(pod_config("b"))
    (place.conf_dir / "10-tests.conflist").unlink()
    assert 4 == len(list(place.addresses() | {"first", "second"}))
    for id in (first, second):
        cri.stop(id)
    assert NO_NETWORK == place.left(first, second)


# Without a network.


def test_node_without_a_configuration_runs_only_host_network_pods(place: Node, cri: Client) -> None:
    """NetworkReady and the refusal have containerd's words; a configuration counts at once."""

    def network() -> Any:
        return {each.type: each for each in cri.call("Status").status.conditions}["NetworkReady"]

    assert (True, "", "") == (network().status, network().reason, network().message)
    (place.conf_dir / "10-tests.conflist").unlink()
    assert (False, "NetworkPluginNotReady") == (network().status, network().reason)
    assert network().message.startswith("Network plugin returns error: cni plugin not initialized")
    message = refused(
        grpc.StatusCode.FAILED_PRECONDITION, cri, "RunPodSandbox", config=pod_config("a")
    )
    assert re.match(
        r'failed to setup network for sandbox "[0-9a-f]{64}": cni plugin not initialized: ', message
    )
    assert [] == cri.list()
    assert READY == cri.status(cri.run(pod_config("host", host_network=True))).state
    place.configure(bridged(place.data))
    assert network().status
    cri.run(pod_config("a"))


def test_configuration_of_other_types_is_none(place: Node, cri: Client) -> None:
    """Status says why, and a server starts with it."""
    network = bridged(place.data)
    network["plugins"][0]["type"] = 5
    place.configure({**network, "disableGC": []})
    place.server.kill()
    place.server.start()
    ready = cri.call("Status", wait=True).status.conditions[1]
    assert not ready.status
    assert "cni plugin not initialized: " in ready.message
    assert ready.message.endswith("a plugin has no type, or its capabilities are no object")


# Failures.


def test_failed_delete_keeps_the_sandbox_until_it_succeeds(place: Node, cri: Client) -> None:
    """The stop fails with the plugin's message, which the record has too; it is retried."""
    own = place.conf_dir.parent / "bin"
    own.mkdir()
    for name in ("bridge", "portmap", "host-local"):
        (own / name).symlink_to(f"/usr/lib/cni/{name}")
    place.server.kill()
    place.server.cni_bin_dir = str(own)
    place.server.start()
    id = cri.run(pod_config("a"), wait=True)
    (own / "portmap").unlink()
    message = refused(grpc.StatusCode.INTERNAL, cri, "StopPodSandbox", pod_sandbox_id=id)
    assert f'failed to destroy network for sandbox "{id}": plugin type="portmap"' in message
    info = cri.info(id)
    assert NOTREADY == cri.status(id).state
    assert ("SandboxStopped", f"not cleaned up yet: {message}") == (info["reason"], info["message"])
    assert not info["netNamespaceClosed"]
    assert place.addresses()
    (own / "portmap").symlink_to("/usr/lib/cni/portmap")
    until(lambda: "" == cri.info(id)["message"])
    assert cri.info(id)["netNamespaceClosed"]
    assert NO_NETWORK == place.left(id)


def test_failed_add_is_undone(place: Node, cri: Client) -> None:
    """The bridge gives an address, portmap forwards a port, and then the last plugin fails."""
    failing = {"type": "tuning", "sysctl": {"net.none": "1"}}
    place.configure(bridged(place.data, PORTMAP, failing))
    config = pod_config("a")
    config.port_mappings.add(container_port=8080, host_port=30080)
    message = refused(grpc.StatusCode.INTERNAL, cri, "RunPodSandbox", config=config)
    assert 'plugin type="tuning" name="tests" failed (add): ' in message
    assert [] == cri.list()
    assert NO_NETWORK == place.left("30080")


# Many pods, and the calls of a kubelet.


def test_50_pods_are_connected_at_the_same_time(place: Node, cri: Client) -> None:
    """Each has addresses of its own; all are released."""
    with ThreadPoolExecutor(50) as pool:
        ids = list(pool.map(lambda n: cri.run(pod_config(f"web-{n}")), range(50)))
        ips = [ip for id in ids for ip in ips_of(cri.status(id))]
        assert 100 == len(set(ips))
        assert set(ips) == place.addresses()
        assert 50 == len(place.links())
        list(pool.map(cri.stop, ids))
    assert NO_NETWORK == place.left(*ids)
