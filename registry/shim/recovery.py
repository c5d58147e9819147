"""Ends sandboxes, and finishes or undoes the calls that a crash interrupted.

Every step here is idempotent: it is taken again by the next call, by the retry in the background,
or by the next server.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final

from registry import (
    Exits,
    Extension,
    FailedPreconditionError,
    InvalidArgumentError,
    MetadataError,
    NotFoundError,
    Process,
    RegistryError,
    Sandbox,
    State,
    Status,
    Store,
)
from registry.shim import cgroups, mounts, pause, plugins
from registry.shim.attachment import Attachment
from registry.shim.network import Network

log = logging.getLogger("registry.shim")

STOPPED: Final = "SandboxStopped"
REMOVED: Final = "SandboxRemoved"
FAILED: Final = "CreationFailed"
EXITED: Final = "ProcessExited"
"""Reasons of a status; the last is the one that reconcile sets."""
STOPPED_TOO: Final = "; then it was stopped"
"""Suffix of the message of a sandbox that was stopped after its process had exited."""
KILLED_WITHIN: Final = 10.0
"""Seconds to wait for the end of a process after SIGKILL; a frozen one ends when it is thawed."""
AT_ONCE: Final = 0.0
"""A deadline in the past, for work that is retried and must not delay other work."""

LEFT: Final = "not cleaned up yet: "
"""Prefix of the error, in the message of a sandbox that could not be cleaned up."""
MESSAGE_MAX: Final = 1024
"""Characters that are kept of an error's text or of an earlier message."""
CNI: Final = "cni"
"""Name of the extension with the attachment of a sandbox, from before ADD until after DEL."""

Work = Callable[[Sandbox, float, float | None], None]
"""Ends a sandbox; its process before one deadline (monotonic seconds), its plugins before the other
one, or, None, in the time that `Network.delete` gives them."""


class Recovery:
    """Ends the sandboxes of one store, and recovers them after a crash."""

    def __init__(self, store: Store, network: Network, exits: Exits) -> None:
        """Recover the sandboxes of *store*, whose ends *exits* watches."""
        self._store: Final = store
        self._network: Final = network
        self._exits: Final = exits
        # In a thread of its own: a plugin that hangs must not delay the notes of exits.
        self._retries: Final = Exits(lambda _: None)
        self._retried: Final[set[str]] = set()

    def close(self) -> None:
        """Stop retrying; the next server does."""
        self._retries.close()

    def undo(
        self,
        sandbox: Sandbox,
        deadline: float,
        deleted_by: float | None = None,
        attachment: Attachment | None = None,
    ) -> None:
        """End a sandbox whose run has failed, and delete its record.

        Args:
            sandbox: any handle of it.
            deadline: monotonic time in seconds before which its process has to end.
            deleted_by: the same for the plugins; None: the time that `Network.delete` gives them.
            attachment: what the run knows of it; None: what is recorded.
        """
        with self._network.alone(sandbox.id):
            sandbox = self._latest(sandbox)
            attachment = attachment or attachment_of(sandbox)
            self._end_all(sandbox, attachment, deadline, deleted_by)
            sandbox.delete()  # here: a stop that waits must not find the attachment

    def finish(self, sandbox: Sandbox, deadline: float, deleted_by: float | None = None) -> None:
        """End a stopped sandbox, and record that; delete the record if it was removed.

        The arguments are those of `undo`. A failed step is recorded in the message.
        """
        with self._network.alone(sandbox.id):
            sandbox = self._latest(sandbox)
            attachment, stored = attachment_of(sandbox), sandbox.stored
            try:
                exit_status = self._end_all(sandbox, attachment, deadline, deleted_by)
            except RegistryError as error:
                with suppress(RegistryError):
                    sandbox.status.update(_left(f"{LEFT}{error}"))
                raise
            with suppress(NotFoundError), self._store.transaction():  # removed by another call
                if attachment is not None:
                    sandbox.extensions.update(recorded(None))
                if stored["pid"]:
                    self.note_exit(sandbox, exit_status)
                if LEFT in str(stored["message"]):
                    sandbox.status.update(_left(""))
        if stored["reason"] == REMOVED:
            sandbox.delete()

    def _latest(self, sandbox: Sandbox) -> Sandbox:
        """Return *sandbox* with all that a run or another stop has recorded meanwhile.

        If the record was removed, the handle still names the process and the namespace.
        """
        with suppress(NotFoundError):
            return self._store.get(sandbox.id, include_unknown=True)
        return sandbox

    def _end_all(
        self,
        sandbox: Sandbox,
        attachment: Attachment | None,
        deadline: float,
        deleted_by: float | None,
    ) -> int | None:
        """End process and network, and remove the rest; return the exit status."""
        process, exit_status = sandbox.open_process(), None
        if process is not None:
            with process:
                exit_status = end(process, deadline)
        if attachment is not None:
            path = sandbox.netns_path if sandbox.netns is not None else ""
            self._network.delete(attachment, sandbox.id, path, deleted_by)
        sandbox.remove_netns()
        with suppress(MetadataError):  # a damaged record does not name its cgroup
            if sandbox.config:
                cgroups.remove(cgroups.path_of(sandbox.config, sandbox.id))
        if "/" not in sandbox.id:  # another program may have given any id
            mounts.remove_resolv(mounts.resolv_path(self._store.path, sandbox.id))
        return exit_status

    def retry(self, work: Work, sandbox: Sandbox) -> None:
        """Do *work* in the background until it does not raise, unless that is tried already."""
        if sandbox.id in self._retried:
            return
        self._retried.add(sandbox.id)

        def again() -> None:
            work(sandbox, AT_ONCE, None)
            self._retried.discard(sandbox.id)

        with suppress(FailedPreconditionError):  # closing
            self._retries.retry(again)

    def note_exit(self, sandbox: Sandbox, exit_status: int | None) -> None:
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

    def recover(self) -> None:
        """Finish or undo each interrupted call; one that fails does not stop the rest.

        All processes that have to end are killed before the first is waited for, so that frozen
        ones share one deadline.
        """
        unfinished = []
        running: list[tuple[Sandbox, Process]] = []
        # Read before the records: a file is written after the record of its sandbox.
        resolvs = mounts.resolvs(self._store.path)
        for sandbox in self._store.list(include_unknown=True):
            resolvs.discard(sandbox.id)
            with _logged(f"recover sandbox {sandbox.id!r}"):
                work = self._recover_one(sandbox, running)
                if work is not None:
                    unfinished.append((sandbox, work))
        self._exits.watch_all(running)
        for sandbox, _ in unfinished:
            with _logged(f"kill process of sandbox {sandbox.id!r}"):
                _kill(sandbox)
        deadline = killed_by()
        if any(sandbox.netns_path for sandbox, _ in unfinished):
            plugins.end([sandbox.id for sandbox, _ in unfinished], deadline)
        for sandbox, work in unfinished:
            self._do(work, sandbox, deadline)
        with _logged("collect garbage of the network"):
            sandboxes = self._store.list(include_unknown=True)
            attached = (sandbox.id for sandbox in sandboxes if CNI in sandbox.extensions)
            self._network.collect(attached, killed_by())
        # Those that `open` has found; each is observed again before it is removed.
        report = self._store.recovery or self._store.reconcile(dry_run=True)
        for id in resolvs:
            with _logged(f"remove resolv.conf of sandbox {id!r}, which has no record"):
                mounts.remove_resolv(mounts.resolv_path(self._store.path, id))
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
            return self.undo
        elif reason in {STOPPED, REMOVED} or status.message.endswith(STOPPED_TOO):
            return self.finish
        else:
            self._open(sandbox, running)
        return None

    def _do(self, work: Work, sandbox: Sandbox, deadline: float) -> None:
        """Do *work* before *deadline*; a failure is retried in the background."""
        try:
            work(sandbox, deadline, deadline)
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
            self.retry(work, sandbox)

    def _open(self, sandbox: Sandbox, running: list[tuple[Sandbox, Process]]) -> None:
        """Add *sandbox* and its process to *running*, or note the end of the process."""
        process = sandbox.open_process()
        if process is not None:
            running.append((sandbox, process))
        elif sandbox.status_as_read.pid or _ended_unseen(sandbox.status_as_read):
            self.note_exit(sandbox, None)

    def _never_ran(self, sandbox: Sandbox) -> bool:
        """Return whether the run was interrupted, or failed and was not undone."""
        return not sandbox.status_as_read.created_at and any(
            (change.from_state, change.to_state) == (State.UNKNOWN, State.NOTREADY)
            for change in self._store.history(sandbox.id)
        )


def attachment_of(sandbox: Sandbox) -> Attachment | None:
    """Return the attachment that is recorded; None if there is none or the record is gone."""
    try:
        extension = sandbox.extensions.get(CNI)
    except NotFoundError:
        return None
    return None if extension is None else Attachment.load(extension.value)


def recorded(
    attachment: Attachment | None,
) -> Callable[[Mapping[str, Extension]], Mapping[str, Extension | bytes]]:
    """Return the function that records *attachment*, or that there is none any more."""

    def change(old: Mapping[str, Extension]) -> Mapping[str, Extension | bytes]:
        others = {name: value for name, value in old.items() if name != CNI}
        return others if attachment is None else {**others, CNI: attachment.dump()}

    return change


def _left(why: str) -> Callable[[Status], Status]:
    """Return the UpdateFunc that says *why* a sandbox is not cleaned up, or "" once it is."""

    def change(old: Status) -> Status:
        suffix = STOPPED_TOO if old.message.endswith(STOPPED_TOO) else ""
        first = old.message.removesuffix(suffix).partition(LEFT)[0].removesuffix("; ")
        parts = [part for part in (first, why[:MESSAGE_MAX]) if part]
        return replace(old, message="; ".join(parts) + suffix)

    return change


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


def killed_by() -> float:
    """Return the deadline for the end of a process that is killed now (monotonic seconds)."""
    return time.monotonic() + KILLED_WITHIN


def _kill(sandbox: Sandbox) -> None:
    """Kill the pause process if there is one, without waiting for its end."""
    process = sandbox.open_process()
    if process is not None:
        with process:
            process.kill()


def end(process: Process, deadline: float) -> int | None:
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
