"""Metrics of one registry as text, for a program that ends after one scrape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from prometheus_client import exposition
from prometheus_client.core import Metric as Family
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from registry.metrics.scrape import TIMEOUT, StoreCollector, unreadable
from registry.metrics.table import PREFIX
from registry.store import Store

CHECK_TIMEOUT: Final = 600.0
"""Seconds that a scrape with a check takes at most."""


class Texts(NamedTuple):
    """Metrics of one scrape in both formats.

    Attributes:
        openmetrics: OpenMetrics 1.0.
        prometheus: the older text format, which the textfile collector of node_exporter reads.
        is_up: whether the registry could be read.
    """

    openmetrics: bytes
    prometheus: bytes
    is_up: bool


def of_store(store: Store, *, check: bool) -> Texts:
    """Return the metrics of an open store; *check*: with a check of the invariants."""
    seconds = CHECK_TIMEOUT if check else TIMEOUT
    return _texts([*StoreCollector([store], seconds, check=check).collect()])


def of_unreadable(path: str) -> Texts:
    """Return the metrics of the registry at *path*, which cannot be opened."""
    return _texts(unreadable(path))


def _texts(found: Sequence[Family]) -> Texts:
    scraped = _Scraped(found)
    text: bytes = openmetrics.generate_latest(scraped)
    is_up = any(each.name == f"{PREFIX}up" and each.samples[0].value for each in found)
    return Texts(text, exposition.generate_latest(scraped), is_up)


class _Scraped(Collector):
    """Metric families that were collected before."""

    def __init__(self, found: Sequence[Family]) -> None:
        self._found: Final = found

    def collect(self) -> Iterator[Family]:
        return iter(self._found)
