"""Old programs beside new ones: while one writes, another brings the schema to a newer revision.

The newer program is this one, copied and given one more revision: one that old programs can live
with, one that they may only read, one that they may not even read.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from registry import SchemaVersionError, State, Store
from registry.tables import version
from tests.tools import READY, ROOT, environment, ids, python, query, sandbox

REVISION = '''
"""A revision that only tests know."""

from alembic import op

revision = {revision!r}
down_revision = {down_revision!r}


def upgrade() -> None:
    for statement in {statements!r}:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError
'''
NEXT_LEVEL = version.LEVEL + 1
NEXT = f"{NEXT_LEVEL:04}"
COMPATIBLE = [f"UPDATE registry SET level = {NEXT_LEVEL}", "CREATE TABLE extra (a TEXT) STRICT"]
READABLE = [
    f"UPDATE registry SET level = {NEXT_LEVEL}, min_writer = {NEXT_LEVEL}",
    "ALTER TABLE sandbox_statuses ADD COLUMN weight INTEGER NOT NULL DEFAULT 1",
]
STRANGE = [
    f"{READABLE[0]}, min_reader = {NEXT_LEVEL}",
    "DROP VIEW sandbox_overview",
    "ALTER TABLE sandboxes RENAME COLUMN process_label TO label",
]
UNREADABLE = [STRANGE[0], READABLE[1]]
UPGRADE = f"""
    import sys
    from registry import Store
    from registry.tables import version
    assert {NEXT!r} == version.REVISION
    Store.open(sys.argv[1], reconcile=False).close()
    """


def newer(folder: Path, statements: list[str]) -> str:
    """Return where a newer program is, whose newest revision consists of *statements*."""
    for name in ("registry", "migrations"):
        shutil.copytree(f"{ROOT}/{name}", folder / name, ignore=shutil.ignore_patterns("*.pyc"))
    source = folder / "registry" / "tables" / "version.py"
    text = source.read_text()
    text = text.replace(f'REVISION: Final = "{version.REVISION}"', f'REVISION: Final = "{NEXT}"')
    source.write_text(
        text.replace(f"LEVEL: Final = {version.LEVEL}", f"LEVEL: Final = {NEXT_LEVEL}")
    )
    revision = folder / "migrations" / "versions" / f"{NEXT}_later.py"
    revision.write_text(
        REVISION.format(revision=NEXT, down_revision=version.REVISION, statements=statements)
    )
    return str(folder)


def upgrade(program: str, path: str) -> None:
    """Have the newer program open the registry."""
    done = subprocess.run(
        python(UPGRADE, path),
        env={**environment(), "PYTHONPATH": program},
        cwd=program,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr


def test_a_revision_that_old_programs_can_live_with_is_not_noticed(
    path: str, tmp_path: Path, tried: Callable[[str], None]
) -> None:
    """A process that had it open continues, and so does one that opens it later."""
    program = newer(tmp_path / "newer", COMPATIBLE)
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
        upgrade(program, path)
        store.add(sandbox("b"), READY)
        store.get("a").status.update(lambda old: old)
        assert (["a", "b"], []) == (ids(store.list()), store.check())
    with Store.open(path) as store:
        assert store.delete("a")
        assert [] == store.check()
    assert [(NEXT_LEVEL, NEXT)] == query(
        path, "SELECT level, version_num FROM registry, alembic_version"
    )
    tried("old beside new, compatible: goes on")


def test_a_revision_that_old_programs_may_only_read_stops_their_writes(
    path: str, tmp_path: Path, tried: Callable[[str], None]
) -> None:
    """Each of them, with both revisions; nothing of them is there."""
    program = newer(tmp_path / "newer", READABLE)
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
        handle = store.get("a")
        upgrade(program, path)
        for write in (
            lambda: store.add(sandbox("b"), READY),
            lambda: handle.status.update(lambda old: old),
            handle.delete,
        ):
            with pytest.raises(SchemaVersionError) as caught:
                write()
            assert (NEXT, version.REVISION) == (caught.value.found, caught.value.supported)
        with pytest.raises(SchemaVersionError), store.transaction():
            pass
        assert State.READY is handle.status.get().state
        assert ["a"] == ids(store.list())
    with Store.open(path) as store:
        assert (["a"], None) == (ids(store.list()), store.recovery)
    assert [(1,)] == query(path, "SELECT count(*) FROM sandbox_transitions")
    tried("old beside new, readable: reads go on, writes are SchemaVersionError")


def test_a_revision_that_old_programs_may_not_read_stops_them(
    path: str, tmp_path: Path, tried: Callable[[str], None]
) -> None:
    """With the error that says so, whether or not their SQL would still run."""
    program = newer(tmp_path / "newer", STRANGE)
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
        handle = store.get("a")
        upgrade(program, path)
        for call in (
            lambda: store.add(sandbox("b"), READY),
            lambda: handle.status.update(lambda old: old),
            handle.status.get,
            handle.delete,
            store.list,
            store.history,
            lambda: store.get("a"),
            store.reconcile,
        ):
            with pytest.raises(SchemaVersionError) as caught:
                call()
            assert (NEXT, version.REVISION) == (caught.value.found, caught.value.supported)
    for read_only in (False, True):
        with pytest.raises(SchemaVersionError):
            Store.open(path, read_only=read_only)
    assert [("a", "SANDBOX_READY")] == query(path, "SELECT sandbox_id, state FROM sandbox_statuses")
    tried("old beside new, incompatible: all calls are SchemaVersionError")


WRITER = """
    import os, sys
    from registry import Metadata, SchemaVersionError, State, Status, Store
    store = Store.open(sys.argv[1], reconcile=False)
    for n in range(100_000):
        try:
            store.add(Metadata(f"s{n}", f"s{n}", None), Status(State.READY))
        except SchemaVersionError as error:
            print(n, error.found)
            break
        if n == 20:
            os.write(2, b"writing\\n")
        if os.path.exists(sys.argv[1] + "-over"):
            print(n + 1, "went on")
            break
    """


@pytest.mark.parametrize(
    "statements", [COMPATIBLE, READABLE, UNREADABLE], ids=["compatible", "readable", "unreadable"]
)
def test_a_process_that_writes_all_the_time_loses_nothing(
    path: str, tmp_path: Path, statements: list[str], tried: Callable[[str], None]
) -> None:
    """The revision comes between two of its commits, and each of them is whole."""
    program = newer(tmp_path / "newer", statements)
    process = subprocess.Popen(
        python(WRITER, path),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "writing\n" == process.stderr.readline()
    upgrade(program, path)
    (Path(path + "-over")).touch()
    out, err = process.communicate()
    assert 0 == process.returncode, err
    count, end = out.split(maxsplit=1)
    assert ("went on\n" if statements is COMPATIBLE else f"{NEXT}\n") == end
    assert [(int(count),)] * 2 == query(
        path, "SELECT count(*) FROM sandboxes UNION ALL SELECT count(*) FROM sandbox_transitions"
    )
    os.unlink(path + "-over")
    check = [sys.executable, "-m", "registry", "--db", path, "check", "--json"]
    env = {**environment(), "PYTHONPATH": program}
    done = subprocess.run(check, env=env, cwd=program, capture_output=True, check=False)
    # The newer program's own tables are those of this one, without what its revision has made: a
    # table that it does not know is left alone, as one of another tool.
    expected = set() if statements is COMPATIBLE else {"schema_is_whole"}
    assert expected == {each["rule"] for each in json.loads(done.stdout)}
    assert [(f"s{n}", f"s{n}", "SANDBOX_READY") for n in range(int(count))] == sorted(
        query(path, "SELECT id, name, state FROM sandbox_overview"), key=lambda row: int(row[0][1:])
    )
    tried(f"old beside new, writing: {count} adds, all there, then {end.strip()}")
