"""The demo, as `make demo-fleet` runs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import needs
from tests.fleet.cluster import missing
from tests.tools import ROOT, environment


@pytest.mark.netns
@needs.namespaces
@pytest.mark.skipif(bool(missing()), reason=missing() or "-")
def test_demo_of_two_nodes_ends_in_the_true_table() -> None:
    """It compares the table itself; a pusher is killed, and a registry restored."""
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo_fleet"],
        cwd=ROOT,
        env={**environment(), "PGPORT": "1", "PGHOST": "/nowhere", "PGOPTIONS": "-c bogus=1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    assert "restored after 4" in done.stdout
    assert [] == [line for line in done.stdout.splitlines() if len(line) > 80]
    assert "NetNSClosed" in done.stdout
    assert "All of it is removed again." in done.stdout
