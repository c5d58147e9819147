"""Processes run all operations at once and are killed at random, for a given time.

Their notes are compared with the history of the registry, which is one order of all changes. Every
acknowledged write is in it once, and no refused write is. A killed process has left each change
whole or absent. Each UpdateFunc was called with the status right before its own change. No change
precedes another that had ended when it began. So the history of each status is linearizable.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry import Store, Transition
from tests.tools import environment, line, say, sqlite_shell

PROCESSES = 8
INFINITE = float("inf")
SECONDS = float(os.environ.get("CHURN_SECONDS", "5"))


@dataclass
class Noted:
    """Notes of the workers on each operation: its begin, its end, its result."""

    begun: dict[str, dict[str, Any]] = field(default_factory=dict)
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)

    def read(self, log: Path) -> None:
        """Take in the log of a worker, whose last line may be cut off by its end."""
        for text in log.read_text().splitlines():
            entry = json.loads(text)
            for kind in ("begun", "ended", "failed"):
                if kind in entry:
                    getattr(self, kind)[entry[kind]] = entry


@contextmanager
def beside(*doings: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run each of *doings* in a thread until its event is set; what they raise is raised."""
    over, errors = threading.Event(), []

    def run(do: Callable[[threading.Event], None]) -> None:
        try:
            do(over)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(do,)) for do in doings]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert [] == errors


class Stranger:
    """An operator with the `sqlite3` shell, who looks all the time and writes now and then."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.looks = self.writes = 0
        self.wrong: list[str] = []

    def __call__(self, over: threading.Event) -> None:
        while not over.is_set():
            self._shell("SELECT count(*), max(changed_at) FROM sandbox_overview;")
            self._shell("SELECT id, reason, since FROM why_not_ready;")
            self.looks += 2
            if self.looks % 10 == 0:
                self._shell(
                    "UPDATE sandbox_statuses SET state = 'SANDBOX_NOTREADY', reason = 'Operator',"
                    f" message = 'operator-{self.looks}' WHERE sandbox_id ="
                    " (SELECT min(id) FROM sandbox_overview WHERE state = 'SANDBOX_READY');"
                )
                self.writes += 1

    def _shell(self, sql: str) -> None:
        try:
            sqlite_shell(self._path, sql)
        except subprocess.CalledProcessError as error:
            self.wrong.append(f"{sql}: {error.stderr}")


class Historian:
    """One who follows the history, of which the file keeps only so much."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.transitions: list[Transition] = []

    def __call__(self, over: threading.Event) -> None:
        with Store.open(self._path, read_only=True) as store:
            while not over.wait(0.5):
                self.follow(store)

    def follow(self, store: Store) -> None:
        """Take in what is new."""
        last = self.transitions[-1].seq if self.transitions else 0
        self.transitions += store.history(after=last)


def reader(path: str, offset: float) -> Callable[[threading.Event], None]:
    """Return a reader that keeps a snapshot for a while, so that two of them always overlap."""

    def read(over: threading.Event) -> None:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
            over.wait(offset)
            while not over.is_set():
                connection.execute("BEGIN")
                connection.execute("SELECT count(*) FROM sandboxes").fetchone()
                over.wait(0.2)
                connection.execute("COMMIT")

    return read


def largest_wal(path: str, sizes: list[int]) -> Callable[[threading.Event], None]:
    """Return a function that records the size of the WAL until an event is set."""

    def watch(over: threading.Event) -> None:
        while not over.wait(0.05):
            sizes.append(os.stat(f"{path}-wal").st_size if os.path.exists(f"{path}-wal") else 0)

    return watch


def acknowledged(folder: Path) -> int:
    """Return how many calls the logs of the workers call ended."""
    return sum(log.read_bytes().count(b'"ended"') for log in folder.glob("log-*"))


def churn(path: str, folder: Path, chance: random.Random) -> tuple[int, int]:
    """Let workers come and go, and return how many there were, and how many were killed.

    For SECONDS, and on a slow machine for longer, until there is something to compare.
    """
    command = [sys.executable, "-m", "tests.faults.churn", str(folder)]
    server = subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    living: list[int] = []
    started = killed = 0
    end = time.monotonic() + SECONDS
    try:
        while time.monotonic() < end or acknowledged(folder) < 100:
            while len(living) < PROCESSES:
                started += 1
                say(server, f"{path} {folder}/log-{started} {chance.getrandbits(32)}")
                living.append(int(line(server)))
            time.sleep(chance.uniform(0.01, 0.15))
            os.kill(living.pop(chance.randrange(PROCESSES)), signal.SIGKILL)
            killed += 1
    finally:
        for pid in living:
            os.kill(pid, signal.SIGKILL)
        while living and any(os.path.exists(f"/proc/{pid}") for pid in living):
            time.sleep(0.01)
        server.kill()
        server.communicate()
    return started, killed + len(living)


Span = tuple[float, float]
"""When something began and ended; it may have been at any moment between."""


def wrong_in(noted: Noted, history: list[Transition]) -> list[str]:
    """Return where what was noted and the history disagree."""
    wrong = [f"{each}" for each in noted.failed.values() if each.get("wrong")]
    wrong += [
        f"check found {violation}"
        for key, each in noted.ended.items()
        if noted.begun[key]["what"] == "check"
        for violation in each["result"]
        # On a machine that is busy with other things our readers keep a snapshot for long.
        if not violation.startswith("wal_can_be_reset")
    ]
    written = Counter(
        each.message for each in history if each.event != "deleted" and each.message[:1] == "p"
    )
    wrong += [f"{times} times there: {token}" for token, times in written.items() if times > 1]
    spans: dict[str, Span] = {}
    for key, begun in noted.begun.items():
        tokens = [token for token in begun["writes"] if token in written]
        ended = noted.ended.get(key)
        if ended is not None and len(tokens) != len(begun["writes"]):
            wrong.append(f"acknowledged and not there: {begun}")
        if (key in noted.failed and tokens) or begun["never"] in written:
            wrong.append(f"refused and there: {begun}")
        if ended is None and tokens and len(tokens) != len(begun["writes"]):
            wrong.append(f"half there: {begun}")
        for token in tokens:
            spans[token] = (begun["at"], INFINITE if ended is None else ended["at"])
    deletions = _deletions(noted)
    wrong += _out_of_order(history, spans, deletions) + _unseen(noted, history)
    return wrong + _undeleted(noted, history) + _stale(noted, history, spans, deletions)


def _deletions(noted: Noted) -> dict[str, Span]:
    """Return the time of each deletion that was acknowledged."""
    return {
        noted.begun[key]["of"]: (noted.begun[key]["at"], ended["at"])
        for key, ended in noted.ended.items()
        if noted.begun[key]["what"] == "delete" and ended["result"]
    }


def _undeleted(noted: Noted, history: list[Transition]) -> list[str]:
    """Return the sandboxes that a worker took for deleted and that were not."""
    deleted = {each.sandbox_id for each in history if each.event == "deleted"}
    found = {
        key: noted.begun[key] for key, ended in noted.ended.items() if ended["result"] is False
    }
    found |= {
        key: noted.begun[key]
        for key, failed in noted.failed.items()
        if failed["error"] == "NotFoundError"
    }
    told = [*_deletions(noted), *(each["of"] for each in found.values() if each["of"])]
    return [f"{id} was not deleted, as a worker read" for id in told if id not in deleted]


def _out_of_order(
    history: list[Transition], spans: dict[str, Span], deletions: dict[str, Span]
) -> list[str]:
    """Return what stands behind something that began only after it had ended."""
    wrong, latest = [], 0.0
    for each in history:
        # The message of a deletion is that of the write before.
        known = deletions.get(each.sandbox_id) if each.event == "deleted" else None
        begun, ended = known or (0.0, INFINITE)
        if each.event != "deleted":
            begun, ended = spans.get(each.message, (0.0, INFINITE))
        if ended < latest:
            wrong.append(f"out of order: {each}")
        latest = max(latest, begun)
    return wrong


def _unseen(noted: Noted, history: list[Transition]) -> list[str]:
    """Return what an UpdateFunc saw that did not stand right before what it made."""
    before, previous = dict[str, str](), dict[str, str]()
    for transition in history:
        if transition.event == "changed":
            previous[transition.message] = before[transition.sandbox_id]
        before[transition.sandbox_id] = transition.message
    return [
        f"{token} saw {seen}, and {previous[token]} was before it"
        for key, ended in noted.ended.items()
        if noted.begun[key]["what"] in {"flip", "transact"}
        for token, seen in ended["result"].items()
        if token in previous and previous[token] != seen
    ]


def _stale(
    noted: Noted,
    history: list[Transition],
    spans: dict[str, Span],
    deletions: dict[str, Span],
) -> list[str]:
    """Return what was read that was not there yet, or that had been overwritten or deleted."""
    never = (0.0, INFINITE)
    written: dict[tuple[str, str], list[Span]] = {}
    last: dict[str, tuple[str, str]] = {}
    for each in history:
        gone = each.event == "deleted"
        span = deletions.get(each.sandbox_id, never) if gone else spans.get(each.message, never)
        if each.sandbox_id in last:
            written[last[each.sandbox_id]].append(span)
        if not gone:
            last[each.sandbox_id] = (each.sandbox_id, each.message)
            written[last[each.sandbox_id]] = [span]
    wrong = []
    for name, ended in noted.ended.items():
        begun = noted.begun[name]
        if begun["what"] != "read":
            continue
        found = written.get((begun["of"], ended["result"]))
        if found is None or found[0][0] > ended["at"]:
            wrong.append(f"read {ended}, which no worker had written")
        elif len(found) > 1 and found[1][1] < begun["at"]:
            wrong.append(f"read {ended}, which was overwritten before {begun}")
    return wrong


def test_processes_that_come_and_go_agree_on_what_happened(
    tmp_path: Path, tried: Callable[[str], None]
) -> None:
    """Beside a stranger with a shell, and two readers of whom one is always there."""
    seed = int(os.environ.get("CHURN_SEED", str(time.time_ns())))
    path, logs = f"{tmp_path}/churn/registry.db", tmp_path / "logs"
    logs.mkdir()
    Store.open(path).close()
    stranger, historian, sizes = Stranger(path), Historian(path), list[int]()
    readers = (reader(path, 0.0), reader(path, 0.1))
    with beside(stranger, historian, *readers, largest_wal(path, sizes)):
        started, killed = churn(path, logs, random.Random(seed))
    noted = Noted()
    for log in logs.glob("log-*"):
        noted.read(log)
    with Store.open(path, reconcile=False) as store:
        assert [] == store.check()
        historian.follow(store)
        history = historian.transitions
        assert [each.seq for each in history] == list(range(1, len(history) + 1))
        last = {each.sandbox_id: each for each in history}
        left = {id: each.message for id, each in last.items() if each.event != "deleted"}
        assert left == {
            each.id: each.status_as_read.message for each in store.list(include_unknown=True)
        }
    wrong = wrong_in(noted, history)
    assert [] == wrong + stranger.wrong, f"CHURN_SEED={seed}\n" + "\n".join(wrong[:20])
    kept = ("", "-lock", "-queue", "-reserve", "-spare")
    assert {f"registry.db{suffix}" for suffix in kept} == set(os.listdir(tmp_path / "churn"))
    tried(
        f"churn: {SECONDS:g} s, {started} processes, {killed} killed, {len(noted.ended)} calls "
        f"acknowledged, {len(history)} transitions, {stranger.looks} looks and {stranger.writes} "
        f"writes of a shell, WAL at most {max(sizes)} bytes (CHURN_SEED={seed})"
    )


def transition(seq: int, event: str, message: str) -> Transition:
    """Return one of sandbox `a`, in which only these fields matter."""
    return Transition(seq, "a", "", "", "", "", event, None, None, 0, "", message, "", "", seq)


def once(what: str, writes: list[str], result: Any, of: str = "a", never: str = "") -> Noted:
    """Return what a worker notes that did one thing, from moment 1 to 2."""
    begun = {"at": 1, "what": what, "of": of, "writes": writes, "never": never}
    return Noted({"k": begun}, {"k": {"at": 2, "result": result}})


def test_an_impossible_history_is_found() -> None:
    """A write that is lost or came back, something old that was read or seen, another order."""
    history = [transition(1, "created", "p1"), transition(2, "changed", "p2")]

    def words(*each: Noted, then: list[Transition] = []) -> str:  # noqa: B006 - it is only read
        both = Noted()
        for n, noted in enumerate(each):
            for kind in ("begun", "ended", "failed"):
                found = getattr(noted, kind)
                getattr(both, kind).update({f"{key}{n}": found[key] for key in found})
        return "\n".join(wrong_in(both, history + then))

    def later(noted: Noted) -> Noted:
        for entry in (noted.begun["k"], noted.ended["k"]):
            entry["at"] += 10
        return noted

    flip, deleted = once("flip", ["p2"], {"p2": "p1"}), [transition(3, "deleted", "p2")]
    delete, read = once("delete", [], result=True), later(once("read", [], "p2"))
    assert "" == words(flip) == words(flip, read) == words(delete, then=deleted)
    assert "acknowledged and not there" in words(once("add", ["p9"], None))
    assert "half there" in words(Noted(once("add", ["p1", "p9"], None).begun))
    assert "2 times there" in words(then=[transition(3, "changed", "p2")])
    assert "refused and there" in words(once("transact", [], {}, never="p2"))
    assert "refused and there" in words(Noted(flip.begun, {}, {"k": {"error": "X"}}))
    assert "p2 saw p0" in words(once("flip", ["p2"], {"p2": "p0"}))
    assert "no worker had written" in words(once("read", [], "p7"))
    assert "overwritten before" in words(flip, later(once("read", [], "p1")))
    assert "overwritten before" in words(delete, read, then=deleted)
    assert "out of order" in words(flip, later(once("add", ["p1"], None)))
    assert "was not deleted" in words(delete)
    assert "was not deleted" in words(once("delete", [], result=False))
    gone = Noted(once("flip", ["p9"], None).begun, {}, {"k": {"error": "NotFoundError"}})
    assert "was not deleted" in words(gone)
    assert "" == words(gone, then=deleted)
