"""Loop that pushes each commit of a registry, sends heartbeats, and retries.

An error of PostgreSQL after which a retry may succeed is retried after a random time, at most twice
as long as the last one and at most 60 seconds: thousands of pushers that lost one server must not
come back at once. A database that does not fit this program is waited for. A registry that cannot
be read is reported by heartbeats, so that it is broken, and not silent. Any other error ends the
loop.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Final

from registry.errors import SchemaVersionError, UnavailableError
from registry.fleet.figures import Figures
from registry.fleet.push import Pusher, SourceError

REST: Final = 4
"""After a round, a pusher rests so many times as long as it took, at most `REST_MAX` seconds."""
REST_MAX: Final = 1.0

log = logging.getLogger("registry")


def catch_up(pusher: Pusher, show: Callable[[Figures], object] = lambda _: None) -> Figures:
    """Push until the head is reached once, and return the figures.

    Args:
        pusher: of the registry.
        show: called after each batch.
    Raises:
        SourceError, RegistryError: as `Pusher.round`.
    """
    figures = Figures()
    while True:
        pushed = pusher.round()
        figures.add(pushed)
        show(figures)
        if pushed.is_head:
            return figures


def follow(
    pusher: Pusher,
    show: Callable[[Figures], object] = lambda _: None,
    *,
    is_over: Callable[[], bool] = lambda: False,
    jitter: Callable[[float, float], float] = random.uniform,
) -> None:
    """Push each commit, until *is_over*.

    Args:
        pusher: of the registry.
        show: called after each round.
        is_over: asked after each round.
        jitter: returns a random number of seconds between two.
    Raises:
        RegistryError: PostgreSQL refuses, and a retry would not help.
    """
    figures, path = Figures(), pusher.source.path
    log.info(
        "push registry %r to %r, with a heartbeat every %g s",
        path,
        pusher.to.shown,
        pusher.every,
        extra={"event": "push_begun", "path": path},
    )
    while not is_over():
        began = time.monotonic()
        try:
            pushed = pusher.round()
        except (SourceError, UnavailableError, SchemaVersionError) as error:
            wait = _note(pusher, figures, error)
            show(figures)
            time.sleep(jitter(0.0, wait))
            continue
        if figures.failures:
            log.info(
                "push registry %r: PostgreSQL has stored a batch again",
                path,
                extra={"event": "push_resumed", "path": path},
            )
        figures.add(pushed)
        show(figures)
        if pushed.is_head:
            _rest(time.monotonic() - began)
            pusher.source.wait(max(0.0, pusher.every - (time.monotonic() - began)))


def _rest(took: float) -> None:
    """Leave the processor to others after a round that *took* some seconds: writers may be busy."""
    time.sleep(min(REST * took, REST_MAX))


def _note(pusher: Pusher, figures: Figures, error: Exception) -> float:
    """Log *error* of a round, and report one of the registry by a heartbeat.

    Returns:
        The longest wait before the next round, in seconds.
    """
    wait = figures.retry(str(error), pusher.behind())
    if isinstance(error, SourceError):
        wait = min(wait, pusher.every)
        try:
            pusher.report(str(error))
        except (UnavailableError, SchemaVersionError) as another:
            figures.problem = str(another)
    cause = error.__cause__ if isinstance(error, SourceError) else error
    log.warning(
        "%s; retrying within %g s",
        figures.problem,
        wait,
        extra={
            "event": "push_retried",
            "path": pusher.source.path,
            "error": type(cause).__name__,
        },
    )
    return wait
