"""A registry of an older revision is upgraded, and the code of that time still uses it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from contextlib import ExitStack, closing
from typing import Any

import pytest

from registry import DataLossError, Extension, SchemaVersionError, Store
from registry.tables import integrity, migrations, version
from registry.tables.upgrade_backup import PART, SUFFIX
from tests import needs
from tests.tools import (
    READY,
    contents,
    execute,
    ids,
    line,
    make_old_registry,
    old_environment,
    query,
    run,
    run_old,
    running,
    sandbox,
    say,
)

TABLES = ("sandboxes", "sandbox_statuses", "sandbox_labels", "sandbox_transitions")
"""Tables of revision 0001 beside `registry`."""


REVISIONS = ["0001", "0002", "0003"]
"""Older revisions, whose code is in tests/data."""


@pytest.fixture
def revision(request: pytest.FixtureRequest) -> str:
    """Return the revision that a test names, or the oldest."""
    return str(getattr(request, "param", "0001"))


@pytest.fixture
def path(path: str, revision: str) -> str:
    """Return a registry that the code of *revision* has made."""
    make_old_registry(path, revision)
    return path


of_each_revision = pytest.mark.parametrize("revision", REVISIONS, indirect=True)


def rows(path: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of the tables of revision 0001."""
    return {table: query(path, f"SELECT * FROM {table}") for table in TABLES}


# The upgrade.


@of_each_revision
def test_an_upgraded_registry_has_its_rows_and_the_schema_of_a_new_one(path: str) -> None:
    """Object by object; its id, and who may use it, stay."""
    before, who = rows(path), query(path, "SELECT registry_id, created_at FROM registry")
    with Store.open(path, reconcile=False) as store:
        assert [] == store.check()
        assert {} == store.get("s1").extensions
        store.get("s1").extensions.update(lambda _: {"x": b"1"})
    assert before == rows(path)
    assert who == query(path, "SELECT registry_id, created_at FROM registry")
    assert [(version.LEVEL, 1, 1)] == query(
        path, "SELECT level, min_reader, min_writer FROM registry"
    )
    assert [(version.REVISION,)] == query(path, "SELECT version_num FROM alembic_version")
    new = f"{path}.new"
    Store.open(new).close()
    assert integrity.words(query(new, integrity.OBJECTS)) == integrity.words(
        query(path, integrity.OBJECTS)
    )


def test_an_upgrade_may_be_forbidden(path: str) -> None:
    """Then the registry stays as it was, byte for byte."""
    folder = os.path.dirname(path)
    before = contents(folder)
    for options in ({"upgrade": False}, {"read_only": True}):
        with pytest.raises(SchemaVersionError, match="upgrade=True"):
            Store.open(path, **options)  # type: ignore[arg-type]
    assert before == contents(folder)


def test_processes_that_open_an_old_registry_at_once_upgrade_it_once(path: str) -> None:
    """The first one does; the others find it upgraded, and each stores its extension."""
    code = """
        import sys
        from registry import Store
        sys.stdin.readline()
        with Store.open(sys.argv[1], reconcile=False) as store:
            store.get("s1").extensions.update(lambda old: {**old, sys.argv[2]: b""})
        print("done")
        """
    before = rows(path)
    with ExitStack() as stack:
        processes = [stack.enter_context(running(code, path, n)) for n in range(4)]
        for process in processes:
            say(process)
        assert ["done"] * 4 == [line(process) for process in processes]
    assert before == rows(f"{path}{SUFFIX}")
    with Store.open(path, reconcile=False) as store:
        assert set("0123") == set(store.get("s1").extensions)
        assert [] == store.check()


# Older code.


@of_each_revision
def test_older_code_uses_the_upgraded_registry(path: str, revision: str) -> None:
    """It reads, writes and checks; what it deletes takes its extensions along, and no others."""
    with Store.open(path, reconcile=False) as store:
        for id in ("s1", "s2"):
            store.get(id).extensions.update(lambda _: {"x": b"1"})
    out = run_old(
        """
        import sys
        from dataclasses import replace
        from registry import Metadata, State, Status, Store

        with Store.open(sys.argv[1]) as store:
            assert store.recovery is not None
            print(*(each.id for each in store.list(include_unknown=True)))
            store.get("s2").status.update(lambda old: replace(old, message="by old code"))
            assert store.delete("s1")
            store.add(Metadata("s1", "n1", None), Status(State.READY))
            print(store.check())
        with Store.open(sys.argv[1], read_only=True) as store:
            print(store.get("s2").status.get().message)
        """,
        path,
        revision=revision,
    )
    assert "s0 s1 s2\n[]\nby old code\n" == out
    with Store.open(path, reconcile=False) as store:
        assert {} == store.get("s1").extensions
        assert {"x": Extension("", b"1")} == store.get("s2").extensions
        assert [] == store.check()


OLD_PROCESS = """
    import sys
    from dataclasses import replace
    from registry import Metadata, State, Status, Store

    def update():
        kept.status.update(lambda old: replace(old, message=old.message + "+"))
        return kept.status.get().message

    with Store.open(sys.argv[1], reconcile=False) as store:
        kept = store.get("s1")
        steps = {
            "list": lambda: sorted(each.id for each in store.list(include_unknown=True)),
            "update": update,
            "add": lambda: store.add(Metadata("new", "new", None), Status(State.READY)).id,
            "delete": lambda: store.delete("s2"),
            "check": store.check,
        }
        print("open", flush=True)
        for text in sys.stdin:
            print(steps[text.strip()](), flush=True)
    """


@of_each_revision
def test_a_process_of_older_code_continues_beside_the_upgrade(path: str, revision: str) -> None:
    """It has the registry open all the time; both see what the other commits."""

    def ask(step: str) -> str:
        say(old, step)
        return line(old)

    with running(OLD_PROCESS, path, env=old_environment(revision)) as old:
        assert "open" == line(old)
        assert "kept+" == ask("update")
        with Store.open(path, reconcile=False) as store:
            store.get("s2").extensions.update(lambda _: {"x": b"1"})
            assert "['s0', 's1', 's2']" == ask("list")
            assert "kept++" == ask("update")
            assert "kept++" == store.get("s1").status.get().message
            assert "new" == ask("add")
            store.get("new").extensions.update(lambda _: {"y": b"2"})
            assert "True" == ask("delete")
            assert [("new",)] == query(path, "SELECT sandbox_id FROM sandbox_extensions")
            store.add(sandbox("newer"), READY)
            assert "['new', 'newer', 's0', 's1']" == ask("list")
            assert "[]" == ask("check")
            assert [] == store.check()


# The backup.


def test_an_upgrade_leaves_a_backup_that_older_code_opens(path: str) -> None:
    """Put in the place of the registry, as docs/operators.md says, and upgraded again later."""
    before, folder = rows(path), os.path.dirname(path)
    with Store.open(path, reconcile=False) as store:
        store.delete("s1")
    backup = f"{path}{SUFFIX}"
    assert 0o600 == stat.S_IMODE(os.stat(backup).st_mode)
    assert not os.path.exists(f"{path}{PART}")
    assert before == rows(backup)
    away = f"{folder}/away"
    os.mkdir(away)
    for name in os.listdir(folder):
        if name.startswith("registry.db"):
            os.rename(f"{folder}/{name}", f"{away}/{name}")
    shutil.copyfile(f"{away}/registry.db{SUFFIX}", path)
    assert "['s1', 's2']\n" == run_old(
        """
        import sys
        from registry import Store
        with Store.open(sys.argv[1], reconcile=False) as store:
            assert not store.check()
            print([each.id for each in store.list()])
        """,
        path,
    )
    with Store.open(path, reconcile=False) as store:
        assert ["s1", "s2"] == ids(store.list())
        assert [] == store.check()


def test_a_new_registry_has_no_backup(tmp_path: Any) -> None:
    """There is nothing to keep."""
    Store.open(f"{tmp_path}/new/registry.db").close()
    assert not [name for name in os.listdir(f"{tmp_path}/new") if "before" in name]


def test_an_upgrade_that_fails_leaves_the_registry_and_its_backup(path: str) -> None:
    """The next attempt replaces the backup, and what a killed one has left."""
    before = rows(path)
    execute(path, "CREATE TABLE sandbox_extensions (a)")
    with open(f"{path}{PART}", "wb") as part:
        part.write(b"left by a kill")
    with pytest.raises(DataLossError, match="it is as it was"):
        Store.open(path)
    assert before == rows(path) == rows(f"{path}{SUFFIX}")
    assert [(1, "0001")] == query(path, "SELECT level, version_num FROM registry, alembic_version")
    execute(path, "DROP TABLE sandbox_extensions")
    Store.open(path).close()
    assert [] == query(
        f"{path}{SUFFIX}", "SELECT name FROM sqlite_master WHERE name = 'sandbox_extensions'"
    )


@pytest.mark.parametrize("revision", ["0003"], indirect=True)
@pytest.mark.parametrize("kind", ["TABLE sandbox_history (a)", "VIEW sandbox_history AS SELECT 1"])
def test_an_upgrade_leaves_a_table_of_another_tool_that_has_the_name_of_a_new_view(
    path: str, kind: str
) -> None:
    """The error names it; once it has another name, the registry is upgraded."""
    execute(path, f"CREATE {kind}")
    objects = query(path, integrity.OBJECTS)
    with pytest.raises(DataLossError, match="sandbox_history already exists; if another tool"):
        Store.open(path)
    assert objects == query(path, integrity.OBJECTS)
    execute(path, f"DROP {kind.split(maxsplit=1)[0]} sandbox_history")
    with Store.open(path) as store:
        assert [] == store.check()


@of_each_revision
def test_the_views_of_an_upgraded_registry_show_what_older_code_has_written(path: str) -> None:
    """Also of a sandbox that was added by hand, and of one that is deleted."""
    execute(
        path,
        "INSERT INTO sandboxes (id, name) VALUES ('hand', 'hand')",
        "INSERT INTO sandbox_statuses (sandbox_id, state, changed_at)"
        " VALUES ('hand', 'SANDBOX_READY', 8)",
    )
    Store.open(path, reconcile=False).close()
    epoch = "1970-01-01T00:00:00.00000000"
    columns = "id, since, labels, host_network, extensions"
    assert [
        ("hand", f"{epoch}8Z", "{}", 0, "[]"),
        *((f"s{n}", f"{epoch}7Z", f'{{"app":"app-{n}"}}', 0, "[]") for n in range(3)),
    ] == query(path, f"SELECT {columns} FROM sandbox_overview")
    assert [("deleted", f"{epoch}8Z"), ("created", f"{epoch}7Z")] == query(
        path, "SELECT event, at FROM sandbox_history WHERE id = 's3'"
    )


@needs.another_user
def test_an_upgrade_without_descriptors_says_so(path: str) -> None:
    """Whatever it cannot open: the registry, the backup or a module; with enough it upgrades."""
    code = """
        import itertools, os, resource, sys
        from registry import ResourceExhaustedError, Store

        used = len(os.listdir("/proc/self/fd")) - 1
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        for limit in itertools.count(used):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limits[1]))
            try:
                Store.open(sys.argv[1]).close()
                break
            except ResourceExhaustedError:
                pass
        print(limit > used)
        """
    assert ["True"] == run(code, path).split()
    assert version.LEVEL == query(path, "SELECT level FROM registry")[0][0]


def test_the_backup_belongs_to_the_owner_of_the_registry(path: str) -> None:
    """A command that root runs does not lock the shim out."""
    for name in os.listdir(os.path.dirname(path)):
        os.chown(f"{os.path.dirname(path)}/{name}", 65534, 65534)
    Store.open(path).close()
    found = os.stat(f"{path}{SUFFIX}")
    assert (65534, 65534) == (found.st_uid, found.st_gid)


def test_the_backup_is_made_of_the_log_too(path: str) -> None:
    """Commits that no checkpoint has moved into the database yet."""
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM sandboxes").fetchall()
        execute(path, "UPDATE sandbox_statuses SET message = 'late' WHERE sandbox_id = 's1'")
        with Store.open(path, reconcile=False):
            assert [("late",)] == query(
                f"{path}{SUFFIX}",
                "SELECT message FROM sandbox_statuses WHERE sandbox_id = 's1'",
            )


def test_the_revision_is_applied_by_alembic_in_one_transaction(path: str) -> None:
    """Rolled back, it leaves the schema of revision 0001."""
    objects = query(path, integrity.OBJECTS)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        migrations._run_alembic(connection)
        assert objects != connection.execute(integrity.OBJECTS).fetchall()
        connection.execute("ROLLBACK")
    assert objects == query(path, integrity.OBJECTS)
