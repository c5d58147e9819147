"""Tools of several tests: sandboxes to add, and other processes that use the registry."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeVar

import registry
from registry import Metadata, Sandbox, State, Status
from registry.cri import PodSandboxConfig
from registry.host import kernel

T = TypeVar("T")

LONG = os.environ.get("FAULTS") == "long"
"""True when tests try everything, as by `make test-faults`, instead of a selection."""

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(registry.__file__)))

READY = Status(State.READY, created_at=1_000)
UNKNOWN = Status(State.UNKNOWN)
NOTREADY = Status(State.NOTREADY)


class Stop(BaseException):
    """Exception that no code of the package expects."""


def pod(name: str = "web", namespace: str = "default", **labels: str) -> PodSandboxConfig:
    """Return a config of a pod."""
    config = PodSandboxConfig(labels=labels)
    config.metadata.name, config.metadata.namespace, config.metadata.uid = name, namespace, "uid-1"
    return config


def sandbox(id: str, **fields: Any) -> Metadata:
    """Return valid metadata with a name that is made from the id."""
    fields.setdefault("name", f"name-{id}")
    fields.setdefault("config", pod())
    return Metadata(id=id, **fields)


def python(code: str, *args: object) -> list[str]:
    """Return the command that runs the Python *code* with *args* in sys.argv[1:]."""
    return [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]


def environment() -> dict[str, str]:
    """Return an environment in which a child process imports this checkout."""
    return {**os.environ, "PYTHONPATH": ROOT, "PYTHONWARNINGS": "error", "PYTHONUNBUFFERED": "1"}


def run(code: str, *args: object, timeout: float | None = None, expected: int = 0) -> str:
    """Run *code* in another process, and return its standard output.

    Args:
        timeout: seconds that the process may take; default: as long as a test.
        expected: exit code that the process must have.
    """
    done = subprocess.run(
        python(code, *args),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert expected == done.returncode, done.stderr
    return done.stdout


OLD_CODE = os.path.join(ROOT, "tests", "data", "registry-{}.zip")
"""The package as it was when the newest revision was 0001, 0002 or 0003, without command line and
shim; made by `git archive --format=zip` of commits eb8636f, a7b9b41 and 61b354c, before the next
revision."""


def old_environment(revision: str = "0001") -> dict[str, str]:
    """Return an environment in which a child process imports the package of *revision*."""
    return {**environment(), "PYTHONPATH": OLD_CODE.format(revision), "PYTHONSAFEPATH": "1"}


def run_old(code: str, *args: object, revision: str = "0001") -> str:
    """Run *code* with the package of *revision*, and return its standard output."""
    head = f"from registry.tables import version\nassert {revision!r} == version.REVISION\n"
    done = subprocess.run(
        python(head + textwrap.dedent(code), *args),
        env=old_environment(revision),
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout


def make_old_registry(path: str, revision: str = "0001") -> None:
    """Make a registry of *revision* by the code of that time: three sandboxes, one deleted."""
    run_old(
        """
        import sys
        from dataclasses import replace
        from registry import Metadata, State, Status, Store
        from registry.cri import PodSandboxConfig

        with Store.open(sys.argv[1], actor="old", clock=lambda: 7) as store:
            for n, state in enumerate(["UNKNOWN", "READY", "NOTREADY", "READY"]):
                config = PodSandboxConfig(labels={"app": f"app-{n}"})
                config.metadata.name, config.metadata.namespace = f"pod-{n}", "default"
                store.add(Metadata(f"s{n}", f"n{n}", config, ip="10.0.0.1"), Status(State[state]))
            store.get("s1").status.update(lambda old: replace(old, message="kept"))
            store.delete("s3")
            assert not store.check()
        """,
        path,
        revision=revision,
    )


@contextmanager
def running(
    code: str, *args: object, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run *code* in another process during the block, and kill it at the end.

    Args:
        env: environment of the process; default: `environment`.
    """
    process = subprocess.Popen(
        python(code, *args),
        env=env or environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        # Not by communicate(): the pipes reach no end while a child of the process lives.
        for pipe in (process.stdin, process.stdout, process.stderr):
            with suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]


def line(process: subprocess.Popen[str]) -> str:
    """Return the next line of a running process; fail with its stderr if it has ended."""
    assert process.stdout is not None
    text = process.stdout.readline().rstrip("\n")
    if not text and process.poll() is not None:
        assert process.stderr is not None
        raise AssertionError(f"exit {process.returncode}: {process.stderr.read()}")
    return text


def say(process: subprocess.Popen[str], text: str = "") -> None:
    """Send a line to a running process."""
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()


def is_recent(moment: int) -> bool:
    """Return whether *moment* (ns since 1970) is less than a day away from now.

    A machine that was just booted sets its clock while tests run: steps of it must not matter.
    """
    return abs(moment - time.time_ns()) < 24 * 3600 * 10**9


def until(condition: Callable[[], object], found: Callable[[], object] = lambda: "") -> None:
    """Wait at most 240 s until *condition* is true; *found* returns the text for a failure."""
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, f"timed out after 240 s {found()}"
        time.sleep(0.002)


def query(path: str, sql: str) -> list[tuple[Any, ...]]:
    """Return the rows of plain SQL, through a new connection."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def execute(path: str, *statements: str) -> None:
    """Run plain SQL as an operator does, and commit."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def fill(count: int) -> str:
    """Return the SQL that adds *count* transitions: a sandbox is added and deleted in turn."""
    return (
        f"WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {count})"
        " INSERT INTO sandbox_transitions (sandbox_id, name, pod, namespace, uid, event,"
        " from_state, to_state, pid, reason, message, actor, at) SELECT 'x', 'x', '', '', '',"
        " iif(n % 2, 'created', 'deleted'), iif(n % 2, NULL, 'SANDBOX_READY'),"
        " iif(n % 2, 'SANDBOX_READY', NULL), 0, '', '', '', n FROM n"
    )


def fill_history(path: str, count: int) -> None:
    """Commit *count* transitions by plain SQL, for speed."""
    execute(path, fill(count))


def sqlite_shell(path: str, sql: str) -> None:
    """Run SQL in the `sqlite3` program, or where that is not installed in another Python process.

    Raises:
        CalledProcessError: the program failed, with what it said.
    """
    command = ["sqlite3", "-bail", "-cmd", ".timeout 60000", path, sql]
    if shutil.which("sqlite3") is None:
        code = """
            import sqlite3, sys
            connection = sqlite3.connect(sys.argv[1], timeout=60)
            connection.executescript(sys.argv[2])
            connection.close()
            """
        command = python(code, path, sql)
    subprocess.run(command, capture_output=True, text=True, check=True)


def tamper(path: str, *statements: str) -> None:
    """Run plain SQL without triggers and constraints, and restore the triggers."""
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        triggers = shell.execute(query).fetchall()
        shell.execute("PRAGMA ignore_check_constraints = ON")
        for name, _ in triggers:
            shell.execute(f"DROP TRIGGER {name}")
        for statement in (*statements, *(sql for _, sql in triggers)):
            shell.execute(statement)


def end_pid_namespaces(path: str) -> None:
    """Replace the recorded pid namespaces by one that does not exist.

    A pid namespace other than the initial one, as in a container, contradicts a reboot.
    """
    tamper(
        path,
        "UPDATE sandbox_statuses SET process_pid_ns = 1000000000123456",
        "UPDATE sandboxes SET creator_pid_ns = 1000000000123456",
    )


def is_locked(path: str) -> bool:
    """Return whether the file at *path* is locked by `flock`."""
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def small_file_system(folder: str, mebibytes: int, *more: str) -> Iterator[str]:
    """Mount a tmpfs of *mebibytes* at the new directory *folder*, with *more* mount options."""
    os.mkdir(folder)
    options = ",".join((f"size={mebibytes}m", *more))
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", folder], check=True)
    try:
        yield folder
    finally:
        kernel.umount(folder, kernel.MNT_DETACH)


def in_another_thread(fn: Callable[[], T]) -> T:
    """Call *fn* in another thread, and return its result."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(fn).result()


def ids(found: Iterable[Sandbox]) -> list[str]:
    """Return the ids of the sandboxes, in order."""
    return [each.id for each in found]


def contents(folder: str) -> dict[str, str]:
    """Return the type and the hash of each file in *folder*.

    Other processes read them: a close in this one would drop the locks that SQLite holds here.
    """
    found = {
        each.name: oct(each.stat(follow_symlinks=False).st_mode) for each in os.scandir(folder)
    }
    files = [name for name in found if os.path.isfile(f"{folder}/{name}")]
    if files:
        command = ["sha256sum", "--", *files]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        for text in done.stdout.splitlines():
            digest, _, name = text.removeprefix("\\").partition("  ")
            found[name] += f" {digest}"
    return found
