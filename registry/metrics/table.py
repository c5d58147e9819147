"""Name, type, labels and meaning of each metric.

Every metric has the label `path`, the real path of the registry, before those that are listed: a
program, or the textfile collector of a node, may have the metrics of several registries.
"""

from __future__ import annotations

from typing import Final, NamedTuple

PREFIX: Final = "sandbox_registry_"
NAMESPACES: Final = 50
"""Namespaces with the most sandboxes that have a label of their own."""
REASONS: Final = 20
"""Reasons with the most sandboxes that have a label of their own."""
OTHER: Final = "other"
"""Label of all other namespaces or reasons, and of a state that is damaged."""


class Metric(NamedTuple):
    """One metric.

    Attributes:
        name: without the prefix, and without the suffix `_total` of a counter.
        kind: type of OpenMetrics.
        meaning: the HELP text.
        labels: beside `path`.
        unit: with which the name ends; "": none.
    """

    name: str
    kind: str
    meaning: str
    labels: tuple[str, ...] = ()
    unit: str = ""


METRICS: Final = (
    Metric(
        "up",
        "gauge",
        "1 if the registry could be read; 0 if not, and then what is read of the file is missing",
    ),
    Metric(
        "sandboxes",
        "gauge",
        f"Sandboxes; beyond the {NAMESPACES} largest namespaces the namespace is '{OTHER}'",
        ("state", "namespace"),
    ),
    Metric(
        "not_ready",
        "gauge",
        f"NOTREADY sandboxes; beyond the {REASONS} most frequent reasons the reason is '{OTHER}'",
        ("reason",),
    ),
    Metric(
        "oldest_state_timestamp_seconds",
        "gauge",
        "Unix time since which the sandbox that has been in this state for the longest is in it",
        ("state",),
        "seconds",
    ),
    Metric(
        "transitions",
        "counter",
        "Transitions by all processes in this incarnation; the next incarnation begins with 0",
    ),
    Metric("incarnation", "gauge", "Incarnation: grows when a backup is put to use"),
    Metric("schema_level", "gauge", "Newest revision of the schema that was applied"),
    Metric("wal_bytes", "gauge", "Size of the write-ahead log", unit="bytes"),
    Metric(
        "wal_readers",
        "gauge",
        "Processes whose snapshots keep the write-ahead log from being reset, short reads included",
    ),
    Metric(
        "disk_reserve_whole",
        "gauge",
        "1 if the disk reserve is allocated; 0 if a part was released since the disk was full",
    ),
    Metric(
        "check_violations",
        "gauge",
        "Violations that a check has found; only if the scrape runs one",
        ("rule",),
    ),
    Metric(
        "reconcile_sandboxes",
        "gauge",
        "Sandboxes by verdict of the latest reconcile of this store",
        ("verdict",),
    ),
    Metric(
        "reconcile_orphans",
        "gauge",
        "Network namespaces of no sandbox that the latest reconcile of this store has found",
    ),
    Metric(
        "reconcile_duration_seconds",
        "gauge",
        "Duration of the latest reconcile of this store",
        unit="seconds",
    ),
    Metric(
        "reconcile_timestamp_seconds",
        "gauge",
        "Unix time at which the latest reconcile of this store ended",
        unit="seconds",
    ),
    Metric(
        "lock_wait_duration_seconds",
        "histogram",
        "Waits of the writes of this process for the mutex and the process lock, failed included",
        unit="seconds",
    ),
    Metric(
        "commit_duration_seconds",
        "histogram",
        "Durations of the commits of this process, the sync of the disk included",
        unit="seconds",
    ),
    Metric("group_writes", "histogram", "Writes of this process that shared one commit"),
    Metric("scrape_duration_seconds", "gauge", "Duration of this scrape", unit="seconds"),
    Metric(
        "scrape_errors", "counter", "Scrapes of this collector that could not read the registry"
    ),
)
"""All metrics, in the order of the output."""
