"""Runs, stops and removes sandboxes.

Each step is recorded before it is taken. After a crash the next server finishes or undoes it:

    step                        record                     after a crash here
    --------------------------- -------------------------- -----------------------------------
    run     reserve the name    UNKNOWN, netns path,       undone
                                attachment
            make the namespace                             undone
            ADD of each plugin                             undone by DEL, after the plugin's end
            write resolv.conf                              undone
            spawn pause, held                              undone; pause ended with the server
            record its pid      UNKNOWN, pid, addresses,   undone
                                result in the attachment
            put it in a cgroup                             undone
            release pause                                  undone
            done                READY, created_at          keeps running
    stop    intent              NOTREADY, SandboxStopped   finished
            end pause                                      finished
            DEL of each plugin                             finished, after the plugin's end
            remove namespace and the rest                  finished
            done                no attachment, exited_at   stopped
            (of a sandbox that had exited before, the message records the intent)
    remove  intent              NOTREADY, SandboxRemoved   finished
            the steps of a stop                            finished
            done                none                       gone

The first call that changes the state of a sandbox proceeds. A run that finds its sandbox stopped or
removed meanwhile undoes its own steps. ADD, CHECK, an undo, and what follows the intent of a stop
exclude each other. An ADD begins only while the sandbox is not stopped, so the DEL of a stop comes
after it, or finds it never begun.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from typing import Final

from registry import (
    Exit,
    Exits,
    Extension,
    FailedPreconditionError,
    InvalidArgumentError,
    Metadata,
    NetNS,
    NotFoundError,
    Process,
    RegistryError,
    ResourceExhaustedError,
    Sandbox,
    State,
    Status,
    Store,
)
from registry.cri import LinuxContainerResources, LinuxPodSandboxConfig, PodSandboxConfig
from registry.shim import cgroups, mounts, pause, validate
from registry.shim import runtime_pb2 as api
from registry.shim.attachment import Attached, Attachment
from registry.shim.network import Network, PluginError
from registry.shim.recovery import (
    FAILED,
    MESSAGE_MAX,
    REMOVED,
    STOPPED,
    STOPPED_TOO,
    Recovery,
    attachment_of,
    end,
    killed_by,
    recorded,
)
from registry.shim.runs import Run, Runs
from registry.shim.validate import has_resolv

log = logging.getLogger("registry.shim")

RESOURCES_TYPE: Final = f"type.googleapis.com/{LinuxContainerResources.DESCRIPTOR.full_name}"
"""Type URL of an extension, by which `sandbox-registry inspect` decodes it."""


class Sandboxer:
    """Runs the sandboxes of one store as processes and namespaces of this host."""

    def __init__(
        self,
        store: Store,
        network: Network,
        note_error: Callable[[RegistryError], object] = lambda _: None,
    ) -> None:
        """Finish or undo the calls that a crash interrupted, and watch the running processes.

        Args:
            store: of the sandboxes.
            network: of the pods.
            note_error: called when the end of a process cannot be recorded, which is retried.
        """
        self._note_error: Final = note_error
        self._store: Final = store
        self._network: Final = network
        self._runs: Final = Runs()
        with ExitStack() as stack:
            self._exits: Final = stack.enter_context(closing(Exits(self._note_exits)))
            recovery = Recovery(store, network, self._exits)
            self._recovery: Final = stack.enter_context(closing(recovery))
            recovery.recover()
            self._closing: Final = stack.pop_all()

    def close(self) -> None:
        """Stop watching; the sandboxes keep running, and the store stays open."""
        self._closing.close()

    def why_no_network(self) -> RegistryError | None:
        """Return the error for which pod-network sandboxes cannot be run, or None."""
        try:
            self._network.configuration()
        except (FailedPreconditionError, ResourceExhaustedError) as error:
            return error
        return None

    def check_network(self, sandbox: Sandbox) -> str | None:
        """Have the plugins compare the network of *sandbox* with what they have made.

        Return "OK" or the difference; None if there is nothing to compare. The sandbox stays READY,
        whatever a plugin says: its processes may still use the network.
        """
        try:
            attachment = attachment_of(sandbox)
            if attachment is None:
                return None
            with self._network.alone(sandbox.id, wait=False):
                if sandbox.status.get().state is not State.READY:
                    return None
                checked = self._network.check(attachment, sandbox.id, sandbox.netns_path)
        except RegistryError as error:
            return str(error)
        return "OK" if checked else None

    # Running.

    def run(
        self,
        config: PodSandboxConfig,
        runtime_handler: str = "",
        wanted: Callable[[], bool] = lambda: True,
    ) -> str:
        """Run a sandbox, and return its id.

        When this raises, the steps so far have been undone. Where the undo failed too (the
        database may be locked), it is retried in the background.

        Args:
            config: config of the pod.
            runtime_handler: name of the handler that the client asks for; only "" exists.
            wanted: returns whether the client still waits; the run fails once it does not.
        Raises:
            NameReservedError: a sandbox of that name exists; `.holder` is its id.
            InvalidArgumentError: a field of *config* is not supported.
            RegistryError: a step failed.
        """
        if runtime_handler:
            # In containerd's words.
            why = f'failed to get sandbox runtime: no runtime for "{runtime_handler}" is configured'
            raise InvalidArgumentError(why, field="runtime_handler", value=runtime_handler)
        validate.check(config)
        return self._runs.run(name_of(config), config, wanted, self._run)

    def _run(self, run: Run) -> None:
        config, attachment, path = run.config, None, ""
        if not validate.is_host_network(config):
            attachment = self._network.attachment(run.id, config)
            path = self._store.new_netns_path()
        metadata = Metadata(run.id, name_of(config), config, netns_path=path)
        with self._store.transaction():
            sandbox = self._store.add(metadata, Status(State.UNKNOWN))
            _store_resources(sandbox, config.linux)
            if attachment is not None:
                sandbox.extensions.update(recorded(attachment))
        try:
            netns = attached = None
            if attachment is not None:
                netns = NetNS.create(path)
                with self._network.alone(run.id):
                    # A stop has come before, and this raises, or its DEL waits for the end of ADD.
                    _while(run.is_wanted)(sandbox.status.get())
                    attached = self._network.add(attachment, run.id, path)
                attachment = attached.attachment
            process = self._start(run, sandbox, netns, attached)
            self._exits.watch(sandbox, process)
        except BaseException as error:
            unbegun = isinstance(error, PluginError) and not error.begun
            if attachment is not None and (netns is None or unbegun):
                # Else the undo would start a plugin for DEL, which fails for the same reason.
                with suppress(RegistryError):
                    sandbox.extensions.update(recorded(None))
                attachment = None
            self._undo(sandbox, attachment)
            raise

    def _start(
        self, run: Run, sandbox: Sandbox, netns: NetNS | None, attached: Attached | None
    ) -> Process:
        config, resolv = run.config, ""
        if has_resolv(config):
            resolv = mounts.resolv_path(self._store.path, sandbox.id)
            mounts.write_resolv(resolv, config.dns_config)
        held = pause.spawn(sandbox.id, netns, config, resolv)
        try:
            with self._store.transaction():
                sandbox.status.update(_while(run.is_wanted, pid=held.process.pid))
                if attached is not None:
                    sandbox.extensions.update(recorded(attached.attachment))
                    self._store.update_metadata(sandbox.id, _with_addresses(attached))
            # After its pid is recorded: a cgroup can be removed only once its processes have ended.
            if cgroup := cgroups.path_of(config, sandbox.id):
                cgroups.enter(cgroup, held.process.pid)
            held.release()
            now = time.time_ns()
            sandbox.status.update(_while(run.is_wanted, state=State.READY, created_at=now))
        except BaseException as error:
            held.close()
            with held.process:
                end(held.process, killed_by())
            if isinstance(error, BrokenPipeError):
                raise RegistryError("run sandbox: its pause process was killed") from error
            raise
        return held.process

    def _undo(self, sandbox: Sandbox, attachment: Attachment | None) -> None:
        """Undo a run that failed; a failed undo is retried in the background."""
        try:
            self._recovery.undo(sandbox, killed_by(), attachment=attachment)
        except RegistryError as error:
            log.warning(
                "undo run of sandbox %r: %s; trying again",
                sandbox.id,
                error,
                extra={
                    "event": "undo_retried",
                    "sandbox_id": sandbox.id,
                    "error": type(error).__name__,
                },
            )
            self._recovery.retry(partial(self._recovery.undo, attachment=attachment), sandbox)
            # Until then clients can list the sandbox and remove it.
            with suppress(RegistryError):
                sandbox.status.update(_failed(error))

    def update_resources(self, id: str, wanted: api.UpdatePodSandboxResourcesRequest) -> None:
        """Store what a kubelet has set for the pod's cgroup; what *wanted* lacks stays.

        Raises:
            NotFoundError: there is no such sandbox.
            RegistryError: the change cannot be stored.
        """
        sandbox = self._store.get(id)
        _store_resources(sandbox, wanted)
        log.info(
            "resources of sandbox %r were updated",
            sandbox.id,
            extra={"event": "resources_updated", "sandbox_id": sandbox.id},
        )

    # Stopping.

    def stop(self, id: str) -> None:
        """Stop the sandbox with *id*, a full id or a unique prefix; a missing one is stopped.

        Raises:
            AmbiguousPrefixError: several sandboxes have ids that begin with *id*.
            InvalidArgumentError: *id* is empty.
            RegistryError: process, network or namespace cannot be removed; retry. What a plugin
                did not remove is retried in the background too.
        """
        self._close_down(id, _stopped)

    def remove(self, id: str) -> None:
        """Stop the sandbox and delete its record; arguments and errors as for `stop`."""
        sandbox = self._close_down(id, _removed)
        if sandbox is not None:
            sandbox.delete()

    def _close_down(self, id: str, intent: Callable[[Status], Status]) -> Sandbox | None:
        try:
            sandbox = self._store.get(id, include_unknown=True)
            try:
                sandbox.status.update(intent)
            except InvalidArgumentError as error:
                # No status can follow a damaged one. Process and namespace are ended all the same.
                log.warning(
                    "close down sandbox %r without recording it: %s",
                    sandbox.id,
                    error,
                    extra={
                        "event": "stop_not_recorded",
                        "sandbox_id": sandbox.id,
                        "error": type(error).__name__,
                    },
                )
            # Read again, since a run may have recorded more meanwhile.
            sandbox = self._store.get(sandbox.id, include_unknown=True)
        except NotFoundError:
            return None
        self._runs.forget(sandbox.id)
        try:
            self._recovery.finish(sandbox, killed_by())
        except PluginError:
            self._recovery.retry(self._recovery.finish, sandbox)
            raise
        return sandbox

    # Exits.

    def _note_exits(self, exits: Sequence[Exit]) -> None:
        try:
            with self._store.transaction():
                for sandbox, exit_status in exits:
                    self._recovery.note_exit(sandbox, exit_status)
        except RegistryError as error:
            self._note_error(error)
            raise


def name_of(config: PodSandboxConfig) -> str:
    """Return the name of a pod's sandbox; the registry admits one sandbox of each name.

    Source: containerd internal/cri/server/helpers.go, makeSandboxName.
    """
    metadata = config.metadata
    return f"{metadata.name}_{metadata.namespace}_{metadata.uid}_{metadata.attempt}"


def _store_resources(
    sandbox: Sandbox, source: LinuxPodSandboxConfig | api.UpdatePodSandboxResourcesRequest
) -> None:
    """Store overhead and resources as extensions of these names, as far as *source* has them."""
    given = {
        name: Extension(RESOURCES_TYPE, getattr(source, name).SerializeToString(deterministic=True))
        for name in ("overhead", "resources")
        if source.HasField(name)
    }
    if given:
        sandbox.extensions.update(lambda stored: {**stored, **given})


def _with_addresses(attached: Attached) -> Callable[[Metadata], Metadata]:
    """Return the function that takes over the addresses."""
    return lambda old: replace(
        old,
        ip=attached.ip,
        additional_ips=attached.additional_ips,
        cni_result=attached.cni_result,
    )


def _while(wanted: Callable[[], bool], **changes: object) -> Callable[[Status], Status]:
    """Return an UpdateFunc that makes *changes*, or raises if the run was stopped or cancelled."""

    def change(old: Status) -> Status:
        if old.state is not State.UNKNOWN:
            raise FailedPreconditionError("run sandbox: it was stopped meanwhile")
        if not wanted():
            raise FailedPreconditionError("run sandbox: the client has cancelled the call")
        return replace(old, **changes)  # type: ignore[arg-type]

    return change


def _stopped(old: Status) -> Status:
    if old.state is State.NOTREADY:
        if old.reason in {STOPPED, REMOVED} or old.message.endswith(STOPPED_TOO):
            return old
        # The reason keeps saying why the process ended.
        return replace(old, message=old.message[:MESSAGE_MAX] + STOPPED_TOO)
    return replace(old, state=State.NOTREADY, reason=STOPPED, message="")


def _removed(old: Status) -> Status:
    return replace(old, state=State.NOTREADY, reason=REMOVED, message="")


def _failed(error: RegistryError) -> Callable[[Status], Status]:
    """Return the UpdateFunc for a run that could not be undone."""
    return lambda old: replace(
        old, state=State.NOTREADY, reason=FAILED, message=str(error)[:MESSAGE_MAX]
    )
