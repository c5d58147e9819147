"""Runs in progress: a retried call joins the run that its first try has begun.

A kubelet repeats RunPodSandbox when its call has timed out, although the run may go on. See
docs/shim.md, "Retried runs".
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Final

from registry import FailedPreconditionError, NameReservedError
from registry.cri import PodSandboxConfig

Client = Callable[[], bool]
"""Returns whether the client of a call still waits for its answer."""


class Run:
    """One run, and the clients that wait for it."""

    def __init__(self, config: PodSandboxConfig) -> None:
        """Begin a run of *config*, under a new id."""
        self.id: Final = os.urandom(32).hex()
        self.config: Final = config
        self.result: Final[Future[str]] = Future()
        self._clients: Final[list[Client]] = []
        self._abandoned = False
        self.is_forgotten = False
        """Whether the sandbox is being stopped, so that no later call takes it over."""
        self._mutex: Final = threading.Lock()

    def join(self, client: Client) -> bool:
        """Have *client* wait for this run; return False once the run is abandoned."""
        with self._mutex:
            if not self._abandoned:
                self._clients.append(client)
            return not self._abandoned

    def is_wanted(self) -> bool:
        """Return whether a client still waits; once none does, the run is abandoned."""
        with self._mutex:
            self._abandoned = self._abandoned or not any(client() for client in self._clients)
            return not self._abandoned


class Runs:
    """Runs in progress, and those that no client was told of, by the name of the sandbox."""

    def __init__(self) -> None:
        """Begin without any."""
        self._mutex: Final = threading.Lock()
        self._running: Final[dict[str, Run]] = {}
        self._unanswered: Final[dict[str, Run]] = {}

    def run(
        self, name: str, config: PodSandboxConfig, client: Client, steps: Callable[[Run], None]
    ) -> str:
        """Return the id of the sandbox, after this call or an equal one has run it.

        Args:
            name: name of the sandbox.
            config: config of the pod.
            client: returns whether the client of this call still waits.
            steps: runs the sandbox, or undoes its steps and raises.
        Raises:
            NameReservedError: a run of that name with another config is in progress.
            FailedPreconditionError: the client has gone while this call waited for an undo.
        """
        while True:
            with self._mutex:
                taken = self._unanswered.get(name)
                if taken is not None and taken.config == config:
                    if client():
                        del self._unanswered[name]
                    return taken.id
                run = self._running.get(name)
                if run is None:
                    own = self._running[name] = Run(config)
                    own.join(client)
            if run is None:
                return self._lead(name, own, steps)
            if run.config != config:
                why = f"run sandbox: name {name!r} is reserved"
                raise NameReservedError(why, name=name, holder=run.id)
            if run.join(client):
                return run.result.result()
            wait([run.result])  # until its steps are undone
            if not client():
                raise FailedPreconditionError("run sandbox: the client has cancelled the call")

    def forget(self, id: str) -> None:
        """Let no later call take over the sandbox *id*, which is being stopped.

        Its run may be in progress still: it is READY before the run ends.
        """
        with self._mutex:
            for name, run in tuple(self._unanswered.items()):
                if run.id == id:
                    del self._unanswered[name]
            for run in self._running.values():
                run.is_forgotten = run.is_forgotten or run.id == id

    def _lead(self, name: str, run: Run, steps: Callable[[Run], None]) -> str:
        error: BaseException | None = None
        try:
            steps(run)
        except BaseException as raised:
            error = raised
            raise
        finally:
            with self._mutex:
                del self._running[name]
                if error is None and not run.is_forgotten and not run.is_wanted():
                    self._unanswered[name] = run
            if error is None:
                run.result.set_result(run.id)
            else:
                run.result.set_exception(error)
        return run.id
