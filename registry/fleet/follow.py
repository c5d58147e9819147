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

log: Final = logging.getLogger("registry")


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
    figures = Figures()
    while not is_over():
        began = time.monotonic()
        try:
            pushed = pusher.round()
        except SourceError as error:
            wait = _report(pusher, figures, str(error))
        except (UnavailableError, SchemaVersionError) as error:
            wait = figures.retry(str(error))
        else:
            figures.add(pushed)
            show(figures)
            if pushed.is_head:
                _rest(time.monotonic() - began)
                pusher.source.wait(max(0.0, pusher.every - (time.monotonic() - began)))
            continue
        log.warning("%s", figures.problem)
        show(figures)
        time.sleep(jitter(0.0, wait))


def _rest(took: float) -> None:
    """Leave the processor to others after a round that *took* some seconds: writers may be busy."""
    time.sleep(min(REST * took, REST_MAX))


def _report(pusher: Pusher, figures: Figures, problem: str) -> float:
    """Send a heartbeat that reports *problem*; return the longest wait before the next try."""
    wait = figures.retry(problem)
    try:
        pusher.report(problem)
    except (UnavailableError, SchemaVersionError) as error:
        figures.problem = str(error)
    return min(wait, pusher.every)
