"""Configuration, plugins and results of pod networks, with plugins that are small programs."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry import (
    FailedPreconditionError,
    InvalidArgumentError,
    IPConfig,
    Metadata,
    MetadataError,
    State,
    Status,
    Store,
)
from registry.cri import PodSandboxConfig
from registry.shim import netconf, plugins
from registry.shim.attachment import Attached, Attachment
from registry.shim.network import Network, PluginError
from registry.shim.sandboxer import Sandboxer
from tests.tools import pod, until

ID = os.urandom(32).hex()  # no plugin of another test has it
SPY = """
{
    echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME"
    echo "$CNI_ARGS"
    env | cut -d= -f1 | sort | tr '\\n' ' '; echo
    cat; echo
} > "$0.call"
"""
"""Plugin that writes down what it is given; one line each, the last is its input."""
RESULT = '{"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.3/24"}]}'


class Plugins:
    """Directory of a configuration and of plugins that are shell scripts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = Network(str(folder), [str(folder / "none"), str(folder)])

    def add(self, name: str, script: str) -> None:
        """Install a plugin; busy text files are never written to."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}", encoding="utf-8")
        path.chmod(0o755)

    def configure(self, *plugins: dict[str, Any], name: str = "10-a.conflist", **more: Any) -> None:
        """Write a configuration with *plugins*."""
        conf = {"cniVersion": "1.0.0", "name": "net", "plugins": plugins, **more}
        (self.folder / name).write_text(json.dumps(conf), encoding="utf-8")

    def called(self, name: str) -> list[str]:
        """Return the lines of the last call of a spy."""
        return (self.folder / f"{name}.call").read_text(encoding="utf-8").splitlines()

    def given(self, name: str) -> Any:
        """Return the input of the last call of a spy."""
        return json.loads(self.called(name)[3])

    def attach(self, config: PodSandboxConfig | None = None) -> Attached:
        """Run ADD for a pod."""
        attachment = self.network.attachment(ID, config or pod())
        return self.network.add(attachment, ID, "/run/netns/x")


@pytest.fixture
def made(tmp_path: Path) -> Plugins:
    """Return a directory with one plugin, which answers."""
    made = Plugins(tmp_path)
    made.add("one", f"{SPY}[ $CNI_COMMAND != ADD ] || echo '{RESULT}'")
    made.configure({"type": "one"})
    return made


# Configuration.


def why(made: Plugins) -> str:
    """Return why there is no network."""
    with pytest.raises(FailedPreconditionError) as caught:
        made.network.configuration()
    message = str(caught.value)
    assert message.startswith("cni plugin not initialized: ")
    return message


def test_first_configuration_by_name_is_read_each_time(made: Plugins) -> None:
    """A file without a known suffix, and a directory, are none."""
    assert "net" == made.network.configuration()["name"]
    made.configure({"type": "one"}, name="05-b.conflist", cniVersion="0.3.1")
    assert "0.3.1" == made.network.configuration()["cniVersion"]
    (made.folder / "00-c.conflist.new").write_text("{")
    (made.folder / "01-d.conflist").mkdir()
    assert "0.3.1" == made.network.configuration()["cniVersion"]
    conf = '{"cniVersion": "0.4.0", "name": "alone", "type": "one", "mtu": 9000}'
    (made.folder / "02-e.conf").write_text(conf)
    found = made.network.configuration()
    assert ("alone", [9000]) == (found["name"], [each["mtu"] for each in found["plugins"]])
    for name in ("02-e.conf", "05-b.conflist", "10-a.conflist"):
        (made.folder / name).unlink()
    assert "no network config found" in why(made)


def test_missing_directory_is_no_configuration(tmp_path: Path) -> None:
    """The message names it."""
    message = why(Plugins(tmp_path / "none"))
    assert f"{str(tmp_path / 'none')!r}: No such file or directory" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "it is no JSON: Expecting"),
        ("[]", "no JSON object"),
        ("\xff", "invalid"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "nested too deeply"),
        ('{"a": "\\"' + "[" * 200 + '"}', "name None"),
        (" " * (netconf.FILE_MAX + 1), "more than 131072 bytes"),
        ('{"cniVersion": "1.0.0", "plugins": [{"type": "one"}]}', "name None is not the name"),
        ('{"cniVersion": "1.0.0", "name": "a/b", "plugins": [{"type": "one"}]}', "'a/b' is not"),
        ('{"cniVersion": "1.0.0", "name": "net", "type": "one"}', "no list of plugins"),
        ('{"cniVersion": "1.0.0", "name": "net", "plugins": []}', "no list of plugins"),
        ('{"cniVersion": "1.0.0", "name": "net", "plugins": [{}]}', "a plugin has no type"),
        ('{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "../one"}]}', "no type"),
        (
            '{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "one", "capabilities": 1}]}',
            "are no object",
        ),
        ('{"name": "net", "plugins": [{"type": "one"}]}', "cniVersion None is none of 0.3.0,"),
        ('{"cniVersion": "0.2.0", "name": "net", "plugins": [{"type": "one"}]}', "'0.2.0' is none"),
        (
            '{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "two"}]}',
            'failed to find plugin "two" in path',
        ),
    ],
)
def test_configuration_that_cannot_be_used_hides_later_ones(
    made: Plugins, text: str, expected: str
) -> None:
    """The node must not join another network than the first one."""
    (made.folder / "00-bad.conflist").write_bytes(text.encode("latin-1"))
    message = why(made)
    assert "00-bad.conflist" in message
    assert expected in message


def test_newest_known_version_of_a_configuration_is_used(made: Plugins) -> None:
    """Version 1.1 lists several; a version to come is left out."""
    made.configure({"type": "one"}, cniVersion="0.4.0", cniVersions=["1.1.0", "1.0.0", "9.0.0"])
    assert "1.1.0" == made.network.configuration()["cniVersion"]


# Arguments.


def test_plugin_gets_the_arguments_of_containerd(made: Plugins) -> None:
    """Its environment has nothing else but PATH."""
    config = pod()
    config.metadata.name, config.metadata.namespace, config.metadata.uid = "web-0", "shop", "u-1"
    made.attach(config)
    call, args, names, _ = made.called("one")
    assert f"ADD {ID} /run/netns/x eth0" == call
    assert (
        f"IgnoreUnknown=1;K8S_POD_INFRA_CONTAINER_ID={ID};"
        "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u-1"
    ) == args
    words = ("ARGS", "COMMAND", "CONTAINERID", "IFNAME", "NETNS", "PATH")
    variables = {f"CNI_{word}" for word in words}
    assert variables <= set(names.split())
    assert {"PATH", "PWD", "OLDPWD", "SHLVL", "_"} >= set(names.split()) - variables


def test_plugin_inherits_no_descriptor(made: Plugins) -> None:
    """It has those of any child: what starts this test may pass some on, and `ls` opens one."""
    command = ["ls", "-x", "/proc/self/fd"]
    expected = subprocess.check_output(command, close_fds=False, text=True)
    assert f"its output {expected!r}" in str(failure(made, f"exec {' '.join(command)}"))


@pytest.mark.parametrize("field", ["name", "namespace", "uid"])
@pytest.mark.parametrize("value", ["a;K8S_POD_UID=b", "a=b", "a\0b"])
def test_name_that_would_forge_an_argument_is_refused(
    made: Plugins, field: str, value: str
) -> None:
    """The field is named."""
    config = pod()
    setattr(config.metadata, field, value)
    with pytest.raises(InvalidArgumentError) as caught:
        made.network.attachment(ID, config)
    assert f"metadata.{field}" == caught.value.field


def full_config() -> PodSandboxConfig:
    """Return a config with something for each capability."""
    config = pod()
    config.port_mappings.add(container_port=80)
    config.port_mappings.add(container_port=53, host_port=5353, protocol=1, host_ip="127.0.0.1")
    config.annotations["kubernetes.io/ingress-bandwidth"] = "10M"
    config.dns_config.servers.append("10.96.0.10")
    config.dns_config.searches.append("svc.local")
    config.linux.cgroup_parent = "/kubepods/pod1"
    return config


def test_plugin_gets_the_capabilities_that_it_declares(made: Plugins) -> None:
    """A plugin that declares none gets no runtimeConfig."""
    ports = {"portMappings": True, "bandwidth": True, "dns": False}
    more = {"dns": True, "cgroupPath": True, "io.kubernetes.cri.pod-annotations": True}
    made.add("two", f"{SPY}echo '{RESULT}'")
    made.add("three", f"{SPY}echo '{RESULT}'")
    made.configure(
        {"type": "one", "capabilities": ports},
        {"type": "two", "capabilities": more},
        {"type": "three"},
    )
    config = full_config()
    made.attach(config)
    port = {"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"}
    rate = {"ingressRate": 10_000_000, "ingressBurst": 2**32 - 1}
    assert {"portMappings": [port], "bandwidth": rate} == made.given("one")["runtimeConfig"]
    assert {
        "dns": {"servers": ["10.96.0.10"], "searches": ["svc.local"]},
        "cgroupPath": "/kubepods/pod1",
        "io.kubernetes.cri.pod-annotations": dict(config.annotations),
    } == made.given("two")["runtimeConfig"]
    assert "runtimeConfig" not in made.given("three")


@pytest.mark.parametrize("lacking", ["portMappings", "bandwidth"])
def test_config_that_needs_a_missing_capability_is_refused(made: Plugins, lacking: str) -> None:
    """The field is named; a request is never dropped."""
    capabilities = {name: name != lacking for name in ("portMappings", "bandwidth")}
    made.configure({"type": "one", "capabilities": capabilities})
    with pytest.raises(
        InvalidArgumentError, match=f"network 'net' with the capability {lacking}"
    ) as e:
        made.network.attachment(ID, full_config())
    assert {"portMappings": "port_mappings.host_port", "bandwidth": "annotations"}[lacking] == (
        e.value.field
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1k", 1000), ("10M", 10**7), ("1.5G", 1_500_000_000), ("1Mi", 2**20), ("1Ki", 1024),
        ("2e6", 2 * 10**6), ("1E9", 10**9), ("1000.5", 1001), ("1P", 10**15), (".5M", 500_000),
    ],
)  # fmt: skip
def test_rate_is_a_quantity_of_kubernetes(made: Plugins, text: str, expected: int) -> None:
    """Fractions are rounded up."""
    made.configure({"type": "one", "capabilities": {"bandwidth": True}})
    config = pod()
    config.annotations["kubernetes.io/egress-bandwidth"] = text
    rates = made.network.attachment(ID, config).capabilities["bandwidth"]
    assert {"egressRate": expected, "egressBurst": 2**32 - 1} == rates


@pytest.mark.parametrize("text", ["", "10X", "-1M", "999", "2P", "1e", "0x10", "1_000", "nan"])
def test_rate_that_kubernetes_does_not_admit_is_refused(made: Plugins, text: str) -> None:
    """The field is the annotation."""
    config = pod()
    config.annotations["kubernetes.io/egress-bandwidth"] = text
    with pytest.raises(InvalidArgumentError, match="is no rate from 1000 to") as caught:
        made.network.attachment(ID, config)
    assert "annotations[kubernetes.io/egress-bandwidth]" == caught.value.field


# ADD and DEL.


def test_result_is_passed_along_and_back(made: Plugins) -> None:
    """ADD runs in order, each with the result before; DEL in reverse, each with the last one."""
    made.add("two", f"{SPY}[ $CNI_COMMAND != ADD ] || echo '{RESULT[:-1]}, \"dns\": {{}}}}'")
    made.configure({"type": "one", "mtu": 9000}, {"type": "two"})
    attached = made.attach()
    expected = {"type": "one", "mtu": 9000, "name": "net", "cniVersion": "1.0.0"}
    assert expected == made.given("one")
    assert json.loads(RESULT) == made.given("two")["prevResult"]
    last = {**json.loads(RESULT), "dns": {}}
    assert last == attached.attachment.result
    attachment = Attachment.load(attached.attachment.dump())
    assert attached.attachment == attachment
    made.network.delete(attachment, ID, "")
    assert f"DEL {ID}  eth0" == made.called("one")[0]
    assert last == made.given("one")["prevResult"] == made.given("two")["prevResult"]


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_delete_gets_the_result_since_version_0_4(made: Plugins, version: str) -> None:
    """Before that the specification has no such key."""
    made.configure({"type": "one"}, cniVersion=version)
    made.network.delete(made.attach().attachment, ID, "/run/netns/x")
    assert version == made.given("one")["cniVersion"]
    assert (version >= "0.4.0") == ("prevResult" in made.given("one"))


@pytest.mark.parametrize(
    ("more", "runs"),
    [
        ({"cniVersion": "0.3.1"}, False),
        ({"cniVersion": "0.4.0"}, True),
        ({"cniVersion": "1.0.0"}, True),
        ({"disableCheck": True}, False),
    ],
)
def test_check_runs_where_it_is_defined(made: Plugins, more: dict[str, Any], *, runs: bool) -> None:
    """Each plugin gets the last result."""
    made.add("two", f"{SPY}[ $CNI_COMMAND != ADD ] || echo '{RESULT[:-1]}, \"dns\": {{}}}}'")
    made.configure({"type": "one"}, {"type": "two"}, **more)
    attachment = made.attach().attachment
    assert runs is made.network.check(Attachment.load(attachment.dump()), ID, "/run/netns/x")
    command = "CHECK" if runs else "ADD"
    assert f"{command} {ID} /run/netns/x eth0" == made.called("one")[0] == made.called("two")[0]
    if runs:
        assert attachment.result == made.given("one")["prevResult"]


def test_check_says_what_a_plugin_finds(made: Plugins) -> None:
    """In its words."""
    found = '{"code": 100, "msg": "eth0 has no address"}'
    made.add("one", f"[ $CNI_COMMAND = ADD ] || {{ echo '{found}'; exit 1; }}; echo '{RESULT}'")
    with pytest.raises(PluginError, match=r"\(CHECK\): eth0 has no address") as caught:
        made.network.check(made.attach().attachment, ID, "/run/netns/x")
    assert ("one", "CHECK", 100) == (
        caught.value.plugin,
        caught.value.command,
        caught.value.code,
    )


def test_delete_runs_in_reverse_and_stops_at_a_failure(made: Plugins) -> None:
    """The next one begins with the last plugin again."""
    made.add("two", f"{SPY}[ $CNI_COMMAND = ADD ] || exit 1; echo '{RESULT}'")
    made.configure({"type": "one"}, {"type": "two"})
    attached = made.attach()
    with pytest.raises(PluginError, match="exit status 1 without a message"):
        made.network.delete(attached.attachment, ID, "")
    assert made.called("one")[0].startswith("ADD")
    assert made.called("two")[0].startswith("DEL")


def waiting(made: Plugins) -> None:
    """Let ADD of the plugin wait for a line in a FIFO; note the order of the calls."""
    os.mkfifo(made.folder / "gate")
    made.add(
        "one",
        f'echo "$CNI_COMMAND $CNI_CONTAINERID" >> {made.folder}/order\n'
        f"[ $CNI_COMMAND != ADD ] || read -r go < {made.folder}/gate\n"
        f"echo '{RESULT}'",
    )


def let_go(made: Plugins) -> None:
    """Let an ADD go on, once it waits."""
    with open(made.folder / "gate", "w", encoding="ascii") as gate:
        gate.write("go\n")


def test_plugins_of_one_sandbox_run_one_after_the_other(made: Plugins) -> None:
    """A DEL waits for the ADD of the same sandbox, and not for that of another one."""
    waiting(made)
    attachment, order = made.network.attachment(ID, pod()), made.folder / "order"

    def alone(call: Callable[..., Any], id: str) -> Any:
        with made.network.alone(id):
            return call(attachment, id, "")

    with ThreadPoolExecutor(2) as pool:
        adding = pool.submit(alone, made.network.add, ID)
        until(order.exists)
        deleting = pool.submit(alone, made.network.delete, ID)
        alone(made.network.delete, "other")
        assert not adding.done()
        assert not deleting.done()
        let_go(made)
        assert "10.1.2.3" == adding.result().ip
        deleting.result()
    assert f"DEL {ID}" == order.read_text(encoding="ascii").splitlines()[-1]


def test_check_does_not_wait_for_other_plugins(made: Plugins, tmp_path: Path) -> None:
    """It would keep a thread that answers calls, and run after the stop that it has waited for."""
    with (
        Store.open(tmp_path / "registry.db") as store,
        closing(Sandboxer(store, made.network)) as sandboxer,
    ):
        sandbox = store.add(Metadata(ID, "web", None), Status(State.READY))
        attachment = made.attach().attachment
        sandbox.extensions.update(lambda _: {"cni": attachment.dump()})
        with made.network.alone(ID):
            said = sandboxer.check_network(sandbox)
        assert f"use network of sandbox {ID!r}: other plugins of it are running; ask again" == said
        assert "OK" == sandboxer.check_network(sandbox)
        made.attach()
        store.get(ID).status.update(lambda old: replace(old, state=State.NOTREADY))
        assert sandboxer.check_network(sandbox) is None
        assert made.called("one")[0].startswith("ADD")


def test_closed_network_leaves_its_plugin_running(made: Plugins) -> None:
    """If it were killed it might leave rules. No other is begun, since its result would be lost."""
    waiting(made)
    order = made.folder / "order"
    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(made.attach)
        until(order.exists)
        made.network.close()
        with pytest.raises(PluginError, match=r"\(add\): the server ends"):
            adding.result()
        with pytest.raises(PluginError, match=r"\(delete\): the server ends"):
            made.network.delete(made.network.attachment(ID, pod()), ID, "")
    assert f"ADD {ID}\n" == order.read_text(encoding="ascii")
    # Without a process that reads, this would raise.
    gate = os.open(made.folder / "gate", os.O_WRONLY | os.O_NONBLOCK)
    os.close(gate)
    plugins.end([ID], time.monotonic() + 3600)


# Results.


@pytest.mark.parametrize(
    ("ips", "expected"),
    [
        (["10.1.2.3/24"], ("10.1.2.3", None)),
        (["10.1.2.3/24", "fd00::3/64"], ("10.1.2.3", ("fd00::3",))),
        (["fd00::3/64", "10.1.2.3/24", "10.1.2.4/24"], ("10.1.2.3", ("fd00::3", "10.1.2.4"))),
        (["FD00:0::3/64", "fd00::4/64"], ("fd00::3", ("fd00::4",))),
    ],
)
def test_ip_is_the_first_ipv4_address(
    made: Plugins, ips: list[str], expected: tuple[str, tuple[str, ...] | None]
) -> None:
    """As containerd chooses it; addresses have their canonical form."""
    result = {"ips": [{"address": ip} for ip in ips]}
    made.add("one", f"echo '{json.dumps(result)}'")
    attached = made.attach()
    assert expected == (attached.ip, attached.additional_ips)


def test_result_is_kept_as_containerd_keeps_it(made: Plugins) -> None:
    """An address without an interface is that of eth0; interfaces of the host have none."""
    result = {
        "cniVersion": "0.3.1",
        "interfaces": [{"name": "br0", "mac": "aa"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
        "ips": [
            {"version": "4", "address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 1},
            {"version": "6", "address": "fd00::3/64"},
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.0/8", "gw": "10.1.2.9"}],
        "dns": {"nameservers": ["10.1.2.1"], "search": ["local"]},
    }
    made.add("one", f"echo '{json.dumps(result)}'")
    kept = made.attach().cni_result
    assert kept.interfaces is not None
    assert {"eth0", "br0"} == kept.interfaces.keys()
    eth0, bridge = kept.interfaces["eth0"], kept.interfaces["br0"]
    assert eth0 is not None
    assert bridge is not None
    assert (IPConfig("10.1.2.3", "10.1.2.1"), IPConfig("fd00::3")) == eth0.ip_configs
    assert ("aa", "", None) == (bridge.mac, bridge.sandbox, bridge.ip_configs)
    assert [("0.0.0.0/0", ""), ("10.0.0.0/8", "10.1.2.9")] == [
        (each.dst, each.gw) for each in kept.routes or () if each
    ]
    (dns,) = kept.dns or ()
    assert (("10.1.2.1",), ("local",)) == (dns.nameservers, dns.search)


@pytest.mark.parametrize("result", [
    {"ips": [{"address": "no address"}]}, {"ips": [{}]}, {"ips": 5}, {"ips": ["10.1.2.3"]},
    {"interfaces": [{"mac": "aa"}]}, {"ips": [{"address": "10.1.2.3/24", "interface": 0}]},
    {"interfaces": [{"name": "a"}], "ips": [{"address": "10.1.2.3/24", "interface": -1}]},
    {"ips": [{"address": "10.1.2.3/24"}], "routes": [{"gw": "10.1.2.1"}]},
    {"ips": [{"address": "10.1.2.3/24"}], "dns": [1]}, {"interfaces": "eth0"},
])  # fmt: skip
def test_malformed_result_is_refused(made: Plugins, result: object) -> None:
    """Never by an error of Python."""
    made.add("one", f"echo '{json.dumps(result)}'")
    with pytest.raises(PluginError, match="malformed"):
        made.attach()


@pytest.mark.parametrize("result", [{"ips": []}, {"interfaces": [{"name": "lo"}], "ips": []}, {
    "interfaces": [{"name": "lo"}], "ips": [{"address": "127.0.0.1/8", "interface": 0}],
}])  # fmt: skip
def test_result_without_an_address_of_eth0_is_refused(made: Plugins, result: object) -> None:
    """In containerd's words."""
    made.add("one", f"echo '{json.dumps(result)}'")
    with pytest.raises(PluginError, match=f'failed to find network info for sandbox "{ID}"'):
        made.attach()


# Plugins that fail.

FAILED = f'failed to setup network for sandbox "{ID}": plugin type="one" name="net" failed (add): '


def failure(made: Plugins, script: str) -> PluginError:
    """Return the error of ADD with a plugin."""
    made.add("one", script)
    with pytest.raises(PluginError) as caught:
        made.attach()
    assert ("one", "ADD", True) == (caught.value.plugin, caught.value.command, caught.value.begun)
    assert str(caught.value).startswith(FAILED)
    return caught.value


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ('echo "{}"', "it printed no result"),
        ("exit 0", "it printed no result"),
        ("echo garbage", "its output 'garbage\\n': it is no JSON: Expecting value"),
        ("echo '[1]'", "it is no JSON object"),
        ("exit 3", "exit status 3 without a message"),
        ("echo garbage; exit 3", "exit status 3, and its output 'garbage\\n'"),
        ("kill -9 $$", "exit status 137 without a message"),
        ("while :; do echo 0123456789012345678901234567890123456789; done", "more than 1048576"),
    ],
)
def test_plugin_that_fails_is_named_with_what_it_said(
    made: Plugins, script: str, expected: str
) -> None:
    """No error code is made up."""
    error = failure(made, script)
    assert expected in str(error).replace("\\\\", "\\")
    assert error.code is None


def test_message_details_and_code_of_a_plugin_are_kept(made: Plugins) -> None:
    """Characters that are not seen are escapes."""
    said = {"code": 11, "msg": "try later\u202e", "details": "no address"}
    error = failure(made, f"echo '{json.dumps(said)}'; exit 1")
    assert f"{FAILED}try later\\u202e; no address" == str(error)
    assert 11 == error.code


@pytest.mark.parametrize("content", ["no program", "#!/no/such/interpreter\n"])
def test_plugin_that_cannot_be_run_has_begun_nothing(made: Plugins, content: str) -> None:
    """A run has nothing to undo then, unless an earlier plugin has run."""
    made.configure({"type": "two"})
    made.add("two", "")
    (made.folder / "two").write_text(content)
    with pytest.raises(PluginError, match="repair the plugin") as caught:
        made.attach()
    assert not caught.value.begun
    made.configure({"type": "one"}, {"type": "two"})
    with pytest.raises(PluginError) as caught:
        made.attach()
    assert caught.value.begun


def test_plugin_that_was_removed_fails_delete(made: Plugins) -> None:
    """In the words of the specification's library."""
    attached = made.attach()
    (made.folder / "one").unlink()
    with pytest.raises(PluginError, match='failed to find plugin "one" in path') as caught:
        made.network.delete(attached.attachment, ID, "")
    assert str(caught.value).startswith(f'failed to destroy network for sandbox "{ID}": ')


def test_plugin_is_not_started_to_be_killed_at_once(made: Plugins) -> None:
    """It might be killed between two steps; the call is repeated when there is time."""
    attachment = made.attach().attachment
    with pytest.raises(PluginError, match=r"\(delete\): there is no time left to run it"):
        made.network.delete(attachment, ID, "", time.monotonic())
    assert made.called("one")[0].startswith("ADD")
    made.network.delete(attachment, ID, "", time.monotonic() + 3600)
    assert made.called("one")[0].startswith("DEL")


def test_plugin_that_hangs_is_killed_with_its_children(
    made: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that has closed its output."""
    monkeypatch.setattr("registry.shim.network.NEEDED", 0)
    attachment = made.attach().attachment
    made.add("one", "exec >&- 2>&-; sleep 3600 & echo $! > $0.child; wait")
    within = 0.05
    while not (made.folder / "one.child").exists():
        within *= 2  # until the child had the time to begin
        with pytest.raises(PluginError, match="had not ended in time, and was killed"):
            made.network.delete(attachment, ID, "", time.monotonic() + within)
    wanted = {f"CNI_CONTAINERID={ID}".encode()}
    until(lambda: not any(plugins._is_of(pid, wanted) for pid in plugins._pids()))


def test_process_that_a_plugin_leaves_behind_does_not_delay_it(made: Plugins) -> None:
    """It holds the output open, and is killed."""
    made.add("one", f"sleep 3600 & echo '{RESULT}'")
    assert "10.1.2.3" == made.attach().ip
    wanted = {f"CNI_CONTAINERID={ID}".encode()}
    until(lambda: not any(plugins._is_of(pid, wanted) for pid in plugins._pids()))


def test_errors_of_a_plugin_are_logged(made: Plugins, caplog: pytest.LogCaptureFixture) -> None:
    """At most 4 KiB of them."""
    caplog.set_level("INFO")
    made.add("one", f"head -c 100000 /dev/zero | tr '\\0' x >&2; echo '{RESULT}'")
    made.attach()
    (record,) = [each for each in caplog.records if each.msg.startswith("plugin")]
    assert f"plugin one of sandbox {ID!r}: {'x' * plugins.ERRORS_MAX}" == record.getMessage()


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"other": 1}', b"\xff"])
def test_damaged_attachment_is_an_error_of_metadata(data: bytes) -> None:
    """It is never taken for none."""
    with pytest.raises(MetadataError, match="read attachment"):
        Attachment.load(data)


# What an earlier server has left.


def left_running(made: Plugins, script: str) -> int:
    """Start a plugin as an earlier server has left it, and return its pid once it runs."""
    made.add("left", f"echo > $0.runs; {script}")
    env = {"CNI_CONTAINERID": ID, "PATH": "/usr/bin:/bin"}
    path = str(made.folder / "left")
    pid = os.posix_spawn(path, [path], env, setsid=True)
    until((made.folder / "left.runs").exists)
    return pid


def test_plugin_of_an_earlier_server_is_waited_for(made: Plugins) -> None:
    """Bridge 1.1 leaves its rules for ever if it is killed between two steps of DEL."""
    os.mkfifo(made.folder / "gate")
    pid = left_running(made, f"read -r go < {made.folder}/gate; exit 7")
    plugins.end(["other"], time.monotonic() + 3600)
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(plugins.end, [ID], time.monotonic() + 3600)
        with open(made.folder / "gate", "w", encoding="ascii") as gate:
            assert not ending.done()
            gate.write("go\n")
        ending.result()
    assert 7 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_plugin_of_an_earlier_server_is_killed_at_the_deadline(made: Plugins) -> None:
    """The next DEL must not run beside it."""
    pid = left_running(made, "exec sleep 3600")
    plugins.end([ID], time.monotonic())
    assert -9 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# GC.


def test_collect_runs_gc_where_it_is_defined(made: Plugins) -> None:
    """With the sandboxes that there are."""
    made.configure({"type": "one"}, cniVersion="1.1.0")
    made.network.collect(["a", "b"], time.monotonic() + 3600)
    assert made.called("one")[0].startswith("GC ")
    valid = [{"containerID": id, "ifname": "eth0"} for id in ("a", "b")]
    assert valid == made.given("one")["cni.dev/valid-attachments"]


@pytest.mark.parametrize(
    "more", [{"cniVersion": "1.0.0"}, {"cniVersion": "1.1.0", "disableGC": True}]
)
def test_collect_does_nothing_else(made: Plugins, more: dict[str, Any]) -> None:
    """Nor does it without a network."""
    made.configure({"type": "one"}, **more)
    made.network.collect(["a"], time.monotonic() + 3600)
    (made.folder / "10-a.conflist").unlink()
    made.network.collect(["a"], time.monotonic() + 3600)
    assert not (made.folder / "one.call").exists()


def test_collect_names_a_plugin_that_fails(made: Plugins) -> None:
    """The start of a server goes on."""
    made.configure({"type": "one"}, cniVersion="1.1.0")
    made.add("one", "exit 1")
    with pytest.raises(PluginError, match=r'plugin type="one" name="net" failed \(GC\): exit'):
        made.network.collect([], time.monotonic() + 3600)


def test_start_of_a_server_collects_garbage(made: Plugins, tmp_path: Path) -> None:
    """A sandbox counts as long as its attachment is recorded, in whatever state it is."""
    made.configure({"type": "one"}, cniVersion="1.1.0")
    with Store.open(tmp_path / "registry.db") as store:
        for name in ("attached", "other"):
            store.add(Metadata(name, name, None), Status(State.NOTREADY))
        store.get("attached").extensions.update(lambda _: {"cni": Attachment({}, "").dump()})
        with closing(Sandboxer(store, made.network)):
            assert [{"containerID": "attached", "ifname": "eth0"}] == (
                made.given("one")["cni.dev/valid-attachments"]
            )
