"""Measures every row of docs/performance.md, as ratios to a reference of the same run.

    make bench                          the whole benchmark, about ten minutes; redraws the results
    make bench BENCH=--quick            less than three minutes; only prints
    python -m benchmarks --json FILE    writes the figures to FILE too

Rounds of ours and of the reference alternate, and so do single calls. A figure is the median of the
rounds, and its spread the least and the greatest. Absolute times are those of this machine.
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
    commands,
    counted,
    lists,
    mixed,
    orm,
    plain,
    plots,
    readers,
    recovery,
    report,
    samples,
    shim,
    starts,
    watching,
    writers,
)
from benchmarks.measure import HEAD, Call, Figure, single
from benchmarks.writers import Job, Served
from registry import Store

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RESULTS = f"{ROOT}/benchmarks/results"
DOCUMENT = f"{ROOT}/docs/performance.md"
MANY = 10_000
WARM = 1200
"""Calls after which the WAL is overwritten instead of growing."""
WAYS = {"ours": "ours", "plain": "plain sqlite3", "orm": "SQLAlchemy ORM"}


class Bench:
    """The rows and the curves, measured in one folder; *quick* measures fewer rounds of each."""

    def __init__(self, folder: str, *, quick: bool) -> None:
        """Fill the databases that the rows use."""
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
        yield from starts.measure(self._ours, self._plain, self._rounds)
        yield from commands.measure(self._folder, self._rounds)
        yield from self.as_root()
        yield from self.calls()
        yield from mixed.measure(self._folder, self._rounds, 1.0 if self._quick else 2.0)
        yield from readers.measure(self._folder, 3, 3.0 if self._quick else 6.0)
        yield from lists.measure(self._folder, self._rounds)
        yield from watching.measure(self._ours, 100 if self._quick else 500)
        yield from counted.measure(self._ours)
        if not self._quick:
            self.more_writers()

    def as_root(self) -> Iterator[Figure]:
        """Yield the rows that need network namespaces or pause processes."""
        if os.geteuid() != 0:
            print("not root: the rows of the shim and of reconcile are left out", file=sys.stderr)
            return
        yield from shim.measure(self._folder, self._rounds, calls=60 if self._quick else 300)
        yield from self.recoveries()

    def calls(self) -> Iterator[Figure]:
        """Yield the figures of single calls on a small registry."""
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
                    "status.update, 1 thread / plain sqlite3",
                    update,
                    lambda n: reference.update(id, str(n)),
                    lambda n: mapped.update(id, str(n)),
                    *("at most 1.6", calls, warm),
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

    def _serve(self, threads: int, kinds: tuple[str, ...], rounds: int) -> dict[str, list[Served]]:
        seconds = 1.0 if self._quick else 2.0
        served: dict[str, list[Served]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind in kinds:
                path = self._ours if kind == "ours" else self._plain
                served[kind].append(writers.run(Job(kind, path, threads, seconds), 1))
        return served

    def more_writers(self) -> None:
        """Measure the curves over the number of threads."""
        wanted = ("throughput", "slowest")
        for curve in wanted:
            self.curves[curve] = {"x": [], **{way: [] for way in WAYS.values()}}
        for threads in (1, 2, 4, 8, 16, 32):
            served = self._serve(threads, tuple(WAYS), 3)
            for curve in wanted:
                points = self.curves[curve]
                points["x"].append(threads)
                for kind, way in WAYS.items():
                    points[way].append(median(getattr(each, curve) for each in served[kind]))

    def recoveries(self) -> Iterator[Figure]:
        """Measure restarts with more and more sandboxes; yield the one that has a goal."""
        counts = (MANY,) if self._quick else (1000, 2000, 5000, MANY, 20_000, 50_000)
        curve: dict[str, list[float]] = {"x": [], "ours": [], "plain sqlite3": []}
        with recovery.host(self._folder) as found:
            for count in counts:
                rounds = self._rounds if count <= MANY else 3
                figure = recovery.measure(self._folder, found, count, rounds, "at most 2.7")
                values = (count, figure.ours, figure.reference or 0.0)
                for way, value in zip(curve, values, strict=True):
                    curve[way].append(value)
                if count == MANY:
                    yield figure
        if not self._quick:
            self.curves["recovery"] = curve


def machine() -> dict[str, object]:
    """Return processor, kernel, file system and versions of this run."""
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
    """Draw the pictures of `docs/performance.md`."""
    for name, title, x, y in (
        ("throughput", "status.update, threads of one process", "threads", "updates per second"),
        ("slowest", "slowest call of a thread, median over the threads", "threads", "ms"),
        ("recovery", "open + reconcile", "sandboxes", "ms"),
    ):
        points = dict(curves[name])
        values = [int(each) for each in points.pop("x")]
        plots.draw(f"{folder}/{name}.svg", title, (x, values), y, points)


def main() -> None:
    """Measure and print, and write the results of a full run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and only print")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument(
        "--folder", metavar="DIR", default=".", help="where the databases are created"
    )
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
