"""Pod networks: the CNI configuration of the node, its plugins and their results.

ADD and DEL run the plugins of one list as the CNI specification 1.0 says. The caller records the
`Attachment` before ADD, and gives the recorded one to DEL: it does not depend on the configuration
of that day.

Source: containerd internal/cri/server/sandbox_run.go and github.com/containerd/go-cni, whose words
begin the messages.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, NamedTuple

from registry import (
    DNS,
    CNIResult,
    FailedPreconditionError,
    Interface,
    IPConfig,
    MetadataError,
    RegistryError,
    ResourceExhaustedError,
    Route,
)
from registry.cri import PodSandboxConfig
from registry.shim import plugins
from registry.shim.arguments import NEEDS, capabilities_of, cni_args
from registry.shim.validate import Refusal
from registry.sync.interrupts import reraise_interrupt

log = logging.getLogger("registry.shim")

SUFFIXES: Final = (".conf", ".conflist", ".json")
VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Versions of the specification, oldest first. Results of earlier ones have another structure."""
NAME: Final = r"[a-zA-Z0-9][a-zA-Z0-9_.-]*"
"""Name of a network (libcni, ValidateNetworkName)."""
IF_NAME: Final = "eth0"
PLUGINS_WITHIN: Final = 50.0
"""Seconds for the plugins of one ADD or DEL. An ADD and the DEL that undoes it then end before a
kubelet gives up, after two minutes."""
FILE_MAX: Final = 128 * 1024
"""Bytes of a configuration, which is recorded with each sandbox."""


class PluginError(RegistryError):
    """A CNI plugin has failed. gRPC: INTERNAL.

    To do: see what the plugin says; the call can be repeated.
    """

    plugin: str = ""
    """Type of the plugin, which is the name of its program."""
    command: str = ""
    """ADD, DEL or GC."""
    code: int | None = None
    """Error code of the plugin, if it gave one."""
    begun: bool = True
    """False if no plugin has run, so that there is nothing to undo."""


class ExhaustedError(PluginError, ResourceExhaustedError):
    """A CNI plugin cannot be started for lack of tasks, memory or descriptors.

    gRPC: RESOURCE_EXHAUSTED.

    To do: raise the limit.
    """


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
        return _dump(asdict(self))

    @classmethod
    def load(cls, data: bytes) -> Attachment:
        """Return the attachment that `dump` wrote.

        Raises:
            MetadataError: *data* is something else.
        """
        try:
            return _checked(cls(**_load(data)))
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
    return replace(found, network=_network(found.network, is_list=True))


class Attached(NamedTuple):
    """Outcome of ADD; the last three are what containerd keeps of it."""

    attachment: Attachment
    """With the result."""
    ip: str
    """The first IPv4 address; without one, the first address."""
    additional_ips: tuple[str, ...] | None
    cni_result: CNIResult


class Network:
    """Network of the pods of this node."""

    def __init__(self, conf_dir: str, bin_dirs: Sequence[str]) -> None:
        """Read the configuration in *conf_dir* whenever it is needed.

        Args:
            conf_dir: directory of configurations; the first one by name is used.
            bin_dirs: directories of plugins, searched in this order.
        """
        self._conf_dir: Final = conf_dir
        self._bin_dirs: Final = tuple(bin_dirs)
        self._busy: Final[set[str]] = set()
        self._changed: Final = threading.Condition()

    def configuration(self) -> dict[str, Any]:
        """Return name, version and plugins of the first configuration by name.

        The file is read by each call, which takes 0.1 ms: a kubelet asks every 5 seconds.

        Raises:
            FailedPreconditionError: there is none, or it cannot be used.
        """
        path = self._conf_dir
        try:
            path = self._first()
            found = _network(_read(path), is_list=path.endswith(".conflist"))
            for plugin in found["plugins"]:
                self._find(plugin["type"])
        except (OSError, ValueError) as error:
            why: object = error
            if isinstance(error, OSError):
                reraise_interrupt(error)
                advice = "; install a network" if isinstance(error, FileNotFoundError) else ""
                why = f"{error.strerror}{advice}"
            raise FailedPreconditionError(f"cni plugin not initialized: {path!r}: {why}") from error
        return found

    def _first(self) -> str:
        with os.scandir(self._conf_dir) as entries:
            names = [
                each.name for each in entries if each.name.endswith(SUFFIXES) and each.is_file()
            ]
        if not names:
            raise ValueError("no network config found; install a network")
        return os.path.join(self._conf_dir, min(names))

    def _find(self, plugin: str) -> str:
        """Return the path of the program of a plugin.

        Raises:
            ValueError: there is none.
        """
        for path in (os.path.join(folder, plugin) for folder in self._bin_dirs):
            if os.path.isfile(path) and os.access(path, os.X_OK):
                return path
        raise ValueError(f'failed to find plugin "{plugin}" in path {list(self._bin_dirs)}')

    # Attachments.

    def attachment(self, id: str, config: PodSandboxConfig) -> Attachment:
        """Return what ADD will use for the sandbox *id*.

        Raises:
            FailedPreconditionError: the node has no network.
            InvalidArgumentError: no plugin of it has what *config* needs.
        """
        try:
            network = self.configuration()
        except FailedPreconditionError as error:
            raise FailedPreconditionError(f"{_setup(id)}: {error}") from error
        declared = {name for plugin in network["plugins"] for name in _declared(plugin)}
        wanted = dict(capabilities_of(config))
        for name in wanted.keys() - declared:
            if name in NEEDS:
                why = f"needs a plugin of network {network['name']!r} with the capability {name}"
                raise Refusal(NEEDS[name], wanted[name], why).error()
        capabilities = {name: wanted[name] for name in wanted.keys() & declared}
        return Attachment(network, cni_args(id, config), capabilities)

    def add(
        self, attachment: Attachment, id: str, netns_path: str, begin: Callable[[], None]
    ) -> Attached:
        """Run ADD of each plugin for the sandbox *id*, and return the addresses.

        Args:
            attachment: the recorded one.
            id: id of the sandbox.
            netns_path: path of its network namespace.
            begin: raises if the sandbox was stopped meanwhile. No DEL of it runs then, and one
                that comes later waits for the end of ADD.
        Raises:
            PluginError: a plugin has failed, or gave no address; the caller has to run DEL.
        """
        with self._alone(id):
            begin()
            call = _Call("ADD", id, netns_path, attachment, time.monotonic() + PLUGINS_WITHIN)
            result: Mapping[str, Any] | None = None
            try:
                for plugin in attachment.network["plugins"]:
                    result = self._run(call, plugin, result)
            except PluginError as error:
                error.begun = error.begun or result is not None
                raise
        return _attached(replace(attachment, result=result), id)

    def delete(
        self, attachment: Attachment, id: str, netns_path: str, deadline: float | None = None
    ) -> None:
        """Run DEL of each plugin for the sandbox *id*, last first. Idempotent.

        Args:
            attachment: the recorded one, with the result if ADD has ended.
            id: id of the sandbox.
            netns_path: path of its network namespace; "" if that is gone.
            deadline: monotonic time in seconds at which a plugin is killed; None: in 50 seconds.
        Raises:
            PluginError: a plugin has failed.
        """
        with self._alone(id):
            if deadline is None:
                deadline = time.monotonic() + PLUGINS_WITHIN
            call = _Call("DEL", id, netns_path, attachment, deadline)
            since = VERSIONS.index("0.4.0")  # before that, DEL got no result
            known = VERSIONS.index(attachment.network["cniVersion"]) >= since
            for plugin in reversed(attachment.network["plugins"]):
                self._run(call, plugin, attachment.result if known else None)

    def collect(self, ids: Iterable[str], deadline: float) -> None:
        """Have the plugins release what belongs to none of the sandboxes *ids*.

        Only for a network of version 1.1 or later, in which GC is defined, and only if its
        configuration does not say `disableGC`.

        Args:
            ids: ids of the sandboxes with an attachment.
            deadline: monotonic time in seconds at which a plugin is killed.
        Raises:
            PluginError: a plugin has failed.
        """
        try:
            network = self.configuration()
        except FailedPreconditionError:
            return
        if VERSIONS.index(network["cniVersion"]) < VERSIONS.index("1.1.0") or network["disableGC"]:
            return
        valid = [{"containerID": id, "ifname": IF_NAME} for id in ids]
        call = _Call("GC", "", "", Attachment(network, ""), deadline)
        for plugin in network["plugins"]:
            self._run(call, {**plugin, "cni.dev/valid-attachments": valid}, None)

    @contextmanager
    def _alone(self, id: str) -> Iterator[None]:
        """Exclude other plugins of the same sandbox, as the specification demands."""
        with self._changed:
            self._changed.wait_for(lambda: id not in self._busy)
            self._busy.add(id)
        try:
            yield
        finally:
            with self._changed:
                self._busy.discard(id)
                self._changed.notify_all()

    def _run(
        self, call: _Call, plugin: Mapping[str, Any], previous: Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        """Run a plugin, and return its result; that of DEL and GC is empty."""
        network, capabilities = call.attachment.network, call.attachment.capabilities
        request = {**plugin, "name": network["name"], "cniVersion": network["cniVersion"]}
        runtime = {name: capabilities[name] for name in _declared(plugin) & capabilities.keys()}
        if runtime:
            request["runtimeConfig"] = runtime
        if previous is not None:
            request["prevResult"] = previous
        env = {
            "CNI_COMMAND": call.command,
            "CNI_CONTAINERID": call.id,
            "CNI_NETNS": call.netns_path,
            "CNI_IFNAME": IF_NAME,
            "CNI_ARGS": call.attachment.args,
            "CNI_PATH": ":".join(self._bin_dirs),
        }
        try:
            path = self._find(plugin["type"])
            outcome = plugins.run(path, _dump(request), env, call.deadline)
        except (ValueError, RegistryError) as error:
            exhausted = isinstance(error, ResourceExhaustedError)
            kind = ExhaustedError if exhausted else PluginError
            raise call.failed(plugin, str(error), kind, begun=False) from error
        if outcome.errors:
            log.info(
                "plugin %s of sandbox %r: %s",
                plugin["type"],
                call.id,
                outcome.errors.decode(errors="replace").strip(),
                extra={"event": "plugin_output", "sandbox_id": call.id, "plugin": plugin["type"]},
            )
        return _result(call, plugin, outcome)


@dataclass(frozen=True, slots=True)
class _Call:
    """One command for the plugins of one sandbox."""

    command: str
    id: str
    netns_path: str
    attachment: Attachment
    deadline: float

    def failed(
        self,
        plugin: Mapping[str, Any],
        why: str,
        kind: type[PluginError] = PluginError,
        **operands: object,
    ) -> PluginError:
        """Return the error of *plugin*, in containerd's words."""
        doing = {
            "ADD": f"{_setup(self.id)}: ",
            "DEL": f'failed to destroy network for sandbox "{self.id}": ',
        }.get(self.command, "")
        verb = {"ADD": "add", "DEL": "delete"}.get(self.command, self.command)
        named = f'type="{plugin["type"]}" name="{self.attachment.network["name"]}"'
        return kind(
            f"{doing}plugin {named} failed ({verb}): {why}",
            plugin=plugin["type"],
            command=self.command,
            **operands,
        )


def _setup(id: str) -> str:
    return f'failed to setup network for sandbox "{id}"'


def _result(call: _Call, plugin: Mapping[str, Any], outcome: plugins.Outcome) -> Mapping[str, Any]:
    """Return what the plugin has answered.

    Raises:
        PluginError: it has failed, or its answer is no result.
    """
    if len(outcome.output) > plugins.OUTPUT_MAX:
        raise call.failed(plugin, f"it printed more than {plugins.OUTPUT_MAX} bytes; repair it")
    if outcome.status is None:
        raise call.failed(plugin, "it had not ended in time, and was killed; see why it hangs")
    try:
        answer = _load(outcome.output) if outcome.output.strip() else {}
    except ValueError as error:
        start = outcome.output[:80].decode(errors="replace")
        why = f"exit status {outcome.status}, and its output {start!r}: {error}"
        raise call.failed(plugin, why) from error
    if outcome.status != 0:
        code = answer.get("code")
        said = [answer.get(key) for key in ("msg", "details") if answer.get(key)]
        why = "; ".join(map(str, said)) or f"exit status {outcome.status} without a message"
        raise call.failed(plugin, why, code=code if isinstance(code, int) else None)
    if call.command == "ADD" and not answer:
        raise call.failed(plugin, "it printed no result; repair it")
    return answer


# Configuration.


def _read(path: str) -> dict[str, Any]:
    """Return the configuration in the file at *path*.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, or no JSON object.
    """
    with open(path, "rb") as file:
        data = file.read(FILE_MAX + 1)
    if len(data) > FILE_MAX:
        raise ValueError(f"it has more than {FILE_MAX} bytes")
    return _load(data)


def _network(conf: Mapping[str, Any], *, is_list: bool) -> dict[str, Any]:
    """Return what is used of a configuration.

    Raises:
        ValueError: it cannot be used.
    """
    name, found = conf.get("name"), conf.get("plugins") if is_list else [conf]
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise ValueError(f"name {name!r} is not the name of a network")
    if not isinstance(found, list) or not found:
        raise ValueError("it has no list of plugins")
    for plugin in found:
        sound = (
            isinstance(plugin, dict)
            and isinstance(plugin.get("capabilities", {}), dict)
            and isinstance(plugin.get("type"), str)
            and re.fullmatch(r"[^/\0]+", plugin["type"])
        )
        if not sound:
            raise ValueError("a plugin has no type, or its capabilities are no object")
    versions = [conf.get("cniVersion")]
    if isinstance(conf.get("cniVersions"), list):
        versions += conf["cniVersions"]
    known = [version for version in VERSIONS if version in versions]
    if not known:
        raise ValueError(f"cniVersion {versions[0]!r} is none of {', '.join(VERSIONS)}")
    disabled = conf.get("disableGC") in (True, "true")
    return {"name": name, "cniVersion": known[-1], "disableGC": disabled, "plugins": found}


def _declared(plugin: Mapping[str, Any]) -> set[str]:
    """Return the capabilities that a plugin declares."""
    return {name for name, on in plugin.get("capabilities", {}).items() if on is True}


# JSON.


def _attached(attachment: Attachment, id: str) -> Attached:
    """Return the addresses of the result of ADD.

    Raises:
        PluginError: the result has another structure, or no address.
    """
    try:
        result = _typed(attachment.result or {})
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        why = f"the result of the plugins is malformed: {error!r}; repair the last one"
        raise PluginError(f"{_setup(id)}: {why}") from error
    interface = (result.interfaces or {}).get(IF_NAME)
    ips = [each.ip for each in (interface and interface.ip_configs) or () if each and each.ip]
    if not ips:
        why = f"the plugins gave {IF_NAME} no address"
        raise PluginError(f'failed to find network info for sandbox "{id}": {why}')
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


def _dump(value: object) -> bytes:
    import json  # noqa: PLC0415 - a server whose sandboxes all run starts without

    return json.dumps(value).encode()


def _load(data: bytes) -> dict[str, Any]:
    """Return the JSON object in *data*.

    Raises:
        ValueError: there is none, or it is nested too deeply.
    """
    import json  # noqa: PLC0415 - a server whose sandboxes all run starts without

    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if isinstance(value, dict):
        return value
    raise ValueError("it is no JSON object")
