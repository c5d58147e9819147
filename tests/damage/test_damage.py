"""Damaged registries: true data or a clear error, never a crash, a hang or a changed file.

`make test-damage` runs 2,000 seeds. `DAMAGE_FIRST=n DAMAGE_SEEDS=1 make test-damage` repeats one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.damage import kinds, outcomes, trials
from tests.damage.outcomes import Outcome
from tests.damage.probe import MODES, Request
from tests.damage.trials import IDS, Registries

ONCE_FAILED = (164, 173, 293, 654, 773, 931, 1207)
"""Seeds that have shown a defect, which was mended."""


@pytest.fixture(scope="module")
def registries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registries]:
    """Return whole registries to copy and damage."""
    made = Registries(str(tmp_path_factory.mktemp("damage")))
    yield made
    made.close()


@pytest.mark.parametrize("name", ["closed", "hot", "large", "later"])
@pytest.mark.parametrize("mode", MODES)
def test_whole_registry_gives_true_data(registries: Registries, name: str, mode: str) -> None:
    """Every answer is that of the truth, and none is an error."""
    with registries.copy(name) as folder:
        found = registries.worker.ask(Request(f"{folder}/registry.db", mode, IDS))
    truths = registries.truths[name]
    assert (Outcome.TRUE, "") == outcomes.classify(found, truths, "ok", mode, [])


SEEDS = (*range(len(kinds.KINDS)), *ONCE_FAILED)


def test_damaged_registries_give_true_data_or_a_clear_error(registries: Registries) -> None:
    """Each kind of damage is made once, and by the seeds that once failed."""
    found = [trial for seed in SEEDS for trial in trials.run(registries, seed)]
    bad = [str(each) for each in found if not each.outcome.is_good]
    assert not bad, "\n".join(bad)
