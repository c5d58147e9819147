"""Ends sandboxes, and finishes or undoes the calls that a crash interrupted.

Every step here is idempotent: it is taken again by the next call, by the retry in the background,
or by the next server.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Final

from registry import (
    Exits,
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
from registry.shim import cgroups, mounts, pause

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

Work = Callable[[Sandbox, float], None]
"""Ends process and namespace of a sandbox before a deadline (monotonic seconds)."""


class Recovery:
    """Ends the sandboxes of one store, and recovers them after a crash."""

    def __init__(self, store: Store, exits: Exits) -> None:
        """Recover the sandboxes of *store*; *exits* watches processes and retries failed work."""
        self._store: Final = store
        self._exits: Final = exits

    def undo(self, sandbox: Sandbox, deadline: float) -> None:
        """End process and namespace of a run that failed, and delete its record."""
        # Read again, since the run may have recorded more. If the record was removed meanwhile, the
        # handle still names the process and the namespace that the run made after that.
        with suppress(NotFoundError):
            sandbox = self._store.get(sandbox.id, include_unknown=True)
        self._end_all(sandbox, deadline)
        sandbox.delete()

    def clean_up(self, sandbox: Sandbox, deadline: float) -> None:
        """End process and namespace of a stopped sandbox, and record the end of the process."""
        exit_status = self._end_all(sandbox, deadline)
        if sandbox.stored["pid"]:
            self.note_exit(sandbox, exit_status)

    def _end_all(self, sandbox: Sandbox, deadline: float) -> int | None:
        """End the process and remove the rest, as far as it exists; return the exit status."""
        process, exit_status = sandbox.open_process(), None
        if process is not None:
            with process:
                exit_status = end(process, deadline)
        sandbox.remove_netns()
        with suppress(MetadataError):  # a damaged record does not name its cgroup
            if sandbox.config:
                cgroups.remove(cgroups.path_of(sandbox.config, sandbox.id))
        if "/" not in sandbox.id:  # another program may have given any id
            mounts.remove_resolv(mounts.resolv_path(self._store.path, sandbox.id))
        return exit_status

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
        for sandbox, work in unfinished:
            self._finish(sandbox, work, deadline)
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
        elif reason == REMOVED:
            return self._clean_up_and_delete
        elif reason == STOPPED or status.message.endswith(STOPPED_TOO):
            return self.clean_up
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
        self.clean_up(sandbox, deadline)
        sandbox.delete()

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
