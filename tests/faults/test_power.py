"""A power cut at any moment of a workload: what was acknowledged before it is there."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import pytest

from tests import needs
from tests.faults.calls import Server, serving
from tests.faults.power import Disk, State, events
from tests.faults.workload import possible

pytestmark = needs.strace

CALLS = "openat,write,pwrite64,ftruncate,fsync,fdatasync,unlink"
ONE_OF = 60
"""Of so many states the short form tries one."""


def rebuilt(server: Server, folder: str, state: State, heard: list[list[str]]) -> list[str]:
    """Return what is wrong with the registry whose files are as in *state*.

    *heard* is what had been said by the first and the last moment at which they may be so.
    """
    os.mkdir(folder)
    for name, data in state.items():
        with open(f"{folder}/{name}", "wb") as file:
            file.write(data)
    found = server.verify(f"{folder}/registry.db")
    shutil.rmtree(folder)
    wrong = list(found.get("check", []))
    for said in heard:
        models = possible(said, killed=True)
        if found.get("sandboxes") not in models:
            wrong.append(f"after {said[-1:]}: found {found}, possible {models}: {sorted(state)}")
    return wrong


class Recording:
    """A workload, and what a disk may hold at any moment of it."""

    def __init__(self, server: Server, folder: str, chance: random.Random, verb: str) -> None:
        """Record it, and replay it."""
        path, log = f"{folder}/recorded/registry.db", f"{folder}/log"
        os.mkdir(os.path.dirname(path))
        options = ("-y", "-xx", "-s", "1000000", "-e", f"trace={CALLS}")
        run = server.work(path, *options, log=log, verb=verb)
        self.states: dict[tuple[tuple[str, bytes], ...], list[list[str]]] = {}
        """Each with what had been said by the first moment of it and by the last."""
        self.calls = self.syncs = 0
        disk, said = Disk(os.path.dirname(path)), list[str]()
        for event in events(log, path):
            if event.call == "said":
                said.append(event.name)
                continue
            syncing = event.call in {"fsync", "fdatasync"}
            self.calls, self.syncs = self.calls + 1, self.syncs + syncing
            for state in disk.states(syncing=syncing, chance=chance, many=40):
                self._note(state, said)
            disk.apply(event)
        assert run.said == said
        for state in disk.states(syncing=True, chance=chance, many=40):
            self._note(state, said)

    def _note(self, state: State, said: list[str]) -> None:
        moments = self.states.setdefault(tuple(sorted(state.items())), [list(said)])
        moments[1:] = [list(said)]


def test_a_power_cut_at_any_moment_takes_nothing_back(
    tmp_path: Path, long: bool, tried: Callable[[str], None]
) -> None:
    """Every prefix of what was written, and what may come of what was not yet synced."""
    seed = int(os.environ.get("POWER_SEED", str(time.time_ns())))
    servers: SimpleQueue[Server] = SimpleQueue()

    def attempt(number: int) -> list[str]:
        server, (state, heard) = servers.get(), chosen[number]
        try:
            return rebuilt(server, f"{tmp_path}/{number}", dict(state), heard)
        finally:
            servers.put(server)

    with serving(str(tmp_path)) as one, serving(str(tmp_path)) as two:
        recording = Recording(one, str(tmp_path), random.Random(seed), "work")
        chosen = list(recording.states.items())[:: 1 if long else ONE_OF]
        servers.put(one)
        servers.put(two)
        with ThreadPoolExecutor(2) as pool:
            wrong = [each for found in pool.map(attempt, range(len(chosen))) for each in found]
    tried(
        f"power cuts: {recording.calls} writes and syncs, {recording.syncs} of them syncs; "
        f"{len(chosen)} of {len(recording.states)} states of the disk rebuilt (POWER_SEED={seed})"
    )
    assert [] == wrong


def test_a_registry_that_does_not_sync_its_commits_is_found_out(tmp_path: Path, long: bool) -> None:
    """With `synchronous=NORMAL` a power cut takes commits back, and this test sees it."""
    if not long:
        pytest.skip("the test of a test: make test-faults")
    with serving(str(tmp_path)) as server:
        recording = Recording(server, str(tmp_path), random.Random(0), "careless")
        states = list(recording.states.items())
        found = (
            rebuilt(server, f"{tmp_path}/{n}", dict(state), heard)
            for n, (state, heard) in enumerate(reversed(states))
        )
        assert any(found)
