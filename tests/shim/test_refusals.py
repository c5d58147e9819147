"""Configs: a sandbox is run exactly as specified, or refused by the name of the field."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from registry import InvalidArgumentError
from registry.cri import PodSandboxConfig
from registry.shim import validate
from tests import needs
from tests.shim.client import NODE, READY, Client, messages, pod_config, upstream
from tests.shim.conftest import NOTHING, Server, left_of
from tests.shim.traces import cgroup_of
from tests.tools import ROOT, until

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
]

DATA = Path(ROOT, "tests", "data")
OPTIONS = "linux.security_context.namespace_options"
CONTEXT = "linux.security_context"
CONTAINER, TARGET, UNHEARD_OF = 1, 3, 9
"""Namespace modes; the last one is unknown."""

Change = Callable[[Any], object]


def setting(path: str, value: object) -> Change:
    """Return a function that sets the field at *path* of a config."""

    def change(config: Any) -> None:
        *parents, name = path.split(".")
        for parent in parents:
            config = getattr(config, parent)
        setattr(config, name, value)

    return change


def adding(path: str, **fields: object) -> Change:
    """Return a function that adds a message with *fields* to the list at *path* of a config."""

    def change(config: Any) -> None:
        *parents, name = path.split(".")
        for parent in parents:
            config = getattr(config, parent)
        getattr(config, name).add(**fields)

    return change


def _append(part: str, word: str, config: Any) -> None:
    """Append a word to a list of dns_config."""
    getattr(config.dns_config, part).append(word)


def both(*changes: Change) -> Change:
    """Return a function that makes all *changes*."""
    return lambda config: [change(config) for change in changes]


MAPPING = {"host_id": 100_000, "container_id": 0, "length": 65_536}
REFUSED: dict[str, list[Change]] = {
    f"{OPTIONS}.network": [
        setting(f"{OPTIONS}.network", mode) for mode in (CONTAINER, TARGET, UNHEARD_OF, -1)
    ],
    f"{OPTIONS}.pid": [
        setting(f"{OPTIONS}.pid", TARGET),
        both(setting(f"{OPTIONS}.pid", TARGET), setting(f"{OPTIONS}.target_id", "container")),
        setting(f"{OPTIONS}.pid", UNHEARD_OF),
    ],
    f"{OPTIONS}.ipc": [setting(f"{OPTIONS}.ipc", mode) for mode in (CONTAINER, TARGET, UNHEARD_OF)],
    f"{OPTIONS}.target_id": [
        setting(f"{OPTIONS}.target_id", "container"),
        both(setting(f"{OPTIONS}.pid", CONTAINER), setting(f"{OPTIONS}.target_id", "container")),
    ],
    f"{OPTIONS}.userns_options.mode": [
        adding(f"{OPTIONS}.userns_options.uids", **MAPPING),
        adding(f"{OPTIONS}.userns_options.gids", **MAPPING),
        lambda config: config.linux.security_context.namespace_options.userns_options.SetInParent(),
        setting(f"{OPTIONS}.userns_options.mode", CONTAINER),
        setting(f"{OPTIONS}.userns_options.mode", TARGET),
        setting(f"{OPTIONS}.userns_options.mode", UNHEARD_OF),
    ],
    f"{OPTIONS}.userns_options.uids": [
        both(
            setting(f"{OPTIONS}.userns_options.mode", NODE),
            adding(f"{OPTIONS}.userns_options.uids", **MAPPING),
        )
    ],
    f"{OPTIONS}.userns_options.gids": [
        both(
            setting(f"{OPTIONS}.userns_options.mode", NODE),
            adding(f"{OPTIONS}.userns_options.gids"),
        )
    ],
    f"{CONTEXT}.run_as_user": [
        setting(f"{CONTEXT}.run_as_user.value", id) for id in (-1, 2**32 - 1, 2**62)
    ],
    f"{CONTEXT}.run_as_group": [
        setting(f"{CONTEXT}.run_as_group.value", 5),
        setting(f"{CONTEXT}.run_as_group.value", 0),
        both(
            setting(f"{CONTEXT}.run_as_user.value", 5), setting(f"{CONTEXT}.run_as_group.value", -1)
        ),
    ],
    f"{CONTEXT}.supplemental_groups": [
        lambda config: config.linux.security_context.supplemental_groups.append(2**32)
    ],
    f"{CONTEXT}.supplemental_groups_policy": [
        setting(f"{CONTEXT}.supplemental_groups_policy", UNHEARD_OF)
    ],
    f"{CONTEXT}.seccomp.localhost_ref": [
        setting(f"{CONTEXT}.seccomp.profile_type", 2),
        setting(f"{CONTEXT}.seccomp.localhost_ref", "/no/such.json"),
        both(
            setting(f"{CONTEXT}.seccomp.profile_type", 2),
            setting(f"{CONTEXT}.seccomp.localhost_ref", "/no/such.json"),
        ),
    ],
    f"{CONTEXT}.seccomp.profile_type": [setting(f"{CONTEXT}.seccomp.profile_type", UNHEARD_OF)],
    f"{CONTEXT}.seccomp_profile_path": [
        setting(f"{CONTEXT}.seccomp_profile_path", path)
        for path in ("localhost//no/such.json", "localhost/x", "strict")
    ],
    f"{CONTEXT}.apparmor.localhost_ref": [
        both(
            setting(f"{CONTEXT}.apparmor.profile_type", 2),
            setting(f"{CONTEXT}.apparmor.localhost_ref", "a-profile"),
        )
    ],
    f"{CONTEXT}.apparmor.profile_type": [setting(f"{CONTEXT}.apparmor.profile_type", UNHEARD_OF)],
    **{
        f"{CONTEXT}.selinux_options.{part}": [setting(f"{CONTEXT}.selinux_options.{part}", "s0")]
        for part in ("user", "role", "type", "level")
    },
    "linux.cgroup_parent": [
        setting("linux.cgroup_parent", parent)
        for parent in (
            "/kubepods/../..",
            "..",
            "a//b",
            "a/./b",
            "a\nb",
            "a-.slice",
            "-a.slice",
            "a--b.slice",
            ".slice",
        )
    ],
    **{
        f"dns_config.{part}": [
            partial(_append, part, word)
            for word in ("", " ", "two words", "a\nnameserver 1", "a\0")
        ]
        for part in ("servers", "searches", "options")
    },
    f"{CONTEXT}.readonly_rootfs": [setting(f"{CONTEXT}.readonly_rootfs", value=True)],
    "port_mappings.host_port": [
        adding("port_mappings", container_port=80, host_port=-1),
        adding("port_mappings", container_port=80, host_port=65536),
    ],
    "port_mappings.container_port": [
        adding("port_mappings", container_port=port, host_port=8080) for port in (-1, 0, 65536)
    ],
    "port_mappings.host_ip": [
        adding("port_mappings", container_port=80, host_port=8080, host_ip=text)
        for text in ("localhost", "10.0.0.1/8", "fe80::1%eth0", "1.2.3", "127.0.0.1\0", "-j")
    ],
    "port_mappings.protocol": [adding("port_mappings", protocol=UNHEARD_OF, container_port=80)],
    "windows.security_context.run_as_username": [
        setting("windows.security_context.run_as_username", "u")
    ],
    "windows.security_context.host_process": [
        setting("windows.security_context.host_process", value=True)
    ],
    "windows.security_context.namespace_options.network": [
        setting("windows.security_context.namespace_options.network", mode)
        for mode in (NODE, UNHEARD_OF)
    ],
}
CASES = [
    (field, n, change) for field, changes in REFUSED.items() for n, change in enumerate(changes)
]

PORTS = {f"port_mappings.{name}" for name in ("host_port", "container_port", "host_ip")}
"""Fields that have no effect on the host network."""


@pytest.mark.parametrize(
    ("field", "change"),
    [pytest.param(field, change, id=f"{field}-{n}") for field, n, change in CASES],
)
@pytest.mark.parametrize("host_network", [False, True], ids=["pod", "host"])
def test_unsupported_field_is_refused_by_name(
    field: str, change: Change, host_network: bool
) -> None:
    """Field and value are attributes; nothing was recorded or made before."""
    message = pod_config("web", host_network=host_network)
    change(message)
    config = PodSandboxConfig.FromString(message.SerializeToString())
    if host_network and field in PORTS:
        validate.check(config)  # the port is one of the node already
        return
    with pytest.raises(InvalidArgumentError) as caught:
        validate.check(config)
    assert field == caught.value.field
    assert caught.value.value is not None
    assert str(caught.value).startswith(f"run sandbox: {field} ")


def test_refusal_over_cri_leaves_no_record_process_or_namespace(
    server: Server, cri: Client
) -> None:
    """INVALID_ARGUMENT names the field."""
    for field, _, change in CASES:
        config = pod_config("web")
        change(config)
        with pytest.raises(grpc.RpcError) as caught:
            cri.run(config)
        assert grpc.StatusCode.INVALID_ARGUMENT is caught.value.code()
        assert field in str(caught.value.details())
    assert [] == cri.list()
    assert NOTHING == left_of(server.db)


def test_cases_cover_every_enum_of_upstreams_config() -> None:
    """An unknown value of each enum below PodSandboxConfig is tried above."""
    types, enums, todo = upstream()["messages"], set(), [("", "PodSandboxConfig")]
    while todo:
        path, name = todo.pop()
        for _, field, declared in types[name]:
            kind = declared.removeprefix("repeated ")
            if kind in types:
                todo.append((f"{path}{field}.", kind))
            elif kind in upstream()["enums"]:
                enums.add(f"{path}{field}")
    assert enums <= REFUSED.keys()


# Configs of a kubelet.


def kubelet_configs() -> list[Any]:
    """Return each config that a real kubelet has run a sandbox of."""
    found = []
    for line in (DATA / "cri" / "kubelet-1.33-calls.jsonl").read_text().splitlines():
        call = json.loads(line)
        if call["call"] == "RunPodSandbox":
            config = messages()["PodSandboxConfig"]()
            _parse(call["request"]["config"], config)
            found.append(config)
    return found


def _parse(value: dict[str, Any], message: Any) -> None:
    """Fill *message*, whose enum values have the prefix of their scope."""
    modes = dict(upstream()["enums"]["NamespaceMode"])
    numbers = {name: number for number, name in modes.items()} | modes
    text = json.dumps(value)
    for name, number in numbers.items():
        if isinstance(name, str):
            text = text.replace(f'"{name}"', str(number))
    json_format.Parse(text, message)


def test_configs_of_a_kubelet_are_run(server: Server, cri: Client) -> None:
    """These are the recorded calls for static pods, one of them on the host network."""
    configs = kubelet_configs()
    assert {"hn-node-kc", "pn-node-kc"} == {config.metadata.name for config in configs}
    for config in configs:
        id = cri.run(config)
        status = cri.status(id)
        assert READY == status.state
        wanted = config.linux.security_context.namespace_options
        assert wanted == status.linux.namespaces.options
        cri.remove(id)
    assert NOTHING == left_of(server.db)


RUNS = {
    "dns", "dualstack", "empty-nested-messages", "hostnet", "metadata-html-chars", "minimal",
    "overhead-resources", "podnet-kubelet", "run-as-user-0", "runtime-handler-alt", "sysctls",
}  # fmt: skip
"""Of the pods that containerd has stored: all but those that want a port of the node, a container's
pid namespace or a profile of the node."""


def test_configs_of_containerd_are_run_or_refused(server: Server, cri: Client) -> None:
    """A refusal has the code of an invalid argument."""
    refused = set()
    for path in sorted((DATA / "containerd").glob("*.config.pb")):
        config = messages()["PodSandboxConfig"].FromString(path.read_bytes())
        name = path.name.partition(".")[0]
        if config.linux.cgroup_parent:
            config.linux.cgroup_parent = cgroup_of(server.db)
        if name in RUNS:
            assert READY == cri.status(cri.run(config)).state
        else:
            with pytest.raises(grpc.RpcError) as caught:
                cri.run(config)
            assert grpc.StatusCode.INVALID_ARGUMENT is caught.value.code()
            refused.add(name)
    assert {"ns-pid-target", "ports", "seccomp-localhost"} == refused


IGNORED = [
    setting(f"{CONTEXT}.apparmor.profile_type", 1),
    setting(f"{CONTEXT}.supplemental_groups_policy", 1),
    adding("port_mappings", protocol=1, container_port=53),
]


def test_fields_without_effect_on_a_sleeping_process_are_accepted() -> None:
    """The table in docs/shim.md gives the reason for each field."""
    for change in IGNORED:
        message = pod_config("web")
        change(message)
        validate.check(PodSandboxConfig.FromString(message.SerializeToString()))


def test_docs_list_every_field() -> None:
    """Fields of upstream's PodSandboxConfig are listed at any depth, or by their parent."""
    docs = (Path(ROOT) / "docs" / "shim.md").read_text()
    types, todo = upstream()["messages"], [("", "PodSandboxConfig")]
    while todo:
        path, name = todo.pop()
        for _, field, kind in types[name]:
            if f"`{path}{field}`" in docs:
                continue
            assert kind.removeprefix("repeated ") in types, f"{path}{field}"
            todo.append((f"{path}{field}.", kind.removeprefix("repeated ")))


# Honoured fields.


def credentials(pid: int) -> dict[str, str]:
    """Return user, group and supplementary groups of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pairs = (line.split(":\t", 1) for line in lines if ":\t" in line)
    found = {name: value.split() for name, value in pairs}
    return {"user": found["Uid"][0], "group": found["Gid"][0], "groups": ",".join(found["Groups"])}


@pytest.mark.parametrize(
    ("user", "group", "groups", "expected"),
    [
        (1000, 2000, [3000, 4000], ("1000", "2000", "3000,4000")),
        (1000, None, [], ("1000", "0", "")),
        (0, 0, [], ("0", "0", "")),
        (None, None, [3000], ("0", "0", "3000")),
        (2**32 - 2, 2**32 - 2, [2**32 - 2], (f"{2**32 - 2}",) * 3),
    ],
)
def test_pause_process_runs_as_requested_user(
    cri: Client, user: int | None, group: int | None, groups: list[int], expected: tuple[str, ...]
) -> None:
    """Group and supplementary groups are set too; a stop ends the process."""
    config = pod_config("web")
    context = config.linux.security_context
    context.supplemental_groups.extend(groups)
    if user is not None:
        context.run_as_user.value = user
    if group is not None:
        context.run_as_group.value = group
    id = cri.run(config)
    pid = cri.info(id)["pid"]
    until(lambda: expected == tuple(credentials(pid).values()))
    until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    cri.stop(id)
    assert "SandboxStopped" == cri.info(id)["reason"]


# Other calls.


@pytest.mark.parametrize("state", [2, 9, -1])
def test_list_of_unknown_state_is_refused(cri: Client, state: int) -> None:
    """It must not be answered like a list of NOTREADY sandboxes."""
    with pytest.raises(grpc.RpcError) as caught:
        cri.list(state=state)
    assert grpc.StatusCode.INVALID_ARGUMENT is caught.value.code()
    assert f"filter.state {state} " in str(caught.value.details())
