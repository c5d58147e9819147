"""Transitions that any process commits: as events of the CRI, and as lines of the log.

Each reader has a watch of its own. The history is the queue between the writers and the readers, so
a slow client delays no writer, and takes no memory.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self

from registry import (
    CompactedError,
    MetadataError,
    NotFoundError,
    RegistryError,
    Sandbox,
    State,
    Store,
    Transition,
)
from registry.shim import runtime_pb2 as api
from registry.shim.answers import metadata_of
from registry.shim.ending import Ending

log = logging.getLogger("registry.shim")

RETRY: Final = 1.0
"""Seconds until a history that cannot be read is read again."""


class EventStream:
    """Iterator of the events from now on, as containerd 2 sends them for sandboxes.

    A sandbox is an event of a container with the id of the sandbox: created and started when it
    becomes READY, stopped when it is no longer, deleted when its record is.
    """

    def __init__(self, store: Store, status_of: Callable[[Sandbox], api.PodSandboxStatus]) -> None:
        """Begin after the latest transition; *status_of* translates a record."""
        self._store: Final = store
        self._status_of: Final = status_of
        self._watch: Final = store.watch()
        self._events: Final[deque[api.ContainerEventResponse]] = deque()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> api.ContainerEventResponse:
        """Return the next event, and wait for it if necessary; end when the stream is closed.

        Raises:
            CompactedError: the client was so slow that transitions are no longer kept.
        """
        while not self._events:
            try:
                transition = next(self._watch)
            except MetadataError:
                continue  # it is damaged; the watch goes on after it
            kinds = _kinds(transition)
            status = self._status(transition) if kinds else None
            for kind in kinds:
                event = api.ContainerEventResponse(
                    container_id=transition.sandbox_id,
                    container_event_type=kind,
                    created_at=transition.at,
                    pod_sandbox_status=status,
                )
                self._events.append(event)
        return self._events.popleft()

    def close(self) -> None:
        """End the iteration, also one that waits in another thread. Idempotent."""
        self._watch.close()

    def _status(self, transition: Transition) -> api.PodSandboxStatus:
        """Return the status of the sandbox as of *transition*.

        When the record is deleted, or cannot be read, the history still has the metadata.
        """
        try:
            status = self._status_of(self._store.get(transition.sandbox_id))
        except (NotFoundError, MetadataError):
            metadata = metadata_of(transition.name)
            status = api.PodSandboxStatus(id=transition.sandbox_id, metadata=metadata)
            first, *_ = (*self._store.history(transition.sandbox_id, limit=1), transition)
            status.created_at = first.at
        ready = transition.to_state is State.READY
        status.state = api.SANDBOX_READY if ready else api.SANDBOX_NOTREADY
        return status


def _kinds(transition: Transition) -> list[api.ContainerEventType]:
    """Return the events of *transition*; there is none of a run that fails and is undone."""
    was_ready, is_ready = (
        state is State.READY for state in (transition.from_state, transition.to_state)
    )
    kinds = []
    if is_ready and not was_ready:
        kinds += [api.CONTAINER_CREATED_EVENT, api.CONTAINER_STARTED_EVENT]
    if was_ready and not is_ready:
        kinds += [api.CONTAINER_STOPPED_EVENT]
    if transition.event == "deleted" and transition.from_state is not State.UNKNOWN:
        kinds += [api.CONTAINER_DELETED_EVENT]
    return kinds


class ChangeLog:
    """Logger of every change of a sandbox, also of those that other processes make."""

    def __init__(self, store: Store, ending: Ending) -> None:
        """Begin with the next transition; errors of *store* are noted in *ending*."""
        self._store: Final = store
        self._ending: Final = ending
        self._watch = store.watch()
        self._running: Final = threading.Lock()
        self._closing: Final = threading.Event()

    def close(self) -> None:
        """Log what was committed so far, and have `run` return. Call it once."""
        self._closing.set()
        self._watch.close()
        with self._running:
            self._watch = self._store.watch(after=self._watch.after, timeout=0)
            with suppress(RegistryError):  # the next server does not know of it either
                for transition in self._watch:
                    _log(transition)

    def run(self) -> None:
        """Log until `close`."""
        with self._running:
            self._run()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                for transition in self._watch:
                    _log(transition)
            except MetadataError:
                continue  # it is damaged; the watch goes on after it
            except CompactedError:
                self._watch = self._store.watch()
            except RegistryError as error:
                self._ending.note(error)
                log.warning(
                    "log changes: %s; trying again",
                    error,
                    extra={"event": "changes_not_logged", "error": type(error).__name__},
                )
                self._closing.wait(RETRY)


def _log(change: Transition) -> None:
    cause = "".join(f", {text}" for text in (change.reason, change.message) if text)
    before, after = (
        "" if state is None else str(state) for state in (change.from_state, change.to_state)
    )
    log.info(
        "sandbox %r of pod %s/%s: %s -> %s%s",
        change.sandbox_id,
        change.namespace,
        change.pod,
        before or "none",
        after or "none",
        cause,
        extra={
            "event": "sandbox_changed",
            "sandbox_id": change.sandbox_id,
            "namespace": change.namespace,
            "pod": change.pod,
            "from_state": before,
            "to_state": after,
            "reason": change.reason,
            "actor": change.actor,
        },
    )
