"""Processes that have files open, by the descriptors that /proc lists for each process."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from registry.host import pidfd
from registry.sync.interrupts import reraise_interrupt

COMMAND_MAX: Final = 4096
"""Bytes that are read of a command line."""


class Program(NamedTuple):
    """Process as /proc shows it.

    Attributes:
        pid: of the process.
        name: of its program, as the kernel keeps it; "" if /proc does not show the process.
        command: its command line; "" if it cannot be read.
        stopped: it is stopped, by a signal or a debugger, and runs nothing.
    """

    pid: int
    name: str = ""
    command: str = ""
    stopped: bool = False


class FileUse(NamedTuple):
    """Files that one process has open, and those of them that it has open for writing."""

    pid: int
    paths: frozenset[str]
    writable: frozenset[str]


class FileUses(NamedTuple):
    """Processes that have files open.

    Attributes:
        uses: one for each process except the caller, ordered by pid.
        hidden: pids of the processes whose descriptors the caller may not see, in order.
    """

    uses: tuple[FileUse, ...]
    hidden: tuple[int, ...]


def program(pid: int) -> Program:
    """Return what /proc shows of process *pid*."""
    try:
        text = _read(f"/proc/{pid}/stat").decode("utf-8", "replace")
        name, _, rest = text.partition("(")[2].rpartition(")")
        words = _read(f"/proc/{pid}/cmdline").rstrip(b"\0").split(b"\0")
    except OSError as error:
        reraise_interrupt(error)
        return Program(pid)
    command = " ".join(word.decode("utf-8", "replace") for word in words)
    return Program(pid, name, command, rest.split()[0] in {"T", "t"})


def uses_of(paths: Sequence[str]) -> FileUses:
    """Return the processes that have one of the files at *paths* open."""
    wanted = {identity: path for path in paths if (identity := _identity(path)) is not None}
    names = tuple(os.path.basename(path) for path in wanted.values())
    uses, hidden = list[FileUse](), list[int]()
    for pid in sorted(map(int, filter(str.isdigit, os.listdir("/proc")))):
        try:
            found = frozenset(_open_files(pid, wanted, names))
        except PermissionError as error:
            reraise_interrupt(error)
            if _is_a_program(pid):
                hidden.append(pid)
        except OSError as error:  # it has ended
            reraise_interrupt(error)
        else:
            if found and pid != os.getpid():
                opened, writable = (
                    frozenset(path for path, writes in found if writes or not only)
                    for only in (False, True)
                )
                uses.append(FileUse(pid, opened, writable))
    return FileUses(tuple(uses), tuple(hidden))


def _open_files(
    pid: int, wanted: dict[tuple[int, int], str], names: tuple[str, ...]
) -> Iterator[tuple[str, bool]]:
    """Yield the path of each *wanted* file that *pid* has open, and whether for writing."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        link = f"/proc/{pid}/fd/{fd}"
        try:
            # By name first: a stat of a file on a network that is down would not return.
            if os.path.basename(os.readlink(link)).startswith(names):
                path = wanted.get(_identity(link) or (0, 0))
                if path is not None:
                    yield path, _is_writable(pid, fd)
        except FileNotFoundError as error:  # it was closed meanwhile
            reraise_interrupt(error)


def _is_writable(pid: int, fd: str) -> bool:
    lines = _read(f"/proc/{pid}/fdinfo/{fd}").split(b"\n")
    flags = next((line.split()[1] for line in lines if line.startswith(b"flags:")), b"0")
    return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        reraise_interrupt(error)
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def _is_a_program(pid: int) -> bool:
    """Return whether *pid* is a process that may have files open: no zombie, no kernel thread."""
    return pidfd.read_stat(pid) is not None and program(pid).command != ""


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(COMMAND_MAX)
