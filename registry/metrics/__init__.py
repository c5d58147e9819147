"""Metrics of a registry for Prometheus, in the format of OpenMetrics; the extra `metrics`.

table     name, type, labels and meaning of each metric
readings  what one scrape reads of a registry
scrape    `collector`, which makes metrics of the readings
text      metrics of one scrape as text, for the command line

    from prometheus_client import REGISTRY
    from registry.metrics import collector

    REGISTRY.register(collector(store))

docs/metrics.md lists the metrics.
"""

from registry.errors import FailedPreconditionError

try:
    from registry.metrics.scrape import collector
except ModuleNotFoundError as error:
    raise FailedPreconditionError(
        f"import registry.metrics: {error.name} is not installed; "
        "run `pip install 'sandbox-registry[metrics]'`"
    ) from error

__all__ = ["collector"]
