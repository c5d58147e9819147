"""Programs of CNI plugins, each run with a deadline in a process group of its own."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final, NamedTuple

from registry import Process, RegistryError
from registry.shim import limits
from registry.shim.pause import PATH, ForkedProcess
from registry.sync.interrupts import reraise_interrupt

OUTPUT_MAX: Final = 1024 * 1024
"""Bytes of the standard output of a plugin."""
ERRORS_MAX: Final = 4096
"""Bytes that are kept of its standard error."""
PIPE: Final = 64 * 1024
"""Bytes that a pipe holds (pipe(7)); one read takes them all."""
LOOK: Final = 1.0
"""Seconds between two looks whether the plugin is to be left."""
KILLED_WITHIN: Final = 1.0
"""Seconds to wait for the end of a plugin after SIGKILL; it runs no more code of its own."""


class Outcome(NamedTuple):
    """End of a plugin, and what it printed."""

    status: int | None
    """Exit status; None if the plugin was killed here."""
    output: bytes
    """At most `OUTPUT_MAX` bytes; one more if the plugin was killed for printing too much."""
    errors: bytes
    """Standard error, at most `ERRORS_MAX` bytes."""


LEFT: Final = Outcome(None, b"", b"")
"""Outcome of a plugin that is left running, or was not begun, since the server ends."""


def run(
    path: str,
    request: bytes,
    env: Mapping[str, str],
    deadline: float,
    leave: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Run the plugin at *path*; no process of its group is left, unless the plugin is.

    It inherits no descriptor, no signal mask and no environment but PATH.

    Args:
        path: path of the program.
        request: its standard input.
        env: its environment.
        deadline: monotonic time in seconds at which it is killed.
        leave: asked before the start and at each `LOOK`; when it returns true, `LEFT` is returned.
            The plugin is not killed then, since it might leave rules or addresses for ever.
    Raises:
        ResourceExhaustedError: no task, no descriptor or no memory is left.
        RegistryError: the program cannot be run.
    """
    if leave():
        return LEFT
    try:
        with contextlib.ExitStack() as stack:
            source = os.memfd_create("cni")
            stack.callback(os.close, source)
            os.write(source, request)
            os.lseek(source, 0, os.SEEK_SET)
            output, output_end = _pipe(stack)
            errors, errors_end = _pipe(stack)
            child = os.posix_spawn(
                path,
                [path],
                {"PATH": PATH, **env},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, source, 0),
                    (os.POSIX_SPAWN_DUP2, output_end, 1),
                    (os.POSIX_SPAWN_DUP2, errors_end, 2),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=signal.valid_signals(),
            )
            return _wait(child, {output: OUTPUT_MAX + 1, errors: ERRORS_MAX}, deadline, leave)
    except (OSError, ValueError) as error:  # ValueError: a value of *env* cannot be passed
        if isinstance(error, OSError):
            reraise_interrupt(error)
            raise limits.failed(f"run {path!r}", error, "repair the plugin") from error
        raise RegistryError(f"run {path!r}: {error}; repair the plugin") from error


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    """Return the ends of a pipe, which *stack* closes."""
    ends = os.pipe()
    for end in ends:
        stack.callback(os.close, end)
    return ends


def _wait(
    child: int, limits: Mapping[int, int], deadline: float, leave: Callable[[], bool]
) -> Outcome:
    """Return the outcome of the plugin *child*; *limits* has the bytes to keep by pipe.

    Its end counts, not that of its output: a background process may hold the pipes.
    """
    try:
        process = ForkedProcess.of_pid(child)
    except BaseException:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    outcome = None
    try:
        outcome = _read(process, limits, deadline, leave)
        return outcome
    finally:
        if outcome is not LEFT:
            # Before the plugin is reaped: its pid names the group as long as it is a zombie.
            os.killpg(child, signal.SIGKILL)
            process.wait(KILLED_WITHIN)
        process.close()


def _read(
    process: Process, limits: Mapping[int, int], deadline: float, leave: Callable[[], bool]
) -> Outcome:
    printed = {pipe: bytearray() for pipe in limits}
    poll, status, late = select.poll(), None, False
    for fd in (*limits, process.fileno()):
        poll.register(fd, select.POLLIN)
    while status is None and not late and max(map(len, printed.values())) <= OUTPUT_MAX:
        left = deadline - time.monotonic()
        ready = {fd for fd, _ in poll.poll(min(max(0.0, left), LOOK) * 1000)}
        for pipe in limits.keys() & ready:
            printed[pipe] += os.read(pipe, PIPE)[: limits[pipe] - len(printed[pipe])]
        if ready == {process.fileno()}:
            status = process.exit_status()
        elif leave():
            return LEFT
        late = left <= 0
    return Outcome(status, *map(bytes, printed.values()))


def end(ids: Collection[str], deadline: float) -> None:
    """Wait for the plugins of the sandboxes *ids* that an earlier server has left running.

    Those that run at the deadline (monotonic seconds) are killed: the next DEL must not run beside
    them. Not at once, since the bridge plugin of Debian 12 leaves its iptables rules for ever if it
    is killed between two steps of DEL. The environment of a plugin names the sandbox, and so does
    that of the programs that it runs.
    """
    wanted = {f"CNI_CONTAINERID={id}".encode() for id in ids}
    seen: set[int] = set()
    # Again, since a plugin may have begun another program meanwhile.
    while found := {pid for pid in _pids() - seen if _is_of(pid, wanted)}:
        for pid in found:
            with contextlib.suppress(RegistryError), Process.of_pid(pid) as process:
                # Else another process has got the pid meanwhile.
                if _is_of(pid, wanted) and not process.wait(max(0.0, deadline - time.monotonic())):
                    process.kill()
                    process.wait(KILLED_WITHIN)
        seen |= found


def _pids() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def _is_of(pid: int, wanted: Collection[bytes]) -> bool:
    """Return whether the environment of a process has a variable of *wanted*."""
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            return not set(file.readall().split(b"\0")).isdisjoint(wanted)
    except OSError as error:
        reraise_interrupt(error)
        if error.errno in limits.ADVICE:
            raise limits.failed("find the plugins that run", error) from error
        return False  # it has ended
