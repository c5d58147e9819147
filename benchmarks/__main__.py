"""How fast a registry is, as ratios to plain `sqlite3` that does the same in the same run.

    make bench                          all of it, some ten minutes; redraws benchmarks/results
    make bench BENCH=--quick            less than two minutes, and only prints
    python -m benchmarks --json FILE    writes the figures there too

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
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from statistics import median

from benchmarks import (
    counted,
    memory,
    orm,
    plain,
    plots,
    recovery,
    report,
    samples,
    starts,
    writers,
)
from benchmarks.measure import HEAD, Call, Figure, of_rounds, single
from benchmarks.writers import Job, Served
from registry import Store

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RESULTS = f"{ROOT}/benchmarks/results"
DOCUMENT = f"{ROOT}/docs/performance.md"
MANY = 10_000
WARM = 1200
"""Calls after which the log is written over instead of growing."""
WAYS = {"ours": "ours", "plain": "plain sqlite3", "orm": "SQLAlchemy ORM"}
LIMITS = ("at most 0.05", "at least 20")
WRITERS = (
    (1, 16, ("at least 1.5", *LIMITS)),
    (8, 1, ("at least 0.5", *LIMITS)),
    (4, 4, ("at least 1", LIMITS[0], "")),
)
"""Processes, threads of each, and what throughput, slowest call and least-served are to be."""


class Bench:
    """All rows, in a folder; *quick* is a smaller part of each."""

    def __init__(self, folder: str, *, quick: bool) -> None:
        """Fill the files that the rows need."""
        self._folder, self._quick = folder, quick
        self._rounds = 3 if quick else 7
        self._ours, self._plain = f"{folder}/ours.db", f"{folder}/plain.db"
        self.curves: dict[str, dict[str, list[float]]] = {}
        samples.fill(self._ours, 64)
        plain.create(self._plain)
        with closing(plain.Plain(self._plain)) as reference:
            reference.add(*(samples.sandbox(n) for n in range(64)))

    def run(self) -> Iterator[Figure]:
        """Yield each figure as it is measured."""
        yield from self.calls()
        yield from self.lists()
        for processes, threads, goals in WRITERS:
            yield from self.writers(processes, threads, goals)
        yield counted.syncs(self._ours)
        yield from counted.statements(self._ours, self._plain)
        yield from starts.measure(self._ours, self._plain, self._rounds)
        yield from self.recoveries()
        if not self._quick:
            self.more_writers()

    def calls(self) -> Iterator[Figure]:
        """Single calls on a small registry."""
        calls, warm = (60, 0) if self._quick else (200, WARM)
        with (
            Store.open(self._ours, reconcile=False) as store,
            closing(plain.Plain(self._plain)) as reference,
            closing(orm.Orm(self._plain)) as mapped,
        ):
            id = samples.name(1)
            status = store.get(id).status

            def update(n: int) -> object:
                return status.update(lambda old: replace(old, message=str(n)))

            works: tuple[tuple[str, Call, Call, Call | None, str, int, int], ...] = (
                (
                    "status.update, 1 thread, young log",  # of less than 1,000 pages
                    update,
                    lambda n: reference.update(id, str(n)),
                    None,
                    *("at most 1.3", calls // 2, 10),
                ),
                (
                    "status.update, 1 thread",
                    update,
                    lambda n: reference.update(id, str(n)),
                    lambda n: mapped.update(id, str(n)),
                    *("at most 1.3", calls, warm),
                ),
                (
                    "get(id), unchanged",
                    lambda _: store.get(id),
                    lambda _: reference.get(id),
                    lambda _: mapped.get(id),
                    *("at most 0.8", calls * 5, 10),
                ),
                (
                    "status.get(), unchanged",
                    lambda _: status.get(),
                    lambda _: reference.status(id),
                    lambda _: mapped.status(id),
                    *("at most 0.8", calls * 5, 10),
                ),
                (
                    "add, 1 thread",
                    lambda n: store.add(*samples.sandbox(1000 + n)),
                    lambda n: reference.add(samples.sandbox(1000 + n)),
                    None,
                    *("at most 1.8", calls, warm // 10),
                ),
            )
            for work, ours, theirs, mapper, goal, count, first in works:
                yield single(
                    work,
                    ours,
                    theirs,
                    goal,
                    rounds=self._rounds,
                    calls=count,
                    warm=first,
                    orm=mapper,
                )

    def lists(self) -> Iterator[Figure]:
        """Lists of many."""
        many = f"{self._folder}/many.db"
        samples.fill(many, MANY)
        with (
            Store.open(many, reconcile=False) as store,
            closing(plain.Plain(many)) as reference,
            closing(orm.Orm(many)) as mapped,
        ):
            yield single(
                f"list() of {MANY}, unchanged",
                lambda _: store.list(),
                lambda _: reference.all(),
                "at most 0.3",
                orm=lambda _: mapped.all(),
                rounds=self._rounds,
                calls=3,
                warm=1,
            )

            def cold(_: int) -> object:
                store._session._cache.invalidate()  # noqa: SLF001
                return store.list()

            yield single(
                f"list() of {MANY}, cold",
                cold,
                lambda _: reference.handles(),
                "at most 1.5",
                rounds=self._rounds,
                calls=3,
                warm=1,
            )
        yield memory.measure(many, MANY, "at most 6")

    def writers(self, processes: int, threads: int, goals: tuple[str, ...]) -> Iterator[Figure]:
        """Writers that write all at once."""
        served = self._serve(processes, threads, ("ours", "plain"), 3 if self._quick else 5)
        name = f"status.update, {processes} x {threads} writers"
        for what, unit, goal in zip(
            ("throughput", "slowest", "least"), ("/s", "ms", ""), goals, strict=True
        ):
            ones, others = ([float(getattr(each, what)) for each in served[k]] for k in served)
            yield of_rounds(
                f"{name}: {what}", ones, [max(1.0, each) for each in others], unit, goal=goal
            )

    def _serve(
        self, processes: int, threads: int, kinds: tuple[str, ...], rounds: int
    ) -> dict[str, list[Served]]:
        seconds = 1.0 if self._quick else 2.0
        served: dict[str, list[Served]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind in kinds:
                path = self._ours if kind == "ours" else self._plain
                served[kind].append(writers.run(Job(kind, path, threads, seconds), processes))
        return served

    def more_writers(self) -> None:
        """Measure the curves over the number of writers."""
        wanted = ("throughput", "slowest")
        for curve in wanted:
            self.curves[curve] = {"x": [], **{way: [] for way in WAYS.values()}}
        for threads in (1, 2, 4, 8, 16, 32):
            served = self._serve(1, threads, tuple(WAYS), 3)
            for curve in wanted:
                points = self.curves[curve]
                points["x"].append(threads)
                for kind, way in WAYS.items():
                    points[way].append(median(getattr(each, curve) for each in served[kind]))

    def recoveries(self) -> Iterator[Figure]:
        """Restarts with more and more sandboxes."""
        if os.geteuid() != 0:
            print("not root: no network namespaces, no open + reconcile", file=sys.stderr)
            return
        counts = (1000, MANY) if self._quick else (1000, 2000, 5000, MANY, 20_000, 50_000)
        curve: dict[str, list[float]] = {"x": [], "ours": [], "plain sqlite3": []}
        with recovery.host(self._folder) as found:
            for count in counts:
                rounds = self._rounds if count <= MANY else 3
                goal = "at most 3" if count == MANY else ""
                figure = recovery.measure(self._folder, found, count, rounds, goal)
                for way, value in zip(curve, (count, figure.ours, figure.reference), strict=True):
                    curve[way].append(value)
                yield figure
        if not self._quick:
            self.curves["recovery"] = curve


def machine() -> dict[str, object]:
    """Return where it was measured, and with what."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(": ")[2].strip() for line in file if line.startswith("model name")]
    findmnt = ["findmnt", "-n", "-o", "FSTYPE", "-T", "."]
    found = subprocess.run(findmnt, check=False, capture_output=True, text=True)
    return {
        "cpus": f"{os.cpu_count()} x {models[0] if models else platform.machine()}",
        "kernel": platform.release(),
        "file system": found.stdout.strip(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


def draw(folder: str, curves: dict[str, dict[str, list[float]]]) -> None:
    """Draw what `docs/performance.md` shows."""
    for name, title, x, y in (
        ("throughput", "status.update, threads of one process", "threads", "updates per second"),
        ("slowest", "the slowest call (median over the writers)", "threads", "ms"),
        ("recovery", "open + reconcile", "sandboxes", "ms"),
    ):
        points = dict(curves[name])
        values = [int(each) for each in points.pop("x")]
        plots.draw(f"{folder}/{name}.svg", title, (x, values), y, points)


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="in less than two minutes")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--folder", metavar="DIR", default=".", help="on which file system")
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="bench-", dir=os.path.abspath(options.folder))
    bench, figures = Bench(folder, quick=options.quick), []
    try:
        print(HEAD)
        for figure in bench.run():
            print(figure, flush=True)
            figures.append(asdict(figure))
    finally:
        shutil.rmtree(folder)
    written = {"machine": machine(), "figures": figures, "curves": bench.curves}
    if options.json:
        _write(options.json, json.dumps(written, indent=1))
    if not options.quick:
        os.makedirs(RESULTS, exist_ok=True)
        draw(RESULTS, bench.curves)
        _write(f"{RESULTS}/figures.json", json.dumps(written, indent=1) + "\n")
        with open(DOCUMENT, encoding="utf-8") as file:
            document = file.read()
        _write(DOCUMENT, report.replace_table(document, written))


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main()
