"""The pause process: it holds a sandbox's namespaces, and when it ends the sandbox has ended.

It is held back at first, and ends by itself if the server does before it lets it go. So a server
that is killed between making it and recording its pid leaves nothing behind; and one that is killed
later leaves a sandbox that goes on.
"""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from registry import InvalidArgumentError, NetNS, Process, RegistryError, kernel
from registry.cri import NamespaceMode, NamespaceOption, PodSandboxConfig
from registry.interrupts import reraise_interrupt

HELD: Final = "cd / && read -r go && exec sleep infinity </dev/null"
"""Ends at the end of its input, which comes when the server dies."""
PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
HOSTNAME_MAX: Final = 64
"""Bytes that Linux keeps of a host name."""
IPC_SYSCTLS: Final = re.compile(
    r"kernel/(msgmax|msgmnb|msgmni|sem|shmall|shmmax|shmmni|shm_rmid_forced)|fs/mqueue/.+"
)
"""What an IPC namespace has of its own (ipc_namespaces(7))."""


class Pause:
    """A pause process that is held back until it is released."""

    def __init__(self, process: Process, gate: int) -> None:
        """Hold *process*, which reads from the pipe that is written to by *gate*."""
        self.process: Final = process
        self._gate = gate

    def release(self) -> None:
        """Let it outlive the server.

        Raises:
            BrokenPipeError: it has ended.
        """
        os.write(self._gate, b"\n")
        self.close()

    def close(self) -> None:
        """End it if it was not released; a second time does nothing."""
        gate, self._gate = self._gate, -1
        if gate != -1:
            os.close(gate)


def options_of(config: PodSandboxConfig) -> NamespaceOption:
    """Return which namespaces the sandbox shares with whom."""
    return config.linux.security_context.namespace_options


def is_host_network(config: PodSandboxConfig) -> bool:
    """Whether the sandbox lives in the network namespace of the host."""
    return options_of(config).network == NamespaceMode.NODE


def check(config: PodSandboxConfig) -> None:
    """Raise unless a pause process can be made as *config* wants it.

    Raises:
        InvalidArgumentError: the host name cannot be one, or a sysctl would change the host.
    """
    name = "" if is_host_network(config) else config.hostname
    if len(name.encode()) > HOSTNAME_MAX or not name.isprintable():
        why = f"is longer than {HOSTNAME_MAX} bytes or has control characters"
        raise refused("hostname", name, f"run sandbox: hostname {name!r} {why}")
    for _ in _sysctls(config):
        pass


def refused(field: str, value: str, why: str) -> InvalidArgumentError:
    """Return the error that says *why* the *value* of a *field* cannot be had."""
    return InvalidArgumentError(why, field=field, value=value)


def spawn(id: str, netns: NetNS | None, config: PodSandboxConfig) -> Pause:
    """Make a pause process, held back, in *netns* (None: the host's) and namespaces of its own.

    Its environment says SANDBOX_ID=*id*, for who finds the process and not the record.

    Raises:
        InvalidArgumentError: as `check`; or the kernel refuses a sysctl.
        RegistryError: a namespace or the process cannot be made; nothing of it is left.
    """

    def inside() -> Pause:
        # In a thread that ends afterwards: the child gets the namespaces of the thread.
        kernel.unshare(_flags(config))
        if config.hostname and not is_host_network(config):
            socket.sethostname(config.hostname)
        for path, key, value in _sysctls(config):
            _write_sysctl(path, key, value)
        return _spawn_held(id)

    try:
        if netns is not None:
            return netns.do(inside)
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(inside).result()
    except OSError as error:
        reraise_interrupt(error)
        raise RegistryError(f"spawn pause process: {error.strerror}") from error


def _flags(config: PodSandboxConfig) -> int:
    """Return which namespaces of its own it gets, beside the network; UTS goes with that."""
    uts = 0 if is_host_network(config) else kernel.CLONE_NEWUTS
    return uts | (0 if options_of(config).ipc == NamespaceMode.NODE else kernel.CLONE_NEWIPC)


def _spawn_held(id: str) -> Pause:
    read, write = os.pipe()
    try:
        pid = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", HELD],
            {"PATH": PATH, "SANDBOX_ID": id},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, read, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
            # Python ignores some, and whoever started us others: nohup does.
            setsigdef=signal.valid_signals(),
        )
        return Pause(_held(pid), write)
    except BaseException:
        os.close(write)
        raise
    finally:
        os.close(read)


def _held(child: int) -> Process:
    try:
        return Process.of_pid(child)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def _sysctls(config: PodSandboxConfig) -> Iterator[tuple[str, str, str]]:
    """Return file, name and value of each sysctl; raises where one is not the sandbox's own."""
    sysctls: Mapping[str, str] = config.linux.sysctls
    for key, value in sorted(sysctls.items()):
        name = _slashed(key)
        if not _is_own(name, config):
            why = "would change the host: the sandbox has no namespace of its own for it"
            raise refused("linux.sysctls", key, f"run sandbox: sysctl {key!r} {why}")
        yield f"/proc/sys/{name}", key, value


def _slashed(key: str) -> str:
    """Return the path of a sysctl below /proc/sys; the separator is the first of "." and "/"."""
    separators = [letter for letter in key if letter in "./"]
    if separators[:1] == ["."]:
        return key.translate(str.maketrans("./", "/."))
    return key


def _is_own(name: str, config: PodSandboxConfig) -> bool:
    parts = name.split("/")
    if not {"", ".", ".."}.isdisjoint(parts) or "\0" in name:
        return False
    if parts[0] == "net" or name == "kernel/domainname":
        return not is_host_network(config)
    own_ipc = options_of(config).ipc != NamespaceMode.NODE
    return own_ipc and IPC_SYSCTLS.fullmatch(name) is not None


def _write_sysctl(path: str, key: str, value: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(value)
    except OSError as error:
        reraise_interrupt(error)
        why = f"run sandbox: set sysctl {key!r} to {value!r}: {error.strerror}"
        raise refused("linux.sysctls", key, why) from error
