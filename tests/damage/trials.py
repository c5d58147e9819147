"""Trials: each seed damages copies of a registry, which a worker then opens, reads and writes.

The truth is what the whole registry answers. For a registry with a WAL it is also what the registry
answered after each commit, since a WAL that was cut or lost leaves an older state.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from typing import Final, NamedTuple

from tests.damage import kinds
from tests.damage.build import id_of
from tests.damage.kinds import FRAME, WAL_HEADER, Target
from tests.damage.layout import Layout
from tests.damage.outcomes import Outcome, State, changes, classify, contents
from tests.damage.probe import MODES, Request
from tests.damage.worker import Worker
from tests.tools import ROOT, environment

IDS: Final = tuple(id_of(n) for n in (1, *range(0, 50, 3), 103, 107, 111, 159))
"""Ids to get; some do not exist. The first is READY in every registry."""


class Trial(NamedTuple):
    """Outcome of one opening of one damaged copy."""

    seed: int
    kind: str
    variant: str
    place: str
    mode: str
    outcome: Outcome
    why: str
    plain: str
    """First line of SQLite's integrity check of the copy."""
    opened: bool

    def __str__(self) -> str:
        """Return one line for the output of a run."""
        what = f"seed {self.seed}, {self.kind} of {self.variant} ({self.place}), {self.mode}"
        return f"{what}: {self.outcome}: {self.why} [{self.plain!r}]"


class Registries:
    """Whole registries, made once, and the truth about each."""

    def __init__(self, folder: str) -> None:
        """Make them in *folder*; they belong to this process."""
        self.folder = folder
        command = [sys.executable, "-m", "tests.damage.build", folder, str(os.getpid())]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
        )
        assert -signal.SIGKILL == done.returncode, done.stderr
        self.worker = Worker()
        self.layouts = {name: self._layout(name) for name in ("closed", "hot", "large", "later")}

    def _layout(self, name: str) -> Layout:
        """Return the layout of the database file, without its WAL."""
        scratch = f"{self.folder}/scratch.db"
        shutil.copy(f"{self.folder}/{name}/registry.db", scratch)
        with closing(sqlite3.connect(scratch)) as shell:
            query = "SELECT rootpage FROM sqlite_master WHERE rootpage > 0"
            roots = [root for (root,) in shell.execute(query)]
        with open(scratch, "rb") as file:
            return Layout(file.read(), roots)

    @cached_property
    def truths(self) -> dict[str, list[State]]:
        """Answers of each registry, the newest first, by its name."""
        newest = {name: [self._state(name)] for name in ("closed", "large", "later", "other")}
        wals = {name: list(self._older(name)) for name in ("hot", "other_hot")}
        newest["hot"] = [*wals["hot"], *newest["closed"]]
        newest["later"] += newest["hot"]
        newest["other"] += wals["other_hot"]
        return newest

    def _older(self, name: str) -> Iterator[State]:
        """Yield the state after each commit in the WAL, the newest first."""
        with open(f"{self.folder}/{name}/registry.db-wal", "rb") as file:
            wal = file.read()
        ends = [
            at + FRAME
            for at in range(WAL_HEADER, len(wal) - FRAME + 1, FRAME)
            if wal[at + 8 : at + 16] == wal[16:24] and any(wal[at + 4 : at + 8])
        ]
        for end in reversed(ends):
            yield self._state(name, wal=wal[:end])

    def _state(self, name: str, wal: bytes | None = None) -> State:
        """Return what the registry *name* answers, with another WAL if given."""
        with self.copy(name) as folder:
            if wal is not None:
                os.unlink(f"{folder}/registry.db-shm")
                with open(f"{folder}/registry.db-wal", "wb") as file:
                    file.write(wal)
            found = self.worker.ask(Request(f"{folder}/registry.db", "read", IDS))
        assert not isinstance(found, str), found
        return found

    @contextmanager
    def copy(self, name: str) -> Iterator[str]:
        """Lend a copy of the folder of the registry *name*."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            to = f"{folder}/copy"
            shutil.copytree(f"{self.folder}/{name}", to)
            yield to

    def close(self) -> None:
        """End the worker."""
        self.worker.close()


def run(registries: Registries, seed: int, ways: Sequence[str] = MODES) -> Iterator[Trial]:
    """Damage copies by *seed*, and yield a trial for each way to open them."""
    plain = ""
    for mode in ("plain", *ways):
        chance, kind, variant = kinds.choose(seed)
        with registries.copy(variant) as folder:
            layout = registries.layouts[variant]
            place = kind.make(Target(chance, folder, layout, registries.folder))
            before = contents(folder)
            found = registries.worker.ask(Request(f"{folder}/registry.db", mode, IDS))
            after = contents(folder)
        if mode == "plain":
            plain = found if isinstance(found, str) else found["plain"][1]
            continue
        truths = [*registries.truths[variant], *_others(registries, kind.name)]
        opened = not isinstance(found, str) and found["open"][0] == "value"
        outcome, why = classify(found, truths, plain, mode, changes(before, after))
        yield Trial(seed, kind.name, variant, place, mode, outcome, why, plain, opened)


def _others(registries: Registries, kind: str) -> list[State]:
    """Return the states of the other registry that a kind has put in the place of this one."""
    return registries.truths["other"] + registries.truths["later"] if "older_file" in kind else []


def table(trials: Sequence[Trial]) -> str:
    """Return the counts of the outcomes by the way of opening."""
    lines = [_line("outcome", MODES)]
    for outcome in Outcome:
        counts = [sum((x.mode, x.outcome) == (mode, outcome) for x in trials) for mode in MODES]
        lines.append(_line(outcome, counts))
    told = [each for each in trials if each.opened and each.plain != "ok"]
    opened = [sum(each.mode == mode for each in told) for mode in MODES]
    return "\n".join([*lines, _line("(opened although integrity_check tells)", opened)])


def _line(title: str, cells: Sequence[object]) -> str:
    return f"{title:48}" + "".join(f"{cell:>9}" for cell in cells)
