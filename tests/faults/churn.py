"""A process among many that do everything at once, and what it notes of each thing it did.

Runs as a server: it forks a worker for each line `PATH LOG SEED`, and says its pid and its end. A
worker goes on until it is killed. It appends to its log what it is about to do and what came of it,
each a line of JSON with the moment (ns, monotonic): `begun`, then `ended` or `failed`. Each write
has a token, which is the message of the status and so stands in the history; what is taken back has
one that is `never` to stand there.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from registry import Metadata, NotFoundError, Sandbox, State, Status, Store, StoreClosedError
from tests.tools import pod

THREADS: Final = 2
"""Of each process, which share their commits."""
KEPT: Final = 60
"""Sandboxes above which a worker rather deletes than adds."""


class TakenBackError(Exception):
    """Raised inside a transaction that is to be rolled back."""


class Worker:
    """One process with its store."""

    def __init__(self, path: str, log: str, seed: str) -> None:
        self._chance = random.Random(seed)
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._count = itertools.count()
        self._name = f"p{os.getpid()}-{seed}"
        self.store = self._noted("open", lambda: Store.open(path, actor=self._name))

    def run(self) -> None:
        """Do one thing after the other, in THREADS threads at once."""
        for _ in range(THREADS - 1):
            threading.Thread(target=self._run, kwargs={"forks": 0}, daemon=True).start()
        self._run(forks=2)

    def _run(self, forks: int) -> None:
        doings = {
            self.add: 10,
            self.flip: 40,
            self.read: 25,
            self.transact: 8,
            self.delete: 8,
            self.list: 5,
            self.reconcile: 1,
            self.check: 1,
            self.fork: forks,
        }
        while True:
            (do,) = self._chance.choices(list(doings), list(doings.values()))
            do()

    # What it does.

    def add(self) -> None:
        """Add a sandbox, unless there are many."""
        if len(self.store.list(include_unknown=True)) > KEPT:
            self.delete()
            return
        token = self._token()
        self._noted("add", lambda: self._add(token), writes=[token])

    def _add(self, token: str) -> None:
        state = self._chance.choice(list(State))
        metadata = Metadata(token, f"name-{token}", pod(token, app="x"))
        self.store.add(metadata, Status(state, message=token))

    def flip(self) -> None:
        """Change the state of a sandbox, also of one that another worker added."""
        handle, token = self._any(), self._token()
        if handle is not None:
            self._noted("flip", lambda: self._flip(handle, token), handle, writes=[token])

    def _flip(self, handle: Sandbox, token: str) -> dict[str, str]:
        seen = {}

        def fn(old: Status) -> Status:
            seen[token] = old.message
            other = State.NOTREADY if old.state is State.READY else State.READY
            return replace(old, state=other, message=token)

        handle.status.update(fn)
        return seen

    def read(self) -> None:
        """Read the status of one."""
        handle = self._any()
        if handle is not None:
            self._noted("read", lambda: handle.status.get().message, handle)

    def transact(self) -> None:
        """Do several things in one commit, or take them all back."""
        handles = {each.id: each for each in (self._any(), self._any()) if each is not None}
        tokens = [self._token() for _ in range(len(handles) + 1)]
        never = self._token()
        fails = self._chance.random() < 0.3

        def do() -> dict[str, str]:
            seen: dict[str, str] = {}
            with self.store.transaction():
                self._add(tokens[0])
                for handle, token in zip(handles.values(), tokens[1:], strict=True):
                    seen |= self._flip(handle, token)
                with contextlib.suppress(TakenBackError), self.store.transaction():
                    self._add(never)
                    raise TakenBackError
                if fails:
                    raise TakenBackError
            return seen

        self._noted("transact", do, writes=tokens, never=never)

    def delete(self) -> None:
        """Delete one."""
        handle = self._any()
        if handle is not None:
            self._noted("delete", handle.delete, handle)

    def list(self) -> None:
        """List them, in one snapshot, and read some of the history."""
        self._noted("list", lambda: len(self.store.list()) + len(self.store.history(limit=5)))

    def reconcile(self) -> None:
        """Look at all of them."""
        self._noted("reconcile", lambda: len(self.store.reconcile().findings))

    def check(self) -> None:
        """Find nothing wrong."""
        self._noted("check", lambda: [str(violation) for violation in self.store.check()])

    def fork(self) -> None:
        """Fork a child, which ends in an odd way and harms no other process."""
        child = os.fork()
        if child == 0:
            ending = self._chance.choice(["exit", "collect", "crash", "use", "exec", "thread"])
            if ending == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            if ending == "exec":
                os.execv("/bin/true", ["true"])
            if ending == "use":
                try:
                    self.store.list()
                    self._note(failed="", error="a forked child may read", wrong=True)
                except StoreClosedError:
                    self.store.close()
            if ending == "thread":
                threading.Thread(target=self.store.close).start()
            if ending == "collect":
                self.store = None
                gc.collect()
            sys.exit(0)
        os.waitpid(child, 0)

    # What it notes.

    def _any(self) -> Sandbox | None:
        found = self.store.list(include_unknown=True)
        return self._chance.choice(found) if found else None

    def _token(self) -> str:
        return f"{self._name}-{next(self._count)}"

    def _noted(
        self,
        what: str,
        do: Callable[[], Any],
        handle: Sandbox | None = None,
        writes: Any = (),
        never: str = "",
    ) -> Any:
        key = self._token()
        of = "" if handle is None else handle.id
        self._note(begun=key, what=what, of=of, writes=list(writes), never=never)
        try:
            result = do()
        except (NotFoundError, TakenBackError) as error:
            self._note(failed=key, error=type(error).__name__)
            return None
        except Exception as error:
            self._note(failed=key, error=f"{type(error).__name__}: {error}", wrong=True)
            raise
        self._note(ended=key, result=None if what == "open" else result)
        return result

    def _note(self, **fields: object) -> None:
        line = json.dumps({"at": time.monotonic_ns(), **fields})
        os.write(self._log, f"{line}\n".encode())


def serve(folder: str) -> None:
    """Fork a worker for each line; its end is said as `ended PID`."""
    with Store.open(f"{folder}/first.db") as store:
        store.check()
    signal.signal(signal.SIGCHLD, lambda *_: None)
    threading.Thread(target=_reap, daemon=True).start()
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 2):
                os.dup2(null, fd)
            Worker(*line.split()).run()
        os.write(1, f"{child}\n".encode())


def _reap() -> None:
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.01)


if __name__ == "__main__":
    serve(sys.argv[1])
