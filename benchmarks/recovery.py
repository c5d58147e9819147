"""Opening a registry after a restart, which observes every namespace and process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager

from benchmarks import plain, samples
from benchmarks.measure import Figure, of_rounds, took
from registry import NetNS, State, Store

NAMESPACES = 20
"""Network namespaces and processes, which the sandboxes share by a symlink each."""
CLOSED_ONE_OF = 10
"""The namespace of one sandbox in so many is gone."""


@contextmanager
def host(folder: str) -> Iterator[list[tuple[str, int]]]:
    """Lend paths of network namespaces, and a process for each."""
    namespaces = [NetNS.create(f"{folder}/netns/ns-{n}") for n in range(NAMESPACES)]
    processes = [subprocess.Popen(["sleep", "infinity"]) for _ in namespaces]
    try:
        yield [(ns.path, process.pid) for ns, process in zip(namespaces, processes, strict=True)]
    finally:
        for namespace, process in zip(namespaces, processes, strict=True):
            process.send_signal(signal.SIGKILL)
            process.wait()
            namespace.remove()
        subprocess.run(["umount", f"{folder}/netns"], check=False, capture_output=True)


def fill(folder: str, found: list[tuple[str, int]], count: int) -> None:
    """Create `ours.db` and `plain.db` with *count* sandboxes, and remove some of the namespaces."""
    os.makedirs(f"{folder}/links")
    made = []
    for n in range(count):
        target, pid = found[n % len(found)]
        path = f"{folder}/links/{n}"
        os.symlink(target, path)
        made.append(samples.sandbox(n, netns_path=path, pid=pid))
    with Store.open(f"{folder}/ours.db", reconcile=False) as store, store.transaction():
        for each in made:
            store.add(*each)
    plain.create(f"{folder}/plain.db")
    with closing(plain.Plain(f"{folder}/plain.db")) as reference:
        reference.add(*made)
    for n in range(0, count, CLOSED_ONE_OF):
        os.unlink(f"{folder}/links/{n}")


def measure(
    folder: str, found: list[tuple[str, int]], count: int, rounds: int, goal: str
) -> Figure:
    """Return the figure of *count* sandboxes; each round opens a fresh copy of the files."""
    place = f"{folder}/recovery-{count}"
    os.makedirs(place)
    fill(place, found, count)
    mine, theirs = [], []
    for _ in range(rounds):
        for kind in ("ours", "plain"):
            shutil.copyfile(f"{place}/{kind}.db", f"{place}/{kind}-copy.db")
        mine.append(took(lambda: recover(f"{place}/ours-copy.db", count)))
        theirs.append(took(lambda: recover_plainly(f"{place}/plain-copy.db", count)))
    shutil.rmtree(place)
    return of_rounds(f"open + reconcile, {count} sandboxes", mine, theirs, "ms", goal=goal)


def recover(path: str, count: int) -> None:
    """Open the registry at *path*, which reconciles it."""
    with Store.open(path) as store:
        assert store.recovery is not None
        changed = [finding for finding in store.recovery.findings if finding.changed]
        assert len(changed) == count // CLOSED_ONE_OF
        assert store.get(samples.name(0)).status_as_read.state is State.NOTREADY


def recover_plainly(path: str, count: int) -> None:
    """Do the same with plain sqlite3."""
    with closing(plain.Plain(path)) as reference:
        assert reference.recover() == count // CLOSED_ONE_OF
