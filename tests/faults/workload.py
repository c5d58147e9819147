"""Workload of a shim, in steps that are acknowledged, and the registry that must result.

It runs as a server, which forks a child for each run, so that a thousand runs need one import.
`possible` compares the output of a child with the contents of the file.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from registry import Metadata, RegistryError, State, Status, Store
from registry.engine import driver, wal
from registry.maintenance import restore as maintenance
from tests.tools import pod

Model = dict[str, list[str]]
"""State, message and ip of each sandbox."""

COPY: Final = "-copy"
"""Added to the path of a registry: the path of its backup."""
KEPT: Final = ".replaced"
"""Added to the path of a registry, before a number: the path of what a restore replaces."""
UNSURE: Final = ("CommitUnknownError", "DataLossError")
"""Errors that leave open whether the change is there; the store writes no more."""


class TakenBackError(Exception):
    """Raised inside a transaction that is to be rolled back."""


@dataclass(frozen=True)
class Step:
    """Step of a shim, and its effect on a model."""

    name: str
    do: Callable[[Store], object]
    change: Callable[[Model], object] = lambda _: None


def _add(id: str, state: State, size: int = 0) -> Step:
    metadata = Metadata(id, f"name-{id}", pod(id, app="x", filler="x" * size))
    return Step(
        f"add-{id}",
        lambda store: store.add(metadata, Status(state)),
        lambda model: model.update({id: [str(state), "", ""]}),
    )


def _update(id: str, state: State, message: str) -> Step:
    def do(store: Store) -> None:
        handle = store.get(id, include_unknown=True)
        handle.status.update(lambda old: replace(old, state=state, message=message))

    def change(model: Model) -> None:
        model[id] = [str(state), message, model[id][2]]

    return Step(f"update-{id}-{message}", do, change)


def _complete(store: Store) -> None:
    store.update_metadata("a", lambda old: replace(old, ip="10.0.0.1"))


def _nested(store: Store) -> None:
    with store.transaction():
        _add("b", State.READY).do(store)
        with contextlib.suppress(TakenBackError), store.transaction():
            _add("c", State.READY).do(store)
            raise TakenBackError
        _update("a", State.READY, "nested").do(store)


def _nested_model(model: Model) -> None:
    model["b"] = ["SANDBOX_READY", "", ""]
    model["a"][1] = "nested"


def _taken_back(store: Store) -> None:
    with contextlib.suppress(TakenBackError), store.transaction():
        store.delete("a")
        raise TakenBackError


def _read(store: Store) -> None:
    store.get("a").status.get()
    store.list(include_unknown=True)
    store.history()


STEPS: Final = (
    _add("a", State.UNKNOWN),
    Step("complete-a", _complete, lambda model: model["a"].__setitem__(2, "10.0.0.1")),
    _update("a", State.READY, "ready"),
    Step("nested", _nested, _nested_model),
    Step("taken-back", _taken_back),
    _add("d", State.READY, 12_000),  # pages enough for a checkpoint
    Step("delete-b", lambda store: store.delete("b"), lambda model: model.pop("b")),
    _update("a", State.NOTREADY, "stopped"),
    Step("read", _read),
    Step("reconcile", lambda store: store.reconcile()),
    _add("e", State.READY, 30_000),  # a WAL that is past its bound
    Step("delete-d", lambda store: store.delete("d"), lambda model: model.pop("d")),
    Step("close", lambda store: store.close()),
    _add("f", State.READY),
    Step("close", lambda store: store.close()),
    _update("f", State.READY, "longer"),
    _update("f", State.READY, "ahead"),  # after a preallocation, since the WAL has just grown
    _update("f", State.READY, "within"),
    Step("close", lambda store: store.close()),
)
"""The registry is opened before the first, and again after each `close`."""


def possible(said: Iterable[str], *, killed: bool) -> list[Model]:
    """Return what may be in the file of a workload that has *said* so.

    Args:
        said: its lines.
        killed: whether the step that it was in, if it was in one, may have been done or not.
    """
    steps = {step.name: step for step in STEPS if step.name != "close"}
    models: list[Model] = [{}]
    begun = ""
    for line in said:
        verb, name, *rest = line.split()
        changed = [_changed(steps[name], model) for model in models] if name in steps else models
        if verb == "done":
            models = changed
        elif verb == "error" and rest[0] in UNSURE:
            models = models + changed
        begun = name if verb == "begin" else ""
    if begun in steps and killed:
        models = models + [_changed(steps[begun], model) for model in models]
    return models


def _changed(step: Step, model: Model) -> Model:
    copy = {id: list(fields) for id, fields in model.items()}
    with contextlib.suppress(KeyError):  # an earlier step was refused, so this one was too
        step.change(copy)
    return copy


# In the child.


def work(path: str) -> None:
    """Do all steps, saying `begin STEP` and then `done STEP` or `error STEP CLASS MESSAGE`.

    A step that raised is tried once more: the fault is over, so the second try must succeed. If a
    lock was left, or the outcome is unknown, the store is opened again before it.
    """
    vars(driver).update(WAL_PAGES=8, WAL_MAX=20 * 4096)
    vars(wal).update(AHEAD=6 * 4120)
    stores: list[Store] = []

    def open_it() -> None:
        stores.append(Store.open(path, timeout=0.1))

    for step in STEPS:
        for _ in range(2):
            if not stores and _said("open", open_it) != "done" != _said("open", open_it):
                return
            outcome = _said(step.name, partial(step.do, stores[-1]))
            if outcome in {*UNSURE, "UnavailableError"}:
                stores.pop().close()
            if outcome in {"done", *UNSURE}:
                break
        if step.name == "close":
            stores.clear()


def upgrade(path: str) -> None:
    """Open a registry of an older revision, and once more if that raised; say so as `work` does."""

    def open_and_close() -> None:
        Store.open(path, reconcile=False, timeout=0.1).close()

    if _said("upgrade", open_and_close) != "done":
        _said("upgrade", open_and_close)


def backup(path: str) -> None:
    """Back a registry up beside it, and once more if that raised; say so as `work` does."""

    def back_up() -> None:
        with Store.open(path, reconcile=False, timeout=0.1) as store:
            store.backup(path + COPY)

    if _said("backup", back_up) != "done":
        _said("backup", back_up)


def restore(path: str) -> None:
    """Restore the backup beside a registry, and once more if that raised; say so as `work` does."""
    vars(maintenance).update(path_to_keep=_path_to_keep)  # without the time, so that it is traced

    def put_in_place() -> None:
        maintenance.restore(path + COPY, path, force=True)

    if _said("restore", put_in_place) != "done":
        _said("restore", put_in_place)


def _path_to_keep(path: str) -> str:
    return next(f"{path}{KEPT}{n}" for n in range(9) if not os.path.lexists(f"{path}{KEPT}{n}"))


VERBS: Final = {
    "work": work,
    "careless": work,
    "upgrade": upgrade,
    "backup": backup,
    "restore": restore,
}
"""Workloads by what the server is asked for."""


def _said(name: str, do: Callable[[], object]) -> str:
    """Do it, say what came of it, and return `done` or the name of the error."""
    say(f"begin {name}")
    try:
        do()
    except Exception as error:
        kind = "error" if isinstance(error, RegistryError) else "raw"
        say(f"{kind} {name} {type(error).__name__} {json.dumps(str(error))}")
        return type(error).__name__
    say(f"done {name}")
    return "done"


def verify(path: str) -> dict[str, Any]:
    """Return what is in the registry at *path*, and every violation."""
    with Store.open(path, reconcile=False) as store:
        return {
            "sandboxes": {
                each.id: [str(each.status_as_read.state), each.status_as_read.message, each.ip]
                for each in store.list(include_unknown=True)
            },
            "check": [str(violation) for violation in store.check()],
        }


def _synchronous_normal(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA synchronous = NORMAL")


def _verified(path: str) -> dict[str, Any]:
    try:
        return verify(path)
    except Exception as error:  # the caller shows it
        return {"error": repr(error)}


def say(text: str) -> None:
    """Write a line at once: who is killed loses none."""
    os.write(1, f"{text}\n".encode())


def serve(folder: str) -> None:
    """Fork a child for each line `VERB PATH`, and say its pid and how it ended.

    A child that is to run a workload stops first, so that strace can attach to it, and
    begins at SIGCONT. A `careless` child syncs none of its commits.
    """
    with Store.open(f"{folder}/first.db") as store:  # imports and caches what the first use does
        store.check()
        store.backup(f"{folder}/first-{os.getpid()}.db")
        importlib.import_module("alembic.command")
    while line := sys.stdin.readline():
        verb, path = line.split()
        child = os.fork()
        if child == 0:
            if verb == "verify":
                say(json.dumps(_verified(path)))
                os._exit(0)
            if verb == "careless":
                vars(driver).update(SETUP=(*driver.SETUP, _synchronous_normal))
            os.kill(os.getpid(), signal.SIGSTOP)
            VERBS[verb](path)
            os._exit(0)
        if verb != "verify":
            os.waitpid(child, os.WUNTRACED)
            say(f"pid {child}")
        _, status = os.waitpid(child, 0)
        say(f"ended {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    serve(sys.argv[1])
