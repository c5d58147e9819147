"""Collector of the metrics of registries, for a `CollectorRegistry` of prometheus-client."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from registry.errors import RegistryError
from registry.metrics import readings
from registry.metrics.readings import Files, Reading
from registry.metrics.table import METRICS, PREFIX, Metric
from registry.model.validation import check_seconds, invalid
from registry.recovery.findings import Verdict
from registry.store import Reconciled, Store, session_of
from registry.sync.interrupts import reraise_interrupt, suppress_os_errors
from registry.visible import visible

if TYPE_CHECKING:
    from registry.aio import AsyncStore
    from registry.engine.measurements import Histogram, Measurements

log = logging.getLogger("registry")

TIMEOUT: Final = 5.0
"""Seconds that a scrape of one registry takes at most; Prometheus waits 10 s by default."""


def collector(
    *stores: Store | AsyncStore, check: bool = False, timeout: float = TIMEOUT
) -> Collector:
    """Return a collector of the metrics of *stores*, to be registered once in a process.

    A scrape reads one snapshot of each registry. It blocks no writer, and raises no error of a
    registry: the metric `sandbox_registry_up` is then 0.

    Args:
        stores: open stores, each of another file.
        check: whether each scrape checks the invariants, which takes as long as `Store.check`.
        timeout: seconds that the scrape of one registry takes at most, the check included.
    Raises:
        InvalidArgumentError: *timeout* is no such number, or two stores are of one file.
    """
    doing, by_path = "collect metrics", dict[str, Store]()
    for each in stores:
        store = getattr(each, "_sync", each)  # of an AsyncStore
        if not isinstance(store, Store) or store.path in by_path:
            raise invalid(doing, "stores", each, "is no store of another file than the others")
        by_path[store.path] = store
    seconds = check_seconds(doing, "timeout", timeout)
    return StoreCollector([*by_path.values()], seconds, check=check)


class StoreCollector(Collector):
    """Collector of the metrics of open stores."""

    def __init__(self, stores: list[Store], seconds: float, *, check: bool) -> None:
        """Read nothing yet; arguments as those of `collector`."""
        self._stores: Final = stores
        self._seconds: Final = seconds
        self._check: Final = check
        self._errors: Final = Counter[str]()
        """Number of failed scrapes by path."""
        self._failing: Final[set[str]] = set()
        """Paths whose last scrape has failed: a failure is logged once."""

    def describe(self) -> list[Family]:
        """Return the families without samples: to register a collector reads no registry."""
        return list(Families().by_name.values())

    def collect(self) -> Iterator[Family]:
        """Scrape each registry, and yield the families that have a sample."""
        families = Families()
        for store in self._stores:
            self._scrape(store, families)
        return families.filled()

    def _scrape(self, store: Store, families: Families) -> None:
        began = time.monotonic()
        session = session_of(store)
        path = session.engine.path
        families.path = visible(path)
        try:
            families.add_reading(readings.read(session, self._seconds, check=self._check))
            self._failing.discard(path)
        except (RegistryError, OSError) as error:  # OSError: no thread can be started
            reraise_interrupt(error)
            self._note(path, error)
        families.add("up", int(path not in self._failing))
        families.add_files_of(path)
        if store._reconciled is not None:  # noqa: SLF001
            families.add_reconciled(store._reconciled)  # noqa: SLF001
        if not session.engine.read_only:
            families.add_measurements(session.engine.writes.measurements)
        families.add("scrape_duration_seconds", time.monotonic() - began)
        families.add("scrape_errors", self._errors[path])

    def _note(self, path: str, error: Exception) -> None:
        """Count a failed scrape, and log the first one of several."""
        self._errors[path] += 1
        if path not in self._failing:
            log.warning(
                "scrape metrics of %r: %s",
                path,
                error,
                extra={"event": "scrape_failed", "path": path, "error": type(error).__name__},
            )
        self._failing.add(path)


def unreadable(path: str) -> list[Family]:
    """Return the metrics of the registry at *path*, which cannot be opened: those of its files."""
    families = Families()
    families.path = visible(path)
    families.add("up", 0)
    families.add_files_of(path)
    return [*families.filled()]


class Families:
    """Metric families of one scrape, by the name in the table."""

    def __init__(self) -> None:
        """Begin without samples."""
        self.by_name: Final = {metric.name: _family(metric) for metric in METRICS}
        self.path = ""
        """Label of the samples that are added from now on."""

    def filled(self) -> Iterator[Family]:
        """Yield the families that have a sample, in the order of the table."""
        return (family for family in self.by_name.values() if family.samples)

    def add(self, name: str, value: float, *labels: str) -> None:
        """Add a sample of a gauge or counter."""
        family = self.by_name[name]
        assert isinstance(family, (GaugeMetricFamily, CounterMetricFamily))
        family.add_metric([self.path, *labels], value)

    def _add_histogram(self, name: str, histogram: Histogram) -> None:
        family, counts = self.by_name[name], accumulate(tuple(histogram.counts))
        assert isinstance(family, HistogramMetricFamily)
        bounds = [*map(str, map(float, histogram.bounds)), "+Inf"]
        family.add_metric([self.path], [*zip(bounds, counts, strict=True)], histogram.sum)

    def add_reading(self, reading: Reading) -> None:
        """Add what was read of the file."""
        for (state, namespace), number in reading.sandboxes.items():
            self.add("sandboxes", number, state, namespace)
        for reason, number in reading.not_ready.items():
            self.add("not_ready", number, reason)
        for state, since in reading.oldest.items():
            self.add("oldest_state_timestamp_seconds", since / 1e9, state)
        for rule, number in (reading.violations or {}).items():
            self.add("check_violations", number, rule)
        self.add("transitions", reading.transitions)
        self.add("incarnation", reading.incarnation)
        self.add("schema_level", reading.level)

    def add_files_of(self, path: str) -> None:
        """Add the values of the files beside the database at *path*, if that exists."""
        with suppress_os_errors():
            if not os.path.exists(path):
                return
            files = Files.read(path)
        self.add("wal_bytes", files.wal_bytes)
        self.add("wal_readers", files.wal_readers)
        self.add("disk_reserve_whole", int(files.reserve_is_whole))

    def add_reconciled(self, latest: Reconciled) -> None:
        """Add the values of the latest reconcile."""
        for verdict in Verdict:
            self.add("reconcile_sandboxes", latest.report.counts.get(verdict, 0), verdict)
        self.add("reconcile_orphans", len(latest.report.orphans))
        self.add("reconcile_duration_seconds", latest.seconds)
        self.add("reconcile_timestamp_seconds", latest.at / 1e9)

    def add_measurements(self, found: Measurements) -> None:
        """Add the measurements of this process."""
        self._add_histogram("lock_wait_duration_seconds", found.wait_seconds)
        self._add_histogram("commit_duration_seconds", found.commit_seconds)
        self._add_histogram("group_writes", found.group_writes)


_KINDS: Final[dict[str, Callable[..., Family]]] = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
    "histogram": HistogramMetricFamily,
}


def _family(metric: Metric) -> Family:
    make = _KINDS[metric.kind]
    labels = ("path", *metric.labels)
    return make(PREFIX + metric.name, metric.meaning, labels=labels, unit=metric.unit)
