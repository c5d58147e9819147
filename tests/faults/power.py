"""Contents of a disk after a power cut, replayed from the calls of a workload.

The model is more wicked than most file systems. What was written and not synced may be there or
not, each write by itself, in any order, and torn at any sector; a file's length likewise. A name
that was made or removed and whose directory was not synced may be there or not, names in their
order, as a journal keeps them. What was synced is there.

What it cannot show: a disk that lies about a sync, and one that loses what it has had.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

SECTORS: Final = (512, 4096)
"""Bytes that a disk writes whole or not at all."""
FEW: Final = 5
"""Up to so many unsynced writes, every subset of them is tried."""


class Event(NamedTuple):
    """A call that changed or synced something, or a line that the workload has said."""

    call: str
    name: str
    data: bytes = b""
    offset: int = 0


def events(log: str, path: str) -> list[Event]:
    """Return what a `strace -y -xx` of a workload on *path* saw; of the -shm nothing is kept."""
    found = []
    with open(log, encoding="ascii") as lines:
        for line in lines:
            match = re.match(r"(?s)\d+ +(\w+)\((.*)\) += (\d+)", _unhexed(line))
            event = None if match is None else _event(match[1], match[2], path)
            if event is not None and event.name != f"{path}-shm":
                found.append(event)
    return found


def _unhexed(line: str) -> str:
    return re.sub(r"\\x(..)", lambda digits: chr(int(digits[1], 16)), line.replace("\n", ""))


def _event(call: str, arguments: str, path: str) -> Event | None:
    by_fd = re.match(r"(?s)\d+<(.*?)>(?:, \"(.*)\")?(?:, (\d+))?(?:, (\d+))?$", arguments)
    if call in {"openat", "unlink"}:
        named = re.search(r'"(.*)"(.*)', arguments)
        assert named is not None, arguments
        made = call == "unlink" or "O_CREAT" in named[2]
        return Event(call, named[1]) if made and named[1].startswith(path) else None
    assert by_fd is not None, f"{call}({arguments[:200]})"
    name, data = by_fd[1], (by_fd[2] or "").encode("latin-1")
    if call == "write" and name.startswith("pipe:"):
        return Event("said", data.decode().strip())
    return Event(call, name, data, int(by_fd[4] or by_fd[3] or 0))


@dataclass
class File:
    """Bytes that are on the disk, and what was written since."""

    synced: bytes = b""
    pending: list[Event] = field(default_factory=list)


class Disk:
    """The files of a registry: what is on the disk, and what only the kernel has."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._names: dict[str, File] = {}
        self._synced_names: dict[str, File] = {}
        self._pending_names: list[Event] = []

    def apply(self, event: Event) -> None:
        """Do what the call did."""
        call, name = event.call, event.name
        if call == "openat":
            if name not in self._names:
                self._names[name] = File()
                self._pending_names.append(event)
        elif call == "unlink":
            self._pending_names.append(event)
            del self._names[name]
        elif call in {"fsync", "fdatasync"}:
            if name == self._folder:
                self._synced_names, self._pending_names = dict(self._names), []
            else:
                file = self._names[name]
                file.synced, file.pending = _written(file.synced, file.pending), []
        else:
            self._names[name].pending.append(event)

    def states(self, *, syncing: bool, chance: random.Random, many: int) -> Iterator[State]:
        """Yield what may be there if the power is cut now.

        Args:
            syncing: the next call is a sync, so all that may come of what is not synced is wanted.
            chance: chooses where there is too much.
            many: how much of that.
        """
        unsynced = [(name, event) for name, file in self._names.items() for event in file.pending]
        yield self._state(self._names, unsynced)
        yield self._state(self._names, [])
        yield self._state(self._named(0), [])
        if not syncing:
            return
        count = len(unsynced)
        few = count <= FEW
        for bits in range(2**count) if few else [chance.getrandbits(count) for _ in range(many)]:
            chosen = [each for n, each in enumerate(unsynced) if bits >> n & 1]
            names = self._named(chance.randint(0, len(self._pending_names)))
            yield self._state(names, chosen)
            yield self._state(names, [(name, _torn(event, chance)) for name, event in chosen])
        for n, (name, event) in enumerate(unsynced):
            rest = [*unsynced[:n], *unsynced[n + 1 :]]
            yield self._state(self._names, rest)
            yield self._state(self._names, [*unsynced[:n], (name, _torn(event, chance)), *rest[n:]])

    def _named(self, count: int) -> dict[str, File]:
        """Return the names when the first *count* of the pending changes are on the disk."""
        names = dict(self._synced_names)
        made = dict(self._names)
        for event in self._pending_names[:count]:
            if event.call == "unlink":
                names.pop(event.name, None)
            else:
                names[event.name] = made.get(event.name, File())
        return names

    def _state(self, names: dict[str, File], written: Sequence[tuple[str, Event]]) -> State:
        return {
            os.path.basename(name): _written(
                file.synced,
                [event for of, event in written if self._names.get(of) is file],
            )
            for name, file in names.items()
        }


State = dict[str, bytes]
"""The contents of each file, by its name."""


def _written(data: bytes, writes: Sequence[Event]) -> bytes:
    content = bytearray(data)
    for event in writes:
        if event.call == "ftruncate":
            size = event.offset
            content[size:] = bytes(max(0, size - len(content)))
        else:
            content.extend(bytes(max(0, event.offset - len(content))))
            content[event.offset : event.offset + len(event.data)] = event.data
    return bytes(content)


def _torn(event: Event, chance: random.Random) -> Event:
    """Return the beginning of a write, up to the end of a sector."""
    size = chance.choice(SECTORS)
    ends = range(-event.offset % size, len(event.data), size)
    return event._replace(data=event.data[: chance.choice(ends)]) if ends else event
