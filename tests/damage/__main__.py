"""Damage registries by seeds, and print what came of it; exit 1 if an outcome is not permitted.

DAMAGE_FIRST=0 DAMAGE_SEEDS=2000 python -m tests.damage
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import closing

from tests.damage import trials


def say(text: str) -> None:
    """Print *text* at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run the seeds that the environment names."""
    first = int(os.environ.get("DAMAGE_FIRST", "0"))
    count = int(os.environ.get("DAMAGE_SEEDS", "2000"))
    say(f"seeds {first} to {first + count - 1}")
    found: list[trials.Trial] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(trials.Registries(folder)) as registries,
    ):
        for seed in range(first, first + count):
            for trial in trials.run(registries, seed):
                found.append(trial)
                if not trial.outcome.is_good or count == 1:
                    say(str(trial))
    say(trials.table(found))
    return int(not all(trial.outcome.is_good for trial in found))


if __name__ == "__main__":
    sys.exit(main())
