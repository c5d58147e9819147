"""The pause process: it holds a sandbox's namespaces, and when it ends the sandbox has ended.

It is held back at first, and ends by itself if the server does before it lets it go. So a server
that is killed between making it and recording its pid leaves nothing behind; and one that is killed
later leaves a sandbox that goes on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from registry import FailedPreconditionError, NetNS, Process, RegistryError
from registry.cri import NamespaceMode, PodSandboxConfig
from registry.host import kernel
from registry.shim.validate import is_host_network, options_of, refused_sysctl, sysctls
from registry.sync.interrupts import reraise_interrupt, suppress_os_errors

HELD: Final = "cd / && read -r go && exec sleep infinity </dev/null"
"""Ends at the end of its input, which comes when the server dies."""
PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
SETPRIV: Final = "setpriv"
"""Sets user and groups; of util-linux."""


class ForkedProcess(Process):
    """A pause process that this process has forked, and reaps when it is closed."""

    def close(self) -> None:
        """Release the process, and reap it if it has ended. Idempotent."""
        with contextlib.suppress(FailedPreconditionError):  # it is closed already
            reap(self)
        super().close()


def reap(process: Process) -> None:
    """Reap *process* if it is a child of this process and has ended.

    The library never does: it leaves the exit status to the process that forked the child.
    """
    with suppress_os_errors():  # another process has forked it, or it is reaped already
        os.waitid(kernel.P_PIDFD, process.fileno(), os.WEXITED | os.WNOHANG)


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


def spawn(id: str, netns: NetNS | None, config: PodSandboxConfig) -> Pause:
    """Make a pause process, held back, in *netns* (None: the host's) and namespaces of its own.

    Its environment says SANDBOX_ID=*id*, for who finds the process and not the record.

    Args:
        id: of the sandbox.
        netns: in which the process lives.
        config: as `validate.check` lets it through.
    Raises:
        InvalidArgumentError: the kernel refuses a sysctl.
        RegistryError: a namespace or the process cannot be made; nothing of it is left.
    """

    def inside() -> Pause:
        # In a thread that ends afterwards: the child gets the namespaces of the thread.
        kernel.unshare(_flags(config))
        if config.hostname and not is_host_network(config):
            socket.sethostname(config.hostname)
        for path, key, value in sysctls(config):
            _write_sysctl(path, key, value)
        return _spawn_held(id, _command(config))

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


def _command(config: PodSandboxConfig) -> list[str]:
    """Return the command of the held process, which runs as the user that *config* names.

    Raises:
        RegistryError: the program that changes the user is missing.
    """
    held, context = ["/bin/sh", "-c", HELD], config.linux.security_context
    groups = ",".join(map(str, context.supplemental_groups))
    if not context.HasField("run_as_user") and not groups:
        return held
    program = shutil.which(SETPRIV, path=PATH)
    if program is None:
        why = f"{SETPRIV}, which sets user and groups, is not in {PATH!r}; install util-linux"
        raise RegistryError(f"spawn pause process: {why}")
    user, group = context.run_as_user.value, context.run_as_group.value
    groups = f"--groups={groups}" if groups else "--clear-groups"
    return [program, f"--reuid={user}", f"--regid={group}", groups, *held]


def _spawn_held(id: str, command: list[str]) -> Pause:
    read, write = os.pipe()
    try:
        pid = os.posix_spawn(
            command[0],
            command,
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
        return ForkedProcess.of_pid(child)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def _write_sysctl(path: str, key: str, value: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(value)
    except OSError as error:
        reraise_interrupt(error)
        raise refused_sysctl(key, f"cannot be set to {value!r}: {error.strerror}") from error
