"""The verb `metrics`: both formats, the file for node_exporter, and a registry that fails."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from registry import State, Status, Store
from registry.metrics.table import METRICS, PREFIX
from tests import needs
from tests.cli.program import run
from tests.integration.test_deadline import RECOVERY
from tests.integration.test_stopped import stopped
from tests.metrics.samples import families, samples, value
from tests.tools import execute, line, running, sandbox, say

OF_PROCESS = {"lock_wait_duration_seconds", "commit_duration_seconds", "group_writes"}
"""Metrics of a process that writes."""
OF_OPTIONS = {
    "check_violations",
    *("reconcile_sandboxes", "reconcile_orphans"),
    *("reconcile_duration_seconds", "reconcile_timestamp_seconds"),
}
"""Metrics of `--check` and `--reconcile`."""


@pytest.fixture
def path(path: str) -> str:
    """Return a registry with a NOTREADY sandbox and one whose namespace is gone."""
    with Store.open(path) as store:
        store.add(sandbox("a"), Status(State.NOTREADY, reason="Stopped"))
        store.add(sandbox("b", netns_path="/nowhere/netns"), Status(State.READY))
    return path


def test_the_metrics_are_printed_as_openmetrics(path: str) -> None:
    """A program that reads has no histograms."""
    done = run("--db", path, "metrics")
    assert (0, "") == (done.code, done.err)
    assert {each.name for each in METRICS} - OF_PROCESS - OF_OPTIONS == families(done.out).keys()
    assert 2 == value(done.out, "transitions_total")


def test_options_add_a_check_and_a_reconcile_that_changes_nothing(path: str) -> None:
    """As `check` and `reconcile --dry-run` do."""
    done = run("--db", path, "metrics", "--check", "--reconcile")
    assert {each.name for each in METRICS} - OF_PROCESS == families(done.out).keys()
    assert 1 == value(done.out, "reconcile_sandboxes", verdict="CLOSED")
    assert {0} == set(samples(done.out, "check_violations").values())
    assert 2 == value(run("--db", path, "metrics").out, "transitions_total")


def test_the_output_file_is_replaced_in_the_format_of_node_exporter(
    path: str, tmp_path: Path
) -> None:
    """Every user may read it; nothing is printed, and no part is left."""
    file = tmp_path / "out" / "registry.prom"
    file.parent.mkdir()
    file.write_text("earlier")
    done = run("--db", path, "metrics", "--output-file", str(file))
    assert (0, "", "") == done
    found = {each.name: each for each in text_string_to_metric_families(file.read_text())}
    assert "counter" == found[f"{PREFIX}transitions"].type
    assert 0o644 == stat.S_IMODE(file.stat().st_mode)
    assert ["registry.prom"] == os.listdir(file.parent)


@needs.program("promtool")
def test_promtool_finds_nothing_to_complain_of(path: str, tmp_path: Path) -> None:
    """Of names, types, units and HELP texts."""
    file = tmp_path / "registry.prom"
    run("--db", path, "metrics", "--check", "--reconcile", "--output-file", str(file))
    with file.open(encoding="utf-8") as text:
        checked = subprocess.run(
            ["promtool", "check", "metrics"], stdin=text, capture_output=True, check=False
        )
    assert (0, b"", b"") == (checked.returncode, checked.stdout, checked.stderr)


@pytest.mark.parametrize("fault", ["missing", "damaged", "unreadable"])
def test_a_registry_that_fails_is_down_and_the_exit_code_is_3(
    path: str, tmp_path: Path, fault: str
) -> None:
    """The file says so too, so that an alert need not wait until it is old."""
    if fault == "missing":
        path = str(tmp_path / "missing.db")
    elif fault == "damaged":
        with open(path, "r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 8192)
    else:
        execute(path, "DROP TABLE sandbox_statuses")
    done = run("--db", path, "metrics")
    assert 3 == done.code
    assert done.err.startswith("sandbox-registry: error: ")
    assert 0 == value(done.out, "up")
    assert {} == samples(done.out, "sandboxes")
    files = {"wal_bytes", "wal_readers", "disk_reserve_whole"}
    assert {"up"} | (set() if fault == "missing" else files) <= families(done.out).keys()
    output = tmp_path / "registry.prom"
    assert 3 == run("--db", path, "metrics", "--output-file", str(output)).code
    assert f'{PREFIX}up{{path="{path}"}} 0.0\n' in output.read_text()


def test_a_process_that_keeps_readers_out_is_named_within_seconds(path: str) -> None:
    """It is stopped while it recovers the WAL; the metrics of the files are there."""
    with Store.open(path, reconcile=False), running(RECOVERY, path) as process:
        assert "held" == line(process)
        with stopped(process.pid):
            done = run("--db", path, "metrics")
        say(process)
        assert "released" == line(process)
    assert 3 == done.code
    assert "timed out after 5 s waiting for " in done.err
    assert f"process {process.pid} (" in done.err
    assert done.err.endswith("; printed is what is known without reading it\n")
    assert {"up", "wal_bytes", "wal_readers", "disk_reserve_whole"} == families(done.out).keys()
    assert 0 == value(done.out, "up")


def test_an_output_file_of_another_kind_is_refused(path: str) -> None:
    """Such as the registry itself, which a mistyped command would replace."""
    before = os.stat(path).st_ino
    done = run("--db", path, "metrics", "--output-file", path)
    assert (2, "") == (done.code, done.out)
    assert f"'{path}' does not end with .prom" in done.err
    assert before == os.stat(path).st_ino


def test_an_output_file_that_cannot_be_written_is_exit_code_3(path: str, tmp_path: Path) -> None:
    """One line names the file and the cause."""
    done = run("--db", path, "metrics", "--output-file", f"{tmp_path}/nowhere/registry.prom")
    assert (3, "") == (done.code, done.out)
    assert f"write metrics to '{tmp_path}/nowhere/registry.prom'" in done.err
    assert 1 == done.err.count("\n")
