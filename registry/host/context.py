"""Host context of an observation: the boot, and the namespaces of the observer."""

from __future__ import annotations

import os
import re
from typing import Final, NamedTuple

from registry.host import kernel
from registry.sync.interrupts import reraise_interrupt

BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
READ_MAX: Final = 64
"""Bytes that are read of it; a UUID and a newline are 37."""
UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class HostContext(NamedTuple):
    """Host context of an observation, read once for many; None: could not be read."""

    boot_id: str
    mount_ns: int | None
    pid_ns: int | None
    time_ns: int | None
    in_initial_pid_ns: bool = True
    """Whether the processes of the whole host can be seen from here."""
    boot_ids: frozenset[str] = frozenset()
    """Every boot id that was shown to this process. No process outlives the boot, so all of them
    are of this boot: a container shows an id of its own, and a mount may hide the host's."""

    @classmethod
    def current(cls) -> HostContext:
        """Return the host context of the calling thread."""
        _read_boot_id()
        mount_ns, time_ns = _own_namespace("mnt"), _own_namespace("time")
        shown = frozenset(_boot_ids)
        return cls(boot_id(), mount_ns, _own_pid_ns(), time_ns, _in_initial_pid_ns(), shown)

    def is_other_boot(self, boot_id: str | None) -> bool:
        """Return whether *boot_id* was never shown for this boot; False if unknown."""
        if not boot_id or boot_id == self.boot_id:
            return False
        return self.boot_id != "" and boot_id not in self.boot_ids


def boot_id() -> str:
    """Return the id of this boot as this process was last shown it; "" if it cannot be read."""
    if not _boot_ids:
        _read_boot_id()
    return _boot_ids[-1] if _boot_ids else ""


_boot_ids: Final[list[str]] = []
"""Every boot id that was shown to this process, the latest one last."""


def _read_boot_id() -> None:
    try:
        # Not by open(), which takes twice as long: every observation of the host reads it.
        fd = os.open(BOOT_ID, os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, READ_MAX).decode("ascii").strip()
        finally:
            os.close(fd)
    except (OSError, UnicodeDecodeError) as error:
        reraise_interrupt(error)
        return
    if UUID.fullmatch(text) and text not in _boot_ids[-1:]:
        _boot_ids[:] = [*(each for each in _boot_ids if each != text), text]


def _in_initial_pid_ns() -> bool:
    try:
        return os.stat("/proc/thread-self/ns/pid").st_ino == kernel.INITIAL_PID_NS
    except OSError as error:
        reraise_interrupt(error)
        return False


def _own_namespace(kind: str) -> int | None:
    path = f"/proc/thread-self/ns/{kind}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        reraise_interrupt(error)
        # stat needs no descriptor, of which none may be left.
        handle = kernel.namespace_at(os.fsencode(path), kernel.AT_FDCWD, kernel.AT_SYMLINK_FOLLOW)
        return None if handle is None else handle.number
    try:
        number = kernel.namespace_number(fd)
        return os.fstat(fd).st_ino if number is None else number
    finally:
        os.close(fd)


def _own_pid_ns() -> int | None:
    """Return the pid namespace of this process, which it cannot leave; None: not readable so far.

    The result is kept: a pid is useless without it, and there may be no descriptor to read it
    later.
    """
    if not _pid_ns:
        number = _own_namespace("pid")
        if number is None:
            return None
        _pid_ns[:] = [number]
    return _pid_ns[0]


_pid_ns: Final[list[int]] = []
os.register_at_fork(after_in_child=_pid_ns.clear)
