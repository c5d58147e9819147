"""Figures that are counted and not timed: syncs, modules, functions and lines."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from types import CodeType, FrameType

import registry
from benchmarks import samples
from benchmarks.measure import Figure, count, of_rounds
from registry import Status, Store

PACKAGE = os.path.dirname(registry.__file__)
THREADS = 16
# One group of 16 in each round: one writer delays the others until all of them wait.
ROUNDS = """
    import sys
    from benchmarks import samples
    from registry import Store
    from tests.convoy import convoy, more
    path, rounds, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with Store.open(path, reconcile=False) as store:
        first, *others = (store.get(samples.name(n)) for n in range(threads))
        for _ in range(rounds):
            calls = [lambda handle=each: handle.status.update(more) for each in others]
            with convoy(store, first, *calls):
                pass
    """
UPDATES = 5
# Of which only common functions count: the garbage collector may close another store in one.
STARTS = {
    "import registry": "import registry",
    "open, get and update": """
        import sys
        from dataclasses import replace
        from registry import Store
        with Store.open(sys.argv[1], reconcile=False) as store:
            store.get(sys.argv[2]).status.update(lambda old: replace(old, message="started"))
    """,
    "sandbox-registry list": """
        import sys
        from registry.__main__ import main
        sys.argv = ["sandbox-registry", "--db", sys.argv[1], "list"]
        main()
    """,
    "sandbox-registry serve": """
        import sys
        from registry.shim import server
        server.serve = lambda *_: None  # all is imported when it is called
        from registry.__main__ import main
        sys.argv = ["sandbox-registry", "serve", "--db", sys.argv[1]]
        main()
    """,
}
"""Code of processes that start, by name; the arguments are a registry and the id of a sandbox."""


def measure(path: str) -> Iterator[Figure]:
    """Yield every count; *path* is a registry of at least 16 sandboxes."""
    yield syncs(path)
    yield from modules(path)
    yield functions(path)
    yield from lines()


def syncs(path: str) -> Figure:
    """Return how often the disk is synced for a group commit of 16."""
    few, many = _count_syncs(path, 5), _count_syncs(path, 25)
    each = (many - few) / 20
    return of_rounds(
        f"fsyncs for {THREADS} updates at once", [each], [float(THREADS)], "", goal="ours 1"
    )


def _count_syncs(path: str, rounds: int) -> int:
    with tempfile.NamedTemporaryFile() as log:
        strace = ["strace", "-f", "-e", "trace=fsync,fdatasync", "-o", log.name]
        args = [path, str(rounds), str(THREADS)]
        subprocess.run([*strace, sys.executable, "-c", textwrap.dedent(ROUNDS), *args], check=True)
        return sum(b"sync(" in line for line in log.read().splitlines())


def modules(path: str) -> Iterator[Figure]:
    """Yield how many modules each start imports, beyond those that Python itself has imported."""
    bare = _count_modules("", path)
    for start, code in STARTS.items():
        yield count(f"modules imported: {start}", _count_modules(code, path) - bare)


def _count_modules(code: str, path: str) -> int:
    counting = f"import sys\n{textwrap.dedent(code)}\nprint(len(sys.modules), file=sys.stderr)"
    command = [sys.executable, "-c", counting, path, samples.name(1)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stderr)


def functions(path: str) -> Figure:
    """Return how many functions of the package each `status.update` enters, each counted once."""
    updates: list[set[CodeType]] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            updates[-1].add(frame.f_code)

    def write(old: Status, message: str) -> Status:
        return replace(old, message=message)

    with Store.open(path, reconcile=False) as store:
        status = store.get(samples.name(1)).status
        for n in range(3):  # the first update opens connections
            status.update(partial(write, message=f"warm {n}"))
        for n in range(UPDATES):
            updates.append(set())
            sys.setprofile(note)
            try:
                status.update(partial(write, message=f"counted {n}"))
            finally:
                sys.setprofile(None)
    entered = set.intersection(*updates)
    return count("functions entered by one status.update", len(entered), "at most 60")


def lines() -> Iterator[Figure]:
    """Yield the lines of the engine, and of the median and the longest function of the package."""
    engine = sum(len(text.splitlines()) for path, text in _sources() if "/engine/" in path)
    yield count("lines of engine/", engine, "fewer than 2,400")
    lengths = [
        node.end_lineno - node.lineno + 1
        for _, text in _sources()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    ]
    yield count("lines of a function: median", median(lengths))
    yield count("lines of a function: longest", max(lengths), "about 30")


def _sources() -> Iterator[tuple[str, str]]:
    """Yield path and text of every module of the package that is not generated by protoc."""
    for folder, _, names in os.walk(PACKAGE):
        for name in sorted(names):
            if name.endswith(".py") and not name.endswith("_pb2.py"):
                with open(f"{folder}/{name}", encoding="utf-8") as file:
                    yield f"{folder}/{name}", file.read()
