"""Reads and writes of one registry, and their answers as plain values; run as a worker process.

The worker reads pickled requests from stdin, and writes a pickled answer to stdout for each. An
answer is `("value", plain value)`, `("error", class and message)` of an error of the package, or
`("raw", class and message)` of any other exception.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import resource
import sqlite3
import struct
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from functools import partial
from io import BytesIO, StringIO, TextIOWrapper
from typing import Any, BinaryIO, Final, NamedTuple

from registry import RegistryError, Sandbox, Store
from registry.cli import failures, program
from registry.errors import MetadataError, NotFoundError
from tests.damage.build import APPS

Answer = tuple[str, Any]
MEMORY: Final = 768 * 1024 * 1024
"""Bytes of data that a worker may have; a healthy one needs a tenth."""
STEPS: Final = 200_000_000
"""Steps of SQLite's virtual machine after which the plain integrity check is given up."""
MODES: Final = ("write", "read", "damaged")
"""Ways to open: by default, with read_only=True, and with damaged="read"."""
COMMANDS: Final = (
    *("list --all", "list --all --json", "inspect {id}", "inspect {id} --json", "history --json"),
    *("check --json", "export", "reconcile --dry-run --json"),
)
"""Commands that are run in mode `damaged`; they print all that can be shown."""
WRITTEN: Final = "WrittenByHarness"
"""Reason of the status that `write` writes."""


class Request(NamedTuple):
    """One opening of a copy."""

    path: str
    mode: str
    """One of MODES, or `plain` for SQLite's own integrity check."""
    ids: Sequence[str]
    """Ids to get; the first one is written in mode `write`."""


def handle(request: Request) -> dict[str, Answer]:
    """Return the answers by question; the answer to `open` alone when it fails."""
    if request.mode == "plain":
        return {"plain": ("value", integrity(request.path))}
    answers: dict[str, Answer] = {}
    options: dict[str, Any] = {"timeout": 1.0, "actor": "probe"}
    if request.mode == "read":
        options["read_only"] = True
    elif request.mode == "damaged":
        options["damaged"] = "read"
        answers |= {f"command {each}": ask(partial(command, request, each)) for each in COMMANDS}
    opened = ask(lambda: Store.open(request.path, **options))
    if opened[0] != "value":
        return answers | {"open": opened}
    store: Store = opened[1]
    answers["open"] = ("value", registry_id(store))
    try:
        answers |= read(store, request.ids)
        if request.mode == "write":
            answers["reconcile"] = ask(lambda: verdicts(store))
            answers["written"] = ask(lambda: write(store, request.ids[0]))
            answers["listed"] = ask(lambda: listed(store.list(include_unknown=True)))
    finally:
        answers["close"] = ask(store.close)
    if request.mode == "write":
        answers["after"] = ("value", integrity(request.path))
    return answers


def read(store: Store, ids: Sequence[str]) -> dict[str, Answer]:
    """Return the answers of all reads."""

    def found(**filters: Any) -> Callable[[], Any]:
        return lambda: [each.id for each in store.list(include_unknown=True, **filters)]

    questions: dict[str, Callable[[], Any]] = {
        "list": lambda: listed(store.list(include_unknown=True)),
        "history": lambda: [hashed(asdict(each)) for each in store.history()],
        "history of one": lambda: [hashed(asdict(each)) for each in store.history(ids[0])],
    }
    for app in APPS:
        questions[f"label {app}"] = found(labels={"app": app})
        questions[f"not label {app}"] = found(selector=f"app!={app}")
    for n in range(4):
        questions[f"namespace {n}"] = found(namespace=f"ns-{n}")
    questions["newest"] = found(newest_first=True, limit=5)
    questions["pod"] = found(pod="pod-5")
    questions["prefix"] = found(id=ids[0][:2])
    for id in ids:
        questions[f"get {id}"] = partial(got, store, id)
    answers = {name: ask(question) for name, question in questions.items()}
    answers["check"] = ask(lambda: len(store.check()))
    return answers


def got(store: Store, id: str) -> Any:
    """Return everything about one sandbox, or that there is none; a damaged part raises."""
    try:
        sandbox = store.get(id, include_unknown=True)
    except NotFoundError:
        return "not found"
    status = sandbox.status.get()
    extensions = {name: hashed(each) for name, each in sandbox.extensions.items()}
    return one(sandbox), hashed(status), extensions


def listed(sandboxes: Sequence[Sandbox]) -> list[Any]:
    """Return each sandbox as a value; None for one whose record cannot be read."""
    found: list[Any] = []
    for each in sandboxes:
        try:
            found.append(one(each))
        except MetadataError:
            found.append(None)
    return found


def one(sandbox: Sandbox) -> Any:
    """Return id, state and a hash of all other values of a sandbox."""
    status = sandbox.status_as_read
    metadata = sandbox.metadata.marshal_json()
    return sandbox.id, str(status.state), hashed((sandbox.name, status, metadata))


def hashed(value: object) -> str:
    """Return a short text that is equal for equal values."""
    return hashlib.sha256(repr(value).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def verdicts(store: Store) -> Any:
    """Reconcile, and return the number of sandboxes that it has marked."""
    return sum(each.changed for each in store.reconcile().findings)


def write(store: Store, id: str) -> Any:
    """Write the status of *id*, and return the sandbox."""
    sandbox = store.get(id, include_unknown=True)
    sandbox.status.update(lambda old: replace(old, reason=WRITTEN))
    return one(store.get(id, include_unknown=True))


def command(request: Request, words: str) -> int:
    """Run a command, and return its exit code, which must be a documented one."""
    out, err = TextIOWrapper(BytesIO(), encoding="utf-8"), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        args = words.format(id=request.ids[0]).split()
        code = program.main(["--db", request.path, *args])
    assert code in {failures.FINE, failures.FOUND, failures.UNAVAILABLE}, err.getvalue()
    assert "Traceback" not in err.getvalue(), err.getvalue()
    text = out.buffer.getvalue().decode()
    if "--json" in words and text:
        json.loads(text)
    return code


def registry_id(store: Store) -> str:
    """Return the id of the registry."""
    return store.new_netns_path().split("-")[1]


def ask(question: Callable[[], Any]) -> Answer:
    """Return the answer to *question*."""
    try:
        return "value", question()
    except RegistryError as error:
        return "error", f"{type(error).__name__}: {error}"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "raw", f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"


def integrity(path: str) -> str:
    """Return the first line of SQLite's integrity check, or the error that it ends with."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=1)) as shell:
            shell.text_factory = lambda data: data.decode("utf-8", "replace")
            shell.set_progress_handler(lambda: 1, STEPS)
            ((line, *_), *_) = shell.execute("PRAGMA integrity_check(1)")
            return str(line)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        return f"{type(error).__name__}: {error}"


def receive(stream: BinaryIO) -> Any:
    """Return the next object in *stream*."""
    head = stream.read(4)
    return pickle.loads(stream.read(struct.unpack(">I", head)[0])) if len(head) == 4 else None


def send(stream: BinaryIO, value: object) -> None:
    """Write *value* to *stream*."""
    data = pickle.dumps(value)
    stream.write(struct.pack(">I", len(data)) + data)
    stream.flush()


def main() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    logging.disable()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while (request := receive(sys.stdin.buffer)) is not None:
        send(answers, handle(request))


if __name__ == "__main__":
    main()
