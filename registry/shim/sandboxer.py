"""Runs, stops, removes and recovers sandboxes.

Each step is recorded before it is taken. After a crash the next server finishes or undoes it:

    step                        record                     after a crash here
    --------------------------- -------------------------- -----------------------------------
    run     reserve the name    UNKNOWN, netns path        undone
            make the namespace                             undone
            spawn pause, held                              undone; pause ended with the server
            record its pid      UNKNOWN, pid               undone
            release pause                                  undone
            done                READY, created_at          keeps running
    stop    intent              NOTREADY, SandboxStopped   finished
            end pause, remove the namespace                finished
            (of a sandbox that had exited before, the message records the intent)
    remove  intent              NOTREADY, SandboxRemoved   finished
            end pause, remove the namespace                finished
            done                none                       gone

There are no locks: the first call that changes the state of a sandbox proceeds. A run that finds
its sandbox stopped or removed meanwhile undoes its own steps.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Final

from registry import (
    Exit,
    Exits,
    FailedPreconditionError,
    InvalidArgumentError,
    Metadata,
    NetNS,
    NotFoundError,
    Process,
    RegistryError,
    Sandbox,
    State,
    Status,
    Store,
)
from registry.cri import PodSandboxConfig
from registry.shim import pause, validate

log = logging.getLogger("registry.shim")

STOPPED: Final = "SandboxStopped"
REMOVED: Final = "SandboxRemoved"
FAILED: Final = "CreationFailed"
EXITED: Final = "ProcessExited"
"""Reasons of a status; the last is the one that reconcile sets."""
STOPPED_TOO: Final = "; then it was stopped"
"""Suffix of the message of a sandbox that was stopped after its process had exited."""
MESSAGE_MAX: Final = 1024
"""Characters that are kept of an error's text or of an earlier message."""
KILLED_WITHIN: Final = 10.0
"""Seconds to wait for the end of a process after SIGKILL; a frozen one ends when it is thawed."""
AT_ONCE: Final = 0.0
"""A deadline in the past, for work that is retried and must not delay other work."""

Work = Callable[[Sandbox, float], None]
"""Ends process and namespace of a sandbox before a deadline (monotonic seconds)."""


class Sandboxer:
    """Runs the sandboxes of one store as processes and namespaces of this host."""

    def __init__(self, store: Store) -> None:
        """Finish or undo the calls that a crash interrupted, and watch the running processes."""
        self._store: Final = store
        self._exits: Final = Exits(self._note_exits)
        try:
            self._recover()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop watching; the sandboxes keep running, and the store stays open."""
        self._exits.close()

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
        name = name_of(config)
        path = "" if validate.is_host_network(config) else self._store.new_netns_path()
        metadata = Metadata(os.urandom(32).hex(), name, config, netns_path=path)
        sandbox = self._store.add(metadata, Status(State.UNKNOWN))
        try:
            process = self._start(sandbox, config, wanted)
            self._exits.watch(sandbox, process)
        except BaseException:
            self._undo(sandbox)
            raise
        return sandbox.id

    def _start(
        self, sandbox: Sandbox, config: PodSandboxConfig, wanted: Callable[[], bool]
    ) -> Process:
        netns = NetNS.create(sandbox.netns_path) if sandbox.netns_path else None
        held = pause.spawn(sandbox.id, netns, config)
        try:
            sandbox.status.update(_while(wanted, pid=held.process.pid))
            held.release()
            sandbox.status.update(_while(wanted, state=State.READY, created_at=time.time_ns()))
        except BaseException as error:
            held.close()
            with held.process:
                _end(held.process, _killed_by())
            if isinstance(error, BrokenPipeError):
                raise RegistryError("run sandbox: its pause process was killed") from error
            raise
        return held.process

    def _undo(self, sandbox: Sandbox) -> None:
        """Undo a run that failed; a failed undo is retried in the background."""
        try:
            self._undo_steps(sandbox, _killed_by())
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
            with suppress(FailedPreconditionError):  # closing: the next server undoes the run
                self._exits.retry(partial(self._undo_steps, sandbox, AT_ONCE))
            # Until then clients can list the sandbox and remove it.
            with suppress(RegistryError):
                sandbox.status.update(_failed(error))

    def _undo_steps(self, sandbox: Sandbox, deadline: float) -> None:
        # Read again, since the run may have recorded more. If the record was removed meanwhile, the
        # handle still names the process and the namespace that the run made after that.
        with suppress(NotFoundError):
            sandbox = self._store.get(sandbox.id, include_unknown=True)
        _end_all(sandbox, deadline)
        sandbox.delete()

    # Stopping.

    def stop(self, id: str) -> None:
        """Stop the sandbox with *id*, a full id or a unique prefix; a missing one is stopped.

        Raises:
            AmbiguousPrefixError: several sandboxes have ids that begin with *id*.
            InvalidArgumentError: *id* is empty.
            RegistryError: process or namespace cannot be removed; retry.
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
        self._clean_up(sandbox, _killed_by())
        return sandbox

    def _clean_up(self, sandbox: Sandbox, deadline: float) -> None:
        exit_status = _end_all(sandbox, deadline)
        if sandbox.stored["pid"]:
            self._note_exit(sandbox, exit_status)

    # Exits and recovery.

    def _note_exits(self, exits: Sequence[Exit]) -> None:
        with self._store.transaction():
            for sandbox, exit_status in exits:
                self._note_exit(sandbox, exit_status)

    def _note_exit(self, sandbox: Sandbox, exit_status: int | None) -> None:
        """Record the end of a process. Idempotent: a stop and the watcher both report an end."""
        now = time.time_ns()

        def ended(old: Status) -> Status:
            code = exit_status if old.exit_status is None else old.exit_status
            new = replace(old, pid=0, exited_at=old.exited_at or now, exit_status=code)
            if old.state is State.NOTREADY:
                return new
            message = f"pause process {old.pid} has ended"
            if exit_status is not None:
                message += f" with exit status {exit_status}"
            return replace(new, state=State.NOTREADY, reason=EXITED, message=message)

        try:
            sandbox.status.update(ended)
        except NotFoundError:
            return  # the sandbox was removed
        except InvalidArgumentError as error:  # a damaged status; the other ends are recorded
            log.warning(
                "record the end of sandbox %r: %s",
                sandbox.id,
                error,
                extra={
                    "event": "end_not_recorded",
                    "sandbox_id": sandbox.id,
                    "error": type(error).__name__,
                },
            )

    def _recover(self) -> None:
        """Finish or undo each interrupted call; one that fails does not stop the rest.

        All processes that have to end are killed before the first is waited for, so that frozen
        ones share one deadline.
        """
        unfinished = []
        running: list[tuple[Sandbox, Process]] = []
        for sandbox in self._store.list(include_unknown=True):
            with _logged(f"recover sandbox {sandbox.id!r}"):
                work = self._recover_one(sandbox, running)
                if work is not None:
                    unfinished.append((sandbox, work))
        self._exits.watch_all(running)
        for sandbox, _ in unfinished:
            with _logged(f"kill process of sandbox {sandbox.id!r}"):
                _kill(sandbox)
        deadline = _killed_by()
        for sandbox, work in unfinished:
            self._finish(sandbox, work, deadline)
        # Those that `open` has found; each is observed again before it is removed.
        report = self._store.recovery or self._store.reconcile(dry_run=True)
        for path in report.orphans:
            with _logged(f"remove orphan {path!r}"):
                self._store.remove_orphans([path])

    def _recover_one(self, sandbox: Sandbox, running: list[tuple[Sandbox, Process]]) -> Work | None:
        """Add the sandbox to *running*, or return the work that ends its process and namespace."""
        status = sandbox.status_as_read
        state, reason = status.state, status.reason
        if state is State.UNKNOWN:
            return None  # another process is creating it
        if state is State.READY:
            self._open(sandbox, running)
        elif self._never_ran(sandbox):
            return self._undo_steps
        elif reason == REMOVED:
            return self._clean_up_and_delete
        elif reason == STOPPED or status.message.endswith(STOPPED_TOO):
            return self._clean_up
        else:
            self._open(sandbox, running)
        return None

    def _finish(self, sandbox: Sandbox, work: Work, deadline: float) -> None:
        """Do *work* before *deadline*; a failure is retried in the background."""
        try:
            work(sandbox, deadline)
        except RegistryError as error:
            log.warning(
                "recover sandbox %r: %s; trying again",
                sandbox.id,
                error,
                extra={
                    "event": "recovery_retried",
                    "sandbox_id": sandbox.id,
                    "error": type(error).__name__,
                },
            )
            self._exits.retry(partial(work, sandbox, AT_ONCE))

    def _clean_up_and_delete(self, sandbox: Sandbox, deadline: float) -> None:
        self._clean_up(sandbox, deadline)
        sandbox.delete()

    def _open(self, sandbox: Sandbox, running: list[tuple[Sandbox, Process]]) -> None:
        """Add *sandbox* and its process to *running*, or note the end of the process."""
        process = sandbox.open_process()
        if process is not None:
            running.append((sandbox, process))
        elif sandbox.status_as_read.pid or _ended_unseen(sandbox.status_as_read):
            self._note_exit(sandbox, None)

    def _never_ran(self, sandbox: Sandbox) -> bool:
        """Return whether the run was interrupted, or failed and was not undone."""
        return not sandbox.status_as_read.created_at and any(
            (change.from_state, change.to_state) == (State.UNKNOWN, State.NOTREADY)
            for change in self._store.history(sandbox.id)
        )


def name_of(config: PodSandboxConfig) -> str:
    """Return the name of a pod's sandbox; the registry admits one sandbox of each name.

    Source: containerd internal/cri/server/helpers.go, makeSandboxName.
    """
    metadata = config.metadata
    return f"{metadata.name}_{metadata.namespace}_{metadata.uid}_{metadata.attempt}"


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


def _ended_unseen(status: Status) -> bool:
    """Return whether the process ended while no server ran."""
    return (status.state, status.exited_at) == (State.NOTREADY, 0) and status.created_at > 0


@contextmanager
def _logged(doing: str) -> Iterator[None]:
    """Log an error of the body, so that the caller goes on with the other sandboxes."""
    try:
        yield
    except RegistryError as error:
        log.warning(
            "%s: %s",
            doing,
            error,
            extra={"event": "step_failed", "operation": doing, "error": type(error).__name__},
        )


def _killed_by() -> float:
    """Return the deadline for the end of a process that is killed now (monotonic seconds)."""
    return time.monotonic() + KILLED_WITHIN


def _kill(sandbox: Sandbox) -> None:
    """Kill the pause process if there is one, without waiting for its end."""
    process = sandbox.open_process()
    if process is not None:
        with process:
            process.kill()


def _end_all(sandbox: Sandbox, deadline: float) -> int | None:
    """End pause process and namespace, as far as they exist; return the exit status if known."""
    process, exit_status = sandbox.open_process(), None
    if process is not None:
        with process:
            exit_status = _end(process, deadline)
    sandbox.remove_netns()
    return exit_status


def _end(process: Process, deadline: float) -> int | None:
    """Kill *process*, reap it if it is a child of this process, and return its exit status.

    Raises:
        RegistryError: the process has not ended before *deadline* (monotonic seconds).
    """
    process.kill()
    if not process.wait(max(0.0, deadline - time.monotonic())):
        raise RegistryError(
            f"end pause process {process.pid}: it has not ended after SIGKILL; "
            f"thaw its cgroup if that is frozen, or inspect /proc/{process.pid}/stack"
        )
    exit_status = process.exit_status()
    pause.reap(process)
    return exit_status
