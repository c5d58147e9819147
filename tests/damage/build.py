"""Registries that are damaged later: closed, with a hot WAL, and large; run as a program.

    python -m tests.damage.build FOLDER PID

The program ends itself by SIGKILL, so that `hot` is what a killed process leaves. All sandboxes
belong to the process PID: a reconcile changes none while that process lives.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import Final

from registry import Extension, Metadata, State, Status, Store
from tests.tools import pod

APPS: Final = ("web", "db", "cache")
COMMITS: Final = 10
"""Commits before the copy `early`, and again after it."""


def open_store(folder: str) -> Store:
    """Open the registry in *folder*, with a clock that is the same in each run."""
    os.makedirs(folder, exist_ok=True)
    ticks = itertools.count(1_700_000_000_000_000_000, 1_000_000_000)
    path = f"{folder}/registry.db"
    return Store.open(path, reconcile=False, actor="damage", clock=lambda: next(ticks))


def id_of(n: int) -> str:
    """Return the id of sandbox *n*."""
    return hashlib.sha256(b"%d" % n).hexdigest()


def add(store: Store, n: int, pid: int, *, long_name: bool = False) -> None:
    """Add sandbox *n*: of some states, with labels, and some with long values."""
    config = pod(f"pod-{n}", f"ns-{n % 4}", app=APPS[n % 3], number=str(n))
    if n % 5 == 0:
        config.annotations["long"] = hashlib.sha256(b"%d" % n).hexdigest() * (100 + n % 200)
    name = f"pod-{n}_ns-{n % 4}_uid-{n}_0"
    metadata = Metadata(
        id=id_of(n),
        name=name + "-" + "n" * (700 + n % 100) if long_name else name,
        config=config,
        ip=f"10.88.{n // 200}.{n % 200}",
        additional_ips=("fd00::1",) if n % 6 == 0 else None,
    )
    status = Status(State.READY, pid=pid, created_at=1_600_000_000_000_000_000 + n)
    if n % 7 == 0:
        ended = Status(State.NOTREADY, 0, 1, 2, 137, reason="Killed", message=f"n {n}")
        status = replace(ended, created_at=status.created_at)
    sandbox = store.add(metadata, Status(State.UNKNOWN) if n % 11 == 0 else status, creator=pid)
    if n % 4 == 0:
        value = hashlib.sha256(b"x%d" % n).digest() * (30 * (n % 20 + 1))
        sandbox.extensions.update(lambda _: {"cni": Extension("type/cni", value), "small": b"s"})


def fill(folder: str, count: int, pid: int, *, first: int = 0, long_names: bool = False) -> None:
    """Make a closed registry of *count* sandboxes, with a history and with free pages."""
    with open_store(folder) as store:
        with store.transaction():
            for n in range(first, first + count + count // 4):
                add(store, n, pid, long_name=long_names)
        with store.transaction():
            for n in range(first + count, first + count + count // 4):
                store.delete(id_of(n))
        for n in range(first, first + 6):
            change(store, n)


def change(store: Store, n: int) -> None:
    """Commit a change of the status of sandbox *n*."""
    message = f"changed {n}"
    sandbox = store.get(id_of(n), include_unknown=True)
    sandbox.status.update(lambda old: replace(old, message=message))


def copy(folder: str, to: str) -> None:
    """Copy a registry that is open here, by another process: a close drops SQLite's locks."""
    subprocess.run(["cp", "-a", folder, to], check=True)


def main(folder: str, pid: int) -> None:
    """Make all registries in *folder*."""
    fill(f"{folder}/closed", 40, pid)
    fill(f"{folder}/large", 160, pid, long_names=True)
    fill(f"{folder}/other", 40, pid, first=1000)
    copy(f"{folder}/closed", f"{folder}/hot")
    copy(f"{folder}/other", f"{folder}/other_hot")
    strange = open_store(f"{folder}/other_hot")
    for n in range(1000, 1005):
        change(strange, n)
    store = open_store(f"{folder}/hot")
    for name in ("early", "later"):
        for n in range(COMMITS):
            commit(store, n + (COMMITS if name == "later" else 0), pid)
        copy(f"{folder}/hot", f"{folder}/{name}")
    with open_store(f"{folder}/later"):
        pass  # the close moves the WAL into the database
    os.kill(os.getpid(), signal.SIGKILL)


def commit(store: Store, n: int, pid: int) -> None:
    """Commit the change number *n* of the hot registry."""
    if n % 4 == 3:
        add(store, 100 + n, pid)
    elif n % 4 == 2:
        store.delete(id_of(n + 20))
    else:
        change(store, n)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
