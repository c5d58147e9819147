"""Samples of a scrape, as a parser of OpenMetrics reads them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from registry.metrics.table import PREFIX

Labels = tuple[tuple[str, str], ...]


def scrape(collector: Collector) -> str:
    """Return the text that a scrape of *collector* alone gets."""
    registered = CollectorRegistry()
    registered.register(collector)
    text: bytes = generate_latest(registered)
    return text.decode()


def families(text: str) -> dict[str, Metric]:
    """Return the metric families of *text* by name, without the prefix."""
    found = text_string_to_metric_families(text)
    return {family.name.removeprefix(PREFIX): family for family in found}


def samples(text: str, name: str) -> dict[Labels, float]:
    """Return the samples with the name *name* by their labels, without `path`."""
    return {
        tuple(sorted((key, value) for key, value in sample.labels.items() if key != "path")): float(
            sample.value
        )
        for family in families(text).values()
        for sample in family.samples
        if sample.name == PREFIX + name
    }


def value(text: str, name: str, **labels: str) -> float:
    """Return the value of the one sample with *name* and *labels*."""
    return samples(text, name)[tuple(sorted(labels.items()))]
