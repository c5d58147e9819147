"""What is counted and not timed: syncs of the disk, and SQL statements."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import groupby

from benchmarks import plain, samples
from benchmarks.measure import Figure, of_rounds
from registry import Store

THREADS = 16
# A group of 16 for each round: one keeps the others waiting until they are in line.
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


def syncs(path: str) -> Figure:
    """Return how often the disk is synced for a group commit of 16; *path* has that many."""
    few, many = _count_syncs(path, 5), _count_syncs(path, 25)
    each = (many - few) / 20
    return of_rounds(
        f"fsyncs for {THREADS} updates at once", [each], [float(THREADS)], "", goal="ours 1"
    )


def _count_syncs(path: str, rounds: int) -> int:
    with tempfile.NamedTemporaryFile() as log:
        code = "\n".join(line[4:] for line in ROUNDS.splitlines())
        strace = ["strace", "-f", "-e", "trace=fsync,fdatasync", "-o", log.name]
        command = [*strace, sys.executable, "-c", code, path, str(rounds), str(THREADS)]
        subprocess.run(command, check=True)
        return sum(b"sync(" in line for line in log.read().splitlines())


def statements(path: str, plain_path: str) -> Iterator[Figure]:
    """Yield how many SQL statements a call runs."""
    with (
        Store.open(path, reconcile=False) as store,
        closing(plain.Plain(plain_path)) as reference,
    ):
        id, seen = samples.name(1), list[str]()
        status = store.get(id).status
        works: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
            ("get(id)", lambda: store.get(id), lambda: reference.get(id)),
            ("status.get()", status.get, lambda: reference.status(id)),
            ("list()", store.list, reference.all),
            (
                "status.update()",
                lambda: status.update(lambda old: replace(old, message=f"{old.message}.")),
                lambda: reference.update(id, "."),
            ),
            (
                "add()",
                lambda: store.add(*samples.sandbox(777_777)),
                lambda: reference.add(samples.sandbox(777_777)),
            ),
        ]
        for _, ours, _ in (works[3], *works[:3]):  # what only the first of each asks is not counted
            ours()
        engine = store._session.engine  # noqa: SLF001
        connections = [
            engine.writer.connection,
            engine.data_version._connection,  # noqa: SLF001
            *engine._readers._idle,  # noqa: SLF001
        ]
        for connection in (*connections, reference.connection):
            assert connection is not None
            connection.set_trace_callback(seen.append)
        for work, ours, theirs in works:
            counts = []
            for call in (ours, theirs):
                seen.clear()
                call()
                # A statement is shown again for each trigger of it.
                counts.append(float(sum(1 for _ in groupby(seen))))
            yield of_rounds(f"SQL statements: {work}", counts[:1], counts[1:], "")
