"""The example shims, killed at many points and run again: nothing is lost and nothing is left."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from registry import State
from tests import needs
from tests.faults.shims import Commands, Server, Shim, ShimKilledError
from tests.machine import new_machine
from tests.tools import LONG, until

pytestmark = [pytest.mark.netns, needs.namespaces]

EXAMPLES: dict[str, type[Shim]] = {
    "shim_threads.py": Server,
    "shim_asyncio.py": Server,
    "shim_per_pod.py": Commands,
}
KILLS = 30 if LONG else 3
CALLS = (0, 1, 10, 40, 160)
"""Calls after the line of a point; with 0 the process is killed before the line."""


def use(shim: Shim, number: int) -> None:
    """Run the shim through all that happens to pods, those of earlier runs included.

    Raises:
        ShimKilledError: it was killed meanwhile.
    """
    ready, ended = list(shim.pods.ready), list(shim.pods.ended)
    shim.begin()
    first, second, third = (f"{name}{number}" for name in "abc")
    shim.start(first, second, third)
    shim.kill_pod(second)
    status = shim.status(second)
    assert status is not None
    assert (137, 0, "ProcessExited") == (status.exit_status, status.pid, status.reason)
    shim.stop(first, second)
    shim.start_and_stop(f"d{number}")
    if ready:
        shim.stop_elsewhere(ready[0])
    for id in ready[1:2]:
        shim.kill_pod(id)
    shim.stop(*ended[:1], *ready[2:4])
    shim.stop(*shim.unanswered()[:4])


def run_lines(shim: Shim) -> list[int]:
    """Return the lines of the example that were run, in order."""
    return sorted({int(each) for each in shim.noted("lines")})


def owners_of(shim: Shim) -> list[str]:
    """Return the processes of the shim itself."""
    return [each for each in shim.machine.left()["processes"] if shim.example in each]


def check(shim: Shim) -> None:
    """Check what the registry says, and compare it with the processes and namespaces."""
    with shim.store() as store:
        assert [] == store.check()
        found = {each.id: each for each in store.list(include_unknown=True)}
    states = {id: each.status_as_read.state for id, each in found.items()}
    reasons = {id: each.status_as_read.reason for id, each in found.items()}
    assert State.UNKNOWN not in states.values()
    assert {"", "ProcessExited"} >= set(reasons.values())
    pods = shim.pods
    assert {State.READY} >= {states.get(id) for id in pods.ready}
    assert {State.NOTREADY} >= {states.get(id) for id in pods.ended}
    assert set() == found.keys() & set(pods.deleted)
    assert found.keys() <= {*pods.ready, *pods.ended, *pods.uncertain}
    ready = [found[id] for id, state in states.items() if state is State.READY]

    until(lambda: shim.owners(len(ready)) == len(owners_of(shim)), shim.machine.left)
    processes = [each for each in shim.machine.left()["processes"] if shim.example not in each]
    pids = {each.status_as_read.pid: each.netns_path for each in ready}
    assert sorted(pids) == sorted(int(each.split()[0]) for each in processes)
    assert all("sleep" in each for each in processes)
    for pid, path in pids.items():
        inside = os.stat(f"/proc/{pid}/ns/net")
        assert inside.st_ino == shim.machine.call(partial(os.stat, path)).st_ino
    namespaces = {f"/run/netns/{each}" for each in shim.machine.left()["namespaces"]}
    assert set(pids.values()) <= namespaces <= {each.netns_path for each in found.values()}


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_killed_shim_loses_nothing_and_leaves_nothing(
    example: str, tmp_path: Path, tried: Callable[[str], None]
) -> None:
    """At lines of its own, and calls later; READY pods run, and what was stopped is gone."""
    with (
        new_machine() as machine,
        closing(EXAMPLES[example](machine, example, tmp_path)) as shim,
    ):
        kill_often(shim, tried)
        end_all(shim)


def kill_often(shim: Shim, tried: Callable[[str], None]) -> None:
    """Use the shim KILLS times, and kill it each time at another point."""
    for number in range(2):  # the second one follows pods of the first
        use(shim, number)
        shim.end()
    shim.kills, reached = 0, 0
    for number in range(2, 3 * KILLS):
        done = len(shim.noted("killed")) + shim.kills
        if done >= KILLS:
            break
        lines = run_lines(shim)
        line = lines[(number - 2) * len(lines) // KILLS % len(lines)]
        shim.set_point(line, CALLS[number % len(CALLS)])
        try:
            use(shim, number)
        except ShimKilledError:
            assert shim.was_reached()
        reached += shim.was_reached()
        shim.end()
        shim.clear_point()
    at_points, waiting = len(shim.noted("killed")), shim.kills
    tried(
        f"{os.path.basename(shim.example)}: {at_points + waiting} kills, {at_points} at points,"
        f" {waiting} while it waited; {reached} of {number - 2} points reached"
    )
    assert at_points + waiting >= KILLS


def end_all(shim: Shim) -> None:
    """Start the shim for the last time, check what it has recovered, and stop all pods."""
    shim.begin()
    shim.start("last")
    check(shim)
    with shim.store() as store:
        followed = [each.id for each in store.list(state=State.READY)]
    shim.kill_pod(followed[0])  # of an earlier run, as all but the last
    for id in followed[1:-1]:
        shim.stop_elsewhere(id)
    check(shim)
    with shim.store() as store:
        left = [each.id for each in store.list()]
    shim.stop(*left)
    shim.finish()
    with shim.store() as store:
        assert [] == store.list(include_unknown=True)
        assert [] == store.check()
    until(lambda: [] == shim.machine.left()["namespaces"])
