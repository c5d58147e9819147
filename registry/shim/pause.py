"""Pause process: holds the namespaces of a sandbox, which ends when the process ends.

The process is blocked until `Pause.release`, and ends if the server ends before that. A server that
is killed before it has recorded the pid thus leaves no process; if it is killed later, the sandbox
keeps running.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import Final

from registry import (
    FailedPreconditionError,
    NetNS,
    Process,
    RegistryError,
)
from registry.cri import NamespaceMode, PodSandboxConfig
from registry.host import kernel
from registry.shim import limits, mounts, seccomp
from registry.shim.validate import has_seccomp, is_host_network, options_of, refused_sysctl, sysctls
from registry.sync import threads
from registry.sync.interrupts import reraise_interrupt, suppress_os_errors

HELD: Final = "cd / && read -r go && exec sleep infinity </dev/null"
"""Shell command that waits for a line; it ends at end of file, that is, when the server dies."""
PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
SETPRIV: Final = "setpriv"
"""Program of util-linux that sets user and groups."""


class ForkedProcess(Process):
    """Pause process that is a child of this process, which reaps it on `close`."""

    def close(self) -> None:
        """Close the pidfd, and reap the process if it has ended. Idempotent."""
        with contextlib.suppress(FailedPreconditionError):  # closed already
            reap(self)
        super().close()


def reap(process: Process) -> None:
    """Reap *process* if it is a child of this process and has ended.

    The library never does: it leaves the exit status to the process that forked the child.
    """
    with suppress_os_errors():  # no child of this process, or reaped already
        os.waitid(kernel.P_PIDFD, process.fileno(), os.WEXITED | os.WNOHANG)


class Pause:
    """Pause process that is held until `release`."""

    def __init__(self, process: Process, gate: int) -> None:
        """Take *process*, whose standard input is the pipe that *gate* writes to."""
        self.process: Final = process
        self._gate = gate

    def release(self) -> None:
        """Release the process, which then outlives the server.

        Raises:
            BrokenPipeError: the process has ended.
        """
        os.write(self._gate, b"\n")
        self.close()

    def close(self) -> None:
        """End the process if it was not released. Idempotent."""
        gate, self._gate = self._gate, -1
        if gate != -1:
            os.close(gate)


def spawn(id: str, netns: NetNS | None, config: PodSandboxConfig, resolv: str = "") -> Pause:
    """Spawn a held pause process in *netns* and in further namespaces of its own.

    They are a mount namespace, and those of UTS, IPC and pids unless the config says otherwise.

    The environment variable SANDBOX_ID names the sandbox to an operator who finds the process.

    Args:
        id: id of the sandbox.
        netns: network namespace of the process; None is the host's.
        config: config that `validate.check` has accepted.
        resolv: path of the resolv.conf to mount; "": that of the node.
    Raises:
        InvalidArgumentError: the kernel refuses a sysctl.
        ResourceExhaustedError: a limit of the system is reached.
        RegistryError: a namespace or the process cannot be created; none is left behind.
    """

    def inside() -> Pause:
        # Runs in a thread that ends afterwards: the child inherits the namespaces of the thread.
        kernel.unshare(_flags(config))
        mounts.isolate(resolv)
        if config.hostname and not is_host_network(config):
            socket.sethostname(config.hostname)
        for path, key, value in sysctls(config):
            _write_sysctl(path, key, value)
        kernel.set_no_new_privs()
        if has_seccomp(config):
            seccomp.load_default()
        return _spawn_held(id, _command(config))

    try:
        return threads.run(inside) if netns is None else netns.do(inside)
    except OSError as error:
        reraise_interrupt(error)
        raise limits.failed("spawn pause process", error) from error


def _flags(config: PodSandboxConfig) -> int:
    """Return the CLONE_NEW* flags of the namespaces beside the network."""
    options, flags = options_of(config), kernel.CLONE_NEWNS
    if not is_host_network(config):
        flags |= kernel.CLONE_NEWUTS
    if options.ipc == NamespaceMode.POD:
        flags |= kernel.CLONE_NEWIPC
    if options.pid == NamespaceMode.POD:
        flags |= kernel.CLONE_NEWPID
    return flags


def _command(config: PodSandboxConfig) -> list[str]:
    """Return the command line of the held process, which runs as the user that *config* names.

    Raises:
        RegistryError: `setpriv` is missing.
    """
    held, context = ["/bin/sh", "-c", HELD], config.linux.security_context
    groups = ",".join(map(str, context.supplemental_groups))
    if not context.HasField("run_as_user") and not groups:
        return held
    programs = [f"{folder}/{SETPRIV}" for folder in PATH.split(":")]
    program = next((path for path in programs if os.access(path, os.X_OK)), None)
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
            # Python ignores SIGPIPE, and a parent of ours may ignore others, as nohup does.
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
