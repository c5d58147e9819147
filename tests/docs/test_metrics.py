"""docs/metrics.md: the table is that of the code, and names no metric that does not exist."""

from __future__ import annotations

import re

from docs.tools import metrics as generator
from registry.metrics.table import METRICS, PREFIX
from tests.documents import text_of

TEXT = text_of("docs/metrics.md")


def test_the_page_is_what_make_metrics_generates() -> None:
    """With a row for each metric; otherwise run `make metrics`."""
    assert TEXT == generator.page()
    assert len(METRICS) == len(re.findall(rf"^\| `{PREFIX}\w+` \|", TEXT, re.MULTILINE))


def test_every_metric_that_the_page_names_is_in_the_table() -> None:
    """Also in the text below the table."""
    known = {f"{PREFIX}{each.name}{'_total' * (each.kind == 'counter')}" for each in METRICS}
    assert known == set(re.findall(rf"{PREFIX}\w+", TEXT))


def test_every_metric_follows_the_conventions_of_openmetrics() -> None:
    """A unit ends the name, a counter has no suffix of its own, and the meaning is one line."""
    for each in METRICS:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", each.name)
        assert each.name.endswith(each.unit)
        assert not each.name.endswith("_total")
        assert re.fullmatch(r"[A-Z1][^\n]*[^.\n]", each.meaning)
        assert "path" not in each.labels
