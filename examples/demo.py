"""Demo of a crash: a shim is killed while it creates a sandbox, and a restart recovers.

    make demo

A small shim creates three sandboxes, two with a network namespace and a pause process of their own
and one on the host network. It is killed with SIGKILL while it creates a fourth. Then a namespace
is removed, a pause process is killed, and the registry is opened again.

The demo makes real namespaces and processes; without root it runs in a user namespace. At the end
it removes everything that the registry records.
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

from registry import Metadata, NetNS, Sandbox, State, Status, Store
from registry.cri import NamespaceMode, PodSandboxConfig

EXPECTED = {
    "web-0": ("SANDBOX_NOTREADY", "NetNSClosed"),
    "web-1": ("SANDBOX_NOTREADY", "ProcessExited"),
    "proxy": ("SANDBOX_READY", ""),
    "web-2": ("SANDBOX_NOTREADY", "CreationInterrupted"),
}


# The shim.


def run_shim(path: str, base_dir: str) -> None:
    """Create the sandboxes and print each; the process is killed before the last is READY."""
    store = Store.open(path, actor="demo-shim")
    for pod in ("web-0", "web-1", "proxy"):
        run_sandbox(store, pod, base_dir)
        print(pod, flush=True)
    run_sandbox(store, "web-2", base_dir, stop_before_ready=True)


def run_sandbox(store: Store, pod: str, base_dir: str, *, stop_before_ready: bool = False) -> None:
    """Record the sandbox, create what was recorded, then mark the sandbox READY."""
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
    pause = 0
    try:
        if on_host:
            pause = start_pause()
        else:
            netns = NetNS.create(sandbox.netns_path)
            store.update_metadata(sandbox.id, lambda old: replace(old, ip=f"10.88.0.{pod[-1]}"))
            if stop_before_ready:
                print(pod, flush=True)
                signal.pause()  # SIGKILL ends the shim here
            pause = netns.do(start_pause)
        sandbox.status.update(lambda old: ready(old, pause))
    except BaseException:  # a step failed, or the sandbox was stopped: undo the steps
        if pause:
            os.kill(pause, signal.SIGKILL)
        remove(sandbox)
        raise


def ready(old: Status, pid: int) -> Status:
    """Return READY with *pid*; raise if the sandbox was stopped meanwhile."""
    if old.state is not State.UNKNOWN:
        raise SystemExit(f"the sandbox was stopped while it was being created: {old.reason}")
    return replace(old, state=State.READY, pid=pid)


def start_pause() -> int:
    """Start a process that sleeps and outlives the shim; return its pid."""
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    return os.posix_spawnp("sleep", ["sleep", "infinity"], os.environ, file_actions=null)


def remove(sandbox: Sandbox) -> None:
    """End process and namespace that the record names, then delete the record. Idempotent."""
    kill(sandbox)
    sandbox.remove_netns()
    sandbox.delete()


def kill(sandbox: Sandbox) -> None:
    """Kill the recorded process, and wait for its end."""
    process = sandbox.open_process()
    if process is not None:  # None: the process has ended, or no pid is recorded
        with process:
            process.kill()
            process.wait(10)


# The crash and the recovery.


def demonstrate(shim: subprocess.Popen[str], path: str) -> None:
    """Kill the shim, remove a namespace, kill a process, and open the registry again."""
    say("A shim creates three sandboxes, and is killed while it creates a fourth.")
    assert shim.stdout is not None
    reached = [shim.stdout.readline().strip() for _ in EXPECTED]
    shim.kill()
    shim.wait()
    if reached != list(EXPECTED):
        raise SystemExit(f"the shim has created only {reached}")

    say("Meanwhile the namespace of web-0 is removed, and the pause process of web-1 is killed.")
    with Store.open(path, read_only=True) as store:
        (web_0,) = store.list(pod="web-0")
        (web_1,) = store.list(pod="web-1")
        web_0.remove_netns()
        kill(web_1)

    say("Before the restart the registry still shows the last recorded state.")
    overview = "SELECT pod, state, pid, ip, reason FROM sandbox_overview"
    show(path, overview)

    say("A new process opens the registry, which observes every namespace and process.")
    with Store.open(path, actor="demo") as store:
        assert store.recovery is not None
        for finding in store.recovery.findings:
            print(f"  {finding}")

    say("After:")
    show(path, overview)

    say("An operator queries the same file for the reasons:")
    show_reasons(path)

    rows = ask(path, "SELECT pod, state, reason FROM sandbox_overview")[1]
    if {pod: (state, reason) for pod, state, reason in rows} != EXPECTED:
        raise SystemExit(f"the demo expected {EXPECTED}")


def show_reasons(path: str) -> None:
    """Print why sandboxes are not ready, as the `sqlite3` shell shows it."""
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


def clean_up(path: str) -> None:
    """Remove every sandbox of the registry at *path*."""
    with Store.open(path, reconcile=False) as store:
        for sandbox in store.list(include_unknown=True):
            remove(sandbox)


# Output.


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n{text}\n")


def ask(path: str, query: str) -> tuple[list[str], list[tuple[object, ...]]]:
    """Return the columns and rows of *query*, by plain sqlite3."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        cursor = connection.execute(query)
        return [column[0] for column in cursor.description], cursor.fetchall()


def show(path: str, query: str) -> None:
    """Print the rows of *query* as a table."""
    columns, rows = ask(path, query)
    lines: list[Sequence[object]] = [[column.upper() for column in columns], *rows]
    widths = [max(len(str(cell)) for cell in cells) for cells in zip(*lines, strict=True)]
    for line in lines:
        cells = (str(cell).ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  " + "  ".join(cells).rstrip())


# Namespaces and signals.


def in_namespaces(run: Callable[[], int], again: Sequence[str]) -> int:
    """Call *run* if namespaces can be made here; else run *again* inside a user namespace."""
    here = ["unshare", "--mount", "--net"]
    as_user = [*here, "--user", "--map-root-user"]
    if works(here):
        return with_clean_exit(run)
    if works(as_user):
        in_run_of_its_own = 'mount -t tmpfs demo /run && mkdir /run/netns && exec "$@"'
        # Replaces this process, so that signals reach the process that cleans up.
        os.execvp(
            "unshare", [*as_user, "sh", "-c", in_run_of_its_own, "sh", sys.executable, *again]
        )
    print(
        "the demo needs root with CAP_SYS_ADMIN, or a kernel that lets users make namespaces",
        file=sys.stderr,
    )
    return 1


def with_clean_exit(run: Callable[[], int]) -> int:
    """Call *run*; return the exit code, also after Ctrl-C and when the pipe of stdout is closed."""
    signal.signal(signal.SIGTERM, end)
    try:
        code = run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Python would write the rest at exit, and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def end(number: int, _: object) -> None:
    """Raise SystemExit; further signals are ignored, so that the clean-up runs to its end."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def works(unshare: list[str]) -> bool:
    """Return whether the command *unshare* can make namespaces."""
    if shutil.which(unshare[0]) is None:
        return False
    return subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode == 0


def run_and_clean_up() -> int:
    """Run the demo, and remove everything that it has created, also when it fails."""
    with tempfile.TemporaryDirectory(prefix="sandbox-registry-demo-") as folder:
        path = f"{folder}/registry.db"
        # A process group of its own, by which processes are found whose pid was not recorded yet.
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
