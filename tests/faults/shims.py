"""Drivers of the example shims: they run pods, kill the shim at a point, and check what is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from subprocess import PIPE

from registry import NotFoundError, Process, RegistryError, State, Status, Store
from tests.machine import Machine
from tests.tools import ROOT, until

KILL_POINT = f"{ROOT}/tests/faults/kill_point"
HELD = "read go"
"""Part of the command line of a process that ends with its shim."""


class ShimKilledError(Exception):
    """The shim has reached its kill point."""


@dataclass
class Pods:
    """Ids of the pods, by what the shim has acknowledged."""

    ready: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    uncertain: list[str] = field(default_factory=list)
    """A request about the pod was not answered."""

    def move(self, id: str, to: list[str]) -> None:
        """Move a pod to the list *to*."""
        for each in (self.ready, self.ended, self.deleted, self.uncertain):
            if id in each:
                each.remove(id)
        to.append(id)


class Shim:
    """An example that runs in a machine, on one registry."""

    def __init__(self, machine: Machine, example: str, folder: Path) -> None:
        """Use *folder* for the registry, the files of the kill point, and the output of errors."""
        self.machine, self.example, self.folder = machine, f"{ROOT}/examples/{example}", folder
        self.path = str(folder / "registry.db")
        self.pods = Pods()
        self.has_point = False
        self.kills = 0
        """Processes of the shim that were killed when they waited."""
        self.log = open(folder / "stderr", "ab")  # noqa: SIM115 - closed by `close`

    def close(self) -> None:
        """Kill the processes that are left of a failed test."""
        self.log.close()
        for each in self.machine.left()["processes"]:
            os.kill(int(each.split()[0]), signal.SIGKILL)

    def spawn(self, *args: str, stdin: int | None = None) -> subprocess.Popen[str]:
        """Start the example."""
        env = {
            "PYTHONPATH": f"{KILL_POINT}:{ROOT}",
            "PYTHONWARNINGS": "",
            "KILL_EXAMPLE": self.example,
            "KILL_FOLDER": str(self.folder),
        }
        command = [sys.executable, self.example, *args]
        return self.machine.start(*command, env=env, stdin=stdin, stdout=PIPE, stderr=self.log)

    @contextmanager
    def store(self) -> Iterator[Store]:
        """Open the registry as another process does."""
        with Store.open(self.path, reconcile=False, actor="test") as store:
            yield store

    # Kill points.

    def noted(self, name: str) -> list[str]:
        """Return the lines of a file of the kill point."""
        with suppress(FileNotFoundError):
            return (self.folder / name).read_text(encoding="ascii").splitlines()
        return []

    def set_point(self, line: int, calls: int) -> None:
        """Have the process that reaches *line* killed after so many *calls*."""
        (self.folder / "next").write_text(f"{line} {calls}", encoding="ascii")
        (self.folder / "next").rename(self.folder / "point")
        self.has_point = True

    def clear_point(self) -> None:
        """Have no process killed any more."""
        (self.folder / "point").unlink(missing_ok=True)
        self.has_point = False

    def was_reached(self) -> bool:
        """Return whether a process has reached the point that was set."""
        return self.has_point and not (self.folder / "point").exists()

    # Requests; each raises ShimKilledError if the shim was killed.

    def begin(self) -> None:
        """Start the shim, which recovers."""
        raise NotImplementedError

    def end(self) -> None:
        """Kill the process that has reached its point, if it still runs."""
        raise NotImplementedError

    def start(self, *ids: str) -> None:
        """Start pods at the same time."""
        raise NotImplementedError

    def stop(self, *ids: str) -> None:
        """Stop pods at the same time."""
        raise NotImplementedError

    def start_and_stop(self, id: str) -> None:
        """Start and stop a pod at the same time."""
        raise NotImplementedError

    def finish(self) -> None:
        """Have the shim end without a kill."""
        raise NotImplementedError

    def owners(self, ready: int, /) -> int:
        """Return how many processes the shim has while so many pods are READY."""
        raise NotImplementedError

    def wait_for(self, id: str, condition: Callable[[Status | None], bool]) -> None:
        """Wait until the shim has made the status of *id* fulfil *condition*; None: deleted."""
        raise NotImplementedError

    def status(self, id: str) -> Status | None:
        """Return the status of a pod; None: there is none."""
        with self.store() as store, suppress(NotFoundError):
            return store.get(name=f"{id}_default").status.get()
        return None

    def unanswered(self) -> list[str]:
        """Return the pods that are there, and about which a request was not answered."""
        return [id for id in self.pods.uncertain if self.status(id) is not None]

    def stop_elsewhere(self, id: str) -> None:
        """Stop a pod by a commit of another process; the shim removes it."""
        self.pods.move(id, self.pods.uncertain)
        with self.store() as store, suppress(NotFoundError):
            store.get(name=f"{id}_default").status.update(
                lambda old: replace(old, state=State.NOTREADY, reason="Stopped")
            )
        self.wait_for(id, lambda status: status is None)
        self.pods.move(id, self.pods.deleted)

    def kill_pod(self, id: str) -> None:
        """Kill the process of a pod; the shim records its end."""
        self.pods.move(id, self.pods.ended)  # a restart records it otherwise
        with self.store() as store:
            process = store.get(name=f"{id}_default").open_process()
        assert process is not None, id
        with process:
            process.kill()
            process.wait()
        self.wait_for(id, lambda status: status is not None and status.state is State.NOTREADY)


class Server(Shim):
    """A shim that serves requests from its standard input."""

    process: subprocess.Popen[str]

    def begin(self) -> None:
        """Start the shim."""
        self.killed_before = len(self.noted("killed"))
        self.process = self.spawn(self.path, stdin=PIPE)
        self.lines: list[str] = []

    def say(self, *requests: str) -> None:
        """Send requests."""
        assert self.process.stdin is not None
        try:
            for each in requests:
                self.process.stdin.write(f"{each}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise ShimKilledError from None

    def hear(self, *expected: str) -> None:
        """Read lines until all of *expected* were printed."""
        assert self.process.stdout is not None
        left = set(expected) - set(self.lines)
        while left:
            line = self.process.stdout.readline()
            if not line:
                raise ShimKilledError
            self.lines.append(line.strip())
            left.discard(line.strip())

    def start(self, *ids: str) -> None:
        """Start pods."""
        self.pods.uncertain.extend(ids)
        self.say(*(f"start {id}" for id in ids))
        for id in ids:
            self.hear(f"{id} SANDBOX_READY")
            self.pods.move(id, self.pods.ready)

    def stop(self, *ids: str) -> None:
        """Stop pods."""
        for id in ids:
            self.pods.move(id, self.pods.uncertain)
        self.say(*(f"stop {id}" for id in ids))
        for id in ids:
            self.wait_for(id, lambda status: status is None)
            self.pods.move(id, self.pods.deleted)

    def start_and_stop(self, id: str) -> None:
        """Start and stop a pod; the stop may come before or after any step of the start."""
        self.pods.uncertain.extend((id, f"{id}-after"))
        self.say(f"start {id}", f"stop {id}", f"start {id}-after")
        self.hear(f"{id} created", f"{id}-after SANDBOX_READY")
        self.pods.move(f"{id}-after", self.pods.ready)

    def wait_for(self, id: str, condition: Callable[[Status | None], bool]) -> None:
        """Read the status until it fulfils the condition, or the shim is killed."""
        until(lambda: condition(self.status(id)) or self.process.poll() is not None)
        if not condition(self.status(id)):
            raise ShimKilledError

    def end(self) -> None:
        """Kill the shim, if it was not killed at its point."""
        if len(self.noted("killed")) == self.killed_before:
            self.process.kill()
            self.kills += 1
        self.process.communicate()
        assert -signal.SIGKILL == self.process.returncode
        until(lambda: not any(HELD in each for each in self.machine.left()["processes"]))

    def close(self) -> None:
        """Kill what is left, and read what it has printed."""
        super().close()
        with suppress(ValueError):  # it was read to its end
            self.process.communicate()

    def owners(self, _: int, /) -> int:
        """Return 1: all pods have the same owner."""
        return 1

    def finish(self) -> None:
        """End the shim by the end of its standard input."""
        self.process.communicate()
        assert 0 == self.process.returncode


class Commands(Shim):
    """A shim with commands that start and stop one pod each."""

    def call(self, *args: str) -> None:
        """Run a command; raise if it or the owner of its pod was killed."""
        self.await_end(self.spawn(args[0], self.path, *args[1:]))

    def await_end(self, process: subprocess.Popen[str]) -> str:
        """Wait for the end of a command, and return what it printed."""
        out, _ = process.communicate()
        if process.returncode:
            assert self.was_reached(), (process.args, process.returncode)
            raise ShimKilledError
        return out

    def begin(self) -> None:
        """Recover."""
        self.call("recover")

    def start(self, *ids: str) -> None:
        """Start pods."""
        self.pods.uncertain.extend(ids)
        commands = {id: self.spawn("start", self.path, id) for id in ids}
        self.await_all(commands, self.pods.ready)

    def stop(self, *ids: str) -> None:
        """Stop pods."""
        for id in ids:
            self.pods.move(id, self.pods.uncertain)
        commands = {id: self.spawn("stop", self.path, id) for id in ids}
        self.await_all(commands, self.pods.deleted)

    def await_all(self, commands: dict[str, subprocess.Popen[str]], to: list[str]) -> None:
        """Wait for all commands, and move the pods of those that have succeeded."""
        killed = []
        for id, each in commands.items():
            try:
                self.await_end(each)
            except ShimKilledError as error:
                killed.append(error)
            else:
                self.pods.move(id, to)
        if killed:
            raise killed[0]

    def start_and_stop(self, id: str) -> None:
        """Start and stop a pod; the stop may come before or after any step of the start."""
        self.pods.uncertain.append(id)
        both = [self.spawn(verb, self.path, id) for verb in ("start", "stop")]
        for each in both:
            each.communicate()

    def wait_for(self, id: str, condition: Callable[[Status | None], bool]) -> None:
        """Read the status until it fulfils the condition, or the owner is killed."""
        until(lambda: condition(self.status(id)) or self.was_reached())
        if not condition(self.status(id)):
            raise ShimKilledError

    def end(self) -> None:
        """Kill the process that has reached its point, if it runs; let those of its pod end."""
        killed, running = self.noted("killed"), self.machine.left()["processes"]
        for pid in {each.split()[0] for each in self.noted("armed")} - set(killed):
            if any(each.startswith(f"{pid} ") and self.example in each for each in running):
                with suppress(RegistryError), Process.of_pid(int(pid)) as process:
                    process.kill()
                    process.wait()
                    self.kills += 1
        until(self.is_settled, self.machine.left)

    def is_settled(self) -> bool:
        """Return whether each process belongs to a pod that is READY."""
        with self.store() as store:
            ready = [each.id for each in store.list(state=State.READY)]
        processes = self.machine.left()["processes"]
        owners = [each for each in processes if self.example in each]
        return not any(HELD in each for each in processes) and all(
            any(rf"\x00own\x00{self.path}\x00{id}\x00" in each for id in ready) for each in owners
        )

    def owners(self, ready: int, /) -> int:
        """Return as many as pods are READY."""
        return ready

    def finish(self) -> None:
        """Wait until the owners have ended."""
        until(lambda: not any(self.example in each for each in self.machine.left()["processes"]))
