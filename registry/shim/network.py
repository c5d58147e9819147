"""Pod networks: ADD, CHECK, DEL and GC run the plugins of one list as the CNI specification says.

Source: containerd internal/cri/server/sandbox_run.go and github.com/containerd/go-cni, whose words
begin the messages.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from registry import (
    FailedPreconditionError,
    RegistryError,
    ResourceExhaustedError,
    UnavailableError,
)
from registry.cri import PodSandboxConfig
from registry.shim import limits, netconf, plugins
from registry.shim.arguments import NEEDS, capabilities_of, cni_args
from registry.shim.attachment import IF_NAME, Attached, Attachment, attached
from registry.shim.validate import Refusal
from registry.sync.interrupts import reraise_interrupt

log = logging.getLogger("registry.shim")

PLUGINS_WITHIN: Final = 50.0
"""Seconds for the plugins of one ADD or DEL. An ADD and the DEL that follows it then end before a
kubelet gives up a stop, after two minutes."""
NEEDED: Final = 2.0
"""Seconds that must be left for a plugin of DEL to be started: one that is killed between two steps
may leave rules for ever."""
CHECKED_WITHIN: Final = 1.5
"""Seconds for the plugins of a CHECK; crictl waits for 2."""


class PluginError(RegistryError):
    """A CNI plugin has failed. gRPC: INTERNAL.

    To do: see what the plugin says; the call can be repeated.
    """

    plugin: str = ""
    """Type of the plugin, which is the name of its program."""
    command: str = ""
    """ADD, CHECK, DEL or GC."""
    code: int | None = None
    """Error code of the plugin, if it gave one."""
    begun: bool = True
    """False if no plugin has run, so that there is nothing to undo."""


class ExhaustedError(PluginError, ResourceExhaustedError):
    """A CNI plugin cannot be started for lack of tasks, memory or descriptors.

    gRPC: RESOURCE_EXHAUSTED.

    To do: raise the limit.
    """


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
        self._closed = False

    def close(self) -> None:
        """Leave the plugins that run to the next server, and start no others. Idempotent.

        Those that were waited for raise PluginError within a second.
        """
        self._closed = True

    def configuration(self) -> dict[str, Any]:
        """Return name, version and plugins of the first configuration by name.

        The file is read by each call, which takes 0.1 ms: a kubelet asks every 5 seconds.

        Raises:
            FailedPreconditionError: there is none, or it cannot be used.
            ResourceExhaustedError: it cannot be read for lack of descriptors or memory.
        """
        path = self._conf_dir
        try:
            path = netconf.first(path)
            found = netconf.read(path)
            for plugin in found["plugins"]:
                self._find(plugin["type"])
        except (OSError, ValueError) as error:
            why: object = error
            if isinstance(error, OSError):
                reraise_interrupt(error)
                if error.errno in limits.ADVICE:
                    raise limits.failed(f"read network configuration {path!r}", error) from error
                advice = "; install a network" if isinstance(error, FileNotFoundError) else ""
                why = f"{error.strerror}{advice}"
            raise FailedPreconditionError(f"cni plugin not initialized: {path!r}: {why}") from error
        return found

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
        except (FailedPreconditionError, ResourceExhaustedError) as error:
            raise type(error)(f"{_setup(id)}: {error}") from error
        declared = {name for plugin in network["plugins"] for name in netconf.declared(plugin)}
        wanted = dict(capabilities_of(config))
        for name in wanted.keys() - declared:
            if name in NEEDS:
                why = f"needs a plugin of network {network['name']!r} with the capability {name}"
                raise Refusal(NEEDS[name], wanted[name], why).error()
        capabilities = {name: wanted[name] for name in wanted.keys() & declared}
        return Attachment(network, cni_args(id, config), capabilities)

    @contextmanager
    def alone(self, id: str, *, wait: bool = True) -> Iterator[None]:
        """Exclude other plugins of the sandbox *id* during the body, as the specification demands.

        `add`, `check` and `delete` are called in it.

        Args:
            id: id of the sandbox.
            wait: whether to wait for the plugins that run.
        Raises:
            UnavailableError: plugins of the sandbox run, and *wait* is false.
        """
        with self._changed:
            if not wait and id in self._busy:
                why = "other plugins of it are running; ask again"
                raise UnavailableError(f"use network of sandbox {id!r}: {why}")
            self._changed.wait_for(lambda: id not in self._busy)
            self._busy.add(id)
        try:
            yield
        finally:
            with self._changed:
                self._busy.discard(id)
                self._changed.notify_all()

    def add(self, attachment: Attachment, id: str, netns_path: str) -> Attached:
        """Run ADD of each plugin for the sandbox *id*, and return the addresses.

        Args:
            attachment: the recorded one.
            id: id of the sandbox.
            netns_path: path of its network namespace.
        Raises:
            PluginError: a plugin has failed, or gave no address; the caller has to run DEL.
        """
        call = _Call("ADD", id, netns_path, attachment, time.monotonic() + PLUGINS_WITHIN)
        result: Mapping[str, Any] | None = None
        try:
            for plugin in attachment.network["plugins"]:
                result = self._run(call, plugin, result)
        except PluginError as error:
            error.begun = error.begun or result is not None
            raise
        try:
            found = attached(replace(attachment, result=result))
        except ValueError as error:
            raise PluginError(f"{_setup(id)}: {error}") from error
        if found is None:
            why = f"the plugins gave {IF_NAME} no address"
            raise PluginError(f'failed to find network info for sandbox "{id}": {why}')
        return found

    def check(self, attachment: Attachment, id: str, netns_path: str) -> bool:
        """Have each plugin compare the network of the sandbox *id* with what ADD has made.

        Only since version 0.4.0, in which CHECK is defined, and only if the configuration did not
        say `disableCheck`; return whether it was done.

        Args:
            attachment: the recorded one, with the result.
            id: id of the sandbox.
            netns_path: path of its network namespace.
        Raises:
            PluginError: a plugin has found a difference, or has failed.
        """
        network = attachment.network
        if network["disableCheck"] or not netconf.is_at_least(network, "0.4.0"):
            return False
        call = _Call("CHECK", id, netns_path, attachment, time.monotonic() + CHECKED_WITHIN)
        for plugin in network["plugins"]:
            self._run(call, plugin, attachment.result)
        return True

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
            PluginError: a plugin has failed, or there is no time left to run it.
        """
        if deadline is None:
            deadline = time.monotonic() + PLUGINS_WITHIN
        call = _Call("DEL", id, netns_path, attachment, deadline)
        # Before that version, DEL got no result.
        result = attachment.result if netconf.is_at_least(attachment.network, "0.4.0") else None
        for plugin in reversed(attachment.network["plugins"]):
            if deadline - time.monotonic() < NEEDED:
                raise call.failed(plugin, "there is no time left to run it; it is run later")
            self._run(call, plugin, result)

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
        if network["disableGC"] or not netconf.is_at_least(network, "1.1.0"):
            return
        valid = [{"containerID": id, "ifname": IF_NAME} for id in ids]
        call = _Call("GC", "", "", Attachment(network, ""), deadline)
        for plugin in network["plugins"]:
            self._run(call, {**plugin, "cni.dev/valid-attachments": valid}, None)

    def _run(
        self, call: _Call, plugin: Mapping[str, Any], previous: Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        """Run a plugin, and return its result, which only ADD has."""
        network, capabilities = call.attachment.network, call.attachment.capabilities
        request = {**plugin, "name": network["name"], "cniVersion": network["cniVersion"]}
        runtime = {
            name: capabilities[name] for name in netconf.declared(plugin) & capabilities.keys()
        }
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
            outcome = plugins.run(
                path, netconf.dump(request), env, call.deadline, lambda: self._closed
            )
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
    if outcome is plugins.LEFT:
        raise call.failed(plugin, "the server ends, and has left it to the next one")
    if len(outcome.output) > plugins.OUTPUT_MAX:
        raise call.failed(plugin, f"it printed more than {plugins.OUTPUT_MAX} bytes; repair it")
    if outcome.status is None:
        raise call.failed(plugin, "it had not ended in time, and was killed; see why it hangs")
    try:
        answer = netconf.load(outcome.output) if outcome.output.strip() else {}
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
