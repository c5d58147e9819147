"""Dashboard, alert rules and units in examples/: valid, and of metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from registry.metrics.table import METRICS, OTHER, PREFIX, Metric
from registry.model.status import State
from registry.recovery.findings import Verdict
from tests import needs
from tests.documents import text_of
from tests.tools import ROOT

EXAMPLES = Path(ROOT, "examples")
DASHBOARD: dict[str, Any] = json.loads((EXAMPLES / "grafana-dashboard.json").read_text("utf-8"))
RULES: dict[str, Any] = yaml.safe_load((EXAMPLES / "prometheus-rules.yml").read_text("utf-8"))
ALERTS: list[dict[str, Any]] = [rule for group in RULES["groups"] for rule in group["rules"]]
FOREIGN = {"node_textfile_mtime_seconds"}
"""Metrics of node_exporter."""
OF_PROMETHEUS = {"instance", "file", "le"}
"""Labels that are not of the registry."""
VALUES = {"state": {*map(str, State), OTHER}, "verdict": {*map(str, Verdict)}}
"""Labels with fixed values."""


def sample_names(metric: Metric) -> list[str]:
    """Return the names of the samples of a metric."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    return [f"{PREFIX}{metric.name}{each}" for each in suffixes.get(metric.kind, [""])]


KNOWN = {name: {"path", *each.labels} for each in METRICS for name in sample_names(each)}
"""Labels of each sample by its name."""


def panels() -> Iterator[Any]:
    """Yield the panels of the dashboard, with titles as ids."""
    for panel in DASHBOARD["panels"]:
        yield pytest.param(panel, id=panel["title"])


def require_known(expression: str) -> None:
    """Fail unless *expression* has a metric, and only metrics and labels that exist."""
    named = set(re.findall(rf"\b(?:{PREFIX}|node_)\w+", expression))
    assert named
    assert named <= KNOWN.keys() | FOREIGN
    labels = set().union(*(KNOWN.get(name, set()) for name in named))
    for name, braces in re.findall(rf"({PREFIX}\w+)\{{([^}}]*)\}}", expression):
        for label, value in re.findall(r"(\w+)=~?\"([^\"]*)\"", braces):
            assert label in KNOWN[name] | OF_PROMETHEUS, (name, label)
            assert value in VALUES.get(label, {value}), (label, value)
    for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
        assert set(re.split(r",\s*", grouped)) <= labels | OF_PROMETHEUS, grouped


@pytest.mark.parametrize("panel", [*panels()])
def test_a_panel_shows_metrics_that_exist(panel: dict[str, Any]) -> None:
    """Each expression, and each label of its legend."""
    assert panel["targets"]
    for target in panel["targets"]:
        require_known(target["expr"])
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert re.search(rf"by \([^)]*\b{label}\b", target["expr"]), label


def test_the_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    """Grafana moves a panel that lies on another one."""
    assert len(DASHBOARD["panels"]) == len({each["id"] for each in DASHBOARD["panels"]})
    cells = [
        (x, y)
        for place in (each["gridPos"] for each in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_every_metric_is_on_the_dashboard() -> None:
    """A metric that no panel shows was forgotten."""
    text = json.dumps(DASHBOARD)
    missing = [each.name for each in METRICS if f"{PREFIX}{each.name}" not in text]
    assert [] == missing


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_is_of_metrics_that_exist_and_says_what_to_do(alert: dict[str, Any]) -> None:
    """The command that it names exists."""
    require_known(alert["expr"])
    assert {"summary", "action"} == alert["annotations"].keys()
    for verb in re.findall(r"`sandbox-registry (?:--db \S+ \}\} )?(\w+)", str(alert)):
        assert f"### `{verb}`" in text_of("docs/cli.md")


@needs.program("promtool")
def test_promtool_accepts_the_rules_and_the_alerts_fire(tmp_path: Path) -> None:
    """Each alert fires on a registry that fails in its way, and none on one that is well."""
    rules = EXAMPLES / "prometheus-rules.yml"
    checked = subprocess.run(
        ["promtool", "check", "rules", rules], capture_output=True, text=True, check=False
    )
    assert 0 == checked.returncode, checked.stderr
    test = {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "tests": [_case(ill=True), _case(ill=False)],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(test), encoding="utf-8")
    tested = subprocess.run(
        ["promtool", "test", "rules", file], capture_output=True, text=True, check=False
    )
    assert 0 == tested.returncode, tested.stdout + tested.stderr


SERIES = {
    "up": ("0x300", "1x300"),
    "scrape_errors_total": ("0+1x300", "0x300"),
    'oldest_state_timestamp_seconds{state="SANDBOX_NOTREADY"}': ("0x300", "17000x300"),
    'oldest_state_timestamp_seconds{state="SANDBOX_UNKNOWN"}': ("0x300", "17800x300"),
    "reconcile_orphans": ("2x300", "0x300"),
    'reconcile_sandboxes{verdict="UNREACHABLE"}': ("1x300", "0x300"),
    "wal_bytes": ("50000000x300", "16777216x300"),
    "wal_readers": ("1x300", "0x300"),
    "disk_reserve_whole": ("0x300", "1x300"),
    'check_violations{rule="columns_are_true"}': ("1x300", "0x300"),
    'lock_wait_duration_seconds_bucket{le="2.5"}': ("0x300", "0+60x300"),
    'lock_wait_duration_seconds_bucket{le="10.0"}': ("0+60x300", "0+60x300"),
    'lock_wait_duration_seconds_bucket{le="+Inf"}': ("0+60x300", "0+60x300"),
}
"""Values of an ill registry, and of one that is well, after 300 minutes."""


def _case(*, ill: bool) -> dict[str, Any]:
    """Return a test of promtool that evaluates all alerts after 300 minutes."""
    series = {f"{PREFIX}{name}": values[0 if ill else 1] for name, values in SERIES.items()}
    series['node_textfile_mtime_seconds{file="sandbox-registry.prom"}'] = (
        "0x300" if ill else "17900x300"
    )
    names = {alert["alert"] for alert in ALERTS}
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": text} for name, text in series.items()],
        "promql_expr_test": [
            {
                "expr": 'count(ALERTS{alertstate="firing"}) or vector(0)',
                "eval_time": "299m",
                "exp_samples": [{"labels": "{}", "value": len(names) if ill else 0}],
            }
        ],
    }


@needs.program("systemd-analyze")
def test_the_units_of_the_metrics_are_valid(tmp_path: Path) -> None:
    """As systemd reads them, with a program that exists; the command is that of docs/metrics.md."""
    units = [f"sandbox-registry-metrics.{kind}" for kind in ("service", "timer")]
    for name in units:
        text = (EXAMPLES / name).read_text("utf-8")
        (tmp_path / name).write_text(text.replace("/usr/local/bin/sandbox-registry", "/bin/true"))
    (command,) = re.findall(
        r"^ExecStart=/usr/local/bin/(.*)\\\n +(.*)$",
        (EXAMPLES / units[0]).read_text("utf-8"),
        re.MULTILINE,
    )
    assert f"```sh\n{''.join(command)}\n```" in text_of("docs/metrics.md")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "sandbox-registry-metrics" in line]
    assert (0, []) == (done.returncode, said), done.stderr
