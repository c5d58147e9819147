"""Running, stopping, removing and recovering sandboxes.

Each is written down before it is done, so that after a crash `recover` can finish or undo it:

    step                        record                     after a crash here
    --------------------------- -------------------------- -----------------------------------
    run     reserve the name    UNKNOWN, netns path        undone
            make the namespace                             undone
            spawn pause, held                              undone; it has ended by itself
            record its pid      UNKNOWN, pid               undone
            let it go                                      undone
            done                READY, created_at          goes on
    stop    intent              NOTREADY, SandboxStopped   finished
            end pause, remove the namespace                finished
            (if it has ended by itself, the intent stands in its message)
    remove  intent              NOTREADY, SandboxRemoved   finished
            end pause, remove the namespace                finished
            done                none                       gone

There are no locks. Who changes a sandbox's state first goes on, and a run that finds its sandbox
stopped or removed meanwhile undoes what it has made.
"""

from __future__ import annotations

import logging
import secrets
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
"""Reasons; the last as reconcile has it."""
STOPPED_TOO: Final = "; then it was stopped"
"""The end of the message of a sandbox that was stopped when it had ended by itself."""
MESSAGE_MAX: Final = 1024
"""Characters of another's message that are kept."""
KILLED_WITHIN: Final = 10.0
"""Seconds in which a process should end after SIGKILL; a frozen one ends when it is thawed."""
AT_ONCE: Final = 0.0
"""A deadline that has passed: for work that is tried again and again, and must hold up no other."""

Work = Callable[[Sandbox, float], None]
"""Ends what is left of a sandbox until a deadline (monotonic seconds)."""


class Sandboxer:
    """The sandboxes of one store, as processes and namespaces of this host."""

    def __init__(self, store: Store) -> None:
        """Finish and undo what was left half done, and watch what runs."""
        self._store: Final = store
        self._exits: Final = Exits(self._note_exits)
        try:
            self._recover()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Watch no more; the sandboxes go on, and the store stays open."""
        self._exits.close()

    # Running.

    def run(
        self,
        config: PodSandboxConfig,
        runtime_handler: str = "",
        wanted: Callable[[], bool] = lambda: True,
    ) -> str:
        """Run a sandbox, and return its id; when this raises, nothing of it is left.

        Or is still being removed, where that failed too: the database may be locked.

        Args:
            config: of the pod.
            runtime_handler: by which it is to be run.
            wanted: whether the caller still waits; once it does not, this raises.
        Raises:
            NameReservedError: there is a sandbox of that name; `.holder` is its id.
            InvalidArgumentError: *config* asks for what is not supported.
            RegistryError: a step failed.
        """
        if runtime_handler:
            # In containerd's words.
            why = f'failed to get sandbox runtime: no runtime for "{runtime_handler}" is configured'
            raise InvalidArgumentError(why, field="runtime_handler", value=runtime_handler)
        validate.check(config)
        name = name_of(config)
        path = "" if validate.is_host_network(config) else self._store.new_netns_path()
        metadata = Metadata(secrets.token_hex(32), name, config, netns_path=path)
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
        """Take back a run that failed; again until it succeeds."""
        try:
            self._take_back(sandbox, _killed_by())
        except RegistryError as error:
            log.warning("undo run of sandbox %r: %s; trying again", sandbox.id, error)
            with suppress(FailedPreconditionError):  # closing: the next start undoes it
                self._exits.retry(partial(self._take_back, sandbox, AT_ONCE))
            # Until then it can be seen, with all there is to clean up, and removed.
            with suppress(RegistryError):
                sandbox.status.update(_failed(error))

    def _take_back(self, sandbox: Sandbox, deadline: float) -> None:
        # Anew, since more may be recorded; if it was removed, what was made after that is left.
        with suppress(NotFoundError):
            sandbox = self._store.get(sandbox.id, include_unknown=True)
        _take_away(sandbox, deadline)
        sandbox.delete()

    # Stopping.

    def stop(self, id: str) -> None:
        """Stop the sandbox with *id*, whole or a unique prefix; of none there is nothing to do.

        Raises:
            AmbiguousPrefixError, InvalidArgumentError: *id* is no one's.
            RegistryError: something of it cannot be removed; try again.
        """
        self._close_down(id, _stopped)

    def remove(self, id: str) -> None:
        """Stop the sandbox and delete it; as `stop`."""
        sandbox = self._close_down(id, _removed)
        if sandbox is not None:
            sandbox.delete()

    def _close_down(self, id: str, intent: Callable[[Status], Status]) -> Sandbox | None:
        try:
            sandbox = self._store.get(id, include_unknown=True)
            try:
                sandbox.status.update(intent)
            except InvalidArgumentError as error:
                # Its status is damaged, so no other can follow. What runs is ended all the same.
                log.warning("close down sandbox %r without recording it: %s", sandbox.id, error)
            # Read again, since a run may have recorded more in between.
            sandbox = self._store.get(sandbox.id, include_unknown=True)
        except NotFoundError:
            return None
        self._clean_up(sandbox, _killed_by())
        return sandbox

    def _clean_up(self, sandbox: Sandbox, deadline: float) -> None:
        exit_status = _take_away(sandbox, deadline)
        if sandbox.stored["pid"]:
            self._note_exit(sandbox, exit_status)

    # What happens by itself.

    def _note_exits(self, exits: Sequence[Exit]) -> None:
        with self._store.transaction():
            for sandbox, exit_status in exits:
                self._note_exit(sandbox, exit_status)

    def _note_exit(self, sandbox: Sandbox, exit_status: int | None) -> None:
        """Record it; what is known of it already stays, since a stop and the watch both see it."""
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
            return  # it was removed
        except InvalidArgumentError as error:  # its status is damaged; the other ends are recorded
            log.warning("record the end of sandbox %r: %s", sandbox.id, error)

    def _recover(self) -> None:
        """Finish or undo what a crash has interrupted; one that fails does not stop the rest.

        All processes that have to end are killed first and then waited for together, so that frozen
        ones take one deadline and not one each.
        """
        unfinished = []
        for sandbox in self._store.list(include_unknown=True):
            with _logged(f"recover sandbox {sandbox.id!r}"):
                work = self._recover_one(sandbox)
                if work is not None:
                    unfinished.append((sandbox, work))
        for sandbox, _ in unfinished:
            with _logged(f"kill process of sandbox {sandbox.id!r}"):
                _kill(sandbox)
        deadline = _killed_by()
        for sandbox, work in unfinished:
            self._finish(sandbox, work, deadline)
        for path in self._store.reconcile(dry_run=True).orphans:
            with _logged(f"remove orphan {path!r}"):
                self._store.remove_orphans([path])

    def _recover_one(self, sandbox: Sandbox) -> Work | None:
        """Watch a sandbox that runs; return what is to be done where process and namespace go."""
        state, reason = sandbox.status_as_read.state, sandbox.status_as_read.reason
        if state is State.UNKNOWN:
            return None  # another process is creating it
        if state is State.READY:
            self._watch(sandbox)
        elif self._never_ran(sandbox):
            return self._take_back
        elif reason == REMOVED:
            return self._clean_up_and_delete
        elif reason == STOPPED or sandbox.status_as_read.message.endswith(STOPPED_TOO):
            return self._clean_up
        else:
            self._watch(sandbox)
        return None

    def _finish(self, sandbox: Sandbox, work: Work, deadline: float) -> None:
        """Do *work* until *deadline*, and later again until it succeeds."""
        try:
            work(sandbox, deadline)
        except RegistryError as error:
            log.warning("recover sandbox %r: %s; trying again", sandbox.id, error)
            self._exits.retry(partial(work, sandbox, AT_ONCE))

    def _clean_up_and_delete(self, sandbox: Sandbox, deadline: float) -> None:
        self._clean_up(sandbox, deadline)
        sandbox.delete()

    def _watch(self, sandbox: Sandbox) -> None:
        process = sandbox.open_process()
        if process is not None:
            self._exits.watch(sandbox, process)
        elif sandbox.status_as_read.pid or _ended_unseen(sandbox.status_as_read):
            self._note_exit(sandbox, None)

    def _never_ran(self, sandbox: Sandbox) -> bool:
        """Whether its run was interrupted, or failed and could not be undone."""
        return not sandbox.status_as_read.created_at and any(
            (change.from_state, change.to_state) == (State.UNKNOWN, State.NOTREADY)
            for change in self._store.history(sandbox.id)
        )


def name_of(config: PodSandboxConfig) -> str:
    """Return the name of the sandbox of a pod, by which there is only one at a time.

    Source: containerd internal/cri/server/helpers.go, makeSandboxName.
    """
    metadata = config.metadata
    return f"{metadata.name}_{metadata.namespace}_{metadata.uid}_{metadata.attempt}"


def _while(wanted: Callable[[], bool], **changes: object) -> Callable[[Status], Status]:
    """Return an UpdateFunc that makes *changes*, and refuses once it was stopped or given up."""

    def change(old: Status) -> Status:
        if old.state is not State.UNKNOWN:
            raise FailedPreconditionError("run sandbox: it was stopped while it was being run")
        if not wanted():
            raise FailedPreconditionError("run sandbox: nobody waits for it any more")
        return replace(old, **changes)  # type: ignore[arg-type]

    return change


def _stopped(old: Status) -> Status:
    if old.state is State.NOTREADY:
        if old.reason in {STOPPED, REMOVED} or old.message.endswith(STOPPED_TOO):
            return old
        # Why it ended goes on being the reason.
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
    """Whether it ran, and ended while nobody watched."""
    return (status.state, status.exited_at) == (State.NOTREADY, 0) and status.created_at > 0


@contextmanager
def _logged(doing: str) -> Iterator[None]:
    """Log an error of the body, after which the caller goes on with the other sandboxes."""
    try:
        yield
    except RegistryError as error:
        log.warning("%s: %s", doing, error)


def _killed_by() -> float:
    """Return until when a process that is killed now should have ended (monotonic seconds)."""
    return time.monotonic() + KILLED_WITHIN


def _kill(sandbox: Sandbox) -> None:
    """Kill the pause process if there is one, and do not wait for its end."""
    process = sandbox.open_process()
    if process is not None:
        with process:
            process.kill()


def _take_away(sandbox: Sandbox, deadline: float) -> int | None:
    """End pause process and namespace, as far as they are there; return its exit status."""
    process, exit_status = sandbox.open_process(), None
    if process is not None:
        with process:
            exit_status = _end(process, deadline)
    sandbox.remove_netns()
    return exit_status


def _end(process: Process, deadline: float) -> int | None:
    """Kill it, and return its exit status; reap it if this process has forked it.

    Raises:
        RegistryError: it has not ended at *deadline* (monotonic seconds).
    """
    process.kill()
    if not process.wait(max(0.0, deadline - time.monotonic())):
        raise RegistryError(
            f"end pause process {process.pid}: it was sent SIGKILL and has not ended; "
            "thaw it if it is frozen, or see what it waits for"
        )
    exit_status = process.exit_status()
    pause.reap(process)
    return exit_status
