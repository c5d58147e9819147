"""How fast a registry is, as ratios to plain `sqlite3` that does the same in the same run.

    make bench                          all of it, some ten minutes
    python -m benchmarks --quick        less than two minutes
    python -m benchmarks --json FILE    writes the figures too

Rounds of ours and of the reference alternate, and single calls one by one; a figure is the median
of the rounds, and its spread the least and the greatest. Absolute times are those of this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from statistics import median

from benchmarks import plain, writers
from benchmarks.writers import Job
from registry import Metadata, State, Status, Store
from registry.cri import PodSandboxConfig

Call = Callable[[int], object]
MANY = 10_000
WRITER_SECONDS = 2.0


@dataclass(frozen=True)
class Figure:
    """A ratio, ours to the reference, and what it is to be."""

    work: str
    ours: float
    reference: float
    unit: str
    ratios: tuple[float, ...]
    goal: str

    def __str__(self) -> str:
        """Return a line of the table."""
        ratio = f"{median(self.ratios):7.2f} ({min(self.ratios):.2f} to {max(self.ratios):.2f})"
        return (
            f"{self.work:42} {self.ours:10.3f} {self.reference:10.3f} {self.unit:4} {ratio:27} "
            f"{self.goal}"
        )


def config(n: int) -> PodSandboxConfig:
    """Return a config like a kubelet's."""
    made = PodSandboxConfig(hostname=f"web-{n}", log_directory=f"/var/log/pods/default_web-{n}")
    made.metadata.name, made.metadata.namespace = f"web-{n}", "default"
    made.metadata.uid = f"00000000-0000-0000-0000-{n:012}"
    made.labels.update({"app": "web", "tier": "front", "pod-template-hash": f"{n % 50:08x}"})
    made.annotations["kubernetes.io/config.source"] = "api"
    made.linux.cgroup_parent = f"/kubepods/besteffort/pod{n}"
    return made


def sandbox(n: int) -> tuple[Metadata, Status]:
    """Return a sandbox that is READY."""
    metadata = Metadata(f"s{n}", f"web-{n}_default_{n}", config(n), ip=f"10.0.{n >> 8}.{n & 255}")
    return metadata, Status(State.READY, created_at=1 + n)


def fill(path: str, count: int) -> None:
    """Make a registry of *count* sandboxes, in one commit."""
    with Store.open(path, reconcile=False) as store, store.transaction():
        for n in range(count):
            store.add(*sandbox(n))


def took(work: Callable[[], object]) -> float:
    """Return how many milliseconds *work* takes."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def single(
    work: str,
    ours: Call,
    reference: Call,
    goal: str,
    *,
    rounds: int,
    calls: int,
) -> Figure:
    """Return the figure of single calls, ours and the reference's in turn; each gets a number."""
    mine, theirs, ratios, number = [], [], [], 0
    for _ in range(rounds):
        ones, others = [], []
        for _ in range(calls):
            number += 1
            ones.append(took(lambda n=number: ours(n)))  # type: ignore[misc]
            others.append(took(lambda n=number: reference(n)))  # type: ignore[misc]
        mine.append(median(ones))
        theirs.append(median(others))
        ratios.append(mine[-1] / theirs[-1])
    return Figure(work, median(mine), median(theirs), "ms", tuple(ratios), goal)


class Bench:
    """All rows, in a folder; *scale* is how much of it is done: 1 is all."""

    def __init__(self, folder: str, *, scale: float) -> None:
        """Fill the files that the rows need."""
        self._folder, self._scale = folder, scale
        self._rounds = max(3, round(7 * scale))
        self.ours, self.plain = f"{folder}/ours.db", f"{folder}/plain.db"
        plain.create(self.plain)
        fill(self.ours, 64)
        with closing(plain.Plain(self.plain)) as reference:
            for n in range(64):
                reference.add(*sandbox(n))

    def run(self) -> Iterator[Figure]:
        """Yield each figure as it is measured."""
        yield from self.calls()
        yield from self.lists()
        yield from self.starts()
        for processes, threads, goals in (
            (1, 16, ("at least 1.5", "at most 0.05", "at least 20")),
            (8, 1, ("at least 0.5", "at most 0.05", "at least 20")),
            (4, 4, ("at least 1", "at most 0.05", "")),
        ):
            yield from self.writers(processes, threads, goals)

    def calls(self) -> Iterator[Figure]:
        """Single calls on a small registry."""
        calls, rounds = round(200 * self._scale) or 50, self._rounds
        with (
            Store.open(self.ours, reconcile=False) as store,
            closing(plain.Plain(self.plain)) as reference,
        ):
            status = store.get("s1").status
            works: tuple[tuple[str, Call, Call, str, int], ...] = (
                (
                    "status.update, 1 thread",
                    lambda n: status.update(lambda old: replace(old, message=str(n))),
                    lambda n: reference.update("s1", str(n)),
                    "at most 1.3",
                    calls,
                ),
                (
                    "get(id), unchanged",
                    lambda _: store.get("s1"),
                    lambda _: reference.get("s1"),
                    "at most 0.8",
                    calls * 5,
                ),
                (
                    "status.get(), unchanged",
                    lambda _: status.get(),
                    lambda _: reference.status("s1"),
                    "at most 0.8",
                    calls * 5,
                ),
                (
                    "add, 1 thread",
                    lambda n: store.add(*sandbox(1000 + n)),
                    lambda n: reference.add(*sandbox(1000 + n)),
                    "at most 1.8",
                    calls,
                ),
            )
            for work, ours, theirs, goal, count in works:
                yield single(work, ours, theirs, goal, rounds=rounds, calls=count)

    def lists(self) -> Iterator[Figure]:
        """Lists of many."""
        many = f"{self._folder}/many.db"
        fill(many, MANY)
        with (
            Store.open(many, reconcile=False) as store,
            closing(plain.Plain(many)) as reference,
        ):
            yield single(
                f"list() of {MANY}, unchanged",
                lambda _: store.list(),
                lambda _: reference.list(),
                "at most 0.3",
                rounds=self._rounds,
                calls=2,
            )

    def starts(self) -> Iterator[Figure]:
        """Processes that start."""
        _python("import registry")  # compiles it, the first time
        yield single(
            "import registry / import sqlalchemy",
            lambda _: _python("import registry"),
            lambda _: _python("import sqlalchemy"),
            "at most 1.3",
            rounds=self._rounds,
            calls=3,
        )

    def writers(
        self, processes: int, threads: int, goals: tuple[str, str, str]
    ) -> Iterator[Figure]:
        """Writers that write all at once."""
        seconds = WRITER_SECONDS if self._scale >= 1 else WRITER_SECONDS / 2
        mine, theirs = [], []
        for _ in range(max(3, round(5 * self._scale))):
            mine.append(writers.run(Job("ours", self.ours, threads, seconds), processes))
            theirs.append(writers.run(Job("plain", self.plain, threads, seconds), processes))
        name = f"status.update, {processes} x {threads} writers"
        for what, unit, goal in zip(
            ("throughput", "slowest", "least"), ("/s", "ms", ""), goals, strict=True
        ):
            ones = [float(getattr(each, what)) for each in mine]
            others = [float(getattr(each, what)) for each in theirs]
            ratios = tuple(a / max(b, 1.0) for a, b in zip(ones, others, strict=True))
            yield Figure(f"{name}: {what}", median(ones), median(others), unit, ratios, goal)


def _python(code: str) -> None:
    # With the compiled files, as of a package that is installed.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="in less than two minutes")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--folder", metavar="DIR", default=".", help="on which file system")
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="bench-", dir=options.folder)
    figures = []
    try:
        print(f"{'work':42} {'ours':>10} {'plain':>10}      {'ratio':27} is to be")
        for figure in Bench(folder, scale=0.3 if options.quick else 1.0).run():
            print(figure, flush=True)
            figures.append(asdict(figure))
    finally:
        shutil.rmtree(folder)
    if options.json:
        versions = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
        machine = {"kernel": platform.release(), "cpus": os.cpu_count(), **versions}
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine, "figures": figures}, file, indent=2)


if __name__ == "__main__":
    main()
