"""See it work: a shim is killed in the middle of its work, and the restart finds out.

    make demo

A small shim creates three sandboxes, two with a network namespace and a pause process of their own
and one on the host network, and is killed with SIGKILL while it creates a fourth. Meanwhile
somebody removes a namespace, and a pause process dies. Then the registry is opened again.

Real namespaces, real processes; without root in a user namespace. All of it is removed at the end,
by what the registry says there is.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace

from registry import Metadata, NetNS, State, Status, Store
from registry.cri import NamespaceMode, PodSandboxConfig

EXPECTED = {
    "web-0": ("SANDBOX_NOTREADY", "NetNSClosed"),
    "web-1": ("SANDBOX_NOTREADY", "ProcessExited"),
    "proxy": ("SANDBOX_READY", ""),
    "web-2": ("SANDBOX_NOTREADY", "CreationInterrupted"),
}


# The shim.


def run_shim(path: str, base_dir: str) -> None:
    """Create the sandboxes, and say so after each step; it never comes to its end."""
    store = Store.open(path, actor="demo-shim")
    for pod in ("web-0", "web-1", "proxy"):
        run_sandbox(store, pod, base_dir)
        print(pod, flush=True)
    run_sandbox(store, "web-2", base_dir, stop_before_ready=True)


def run_sandbox(store: Store, pod: str, base_dir: str, *, stop_before_ready: bool = False) -> None:
    """Write ahead: record first, then create what was recorded, then say that it is READY."""
    config = PodSandboxConfig()
    config.metadata.name, config.metadata.namespace = pod, "default"
    on_host = pod == "proxy"
    if on_host:
        config.linux.security_context.namespace_options.network = NamespaceMode.NODE
    sandbox = store.add(
        Metadata(
            id=f"{pod}-{os.urandom(4).hex()}",
            name=f"{pod}_default",
            config=config,
            netns_path="" if on_host else store.new_netns_path(base_dir),
        ),
        Status(State.UNKNOWN, created_at=time.time_ns()),
    )
    if on_host:
        pause = start_pause()
    else:
        netns = NetNS.create(sandbox.netns_path)
        store.update_metadata(sandbox.id, lambda old: replace(old, ip=f"10.88.0.{pod[-1]}"))
        if stop_before_ready:
            print(pod, flush=True)
            signal.pause()  # here SIGKILL comes
        pause = netns.do(start_pause)
    try:
        sandbox.status.update(lambda old: ready(old, pause))
    except BaseException:
        os.kill(pause, signal.SIGKILL)
        raise


def ready(old: Status, pid: int) -> Status:
    """Return READY with *pid*, and raise once the sandbox was stopped."""
    if old.state is not State.UNKNOWN:
        raise SystemExit(f"the sandbox was stopped while it was being created: {old.reason}")
    return replace(old, state=State.READY, pid=pid)


def start_pause() -> int:
    """Start a process that does nothing and outlives the shim, and return its pid."""
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    return os.posix_spawnp("sleep", ["sleep", "infinity"], os.environ, file_actions=null)


# What happens to it.


def demonstrate(shim: subprocess.Popen[str], path: str) -> None:
    """Kill the shim, do some harm, and open the registry again."""
    say("A shim creates three sandboxes, and is killed while it creates a fourth.")
    assert shim.stdout is not None
    reached = [shim.stdout.readline().strip() for _ in EXPECTED]
    shim.kill()
    shim.wait()
    if reached != list(EXPECTED):
        raise SystemExit(f"the shim came only as far as {reached}")

    say("Meanwhile the namespace of web-0 is removed, and the pause process of web-1 is killed.")
    with Store.open(path, read_only=True) as store:
        (web_0,) = store.list(pod="web-0")
        (web_1,) = store.list(pod="web-1")
        NetNS.load(web_0.netns_path).remove()
        with web_1.open_process() or sys.exit("its pause process has ended by itself") as pause:
            pause.kill()
            pause.wait(10)

    say("Before: what the registry says when nobody has looked.")
    overview = "SELECT pod, state, pid, ip, reason FROM sandbox_overview"
    show(path, overview)

    say("A new process opens the registry, which looks at every namespace and process.")
    with Store.open(path, actor="demo") as store:
        assert store.recovery is not None
        for finding in store.recovery.findings:
            print(f"  {finding}")

    say("After:")
    show(path, overview)

    say("The operator asks the same file why:")
    query = (
        "SELECT o.pod, w.reason, w.since FROM why_not_ready w JOIN sandbox_overview o USING (id)"
    )
    print(f'  $ sqlite3 -header -column {path} \\\n      "{query}"')
    if shutil.which("sqlite3"):
        command = ["sqlite3", "-readonly", "-header", "-column", path, query]
        print(textwrap.indent(subprocess.check_output(command, text=True), "  "), end="")
    else:
        print("  (sqlite3 is not installed here; this is Python's)")
        show(path, query)

    rows = ask(path, "SELECT pod, state, reason FROM sandbox_overview")[1]
    if {pod: (state, reason) for pod, state, reason in rows} != EXPECTED:
        raise SystemExit(f"that is not what was to be expected: {EXPECTED}")


def clean_up(path: str) -> None:
    """Remove every process and namespace: the records name them all."""
    with Store.open(path, reconcile=False) as store:
        for sandbox in store.list(include_unknown=True):
            pid = sandbox.status.get().pid
            if pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if sandbox.netns is not None:
                sandbox.netns.remove()
            sandbox.delete()


# Telling it.


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n{text}\n")


def ask(path: str, query: str) -> tuple[list[str], list[tuple[object, ...]]]:
    """Return the columns and rows of *query*, through SQLite and nothing else."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        cursor = connection.execute(query)
        return [column[0] for column in cursor.description], cursor.fetchall()


def show(path: str, query: str) -> None:
    """Print the answer to *query* as a table."""
    columns, rows = ask(path, query)
    lines: list[Sequence[object]] = [[column.upper() for column in columns], *rows]
    widths = [max(len(str(cell)) for cell in cells) for cells in zip(*lines, strict=True)]
    for line in lines:
        cells = (str(cell).ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  " + "  ".join(cells).rstrip())


# Where it runs.


def in_namespaces(run: Callable[[], int], again: Sequence[str]) -> int:
    """Call *run* where namespaces can be made: here, or run *again* inside a user namespace."""
    here = ["unshare", "--mount", "--net"]
    as_user = [*here, "--user", "--map-root-user"]
    if works(here):
        return until_told_to_end(run)
    if works(as_user):
        in_run_of_its_own = 'mount -t tmpfs demo /run && mkdir /run/netns && exec "$@"'
        # In our place, so that a signal reaches who has to clean up.
        os.execvp(
            "unshare", [*as_user, "sh", "-c", in_run_of_its_own, "sh", sys.executable, *again]
        )
    print(
        "the demo needs root with CAP_SYS_ADMIN, or a kernel that lets users make namespaces",
        file=sys.stderr,
    )
    return 1


def until_told_to_end(run: Callable[[], int]) -> int:
    """Call *run*, which cleans up after itself whatever is raised: on Ctrl-C, SIGTERM, `| head`."""
    signal.signal(signal.SIGTERM, end)
    try:
        code = run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Python would try once more at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def end(number: int, _: object) -> None:
    """Raise what ends the program; another signal does not disturb its cleaning up."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def works(unshare: list[str]) -> bool:
    """Whether namespaces can be made that way."""
    if shutil.which(unshare[0]) is None:
        return False
    return subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode == 0


def run_and_clean_up() -> int:
    """Run the demo, and leave nothing behind, whatever happens."""
    with tempfile.TemporaryDirectory(prefix="sandbox-registry-demo-") as folder:
        path = f"{folder}/registry.db"
        # A group of its own: what it started can be found also where it had no time to say so.
        shim = subprocess.Popen(
            [sys.executable, __file__, "shim", path, "/run/netns"],
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        try:
            with shim:
                demonstrate(shim, path)
        finally:
            shim.kill()
            shim.wait()
            clean_up(path)
            with suppress(ProcessLookupError):
                os.killpg(shim.pid, signal.SIGKILL)
            print("\nAll of it is removed again.")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["shim"]:
        run_shim(*sys.argv[2:])
    else:
        sys.exit(in_namespaces(run_and_clean_up, [__file__]))
