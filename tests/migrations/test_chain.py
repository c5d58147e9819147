"""The chain of revisions, the schema that `open` creates, and the developer's alembic commands."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from registry import DataLossError, RegistryError, Store
from registry.tables import integrity, migrations, schema, version
from tests.tools import READY, ROOT, contents, environment, execute, query, run, sandbox


def built_by_revisions(path: str) -> str:
    """Create a registry at *path* by Alembic's revisions, as an upgrade runs them."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        migrations._run_alembic(connection)
        connection.execute("COMMIT")
    return path


def test_the_revisions_and_the_schema_build_the_same_database(path: str, tmp_path: Path) -> None:
    """Object by object and column by column, with the same rows and the same application_id."""
    Store.open(path).close()
    chain = built_by_revisions(str(tmp_path / "chain.db"))
    objects = "SELECT type || ' ' || name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    objects += " AND name <> 'sqlite_sequence'"
    assert integrity.words(query(chain, objects)) == integrity.words(query(path, objects))
    assert 7 == sum(key.startswith("table") for key, _ in query(path, objects))
    for table in (*schema.metadata.tables, "alembic_version"):
        columns = f"SELECT * FROM pragma_table_xinfo('{table}')"
        assert query(chain, columns) == query(path, columns)
        keys = f"SELECT * FROM pragma_foreign_key_list('{table}')"
        assert query(chain, keys) == query(path, keys)
    for stored in (
        "PRAGMA application_id",
        "SELECT * FROM alembic_version",
        "SELECT one, level, min_reader, min_writer FROM registry",
    ):
        assert query(chain, stored) == query(path, stored)


def test_a_registry_that_revisions_have_built_is_used_as_it_is(path: str) -> None:
    """It is up to date, and no invariant is violated."""
    with Store.open(built_by_revisions(path)) as store:
        store.add(sandbox("a"), READY)
        assert [] == store.check()


def test_every_revision_is_in_one_line_that_ends_in_ours() -> None:
    """One head, one base, and the level counts them."""
    config = Config()
    config.set_main_option("script_location", migrations.scripts())
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    chain = [script.revision for script in scripts.walk_revisions()]
    assert [version.REVISION] == scripts.get_heads()
    assert version.LEVEL == len(chain)


def test_tables_are_strict_and_every_constraint_has_a_name(store: Store, path: str) -> None:
    """SQLite's batch migrations find only what has one."""
    store.list()
    for name, sql in query(path, "SELECT name, sql FROM sqlite_master WHERE type = 'table'"):
        if name in schema.metadata.tables:
            assert sql.rstrip().endswith("STRICT")
            checks = len(re.findall(r"\bCHECK \(", sql))
            assert checks == len(re.findall(r"CONSTRAINT \w+ CHECK \(", sql))
            assert len(re.findall("FOREIGN KEY", sql)) == len(
                re.findall(r"CONSTRAINT \w+ FOREIGN KEY", sql)
            )


@pytest.mark.parametrize("step", ["_create", "_run_alembic"])
def test_a_creation_or_an_upgrade_that_fails_leaves_nothing(
    path: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Each is one transaction with the record of its revision; the next open begins again."""
    if step == "_run_alembic":
        Store.open(path).close()
        execute(path, "UPDATE registry SET level = 0")
    before = query(path, "SELECT name FROM sqlite_master")
    change = getattr(migrations, step)

    def fail(connection: sqlite3.Connection) -> None:
        change(connection)
        connection.execute("CREATE TABLE half (a)")
        raise OSError("power is out")

    monkeypatch.setattr(migrations, step, fail)
    with pytest.raises(OSError, match="power"):
        Store.open(path)
    monkeypatch.undo()
    assert before == query(path, "SELECT name FROM sqlite_master")
    with Store.open(path) as store:
        found = [str(violation) for violation in store.check()]
        assert all("level 0" in each for each in found)


def test_an_older_registry_is_upgraded_or_refused(path: str) -> None:
    """Level 0 stands for any older one: open would run the missing revisions, and says so."""
    Store.open(path).close()
    execute(path, "UPDATE registry SET level = 0")
    for options in ({"upgrade": False}, {"read_only": True}):
        with pytest.raises(RegistryError, match="upgrade=True"):
            Store.open(path, **options)  # type: ignore[arg-type]


def alembic(*args: str, cwd: str = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the developer's command in the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "alembic", *args],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_developers_alembic_upgrades_a_registry(path: str) -> None:
    """`upgrade head` makes what `open` takes, and `current` tells the revision."""
    done = alembic("-x", f"db={path}", "upgrade", "head")
    assert 0 == done.returncode, done.stderr
    done = alembic("-x", f"db={path}", "current")
    assert f"{version.REVISION} (head)" in done.stdout
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
        assert [] == store.check()


def test_the_developers_alembic_without_a_database_says_what_to_do() -> None:
    """Instead of making one somewhere."""
    done = alembic("upgrade", "head")
    assert 0 != done.returncode
    assert "-x db=PATH" in done.stderr


def test_the_developers_alembic_begins_a_revision(tmp_path: Path) -> None:
    """In a copy of the checkout, named as the others are."""
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", f"{ROOT}/migrations", f"{ROOT}/alembic.ini", tmp_path], check=True)
    copy.mkdir()
    for name in ("migrations", "alembic.ini"):
        os.rename(tmp_path / name, copy / name)
    new = f"{version.LEVEL + 1:04}"
    done = alembic("revision", "--rev-id", new, "-m", "what changes", cwd=str(copy))
    assert 0 == done.returncode, done.stderr
    made = copy / "migrations" / "versions" / f"{new}_what_changes.py"
    text = made.read_text()
    assert f'revision: Final = "{new}"' in text
    assert f'down_revision: Final = "{version.REVISION}"' in text
    compile(text, str(made), "exec")


def test_open_refuses_a_file_with_another_application_id(path: str) -> None:
    """Alembic alone would not notice it."""
    execute(path, "CREATE TABLE t (a)", "PRAGMA application_id = 42")
    with pytest.raises(DataLossError):
        Store.open(path)


def test_creating_needs_no_package_on_the_command_line(path: str) -> None:
    """The revisions are found from any working directory."""
    out = run(
        """
        import os, sys
        os.chdir("/")
        from registry import Store
        with Store.open(sys.argv[1]) as store:
            print(store.list())
        """,
        path,
    )
    assert "[]" == out.strip()
    with closing(sqlite3.connect(path)) as connection:
        assert (version.APPLICATION_ID,) == connection.execute("PRAGMA application_id").fetchone()


@pytest.mark.parametrize("with_migrations", [False, True], ids=["without", "with"])
def test_a_package_in_a_zip_file_creates_registries_and_upgrades_none(
    tmp_path: Path, path: str, with_migrations: bool
) -> None:
    """An upgrade needs the revisions as files: the error says so, and an older registry stays."""
    archive = tmp_path / "registry.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for folder in ["registry", *["migrations"] * with_migrations]:
            for file in Path(ROOT, folder).rglob("*.py"):
                name = file.relative_to(ROOT)
                packed.write(file, f"registry/{name}" if folder == "migrations" else name)
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from registry import FailedPreconditionError, Metadata, State, Status, Store
        assert ".zip" in sys.modules["registry"].__file__
        try:
            with Store.open(sys.argv[2]) as store:
                store.add(Metadata("a", "a", None), Status(State.READY))
                print(len(store.list()), store.check())
        except FailedPreconditionError as error:
            print(error)
        """
    assert "1 []\n" == run(code, archive, path)
    execute(path, "UPDATE registry SET level = 0")
    before = contents(os.path.dirname(path))
    assert "install the package unpacked" in run(code, archive, path)
    assert before == contents(os.path.dirname(path))
